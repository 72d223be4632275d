"""The end of a turn: found by Silero, however the audio is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aura.audio.waveform import load_waveform
from aura.errors import AudioError, MissingExtraError, RecipeError
from aura.inference import endpoint
from aura.inference.endpoint import Endpointer

RATE = 16_000
WORDS = Path(__file__).parent.parent / "demo" / "data" / "jackson.opus"

pytest.importorskip("silero_vad")
pytest.importorskip("onnxruntime")


def turn(before: float = 0.8, words: float = 2.0, after: float = 1.5) -> np.ndarray:
    """Digits between silences, with a faint noise as rooms have it."""
    speech = load_waveform(WORDS, start=0.0, end=words)
    noise = np.random.default_rng(0).standard_normal(round((before + words + after) * RATE)).astype(np.float32) * 1e-4
    noise[round(before * RATE) :][: len(speech)] += speech
    return noise


def states(endpointer: Endpointer, wave: np.ndarray, chunk: int) -> list[tuple[float, str]]:
    """(seconds heard, state) where the state changes."""
    found: list[tuple[float, str]] = []
    for first in range(0, len(wave), chunk):
        state = endpointer.feed(wave[first : first + chunk])
        if not found or found[-1][1] != state:
            found.append((min(len(wave), first + chunk) / RATE, state))
    return found


@pytest.mark.parametrize("chunk", [160, 512, 1600, 7001])
def test_one_turn_is_silence_speech_end_silence(chunk: int) -> None:
    endpointer = Endpointer(min_silence=0.5)
    found = states(endpointer, turn(), chunk)
    assert [state for _, state in found] == ["silence", "speech", "end", "silence"]
    slack = chunk / RATE + 0.3
    assert 0.7 <= found[1][0] <= 0.8 + slack
    assert 2.8 + 0.2 <= found[2][0] <= 2.8 + 0.5 + slack, "half a second of silence, then the end"
    assert endpointer.speech_start == pytest.approx(0.8, abs=0.3)
    assert endpointer.speech_end == pytest.approx(2.8, abs=0.4)


def test_a_longer_silence_is_waited_for_and_reset_forgets() -> None:
    endpointer = Endpointer(min_silence=1.2)
    first = states(endpointer, turn(), 1600)
    assert [state for _, state in first][:3] == ["silence", "speech", "end"] and first[2][0] > 3.6
    endpointer.reset()
    assert endpointer.speech_start is None and states(endpointer, turn(), 1600) == first


def test_threads_of_the_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(endpoint, "require", lambda module, **_: torch.set_num_threads(1))
        endpoint._silero()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_integer_pcm_and_what_is_no_audio() -> None:
    endpointer = Endpointer()
    wave = turn()
    found = {endpointer.feed((wave[n : n + 1600] * 32_767).astype(np.int16)) for n in range(0, len(wave), 1600)}
    assert found == {"silence", "speech", "end"}
    with pytest.raises(AudioError, match="expected a NumPy array"):
        endpointer.feed([0.0])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "match"), [({"min_silence": 0.0}, "min_silence is 0"), ({"threshold": 1.0}, "threshold is 1")]
)
def test_numbers_that_cannot_work(options: dict[str, float], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        Endpointer(**options)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "silero_vad", None)
    with pytest.raises(MissingExtraError, match=r"endpointing needs the package 'silero_vad'.*aura-lora\[stream\]"):
        Endpointer()
