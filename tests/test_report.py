"""A report is whole or not there; an item log survives being cut, and knows what is done."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

import aura
from aura.errors import AuraError, DataError
from aura.evaluation import item_log, json_text
from aura.evaluation.report import ItemLog, write_report


def report_in(folder: Path, **changes) -> dict:
    arguments = {
        "metrics": {"wer": 0.25},
        "settings": {"seed": 0},
        "command": "aura evaluate ckpt --manifest m.jsonl --task transcribe --out out",
        "timings": {"total": 1.5},
        "items": 4,
        "failed": 1,
    }
    path = write_report(folder, **{**arguments, **changes})
    assert path == folder / "report.json"
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)  # NaN is no JSON


# ---------------------------------------------------------------------------------------- report.json


def test_report_says_what_was_run_on_what(tmp_path: Path) -> None:
    report = report_in(tmp_path / "new" / "folder", extra={"skipped": ["a"]})
    assert report["metrics"] == {"wer": 0.25} and report["settings"] == {"seed": 0}
    assert report["command"].startswith("aura evaluate") and report["timings"] == {"total": 1.5}
    assert report["counts"] == {"items": 4, "failed": 1}
    assert report["skipped"] == ["a"]
    assert report["versions"]["aura"] == aura.__version__
    assert set(report["versions"]) == {"aura", "python", "torch", "transformers", "peft"}
    assert report["machine"]["cpu_count"] >= 1 and report["machine"]["cpu"]
    assert datetime.fromisoformat(report["created"]).tzinfo is not None


def test_report_names_no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: pytest.fail("the host name was asked for"))
    assert set(report_in(tmp_path)["machine"]) == {
        "cpu",
        "cpu_count",
        "system",
        "architecture",
        "memory_gib",
        "accelerators",
    }


def test_report_turns_values_into_json(tmp_path: Path) -> None:
    odd = {
        "nan": float("nan"),
        "np": np.float32(0.5),
        "array": np.arange(2),
        "path": Path("a"),
        "pair": (1, 2),
    }
    assert report_in(tmp_path, metrics=odd)["metrics"] == {
        "nan": None,
        "np": 0.5,
        "array": [0, 1],
        "path": "a",
        "pair": [1, 2],
    }
    assert report_in(tmp_path, metrics={"x": np.float64("inf")})["metrics"] == {"x": None}


def test_report_rejects_impossible_counts_and_repeated_keys(tmp_path: Path) -> None:
    with pytest.raises(AuraError, match="5 failed of 4"):
        report_in(tmp_path, failed=5)
    with pytest.raises(AuraError, match="metrics"):
        report_in(tmp_path, extra={"metrics": {}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    report_in(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json_text.os, broken, full)
    with pytest.raises(AuraError, match="No space left"):
        report_in(tmp_path, metrics={"wer": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert json.loads((tmp_path / "report.json").read_text())["metrics"] == {"wer": 0.25}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuraError, match=r"Could not write .*report\.json.*--out"):
        report_in(tmp_path / "file")


# ---------------------------------------------------------------------------------------- items.jsonl


def rows_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_there_before_the_log_is_closed(tmp_path: Path) -> None:
    log = ItemLog(tmp_path / "out")
    log.append({"id": "a", "hypothesis": "größer\u2028\r\n", "errors": np.int64(2)})
    assert rows_in_bytes(log.path) == [{"id": "a", "hypothesis": "größer\u2028\r\n", "errors": 2}]
    assert log.path == tmp_path / "out" / "items.jsonl"
    log.close()
    with pytest.raises(AuraError, match="is closed"):
        log.append({"id": "b"})


def rows_in_bytes(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


@pytest.mark.parametrize("kept_bytes", range(1, 40, 3))
def test_resume_takes_off_a_cut_line_wherever_it_was_cut(tmp_path: Path, kept_bytes: int) -> None:
    with ItemLog(tmp_path) as log:
        log.append({"id": "a", "hypothesis": "one"})
        whole = log.path.stat().st_size
        log.append({"id": "b", "hypothesis": "zwölf, and a longer text"})
    os.truncate(log.path, whole + kept_bytes)
    with ItemLog(tmp_path) as log:
        assert log.done_ids() == {"a"}
        assert log.path.stat().st_size == whole
        log.append({"id": "b", "hypothesis": "again"})
    assert [row["id"] for row in rows_in(log.path)] == ["a", "b"]


def test_a_line_that_lacks_only_its_newline_is_done_again(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_text('{"id": "a"}\n{"id": "b"}')
    with ItemLog(tmp_path) as log:
        assert log.done_ids() == {"a"}
        log.append({"id": "c"})
    assert rows_in(log.path) == [{"id": "a"}, {"id": "c"}]


def test_zeros_after_a_power_cut_are_taken_off(tmp_path: Path) -> None:
    (tmp_path / "items.jsonl").write_bytes(b'{"id": "a"}\n\0\0\0\0')
    assert ItemLog(tmp_path).done_ids() == {"a"}
    (tmp_path / "items.jsonl").write_bytes(b'{"id": "a"}\n\0\0\0\0\n')
    assert ItemLog(tmp_path).done_ids() == {"a"}
    assert (tmp_path / "items.jsonl").read_bytes() == b'{"id": "a"}\n'


@pytest.mark.parametrize("line", ["not json", '{"name": "x"}', "[1]", '{"id": 7}'])
def test_a_file_that_is_not_ours_is_left_alone(tmp_path: Path, line: str) -> None:
    (tmp_path / "items.jsonl").write_text(f'{{"id": "a"}}\n{line}\n')
    with pytest.raises(DataError, match="line 2"):
        ItemLog(tmp_path)
    assert (tmp_path / "items.jsonl").read_text() == f'{{"id": "a"}}\n{line}\n'


def test_failed_items_can_be_tried_again(tmp_path: Path) -> None:
    with ItemLog(tmp_path) as log:
        log.append({"id": "a", "failed": True, "error": "cut off"})
        log.append({"id": "b", "failed": False})
        assert log.done_ids() == {"a", "b"}
        assert log.done_ids(failed=False) == {"b"}
        log.append({"id": "a", "failed": False, "hypothesis": "yes"})
    with ItemLog(tmp_path) as log:
        assert log.rows() == [{"id": "a", "failed": False, "hypothesis": "yes"}, {"id": "b", "failed": False}]


def test_rows_need_an_id(tmp_path: Path) -> None:
    with ItemLog(tmp_path) as log, pytest.raises(DataError, match="expected a text 'id'"):
        log.append({"hypothesis": "x"})


def test_a_log_never_mixes_two_settings(tmp_path: Path) -> None:
    with ItemLog(tmp_path, settings={"checkpoint": "one", "beams": 1}) as log:
        log.append({"id": "a"})
    assert ItemLog(tmp_path, settings={"checkpoint": "one", "beams": 1}).done_ids() == {"a"}
    with pytest.raises(DataError, match=r"checkpoint: 'one' there, 'two' now.*--out"):
        ItemLog(tmp_path, settings={"checkpoint": "two", "beams": 1})


def test_a_full_disk_leaves_whole_rows(tmp_path: Path) -> None:
    log = ItemLog(tmp_path)
    log.append({"id": "a"})
    real = log._file

    class Full:
        def write(self, data: memoryview) -> int:
            if len(data) < 10:
                raise OSError(28, "No space left on device")
            return real.write(data[:5])

        def __getattr__(self, name: str):
            return getattr(real, name)

    log._file = Full()
    with pytest.raises(AuraError, match="No space left"):
        log.append({"id": "b", "hypothesis": "a longer row"})
    assert rows_in(log.path) == [{"id": "a"}]
    assert log.done_ids() == {"a"}
    log._file = real
    log.append({"id": "b"})
    assert rows_in(log.path) == [{"id": "a"}, {"id": "b"}]


WRITER = """
import sys
from aura.evaluation.item_log import ItemLog
log = ItemLog(sys.argv[1])
for number in range(10**9):
    log.append({"id": str(number), "hypothesis": "x" * 2000})
    if number == 20:
        print("go", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 on this system")
def test_kill_9_loses_nothing_that_was_appended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == "go\n"
        writer.send_signal(signal.SIGKILL)
    with ItemLog(tmp_path) as log:
        done = log.done_ids()
        assert len(done) >= 21
        assert done == {str(number) for number in range(len(done))}
        log.append({"id": "last"})
    assert item_log._read(log.path)[0][-1] == {"id": "last"}
