"""hear/near.py: what sounds nearly like a word, and never is one that is known."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aura.data.manifest import read_utterances
from aura.data.utterance import no_speech_kind
from aura.errors import DataError
from aura.synthesis.engine import Prosody, Voice

ROOT = Path(__file__).parent.parent
SPOKEN = {"two": "tˈuː", "too": "tˈuː", "four": "fˈɔːɹ", "zero": "zˈiəɹoʊ", "toy": "tˈɔɪ", "us": "ʌs"}


@pytest.fixture
def near(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "hear"))
    return importlib.import_module("near")


class Speaker:
    """Says every text as two tones, as long as it has letters; which ones is remembered."""

    name, licence, version = "kokoro", "none", "tones-1"

    def __init__(self) -> None:
        self.said: list[tuple[str, str]] = []

    def voices(self) -> Sequence[Voice]:
        return [Voice(name="af_one"), Voice(name="bm_two")]

    def speak(self, text: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, int]:
        self.said.append((text, voice))
        times_N = np.arange(1600 * len(text)) / 16_000
        tones_N = np.sin(2 * np.pi * 1000 * times_N) + np.sin(2 * np.pi * 6000 * times_N)
        return (0.1 * tones_N).astype(np.float32), 16_000


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    package, module = ModuleType("kokoro_onnx"), ModuleType("kokoro_onnx.tokenizer")
    module.Tokenizer = lambda: SimpleNamespace(phonemize=lambda word, lang: SPOKEN[word])  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kokoro_onnx", package)
    monkeypatch.setitem(sys.modules, "kokoro_onnx.tokenizer", module)


def test_a_change_is_none_that_an_accent_makes(near: Any) -> None:
    rng = np.random.default_rng(0)
    known = {near.bare(spoken) for spoken in SPOKEN.values()}
    found = {near.near(SPOKEN["two"], known, rng) for _ in range(2000)}
    assert len(found) > 20 and not {near.bare(spoken) for spoken in found} & known
    assert {"sˈuː", "tˈuːn", "ʃtˈuː", "tˈaɪ"} <= found
    assert (
        not {"dˈuː", "kˈuː", "tˈʊ", "ttˈuː", "tˈɔɪ"} & found
    )  # a voiced t, a k, a short u, twice the same; a known word
    assert all(spoken.count("ˈ") == 1 for spoken in found)
    longer = {near.near(SPOKEN["zero"], known, rng) for _ in range(2000)}
    assert all("ə" in spoken for spoken in longer)  # a vowel of no colour stays


def test_what_has_no_phoneme_is_refused(near: Any) -> None:
    with pytest.raises(DataError, match="no phoneme that can be changed"):
        near.near("ˈˌ", set(), np.random.default_rng(0))


@pytest.mark.usefixtures("tokenizer")
def test_the_lists_and_their_words_come_in_turn(near: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaker = Speaker()
    lists = (["two", "four", "zero"], ["toy", "us"])
    rows = near.speak(speaker, lists, tmp_path / "out", 8)
    assert [row["source"].split(":")[0] for row in rows] == ["two", "toy", "four", "us", "zero", "toy", "two", "us"]
    assert {row["speaker"] for row in rows} == {"kokoro:af_one", "kokoro:bm_two"}
    assert all(text == f"[[{row['source'].split(': ')[1]}]]" for (text, _), row in zip(speaker.said, rows, strict=True))
    utterances = list(read_utterances(tmp_path / "out" / "manifest.jsonl"))
    assert {no_speech_kind(utterance.label) for utterance in utterances} == {"language"}
    powers = [np.abs(np.fft.rfft(utterance.audio[0].load())) ** 2 for utterance in utterances]
    above = [power_F[len(power_F) * 42 // 80 :].sum() / power_F.sum() for power_F in powers]  # 4.2 kHz
    assert [share < 1e-3 for share in above] == [False, True, True, False] * 2  # as a telephone carries it
    kept = tmp_path / "out" / rows[1]["audio"]
    (tmp_path / "out" / rows[0]["audio"]).unlink()
    before = kept.stat().st_mtime_ns
    assert near.speak(speaker, lists, tmp_path / "out", 8) == rows and kept.stat().st_mtime_ns == before
    assert len(speaker.said) == 9


def test_what_is_missing_is_said_in_one_line(
    near: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none.txt").write_text("\n")
    monkeypatch.setattr(near, "open_engine", lambda name, options: Speaker())
    words = ["near.py", str(tmp_path / "none.txt"), "--out", str(tmp_path / "out"), "--kokoro-voices", "v"]
    monkeypatch.setattr(sys, "argv", words)
    assert near.main() == 2
    assert capsys.readouterr().err.strip().endswith("none.txt has no words; expected one a line")
