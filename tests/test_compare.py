"""Comparisons: nothing that failed is scored, nothing that is done is done again, and no route can hurt another."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import fake_routes
import pytest
import soundfile
import tiny
from fake_routes import fake, greedy_for_memory, unopenable

from aura.batch.prompt import user_message
from aura.data.manifest import read_utterances
from aura.data.utterance import Utterance
from aura.errors import DataError, ModelError
from aura.evaluation import latency, memory
from aura.evaluation.compare import CompareOptions, Comparison, compare
from aura.evaluation.measures import items_of, measures_of, parts_of, score_items
from aura.evaluation.report import folder_of
from aura.evaluation.route_host import RouteProcess
from aura.evaluation.scores import bootstrap_interval
from aura.evaluation.significance import mcnemar_exact
from aura.evaluation.tasks import TASKS, get_task


@pytest.fixture(autouse=True)
def _nothing_asked() -> None:
    fake_routes.ASKED.clear()


TEXTS = ("a small mocha", "seven", "turn on the light", "the lazy dog", "good morning", "two shots of espresso")
TRUTH = {f"clip{n}": text for n, text in enumerate(TEXTS)}


def rows(folder: Path, count: int = 6, **fields: Any) -> list[Utterance]:
    folder.mkdir(exist_ok=True)
    lines = []
    for n in range(count):
        soundfile.write(folder / f"{n}.wav", tiny.tiny_speech(0.2 + 0.05 * n, seed=n), 16_000)
        lines.append(json.dumps({"id": f"clip{n}", "audio": f"{n}.wav", "transcript": TEXTS[n % 6], **fields}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return list(read_utterances(folder / "rows.jsonl"))


def run(routes: list[Any], utterances: list[Utterance], out: Path, *, task: str = "transcribe", **options: Any) -> Any:
    settings: dict[str, Any] = {"isolate": False, "first_token_items": 0, **options}
    return compare(
        routes, utterances, task=task, out=out, options=CompareOptions(**settings), command="aura evaluate x"
    )


def items_in(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


# --- what is scored -----------------------------------------------------------------------------------------------


def test_a_comparison_adds_up(tmp_path: Path) -> None:
    worse = {**TRUTH, "clip0": "a small mocca", "clip3": "the dog"}
    found = run([fake("aura", TRUTH), fake("cascade", worse, kind="cascade")], rows(tmp_path / "d"), tmp_path / "o")
    report = json.loads(found.report.read_text())
    assert report == found.content and found.items == 6 and found.failed == {"aura": 0, "cascade": 0}
    assert report["metrics"]["wer"] == 0.0 and report["metrics"] == report["routes"]["aura"]["metrics"]
    words, errors = [3, 1, 4, 3, 2, 4], [1, 0, 0, 1, 0, 0]
    cascade = report["routes"]["cascade"]["shared"]["wer"]
    assert cascade["value"] == 2 / 17 and cascade["items"] == 6
    assert cascade["interval"] == list(bootstrap_interval(errors, words))
    assert cascade["value"] == report["routes"]["cascade"]["metrics"]["wer"]
    pairs = {pair["measure"]: pair for pair in report["pairs"]}
    assert set(pairs) == {"wer", "cer", "exact_match"}
    assert pairs["wer"]["difference"] == pytest.approx(-2 / 17) and pairs["wer"]["wins_a"] == 2
    assert pairs["exact_match"]["test"] == "McNemar, exact"
    assert pairs["exact_match"]["p_value"] == mcnemar_exact(2, 0) == 0.5 and pairs["exact_match"]["better"] is None
    speed = report["routes"]["cascade"]["timings"]
    assert speed["audio_seconds"] == pytest.approx(0.2 + 0.25 + 0.3 + 0.35 + 0.4 + 0.45)
    assert speed["wall_seconds"] == pytest.approx(0.01 * (6 + 16)) and speed["answer_tokens"] == 16
    assert speed["real_time_factor"] == pytest.approx(0.22 / 1.95)
    assert report["routes"]["aura"]["parameters"] == 270_000_000 and report["routes"]["aura"]["memory"] is None
    assert report["command"] == "aura evaluate x" and report["settings"]["seed"] == 0


def test_a_failed_item_is_counted_and_compared_rates_leave_it_out_for_all(tmp_path: Path) -> None:
    few = {id_: text for id_, text in TRUTH.items() if id_ != "clip1"}  # gives up on "seven"
    wrong = {**TRUTH, "clip1": "eleven"}
    found = run([fake("aura", few), fake("text", wrong)], rows(tmp_path / "d"), tmp_path / "o")
    aura, text = (found.content["routes"][name] for name in ("aura", "text"))
    assert aura["counts"] == {"items": 6, "answered": 5, "failed": 1} and found.failed == {"aura": 1, "text": 0}
    assert aura["failures"] == [{"id": "clip1", "error": "the route gave up"}]
    assert found.content["shared_items"] == 5 and found.content["counts"] == {"items": 6, "failed": 1}
    assert text["shared"]["wer"]["value"] == 0.0 and text["answered"]["wer"]["value"] == 1 / 17
    assert aura["answered"]["wer"] == aura["shared"]["wer"] and aura["metrics"]["scored"] == 5
    assert {pair["items"] for pair in found.content["pairs"]} == {5}
    row = next(row for row in items_in(tmp_path / "o" / "aura") if row["id"] == "clip1")
    assert row["failed"] is True and row["hypothesis"] is None and row["correct"] is None
    assert found.errors == ("aura: clip1: the route gave up",)


def test_an_empty_answer_is_an_answer(tmp_path: Path) -> None:
    found = run([fake("aura", {**TRUTH, "clip1": ""})], rows(tmp_path / "d"), tmp_path / "o")
    assert found.failed == {"aura": 0} and found.content["metrics"]["deletions"] == 1


def test_nothing_in_common_gives_no_rates_but_a_report(tmp_path: Path) -> None:
    odd = {id_: text for id_, text in TRUTH.items() if int(id_[4:]) % 2}
    even = {id_: text for id_, text in TRUTH.items() if not int(id_[4:]) % 2}
    found = run([fake("a", odd), fake("b", even)], rows(tmp_path / "d"), tmp_path / "o")
    assert found.content["shared_items"] == 0 and found.content["pairs"] == []
    assert found.content["routes"]["a"]["shared"]["wer"] == {"value": None, "interval": None, "items": 0}
    assert found.content["routes"]["a"]["answered"]["wer"]["value"] == 0.0
    assert "0 of 6 items" in found.table.read_text() and "<html" in found.page.read_text()


@pytest.mark.parametrize("how", ["aura", "bug"])
def test_a_route_that_raises_fails_that_item_alone(tmp_path: Path, how: str) -> None:
    routes = [fake("aura", TRUTH, raises={"clip2": how}), fake("text", TRUTH)]
    found = run(routes, rows(tmp_path / "d"), tmp_path / "o")
    assert found.failed == {"aura": 1, "text": 0}
    reason = {"aura": "clip2 is too loud", "bug": "ZeroDivisionError: float division by zero"}[how]
    assert found.content["routes"]["aura"]["failures"] == [{"id": "clip2", "error": reason}]
    assert [len(ids) for name, ids in fake_routes.ASKED if name == "aura"] == [6, 1, 1, 1, 1, 1, 1]


def test_audio_that_cannot_be_heard_fails_for_every_route_and_is_asked_of_none(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "d")
    (tmp_path / "d" / "4.wav").write_bytes(b"")
    found = run([fake("aura", TRUTH), fake("text", TRUTH)], utterances, tmp_path / "o", first_token_items=6)
    assert found.failed == {"aura": 1, "text": 1} and found.content["shared_items"] == 5
    assert "0 bytes" in found.content["routes"]["text"]["failures"][0]["error"]
    assert all("clip4" not in ids for _, ids in fake_routes.ASKED)
    assert found.content["routes"]["aura"]["first_token"]["items"] == 5
    assert "Cannot be heard" in found.page.read_text()


def test_ids_that_repeat_are_all_answered(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "d", 1) * 3
    answers = {"clip0": TEXTS[0], "clip0 (2)": TEXTS[0], "clip0 (3)": "no"}
    found = run([fake("aura", answers)], utterances, tmp_path / "o")
    assert [row["id"] for row in items_in(tmp_path / "o" / "aura")] == ["clip0", "clip0 (2)", "clip0 (3)"]
    assert found.content["metrics"]["accuracy"] == pytest.approx(2 / 3)


def test_ids_made_unique_never_meet_another_row() -> None:
    def row(id_: str) -> Utterance:
        return Utterance(id=id_, audio=(), messages=(user_message("x", 0),), transcript="x")

    ids = [item.id for item in items_of(get_task("transcribe"), [row(i) for i in ("a", "a", "a (2)", "a", "a (2)")])]
    assert len(set(ids)) == 5 and ids[0] == "a" and ids[2] == "a (2)"


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_one_by_one_equals_all_at_once(tmp_path: Path, chunk: int) -> None:
    """Answers, numbers and pairs do not depend on how the runner cuts the work."""
    few = {id_: text for id_, text in TRUTH.items() if id_ != "clip5"}
    routes = [fake("aura", few, raises={"clip3": "bug"}), fake("text", TRUTH)]
    found = run(routes, rows(tmp_path / "d"), tmp_path / "o", chunk=chunk)
    assert [row["hypothesis"] for row in items_in(tmp_path / "o" / "aura")] == [*TEXTS[:3], None, TEXTS[4], None]
    assert found.failed == {"aura": 2, "text": 0} and found.content["routes"]["text"]["shared"]["wer"]["items"] == 4
    # The routes take turns.
    assert {name for name, _ in fake_routes.ASKED[-1:]} == {"text"}
    assert all(len(ids) <= chunk for _, ids in fake_routes.ASKED)


# --- tasks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(TASKS))
def test_every_task_has_a_headline_that_is_compared(task: str) -> None:
    measures = measures_of(get_task(task))
    assert measures[0].name == get_task(task).headline and len({measure.name for measure in measures}) == len(measures)


def test_measures_are_those_of_the_metrics() -> None:
    def row(id_: str, **fields: Any) -> Utterance:
        asked = ({"role": "user", "content": "?"}, {"role": "assistant", "content": fields.pop("answer", "x")})
        return Utterance(id=id_, audio=(), messages=asked, **fields)

    label = {"intent": "order", "slots": {"size": "small", "drink": "mocha"}}
    cases = {
        "transcribe": ([row("a", transcript="one two"), row("b", transcript="")], ["one too", "uh no"]),
        "answer": (
            [row("a", answer="7"), row("b", answer="blue"), row("c", answer="x")],
            ["it is seven", "blue", None],
        ),
        "contains": ([row("a", answer="7"), row("b", answer="blue")], ["it is seven", "red"]),
        "number": ([row("a", answer="7"), row("b", answer="8")], ["it is seven", "9"]),
        "intent": ([row("a", label=label), row("b", label=label)], ["order size=small; drink=tea", "order size=small"]),
        "silence": ([row("a", transcript="", answer="")] * 2, ["", "thank you"]),
    }
    for name, (utterances, hypotheses) in cases.items():
        task = get_task(name)
        items = items_of(task, utterances)
        score = score_items(task, items, hypotheses)
        for measure in measures_of(task):
            parts = parts_of(measure, score)
            rate = sum(part for part, _ in parts) / sum(weight for _, weight in parts)
            assert rate == pytest.approx(score.metrics[measure.name]), (name, measure.name)
            assert not measure.binary or {weight for _, weight in parts} <= {0.0, 1.0}


def test_choices_are_made_by_likelihood_where_a_route_can_tell(tmp_path: Path) -> None:
    label = {"options": ["red", "blue"], "answer": "blue"}
    utterances = rows(tmp_path / "d", 2, label=label, messages=[user_message("Which?")], task="choice")
    table = {"clip0": [-3.0, -1.0], "clip1": [-0.5, -4.0]}
    routes = [fake("aura", {}, score_table=table), fake("text", {"clip0": "It is blue.", "clip1": "blue"})]
    found = run(routes, utterances, tmp_path / "o", task="choice")
    assert found.content["routes"]["aura"]["metrics"]["accuracy"] == 0.5
    assert found.content["routes"]["text"]["metrics"]["accuracy"] == 1.0 and found.failed == {"aura": 0, "text": 0}
    assert [row["hypothesis"] for row in items_in(tmp_path / "o" / "aura")] == ["blue", "red"]


def test_the_truth_is_not_in_the_question_but_beside_it_for_the_ceiling(tmp_path: Path) -> None:
    from aura.evaluation.route_answers import question_of

    turns = [user_message("How many?"), {"role": "assistant", "content": "seven"}]
    [item] = items_of(get_task("answer"), rows(tmp_path, 1, messages=turns))
    question = question_of(item, None)
    assert question.messages == [user_message("How many?")] and question.transcripts == [TEXTS[0]]
    assert question_of(item, "What?").messages == [user_message("What?")]


# --- going on -----------------------------------------------------------------------------------------------------


def test_an_interrupted_comparison_goes_on(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "d")
    stopping = [fake("aura", TRUTH), fake("text", TRUTH, raises={"clip3": "interrupt"})]
    with pytest.raises(KeyboardInterrupt):
        run(stopping, utterances, tmp_path / "o", chunk=2)
    assert not (tmp_path / "o" / "report.json").exists()
    assert [len(items_in(tmp_path / "o" / name)) for name in ("aura", "text")] == [4, 2]
    fake_routes.ASKED.clear()
    found = run([fake("aura", TRUTH), fake("text", TRUTH)], utterances, tmp_path / "o", chunk=2)
    asked = {name: [id_ for n, ids in fake_routes.ASKED if n == name for id_ in ids] for name in ("aura", "text")}
    assert asked == {"aura": ["clip4", "clip5"], "text": ["clip2", "clip3", "clip4", "clip5"]}
    assert found.content["shared_items"] == 6


def test_only_failed_and_changed_items_are_asked_again(tmp_path: Path) -> None:
    few = {id_: text for id_, text in TRUTH.items() if id_ != "clip1"}
    run([fake("aura", few)], rows(tmp_path / "d"), tmp_path / "o")
    fake_routes.ASKED.clear()
    utterances = rows(tmp_path / "d")
    (tmp_path / "d" / "new.wav").write_bytes((tmp_path / "d" / "2.wav").read_bytes())
    changed = (tmp_path / "d" / "rows.jsonl").read_text().replace('"2.wav"', '"new.wav"')
    (tmp_path / "d" / "rows.jsonl").write_text(changed)
    utterances = list(read_utterances(tmp_path / "d" / "rows.jsonl"))
    found = run([fake("aura", TRUTH)], utterances, tmp_path / "o")
    assert fake_routes.ASKED == [("aura", ["clip1", "clip2"])] and found.failed == {"aura": 0}
    fake_routes.ASKED.clear()
    run([fake("aura", TRUTH)], utterances, tmp_path / "o", resume=False)
    assert len(fake_routes.ASKED[0][1]) == 6


def test_answers_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "d", 2)
    run([fake("aura", TRUTH)], utterances, tmp_path / "o")
    for changed in ({"max_new_tokens": 9}, {"prompt": "What?"}):
        with pytest.raises(DataError, match=next(iter(changed))):
            run([fake("aura", TRUTH)], utterances, tmp_path / "o", **changed)
    with pytest.raises(DataError, match="setting: 1 there, 2 now"):
        run([fake("aura", TRUTH, setting=2)], utterances, tmp_path / "o")


def test_a_route_can_be_added_later(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "d", 3)
    run([fake("aura", TRUTH)], utterances, tmp_path / "o")
    fake_routes.ASKED.clear()
    found = run([fake("aura", TRUTH), fake("text", TRUTH)], utterances, tmp_path / "o")
    assert [name for name, _ in fake_routes.ASKED] == ["text"] and list(found.content["routes"]) == ["aura", "text"]


def test_problems_are_said_before_any_work(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "d", 2)
    with pytest.raises(DataError, match="no 'label'"):
        run([fake("aura", TRUTH)], utterances, tmp_path / "o", task="intent")
    with pytest.raises(DataError, match="at least one row"):
        run([fake("aura", TRUTH)], [], tmp_path / "o")
    with pytest.raises(DataError, match="'sing'"):
        run([fake("aura", TRUTH)], utterances, tmp_path / "o", task="sing")
    with pytest.raises(DataError, match="no routes"):
        run([], utterances, tmp_path / "o")
    with pytest.raises(DataError, match=r"share the folder 'a-b'"):
        run([fake("a b", TRUTH), fake("a/b", TRUTH)], utterances, tmp_path / "o")
    with pytest.raises(ModelError, match="no such checkpoint"):
        run([unopenable], utterances, tmp_path / "o")
    assert fake_routes.ASKED == []


def test_folder_names_stay_inside() -> None:
    assert [folder_of(name) for name in ("aura", "../../etc", "http://x:1/v1", "..", "größe")] == [
        "aura", "etc", "http-x-1-v1", "route", "größe",
    ]  # fmt: skip


# --- time to the first token --------------------------------------------------------------------------------------


def test_first_tokens_are_measured_in_turns_on_a_fixed_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, str]] = []
    real = fake_routes.FakeRoute.first_token

    def noted(self: Any, question: Any) -> float:
        order.append((self.facts.name, question.id))
        return real(self, question)

    monkeypatch.setattr(fake_routes.FakeRoute, "first_token", noted)
    routes = [fake("aura", TRUTH), fake("slow", TRUTH, delay=0.02), fake("text", TRUTH)]
    utterances = rows(tmp_path / "d")
    found = run(routes, utterances, tmp_path / "o", first_token_items=4)
    sampled = sorted(random.Random(0).sample(range(6), 4))
    assert [id_ for _, id_ in order[:3]] == [f"clip{sampled[0]}"] * 3  # the warm-up
    for turn, at in enumerate(range(3, 15, 3)):
        names = ["aura", "slow", "text"]
        assert order[at : at + 3] == [(n, f"clip{sampled[turn]}") for n in names[turn % 3 :] + names[: turn % 3]]
    slow = found.content["routes"]["slow"]["first_token"]
    assert slow["items"] == 4 and slow["interleaved"] is True and 0.02 <= slow["median"] <= slow["p95"] < 0.5
    assert slow["audio_seconds"] == pytest.approx([0.2 + 0.05 * n for n in sampled], abs=1e-3)
    count = len(order)
    again = run(routes, utterances, tmp_path / "o", first_token_items=4)
    assert len(order) == count and again.content["routes"]["slow"]["first_token"] == slow  # kept
    run(routes[:2], utterances, tmp_path / "o", first_token_items=4)
    assert len(order) > count  # other routes: measured anew


def test_first_tokens_compare_items_that_all_routes_answered() -> None:
    measured = latency.FirstTokens(
        ids=("a", "b", "c"),
        audio_seconds=(1.0, 2.0, 3.0),
        seconds={"x": (0.1, None, 0.3), "y": (1.0, 2.0, 3.0)},
        interleaved=True,
        load_average=None,
    )
    assert measured.summary("y")["median"] == 2.0 and measured.summary("y")["items"] == 2
    assert measured.summary("y")["p95"] == pytest.approx(2.9)


# --- processes ----------------------------------------------------------------------------------------------------


def test_memory_is_this_process_s_and_its_peak_can_start_anew() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux tells")
    before = memory.resident_bytes()
    ballast = bytearray(b"x" * 80_000_000)
    peak = memory.peak_bytes()
    assert before is not None and peak is not None and peak >= before + 60_000_000
    del ballast
    if memory.reset_peak():
        assert (memory.peak_bytes() or 0) < peak - 40_000_000


def test_routes_in_their_own_processes(tmp_path: Path) -> None:
    """Separate memory, stdout that does not garble, errors that come through, and a death that keeps the answers."""
    import functools

    big = functools.partial(greedy_for_memory, 200, "big", TRUTH)
    utterances = rows(tmp_path / "d")
    small = fake("small", TRUTH, raises={"clip2": "bug"})
    found: Comparison = run([big, small], utterances, tmp_path / "o", isolate=True, first_token_items=2)
    peaks = {name: found.content["routes"][name]["memory"]["peak_bytes"] for name in ("big", "small")}
    assert peaks["big"] - peaks["small"] > 150_000_000
    assert found.failed == {"big": 0, "small": 1}
    assert found.content["routes"]["small"]["failures"][0]["error"] == "ZeroDivisionError: float division by zero"
    dying = fake("small", TRUTH, raises={"clip2": "die"})
    with pytest.raises(ModelError, match=r"'small' ended with status 3.*kept"):
        run([dying], utterances, tmp_path / "p", isolate=True, chunk=1)
    assert [row["id"] for row in items_in(tmp_path / "p" / "small")] == ["clip0", "clip1"]


def test_an_opener_that_cannot_travel_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match="isolate=False"):
        RouteProcess(lambda: fake("a", {})())
