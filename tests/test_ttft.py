"""The benchmark of the first token: runs, says what it left out, and reads its own figures right."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def ttft() -> Any:
    spec = importlib.util.spec_from_file_location("ttft", ROOT / "benchmarks" / "ttft.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_on_a_tiny_llm(
    ttft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = tiny.tiny_llm_folder("gemma3", tmp_path / "llm")
    words = ["--llm", str(llm), "--encoder", str(tiny.tiny_whisper(tmp_path / "whisper", positions=100))]
    words += ["--asr", str(tmp_path / "nowhere"), "--seconds", "0.5", "1", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", ["ttft.py", *words, "--out", str(tmp_path / "out")])
    ttft.main()
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "ttft.json").read_text())
    assert set(result["median_seconds"]) == {ttft.STREAMING, ttft.WHOLE, ttft.BRIDGE, ttft.PADDED}
    assert all(len(v) == 2 for row in result["seconds"].values() for v in row.values())
    assert list(result["left_out"]) == [ttft.CASCADE] and "left out: cascade (" in shown
    assert [load["seconds"] for load in result["feeding"]] == [0.5, 1.0]
    assert result["weights"] == "untrained" and result["ratios"] == []
    assert (tmp_path / "out" / "ttft.png").stat().st_size > 1000


def test_ratios_and_whether_they_met_their_aims(ttft: Any) -> None:
    medians = {
        ttft.STREAMING: {"2": 0.1, "10": 0.1, "60": 0.16},
        ttft.CASCADE: {"2": 1.0, "10": 1.2, "60": 9.0},
        ttft.BRIDGE: {"2": 0.2, "10": 0.4, "60": 3.0},
    }
    found = {entry["what"]: (round(entry["ratio"], 3), entry["met"]) for entry in ttft.ratios(medians)}
    assert found == {
        "streaming, 60 s over 2 s": (1.6, False),
        "cascade over streaming, 10 s": (12.0, True),
        "bridge over streaming, 10 s": (4.0, False),
    }
    assert ttft.ratios({ttft.STREAMING: {"2": 0.1, "60": 0.1}})[0]["met"] is True
    assert ttft.ratios({}) == []


def test_speech_is_real_and_as_long_as_asked(ttft: Any) -> None:
    speech = ttft.read_speech(None, 45.0)
    assert len(speech) == 45 * ttft.RATE and abs(speech).max() > 0.05
    assert abs(speech[25 * ttft.RATE :]).max() > 0.05
    digits = Path(__file__).parent.parent / "demo" / "data" / "theo.opus"
    again = ttft.read_speech(str(digits), 2.0)
    assert len(again) == 2 * ttft.RATE
