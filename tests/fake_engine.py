"""A text-to-speech engine for tests: tones that depend on text, voice, rate and seed. Found as `fake_engine:open_fake`."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from aura.errors import AuraError
from aura.synthesis.engine import Prosody, Voice


class FakeEngine:
    name = "fake"
    licence = "free"
    version = "fake-1"

    def __init__(self, names: Sequence[str] = ("ann", "bob", "cid")) -> None:
        self.names = names
        self.spoken: list[tuple[str, str]] = []

    def voices(self) -> Sequence[Voice]:
        return [*(Voice(name=name, licence="public domain") for name in self.names), Voice(name="dora", lang="es")]

    def speak(self, text: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, int]:
        time.sleep(float(os.environ.get("FAKE_ENGINE_SECONDS", "0")))
        if "unspeakable" in text:
            raise AuraError(f"no sound for {text!r}")
        self.spoken.append((text, voice))
        rng = np.random.default_rng([zlib.crc32(f"{text}/{voice}".encode()), prosody.seed])
        n = int(22_050 * 0.05 * len(text) / prosody.rate) + 4000
        tone = np.sin(2 * np.pi * rng.uniform(150, 300) * np.arange(n) / 22_050)
        speech = 0.3 * tone + 0.01 * prosody.liveliness * rng.standard_normal(n)
        return np.pad(speech, (3000, 5000)).astype(np.float32), 22_050


def open_fake(options: Any) -> FakeEngine:
    return FakeEngine()
