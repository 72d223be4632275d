"""The check decodes every row once, counts what is there, and names every bad row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from aura.data.check import check_manifest
from aura.data.manifest import read_utterances
from aura.errors import DataError

RATE = 16_000


def write_audio(path: Path, seconds: float, level: float = 0.3) -> None:
    time = np.arange(int(seconds * RATE)) / RATE
    soundfile.write(path, level * np.sin(2 * np.pi * 440 * time), RATE, subtype="PCM_16")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    for name, seconds in (("a.wav", 0.5), ("b.wav", 3.0), ("c.wav", 1.0)):
        write_audio(tmp_path / name, seconds)
    write_audio(tmp_path / "silent.wav", 1.0, level=0.0)
    write_audio(tmp_path / "short.wav", 0.05)
    (tmp_path / "text.wav").write_text("no audio here")
    (tmp_path / "cut.wav").write_bytes((tmp_path / "b.wav").read_bytes()[:40_000])
    rows = [
        {"audio": "a.wav", "transcript": "one", "speaker": "x", "lang": "en"},
        {"audio": "b.wav", "transcript": "two", "speaker": "x", "lang": "de", "seconds": 9.0},
        {"audio": "c.wav", "label": "yes", "speaker": "y"},
        {"audio": "silent.wav"},
        {"audio": "a.wav", "transcript": "one", "speaker": "x"},
        {"audio": "absent.wav", "transcript": "x"},
        {"audio": "short.wav", "transcript": "x"},
        {"audio": "text.wav", "transcript": "x"},
        {"audio": "cut.wav", "transcript": "x"},
        {"transcript": "no audio"},
        {"audio": "b.wav", "start": 2.0, "end": 5.0, "transcript": "x"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n{broken\n")
    return path


BAD = {
    "line 6": "no such file",
    "line 7": "0.050 s of audio",
    "line 8": "not audio",
    "line 9": "truncated",
    "line 10": "no 'audio'",
    "line 11": "end=5 s, but the clip is 3.000 s long",
    "line 12": "is not JSON",
}
NOTES = [
    ("line 2", "the row says 9.00 s, 3.00 s were decoded"),
    ("line 4", "silence"),
    ("line 4", "no answer to learn"),
    ("line 5", "the id 'a.wav' is also that of line 1"),
]


def test_counts(manifest: Path) -> None:
    seen: list[int] = []
    report = check_manifest(manifest, on_row=seen.append)
    assert (report.rows, report.good, report.ok) == (12, 5, False)
    assert report.hours == pytest.approx(6.0 / 3600)
    assert (report.seconds_min, report.seconds_median, report.seconds_max) == (0.5, 1.0, 3.0)
    assert report.seconds_mean == pytest.approx(1.2)
    assert report.speakers == {"x": 3, "y": 1}
    assert report.tasks == {"transcribe": 4, "intent": 1}
    assert report.languages == {"en": 1, "de": 1}
    assert [row for row in report.histogram if row[2]] == [(0.0, 1.0, 2), (1.0, 2.0, 2), (2.0, 5.0, 1)]
    assert seen == list(range(1, 13))


def test_every_bad_row_has_its_reason(manifest: Path) -> None:
    report = check_manifest(manifest, workers=3)
    assert [problem.place for problem in report.bad] == list(BAD)
    for problem in report.bad:
        assert BAD[problem.place] in problem.reason
    assert [(note.place, wanted) for note, (_, wanted) in zip(report.notes, NOTES, strict=True)] == NOTES
    assert all(wanted in note.reason for note, (_, wanted) in zip(report.notes, NOTES, strict=True))


def test_text_and_json_say_the_same(manifest: Path) -> None:
    report = check_manifest(manifest)
    text, data = report.as_text(), json.loads(json.dumps(report.as_dict()))
    assert "5 of 12 rows can be used" in text and "bad rows: 7" in text
    for problem in data["bad"]:
        assert f"{problem['place']}: {problem['reason']}" in text
    assert (data["ok"], data["rows"], data["speakers"]) == (False, 12, {"x": 3, "y": 1})


def test_limit_utterances_and_data_root(manifest: Path, tmp_path: Path) -> None:
    assert check_manifest(manifest, limit=3).ok
    assert check_manifest(read_utterances(manifest, limit=3)).good == 3
    moved = tmp_path / "lists" / "m.jsonl"
    moved.parent.mkdir()
    moved.write_text('{"audio": "a.wav", "transcript": "x"}\n')
    assert not check_manifest(moved).ok
    assert check_manifest(moved, data_root=tmp_path).ok


def test_a_dataset(tmp_path: Path) -> None:
    import datasets

    write_audio(tmp_path / "a.wav", 1.0)
    clips = [
        {"bytes": (tmp_path / "a.wav").read_bytes(), "path": None},
        None,
        {"bytes": b"junk", "path": None},
    ]
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"audio": clips, "text": ["a", "b", "c"]}).save_to_disk(str(tmp_path / "d"))
    report = check_manifest(tmp_path / "d")
    assert (report.rows, report.good) == (3, 1)
    assert sorted(problem.place for problem in report.bad) == ["row 1", "row 2"]


def test_all_bad_is_a_report_and_no_source_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"transcript": "x"}\n')
    report = check_manifest(tmp_path / "m.jsonl")
    assert (report.rows, report.good, report.hours) == (1, 0, 0.0)
    assert "0 of 1 rows" in report.as_text()
    with pytest.raises(DataError, match="no such file"):
        check_manifest(tmp_path / "absent.jsonl")
