"""The benchmark of speakers in real time: runs, finds where it breaks, and counts from the last word."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def speakers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("speakers")


def test_a_run_on_a_tiny_llm(
    speakers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = tiny.tiny_llm_folder("gemma3", tmp_path / "llm")
    words = ["--llm", str(llm), "--speakers", "2", "1", "--turns", "2", "--seconds", "0.3", "--tokens", "2"]
    monkeypatch.setattr(sys, "argv", ["speakers.py", *words, "--limit", "60", "--out", str(tmp_path / "out")])
    speakers.main()
    result = json.loads((tmp_path / "out" / "speakers.json").read_text())
    assert [(level["speakers"], level["turns"]) for level in result["levels"]] == [(1, 2), (2, 4)]
    for level in result["levels"]:
        assert level["p95"] == pytest.approx(np.quantile(level["first_token_seconds"], 0.95)) and level["kept_up"]
    assert (result["kept_up_with"], result["broke_at"], result["aim"]["met"]) == (2, None, None)
    assert (tmp_path / "out" / "speakers.png").stat().st_size > 1000
    assert "real time kept with 2 speakers, did not break (aim 8): not measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limit", "refine", "run", "kept", "broke", "met"),
    [
        (9, 2, [1, 2, 4, 8, 12, 10, 9], 9, 10, True),
        (9, 0, [1, 2, 4, 8, 12], 8, 12, True),
        (5, 9, [1, 2, 4, 8, 6, 5], 5, 6, False),
        (0, 2, [1], 0, 1, False),
        (99, 2, [1, 2, 4, 8, 12], 12, None, True),
    ],
)
def test_the_load_at_which_it_breaks(
    speakers: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    limit: int,
    refine: int,
    run: list[int],
    kept: int,
    broke: int | None,
    met: bool,
) -> None:
    asked: list[int] = []

    def level(engine: Any, speech: np.ndarray, count: int, options: argparse.Namespace) -> dict[str, Any]:
        asked.append(count)
        # The one that breaks refused everybody: it has no figures.
        told = {"median": 0.1, "p95": 0.1 * count, "most_waiting": 0.0, "failures": []}
        none = {"median": None, "p95": None, "most_waiting": None, "failures": ["no room"]}
        return {"speakers": count, "turns": 3, "kept_up": count <= limit} | (told if count <= limit else none)

    monkeypatch.setattr(speakers, "open_engine", lambda options: None)
    monkeypatch.setattr(speakers, "run_level", level)
    options = argparse.Namespace(
        speakers=[12, 1, 2, 4, 8],
        turns=1,
        seconds=1.0,
        refine=refine,
        threads=None,
        audio=None,
        limit=1.0,
        decode="auto",
    )
    result = speakers.measure(argparse.Namespace(**vars(options), checkpoint=None))
    assert asked[1:] == run, "the first call only warms up"
    assert [level["speakers"] for level in result["levels"]] == sorted(run)
    assert (result["kept_up_with"], result["broke_at"], result["aim"]["met"]) == (kept, broke, met)
    speakers.show(result)
    speakers.plot(result, tmp_path / "speakers.png")
    json.dumps(result, allow_nan=False)


def test_a_speaker_counts_from_the_last_word(speakers: Any) -> None:
    class Session:
        waiting_seconds, first_token_seconds = 0.0, 0.01

        def __enter__(self) -> Session:
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def feed(self, samples: np.ndarray) -> None:
            time.sleep(0.15)  # a chunk of 0.1 s cannot be taken in time

        def finish(self) -> list[str]:
            return []

    class Pool:
        def open(self, **options: Any) -> Session:
            return Session()

    options = argparse.Namespace(prompt="Why?", tokens=1)
    turn = speakers.one_turn(Pool(), np.zeros(3 * speakers.CHUNK, dtype=np.float32), options)
    assert turn["first_token"] >= 0.1 + 3 * 0.15 - 0.3 + 0.01
