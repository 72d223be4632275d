"""hear/numerals.py: what is said in which language, and that it is said again in the same way."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aura.data.manifest import read_utterances
from aura.data.utterance import no_speech_kind
from aura.synthesis.engine import Prosody, Voice
from aura.synthesis.foreign import SENTENCES, espeak_voice

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@pytest.fixture
def numerals(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "hear"))
    return importlib.import_module("numerals")


def test_no_language_of_a_test_is_counted_in(numerals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "hear"))
    recorded = importlib.import_module("recorded")
    tested = {s.sound for part, sources in recorded.SOURCES.items() if not part.startswith("train") for s in sources}
    assert not set(numerals.LANGUAGES) & ({"en"} | tested | set(SENTENCES["valid"]) | set(SENTENCES["test"]))
    assert len(set(numerals.LANGUAGES)) == len(numerals.LANGUAGES) >= 50


def test_every_other_numeral_is_as_a_telephone_carries_it(
    numerals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerals, "LANGUAGES", ("de", "fr", "tr"))
    rows = numerals.speak(tmp_path / "out", 6, 0)
    assert [row["lang"] for row in rows] == ["de", "fr", "tr"] * 2 and len({row["id"] for row in rows}) == 6
    utterances = list(read_utterances(tmp_path / "out" / "manifest.jsonl"))
    assert {no_speech_kind(utterance.label) for utterance in utterances} == {"language"}
    for place, (row, utterance) in enumerate(zip(rows, utterances, strict=True)):
        assert 0 <= int(row["source"]) <= numerals.LARGEST
        power_F = np.abs(np.fft.rfft(utterance.audio[0].load())) ** 2
        above = power_F[round(len(power_F) * 4200 / 8000) :].sum() / power_F.sum()
        assert (above < 1e-4) == (place % 2 == 1)  # of three languages, each one both ways
    gone = tmp_path / "out" / rows[0]["audio"]
    kept = tmp_path / "out" / rows[1]["audio"]
    before = kept.stat().st_mtime_ns
    gone.unlink()
    assert numerals.speak(tmp_path / "out", 6, 0) == rows
    assert gone.is_file() and kept.stat().st_mtime_ns == before
    assert [row["id"] for row in numerals.speak(tmp_path / "more", 4, 0)] == [row["id"] for row in rows[:4]]
    assert not {row["id"] for row in numerals.speak(tmp_path / "other", 6, 1)} & {row["id"] for row in rows}


def test_words_come_between_numerals_in_all_languages(numerals: Any, tmp_path: Path) -> None:
    languages = len(numerals.WORD_LANGUAGES)
    rows = numerals.speak(tmp_path / "out", 2 * languages, 0, words=0.5)
    words = [row for row in rows if not row["source"].isdigit()]
    assert len(words) == languages and {row["lang"] for row in words} == set(numerals.WORD_LANGUAGES)
    assert all(row["source"] in numerals.single_words(row["lang"]) for row in words)
    numerals_alone = numerals.speak(tmp_path / "alone", 3, 0)
    assert all(row["source"].isdigit() for row in numerals_alone)


def test_words_are_of_no_language_that_a_test_hears(numerals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(numerals.WORD_LANGUAGES) <= set(SENTENCES["train"]) - {"es", "it", "ru"}
    for language in numerals.WORD_LANGUAGES:
        words = numerals.single_words(language)
        assert len(words) > 20 and not any(mark in word for word in words for mark in " .,?!")
        assert len(set(words)) == len(words)


def test_the_same_voices_of_kokoro_say_words_as_say_digits(
    numerals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voices = [Voice(name=name, licence="") for name in ("af_a", "am_b", "bf_c")]
    said: list[str] = []

    class Fake:
        name, licence, version = "kokoro", "", "kokoro-0"

        def voices(self) -> list[Voice]:
            return voices

        def speak(self, text: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, int]:
            said.append(voice)
            return np.sin(np.arange(12_000) / 10).astype(np.float32), 24_000

    monkeypatch.setattr(numerals, "open_engine", lambda name, options: Fake())
    rows = numerals.speak(tmp_path / "out", 30, 0, numerals.kokoro("voices", mixes=2), words=0.5)
    names = {voice.partition("@")[0] for voice in said}
    assert len(said) == 30 and names <= {"af_a", "am_b", "bf_c", "af_a+am_b", "af_a+bf_c", "am_b+bf_c"}
    assert len(names) == 5  # three and two mixes
    assert {row["speaker"] for row in rows} == {f"kokoro:{voice}" for voice in said}
    assert all(voice.endswith("@" + espeak_voice(row["lang"], "")) for voice, row in zip(said, rows, strict=True))


def test_what_is_missing_is_said_in_one_line(
    numerals: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["numerals.py", "--out", str(tmp_path / "out"), "--clips", "2"])
    assert numerals.main() == 0
    assert "2 clips" in capsys.readouterr().out
    assert len((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()) == 2
    assert all(json.loads(line)["transcript"] == "" for line in (tmp_path / "out" / "manifest.jsonl").open())
    monkeypatch.setenv("PATH", str(tmp_path))
    assert numerals.main() == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("hear/numerals.py: ") and "espeak-ng" in line
