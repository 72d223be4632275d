"""`aura evaluate --routes`: what is typed becomes routes, and real ones come out beside each other."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
import tiny
from filelock import FileLock

from aura.cli import main
from aura.cli_evaluate import DataOptions, TaskName
from aura.data.manifest import read_utterances
from aura.errors import DataError, RecipeError
from aura.evaluation import compare
from aura.evaluation.route_host import RouteHere
from aura.evaluation.route_specs import RouteOptions, RouteSpec, choose_shots, first_checkpoint, openers, parse_routes
from aura.evaluation.tasks import TASKS
from aura.inference.bound import EVERYTHING, Bound
from aura.inference.confidence import sureness
from aura.student.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("models")
    tiny.tiny_llm_folder("llama", here / "llm")
    save_checkpoint(here / "checkpoint", *tiny.tiny_student("llama", gate="all", base=str(here / "llm")))
    return here


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "RouteProcess", RouteHere)  # tests/test_compare.py has the processes


def test_all_tasks_can_be_chosen() -> None:
    assert get_args(TaskName) == tuple(TASKS)


def test_what_is_typed() -> None:
    assert parse_routes(["aura=a b/ck", "fast:cascade=hf:org/asr", "text", "endpoint=http://h:1/v1"]) == [
        RouteSpec(name="aura", kind="aura", value="a b/ck"),
        RouteSpec(name="fast", kind="cascade", value="hf:org/asr"),
        RouteSpec(name="text", kind="text", value=None),
        RouteSpec(name="endpoint", kind="endpoint", value="http://h:1/v1"),
    ]
    assert parse_routes(["text"], checkpoint="ck") == parse_routes(["aura", "text"], checkpoint="ck")
    assert [(r.name, r.vad) for r in parse_routes(["cascade", "text"], vad=True)] == [
        ("cascade", False), ("cascade-vad", True), ("text", False),
    ]  # fmt: skip
    assert first_checkpoint(parse_routes(["text", "bridge=b", "aura=a"])) == "a"
    assert first_checkpoint(parse_routes(["text=t"])) == "t" and first_checkpoint(parse_routes(["text"])) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["whisper"], "'whisper'.*expected one of"),
        (["aura"], "lacks its checkpoint; expected aura=CHECKPOINT"),
        (["bridge="], "lacks its checkpoint"),
        (["endpoint"], "lacks its URL"),
        (["aura=a", "aura=b"], "two routes are called 'aura'.*second:aura=a"),
    ],
)
def test_what_cannot_be_typed(words: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_routes(words)


def test_text_routes_read_with_the_llm_of_the_checkpoint(models: Path) -> None:
    routes = parse_routes([f"aura={models / 'checkpoint'}", "cascade", "text"])
    aura, cascade, text = openers(routes, RouteOptions())
    assert isinstance(text, functools.partial) and isinstance(cascade, functools.partial)
    assert text.keywords["llm"] == cascade.keywords["llm"] == str(models / "llm")
    assert isinstance(aura, functools.partial) and aura.keywords["llm"] is None
    assert aura.keywords["bound"] == EVERYTHING and "bound" not in text.keywords
    with pytest.raises(RecipeError, match="no LLM to read with"):
        openers(parse_routes(["text"]), RouteOptions())
    [alone] = openers(parse_routes(["cascade"]), RouteOptions(asr_only=True))  # nothing to read
    assert isinstance(alone, functools.partial) and alone.keywords["asr_only"] is True


def test_a_bound_goes_to_the_routes_that_hear(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "checkpoint", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"prompt": "Write this."}))
    routes = parse_routes([f"aura={models / 'checkpoint'}", f"other:aura={tmp_path / 'other'}", "text"])
    own, other, _ = openers(routes, RouteOptions(bound=Bound()))
    assert own.keywords["bound"] == Bound() and own.keywords["prompt"] is None  # type: ignore[attr-defined]
    # The rows bring the first one's prompt: the other's bound was not found for that.
    assert other.keywords["prompt"] == (config.get("prompt") or "")  # type: ignore[attr-defined]
    own, other, _ = openers(routes, RouteOptions(bound=Bound(min_avg_logprob=-0.5), prompt="What?"))
    assert own.keywords["prompt"] == other.keywords["prompt"] == "What?"  # type: ignore[attr-defined]
    assert own.keywords["bound"].min_avg_logprob == -0.5  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="expected aura=CHECKPOINT or bridge=CHECKPOINT among them"):
        openers(parse_routes(["cascade"]), RouteOptions(asr_only=True, bound=Bound(lone_words=False)))


def test_shots_are_a_fixed_sample_of_other_rows(tmp_path: Path) -> None:
    train = list(read_utterances(tiny.tiny_manifest(tmp_path, count=10)))
    valid = list(read_utterances(tiny.tiny_manifest(tmp_path, count=2, seed=1, name="valid")))
    chosen = choose_shots(train, 3, evaluated=valid)
    assert len(chosen) == 3 and chosen == choose_shots(train, 3, evaluated=valid)
    assert chosen != choose_shots(train, 3, evaluated=valid, seed=1)
    with pytest.raises(DataError, match="among the evaluated rows"):
        choose_shots(train, 3, evaluated=train[:1])
    with pytest.raises(DataError, match="10 of 10 rows can serve as examples, 11 are needed"):
        choose_shots(train, 11, evaluated=valid)


def test_a_sample_is_spread_and_noise_is_mixed_in(tmp_path: Path) -> None:
    manifest, noise = tiny.tiny_manifest(tmp_path, count=10), tmp_path / "noise.wav"
    soundfile.write(noise, 0.1 * np.random.default_rng(0).standard_normal(8_000), 16_000)
    every = DataOptions().read_all([str(manifest)], None)
    some = DataOptions(sample=4).read_all([str(manifest)], None)
    assert [row.id for row in some] == [every[place].id for place in (0, 2, 5, 7)]
    assert len(DataOptions(sample=99).read_all([str(manifest)], None)) == 10
    noisy = DataOptions(sample=2, noise=noise, snr=[20.0, 0.0]).read_all([str(manifest)], None)
    assert [row.id for row in noisy] == [f"{row.id}@{snr}dB" for snr in (20, 0) for row in (every[0], every[5])]
    clean, loud, louder = (row.audio[0].load() for row in (every[0], noisy[0], noisy[2]))
    assert 0 < float(np.abs(loud - clean).mean()) < float(np.abs(louder - clean).mean())
    for wrong in (DataOptions(noise=noise), DataOptions(snr=[3.0])):
        with pytest.raises(RecipeError, match="expected both or neither"):
            wrong.read_all([str(manifest)], None)
    with pytest.raises(RecipeError, match="expected at least 1"):
        DataOptions(sample=0).read_all([str(manifest)], None)


def test_two_real_routes_beside_each_other(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tiny.tiny_manifest(tmp_path, count=3, shortest=0.4)
    train = tiny.tiny_manifest(tmp_path, count=4, seed=1, name="other")
    argv = ["evaluate", str(models / "checkpoint"), "--routes", "text", "--manifest", str(manifest)]
    argv += ["--out", str(tmp_path / "out"), "--max-new-tokens", "4", "--first-token-items", "2"]
    argv += ["--shots", "2", "--shots-from", str(train), "--device", "cpu"]
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert "Word error rate" in printed.out and "report.html" in printed.out and "failed" not in printed.err
    report: Any = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["routes"]) == ["aura", "text"] and report["shared_items"] == 3
    assert report["settings"]["routes"] == [f"aura:aura={models / 'checkpoint'}", "text:text"]
    text = report["routes"]["text"]
    assert text["settings"]["shots"] == 2 and text["settings"]["llm"] == report["routes"]["aura"]["settings"]["llm"]
    assert report["routes"]["aura"]["parameters"] > text["parameters"] > 0
    assert text["first_token"]["items"] == 2 and text["first_token"]["median"] > 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "aura", "text", "report.json", "report.md", "report.html", "first_token.json", ".lock",
    }  # fmt: skip
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "| wer |" in capsys.readouterr().out


def test_one_checkpoint_alone_stays_as_it_was(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tiny.tiny_manifest(tmp_path, count=2, shortest=0.4)
    argv = ["evaluate", str(models / "checkpoint"), "--manifest", str(manifest), "--max-new-tokens", "2"]
    assert main([*argv, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "accuracy" in report["metrics"] and "routes" not in report
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.json", "items.jsonl", "items.settings.json", ".lock",
    }  # fmt: skip
    assert "wer " in capsys.readouterr().out


def test_two_evaluations_do_not_write_to_one_folder(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tiny.tiny_manifest(tmp_path, count=1, shortest=0.4)
    plain = ["evaluate", str(models / "checkpoint"), "--manifest", str(manifest), "--max-new-tokens", "2"]
    compared = ["evaluate", "--routes", f"aura={models / 'checkpoint'}", "--manifest", str(manifest)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "items.jsonl").write_text("")
    for argv in (plain, compared):
        for again in ([], ["--restart"]):
            with FileLock(tmp_path / "out" / ".lock"):
                assert main([*argv, *again, "--out", str(tmp_path / "out")]) == 2
            said = capsys.readouterr().err
            assert "being written by another process" in said and "Traceback" not in said
            assert [path.name for path in (tmp_path / "out").iterdir() if path.name != ".lock"] == ["items.jsonl"]
    assert main([*plain, "--out", str(tmp_path / "out.jsonl")]) == 0  # a folder, whatever it is called
    assert (tmp_path / "out.jsonl" / "items.jsonl").is_file()


def test_both_forms_leave_out_what_a_checkpoint_is_unsure_of(models: Path, tmp_path: Path) -> None:
    manifest = str(tiny.tiny_manifest(tmp_path, count=4, shortest=0.4))
    shutil.copytree(models / "checkpoint", tmp_path / "ck")
    config = json.loads((tmp_path / "ck" / "config.json").read_text())
    words = ["--manifest", manifest, "--task", "transcribe", "--max-new-tokens", "4", "--device", "cpu"]
    assert (
        main(["evaluate", str(tmp_path / "ck"), *words, "--out", str(tmp_path / "free"), "--min-avg-logprob", "-99"])
        == 0
    )
    free = answers(tmp_path / "free" / "items.jsonl")
    sure = sorted(sureness(row["hypothesis"], row["avg_logprob"]) for row in free.values())
    (tmp_path / "ck" / "config.json").write_text(json.dumps(config | {"min_avg_logprob": (sure[1] + sure[2]) / 2}))
    assert main(["evaluate", str(tmp_path / "ck"), *words, "--out", str(tmp_path / "alone")]) == 0
    beside = ["evaluate", str(tmp_path / "ck"), *words, "--routes", "text", "--first-token-items", "0"]
    assert main([*beside, "--out", str(tmp_path / "beside")]) == 0
    alone, among = answers(tmp_path / "alone" / "items.jsonl"), answers(tmp_path / "beside" / "aura" / "items.jsonl")
    said = {name: row["hypothesis"] for name, row in alone.items()}
    assert said == {name: row["hypothesis"] for name, row in among.items()}
    assert sorted(text == "" for text in said.values()) == [False, False, True, True]
    assert main([*beside, "--out", str(tmp_path / "all"), "--min-avg-logprob", "-inf"]) == 0
    every = answers(tmp_path / "all" / "aura" / "items.jsonl")
    assert {name: row["hypothesis"] for name, row in every.items()} == {n: row["hypothesis"] for n, row in free.items()}


def answers(log: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return {row["id"]: row for row in rows}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "no checkpoint was given"),
        (["--routes", "nonsense"], "the route is 'nonsense'"),
        (["--routes", "text"], "no LLM to read with"),
        (["--routes", "aura=nowhere"], "nowhere"),
        (["--routes", "text", "--llm", "x", "--shots", "2"], "expected both or neither"),
    ],
)
def test_wrong_usage_is_one_line(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tiny.tiny_manifest(tmp_path, count=1)
    assert main(["evaluate", *more, "--manifest", str(manifest), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("aura: error: ") and err.count("\n") == 1
    assert not (tmp_path / "out").exists()
