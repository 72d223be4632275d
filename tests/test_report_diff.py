"""Reports beside each other: differences, what was set otherwise, and who was right on the same items."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aura.cli import main
from aura.errors import DataError
from aura.evaluation.report_diff import compare_reports, markdown_diff


def report(folder: Path, *, right: list[bool | None] = (), **changes: Any) -> Path:  # type: ignore[assignment]
    folder.mkdir()
    content = {
        "metrics": {"accuracy": 0.5, "exact_match": 0.5, "exact_match_interval": [0.4, 0.6], "wer": 0.25, "items": 4},
        "settings": {"task": "transcribe", "checkpoint": "a", "seed": 0},
        "command": f"aura evaluate {folder.name}",
        "versions": {"aura": "0.1.0"},
        "machine": {"cpu": "x"},
        "created": folder.name,
    }
    for name, value in changes.items():
        content[name] = {**content.get(name, {}), **value}
    (folder / "report.json").write_text(json.dumps(content))
    if right:
        lines = [{"id": str(n), "correct": value, "failed": value is None} for n, value in enumerate(right)]
        (folder / "items.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def test_differences_intervals_and_settings(tmp_path: Path) -> None:
    a = report(tmp_path / "a")
    b = report(tmp_path / "b", metrics={"wer": 0.15}, settings={"checkpoint": "b", "prompt": "x"}, machine={"cpu": "y"})
    found = compare_reports([a, b / "report.json"])
    rows = {row["name"]: row for row in found.metrics}
    assert rows["wer"]["values"] == [0.25, 0.15] and rows["wer"]["differences"] == [pytest.approx(-0.1)]
    assert rows["exact_match"]["intervals"] == rows["accuracy"]["intervals"] == [[0.4, 0.6]] * 2
    assert "exact_match_interval" not in rows and found.task == "transcribe" and found.paired == (None,)
    assert {row["name"]: row["values"] for row in found.settings} == {
        "checkpoint": ["a", "b"], "prompt": [None, "x"], "machine.cpu": ["x", "y"],
    }  # fmt: skip
    text = markdown_diff(found)
    assert "| wer | 0.2500 | 0.1500, -0.1000 |" in text and "| checkpoint | a | b |" in text
    assert "| accuracy | 0.5000 (0.4000 to 0.6000) | 0.5000 (0.4000 to 0.6000) |" in text


def test_items_that_both_answered_are_paired(tmp_path: Path) -> None:
    a = report(tmp_path / "a", right=[True, False, False, False, None, True])
    b = report(tmp_path / "b", right=[True, True, True, True, True])
    [pair] = compare_reports([a, b]).paired
    assert pair == {
        "items": 4, "accuracy_first": 0.25, "accuracy": 1.0, "only_first_right": 0, "only_other_right": 3,
        "p_value": 0.25,
    }  # fmt: skip
    assert "0 : 3" in markdown_diff(compare_reports([a, b]))


def test_the_routes_of_one_comparison_are_columns(tmp_path: Path) -> None:
    timings = {"real_time_factor": 0.1, "answer_tokens_per_second": 9.0}
    facts = {"kind": "aura", "settings": {"llm": "x"}, "metrics": {"wer": 0.1}, "timings": timings,
             "first_token": {"median": 0.2, "p95": 0.3}, "memory": {"peak_bytes": 5}, "parameters": 7,
             "bytes_on_disk": 8}  # fmt: skip
    other = {**facts, "settings": {"llm": "y"}, "metrics": {"wer": 0.3}, "first_token": None, "memory": None}
    folder = report(tmp_path / "a", routes={"aura": facts, "text": other})
    (folder / "aura").mkdir()
    (folder / "aura" / "items.jsonl").write_text('{"id": "1", "correct": true}\n')
    found = compare_reports([folder])
    assert found.names == ("aura", "text") and [row["name"] for row in found.settings] == ["route.llm"]
    rows = {row["name"]: row["values"] for row in found.metrics}
    assert rows["wer"] == [0.1, 0.3] and rows["first_token_median_seconds"] == [0.2, None]
    both = compare_reports([folder, report(tmp_path / "b")])
    assert both.names == (f"{folder}:aura", f"{folder}:text", str(tmp_path / "b"))


def test_equal_settings_are_said(tmp_path: Path) -> None:
    found = compare_reports([report(tmp_path / "a"), report(tmp_path / "b")])
    assert found.settings == () and "No setting differs." in markdown_diff(found)


def test_what_is_no_report_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    (tmp_path / "y.json").write_text("[1]")
    good = report(tmp_path / "a")
    for bad, said in (("nowhere", "cannot be read"), ("x.json", "is no JSON"), ("y.json", "no 'metrics'")):
        with pytest.raises(DataError, match=said):
            compare_reports([good, tmp_path / bad])
    with pytest.raises(DataError, match="1 report"):
        compare_reports([good])


def test_the_verb_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = report(tmp_path / "a"), report(tmp_path / "b", metrics={"wer": 0.15})
    assert main(["report", str(a), str(b), "--out", str(tmp_path / "o")]) == 0
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "o" / "comparison.md").read_text()
    assert main(["report", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "o" / "comparison.json").read_text())
    assert main(["report", str(a)]) == 2 and "two or more" in capsys.readouterr().err


def test_the_verb_does_without_torch(tmp_path: Path) -> None:
    a, b = report(tmp_path / "a"), report(tmp_path / "b")
    code = f"import sys, aura.cli; aura.cli.main(['report', {str(a)!r}, {str(b)!r}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
