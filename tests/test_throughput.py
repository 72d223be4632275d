"""The benchmark of whole recordings: runs, says what it left out, does equal work, and reads its own figures right."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny

from aura.batch.collate import Example
from aura.batch.prompt import user_message
from aura.evaluation import route_host

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAMES = ("aura", "cascade", "cascade batched", "bridge")


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # its routes import it by name, in processes of their own
    return importlib.import_module("throughput")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    llm = tiny.tiny_llm_folder("gemma3", folder / "llm")
    whisper = tiny.tiny_whisper(folder / "whisper", positions=100)
    return ["--llm", str(llm), "--encoder", str(whisper), "--asr", str(folder / "nowhere"), "--threads", "1"]


def run(module: Any, monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *words, "--out", str(out)])
    module.main()
    assert (out / f"{module.__name__}.png").stat().st_size > 1000
    return dict(json.loads((out / f"{module.__name__}.json").read_text()))


def test_a_route_in_a_process_of_its_own(
    throughput: Any,
    models: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*models, "--batches", "2", "1", "--seconds", "0.5", "--repeats", "2", "--routes", "aura"]
    result = run(throughput, monkeypatch, tmp_path, *words, "--new-tokens", "3")
    [table] = result["tables"]
    assert list(table["audio_seconds_per_second"]["aura"]) == ["1", "2"]
    assert [row["batch"] for row in result["rounds"]] == [1, 2, 1, 2]
    median = sorted(row["wall_seconds"] for row in result["rounds"] if row["batch"] == 2)
    assert table["audio_seconds_per_second"]["aura"]["2"] == pytest.approx(2 * 0.5 / (sum(median) / 2))
    assert all(peak > throughput.MIB for peak in table["peak_bytes"]["aura"].values())
    assert set(table["stages"]["aura"]["2"]) == {"listening", "reading", "writing"}
    assert result["weights"]["aura"] == "untrained" and result["ratios"] == []
    assert "audio-seconds answered per second; clips of 0.5 s, 3 tokens each" in capsys.readouterr().out


def test_all_routes_on_one_tiny_llm(
    throughput: Any,
    models: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(route_host, "RouteProcess", route_host.RouteHere)  # starting processes takes longest
    words = [*models, "--batches", "1", "8", "--seconds", "0.5", "--repeats", "1", "--new-tokens", "2"]
    result = run(throughput, monkeypatch, tmp_path / "absent", *words, "--routes", *NAMES)
    assert list(result["left_out"]) == [throughput.CASCADE, throughput.BATCHED]
    assert [(entry["over"], entry["batch"]) for entry in result["ratios"]] == [("bridge", 1), ("bridge", 8)]
    monkeypatch.setattr(sys.modules["throughput_routes"], "FasterWhisperRecogniser", Recogniser)
    result = run(throughput, monkeypatch, tmp_path / "there", *words, "--routes", "aura", "cascade")
    met = [entry for entry in result["ratios"] if "met" in entry]
    assert [(entry["over"], entry["batch"], entry["at_least"]) for entry in met] == [("cascade", 8, 3.0)]
    assert result["tables"][0]["words_heard_per_second"]["cascade"] == 12.0
    shown = capsys.readouterr().out
    assert "left out: cascade (" in shown and "REPEATS ITSELF" in shown and "aura over cascade" in shown


class Recogniser:
    """Writes six words, whatever it hears."""

    parameters = 7

    def __init__(self, options: Any, *, device: Any) -> None:
        self.options, self.model = options, None

    def hear(self, wave_N: np.ndarray) -> Any:
        return SimpleNamespace(text="the " * 6)


@pytest.mark.parametrize("decode", ["auto", "generate"])
def test_every_row_writes_as_much(throughput: Any, decode: str) -> None:
    routes = sys.modules["throughput_routes"]
    model, processor = tiny.tiny_student("gemma3")
    model.generation_config.eos_token_id = list(range(0, tiny.VOCABULARY, 2))  # half of all tokens would end an answer
    contender = routes.Contender("aura", "aura", model, processor, decode=decode)
    questions = [
        Example(id=str(n), messages=[user_message("Why?")], waveforms=[tiny.tiny_speech(0.4 + 0.2 * n, seed=n)])
        for n in range(3)
    ]
    replies = contender.answer(questions, max_new_tokens=9)
    assert [reply.new_tokens for reply in replies] == [9, 9, 9]
    assert [contender.answer([q], max_new_tokens=9)[0].text for q in questions] == [reply.text for reply in replies]
    assert all(0 <= reply.listening < reply.wall_seconds for reply in replies)


def test_a_batch_of_recordings_goes_through_the_asr_as_clips_of_one(
    throughput: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    faster_whisper = pytest.importorskip("faster_whisper")
    routes = sys.modules["throughput_routes"]
    clips = [np.full(n, n / 1e6, dtype=np.float32) for n in (16_000, 4_001, 24_000)]

    class Pipeline:
        def __init__(self, model: Any) -> None:
            pass

        def transcribe(
            self, audio: np.ndarray, *, clip_timestamps: Sequence[Any], batch_size: int, **options: Any
        ) -> Any:
            assert batch_size == 3 and options["vad_filter"] is False
            segments = []
            for clip in clip_timestamps:
                part = audio[round(clip["start"] * 16_000) : round(clip["end"] * 16_000)]
                assert len(set(part.tolist())) == 1
                segments.append(SimpleNamespace(text=f" {len(part)}", start=round(clip["start"], 3)))
                segments.append(SimpleNamespace(text=" more", start=round(clip["end"] - 0.1, 3)))
            del segments[2:4]  # nothing was heard in the second one
            return iter(segments), None

    monkeypatch.setattr(faster_whisper, "BatchedInferencePipeline", Pipeline)
    hear = routes.batched(Recogniser(SimpleNamespace(language="en", beam_size=1), device="cpu"))
    assert hear(clips) == ["16000 more", "", "24000 more"]
    with pytest.raises(routes.ModelError, match="a clip has 31 s; faster-whisper batches clips of at most 30 s"):
        hear([np.zeros(31 * 16_000, dtype=np.float32)])


def test_a_route_that_breaks_keeps_what_it_measured(throughput: Any) -> None:
    row = {"listening": 0.0, "reading": None, "writing": None, "words_heard_per_second": None, "seconds": 5.0}
    found = [
        row | {"route": name, "batch": batch, "repeat": repeat, "wall_seconds": wall, "peak_bytes": 10 * (repeat + 1)}
        for name, batch, repeat, wall in [
            ("aura", 1, 0, 1.0),
            ("aura", 8, 0, 2.0),
            ("aura", 8, 1, 4.0),
            ("aura", 8, 2, 3.0),
            ("cascade", 1, 0, 2.0),
            ("cascade", 8, 0, 8.4),
            ("bridge", 1, 0, 0.5),
        ]
    ]
    table = throughput.table(found, ["aura", "cascade", "bridge"], 5.0, [1, 8])
    assert table["audio_seconds_per_second"]["aura"] == {"1": 5.0, "8": pytest.approx(40 / 3.0)}
    assert table["peak_bytes"]["aura"] == {"1": 10, "8": 10} and list(table["peak_bytes"]["bridge"]) == ["1"]
    ratios = {(e["over"], e["batch"]): (round(e["ratio"], 3), e.get("met")) for e in throughput.ratios(table)}
    assert ratios == {
        ("cascade", 1): (2.0, None),
        ("cascade", 8): (2.8, False),
        ("bridge", 1): (0.5, None),
    }


def test_clips_are_real_speech_and_differ(throughput: Any) -> None:
    clips = throughput.read_clips(None, 2.0, 3)
    assert [len(clip) for clip in clips] == [2 * throughput.RATE] * 3
    assert all(abs(clip).max() > 0.05 for clip in clips)
    assert not np.array_equal(clips[0], clips[1])
