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
from aura.synthesis.foreign import SENTENCES

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
    with monkeypatch.context() as patch:
        patch.setattr(numerals, "render", None)  # what is there is not spoken again
        assert numerals.speak(tmp_path / "out", 6, 0) == rows
    assert [row["id"] for row in numerals.speak(tmp_path / "more", 4, 0)] == [row["id"] for row in rows[:4]]
    assert not {row["id"] for row in numerals.speak(tmp_path / "other", 6, 1)} & {row["id"] for row in rows}


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
