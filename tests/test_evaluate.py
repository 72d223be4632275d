"""Evaluations: nothing that failed is scored, nothing that is done is done again, and the report adds up."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import soundfile
import tiny

from aura.batch.collate import Example
from aura.batch.prompt import user_message
from aura.data.manifest import read_utterances
from aura.data.utterance import AudioRef, Utterance
from aura.errors import DataError
from aura.evaluation.evaluate import evaluate
from aura.evaluation.noise import with_noise
from aura.inference.engine import Engine
from aura.inference.generate import Generation


@functools.cache
def student() -> tuple[Any, Any]:
    return tiny.tiny_student("llama")


class Listener(Engine):
    """Answers what `answers` says for an id, and notes what it was asked."""

    def __init__(self, answers: dict[str, str] | None = None, *, stop_after: int | None = None) -> None:
        super().__init__(*student(), checkpoint="tiny")
        self.answers = answers or {}
        self.stop_after = stop_after
        self.asked: list[Example] = []

    def generate(self, examples: Sequence[Example], **_: Any) -> list[Generation]:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.extend(examples)
        return [Generation(text=self.answers.get(e.id, "nothing"), token_ids=(1,), finished=True) for e in examples]


def rows(folder: Path, count: int = 4, **fields: Any) -> list[Utterance]:
    """Clips of 0.5 s and more with the transcripts "word 0", "word 1" ..."""
    folder.mkdir(exist_ok=True)
    lines = []
    for n in range(count):
        soundfile.write(folder / f"{n}.wav", tiny.tiny_speech(0.5 + 0.1 * n, seed=n), 16_000)
        lines.append(json.dumps({"id": f"clip{n}", "audio": f"{n}.wav", "transcript": f"word {n}", **fields}))
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return list(read_utterances(folder / "rows.jsonl"))


def report_of(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


def items_of(folder: Path) -> list[Any]:
    return [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]


def test_a_real_student_leaves_a_report_that_adds_up(tmp_path: Path) -> None:
    engine = Engine(*student(), checkpoint="tiny")
    found = evaluate(engine, rows(tmp_path / "data"), out=tmp_path / "out", max_new_tokens=4, command="aura evaluate x")
    report, items = report_of(tmp_path / "out"), items_of(tmp_path / "out")
    assert found.report == tmp_path / "out" / "report.json"
    assert report["metrics"]["wer"] == found.metrics["wer"] and 0 <= report["metrics"]["accuracy"] <= 1
    assert report["counts"] == {"items": 4, "failed": 0} and report["command"] == "aura evaluate x"
    assert report["settings"]["adapter"] == engine.digest and report["settings"]["max_new_tokens"] == 4
    times = report["timings"]
    assert times["audio_seconds"] == pytest.approx(0.5 + 0.6 + 0.7 + 0.8)
    assert times["real_time_factor"] == pytest.approx(times["wall_seconds"] / times["audio_seconds"], rel=0.01)
    assert times["audio_seconds_per_second"] * times["real_time_factor"] == pytest.approx(1)
    assert sorted(item["id"] for item in items) == [f"clip{n}" for n in range(4)]
    alone = engine.transcribe(str(tmp_path / "data" / "2.wav"), max_new_tokens=4)
    by_id = {item["id"]: item for item in items}
    assert " ".join(by_id["clip2"]["hypothesis"].split()) == alone.text  # type: ignore[union-attr]
    assert by_id["clip2"]["finished"] is not alone.truncated  # type: ignore[union-attr]


def test_scores_are_those_of_the_texts(tmp_path: Path) -> None:
    heard = {"clip0": "Word zero.", "clip1": "word 1", "clip2": "bird two", "clip3": ""}
    found = evaluate(Listener(heard), rows(tmp_path / "data"), out=tmp_path / "out")
    assert found.metrics["accuracy"] == found.metrics["exact_match"] == 0.5
    assert found.metrics["wer"] == pytest.approx(3 / 8)
    assert {i["id"]: i["correct"] for i in items_of(tmp_path / "out")} == {
        "clip0": True, "clip1": True, "clip2": False, "clip3": False,
    }  # fmt: skip


def test_an_item_that_fails_is_counted_and_not_scored(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "data")
    (tmp_path / "data" / "1.wav").write_bytes(b"")
    part = AudioRef(source="x.wav", seconds=301.0)
    long = Utterance(id="long", audio=(part,), messages=utterances[0].messages, transcript="word")
    heard = {f"clip{n}": f"word {n}" for n in range(4)}
    found = evaluate(Listener(heard), [*utterances, long], out=tmp_path / "out")
    assert (found.items, found.failed) == (5, 2)
    assert found.metrics["accuracy"] == 1.0 and found.metrics["scored"] == 3 and found.metrics["wer"] == 0.0
    report = report_of(tmp_path / "out")
    assert report["counts"] == {"items": 5, "failed": 2}
    reasons = {failure["id"]: failure["error"] for failure in report["failures"]}
    assert "0 bytes" in reasons["clip1"] and "at most 300 s" in reasons["long"]
    failed = next(i for i in items_of(tmp_path / "out") if i["id"] == "clip1")
    assert failed["hypothesis"] is None and failed["correct"] is None and failed["failed"] is True
    assert found.errors[0].startswith(("clip1: ", "long: "))


def test_all_failed_gives_no_rate(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "data", 2)
    for n in range(2):
        (tmp_path / "data" / f"{n}.wav").unlink()
    found = evaluate(Listener(), utterances, out=tmp_path / "out")
    assert found.failed == 2 and found.metrics["accuracy"] is None and found.metrics["wer"] is None


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "data", 6)
    heard = {f"clip{n}": f"word {n}" for n in range(6)}
    with pytest.raises(KeyboardInterrupt):
        evaluate(Listener(heard, stop_after=2), utterances, out=tmp_path / "out", batch_items=1)
    assert len(items_of(tmp_path / "out")) == 2 and not (tmp_path / "out" / "report.json").exists()
    second = Listener(heard)
    found = evaluate(second, utterances, out=tmp_path / "out", batch_items=1)
    assert len(second.asked) == 4 and found.metrics["accuracy"] == 1.0 and found.items == 6
    assert len(items_of(tmp_path / "out")) == 6


def test_failed_items_are_tried_again_and_more_items_added(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "data", 4)
    sound = (tmp_path / "data" / "1.wav").read_bytes()
    (tmp_path / "data" / "1.wav").write_bytes(b"")
    assert evaluate(Listener(), utterances, out=tmp_path / "out", limit=2).failed == 1
    (tmp_path / "data" / "1.wav").write_bytes(sound)
    again = Listener({"clip1": "word 1"})
    found = evaluate(again, utterances, out=tmp_path / "out")
    assert sorted(e.id for e in again.asked) == ["clip1", "clip2", "clip3"]
    assert (found.items, found.failed) == (4, 0) and found.metrics["accuracy"] == 0.25


def test_answers_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "data", 2)
    evaluate(Listener(), utterances, out=tmp_path / "out")
    with pytest.raises(DataError, match="max_new_tokens"):
        evaluate(Listener(), utterances, out=tmp_path / "out", max_new_tokens=9)
    found = evaluate(Listener({"clip0": "word 0"}), utterances, out=tmp_path / "out", max_new_tokens=9, resume=False)
    assert found.metrics["accuracy"] == 0.5


def test_the_truth_is_not_in_the_question(tmp_path: Path) -> None:
    listener = Listener()
    evaluate(listener, rows(tmp_path / "data", 2), out=tmp_path / "out")
    assert [e.messages for e in listener.asked] == [[user_message(None)]] * 2
    evaluate(listener, rows(tmp_path / "data", 1), out=tmp_path / "other", prompt="Which word?")
    assert listener.asked[-1].messages == [user_message("Which word?")]


def test_rows_with_one_id_are_all_answered(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "data", 1) * 3
    assert evaluate(Listener({"clip0": "word 0"}), utterances, out=tmp_path / "out").items == 3
    assert [i["id"] for i in items_of(tmp_path / "out")] == ["clip0", "clip0 (2)", "clip0 (3)"]


def test_answers_and_intents(tmp_path: Path) -> None:
    turns = [user_message("How many?"), {"role": "assistant", "content": "seven"}]
    spoken = rows(tmp_path / "a", 2, messages=turns, task="answer")
    found = evaluate(Listener({"clip0": "It is 7", "clip1": "7"}), spoken, out=tmp_path / "answers", task="answer")
    assert found.metrics["accuracy"] == 0.5 and found.metrics["numeric_match"] == 1.0
    label = {"intent": "orderDrink", "slots": {"size": "small", "coffeeDrink": "mocha"}}
    orders = rows(tmp_path / "b", 2, label=label)
    heard = {"clip0": "orderDrink size=small; coffeeDrink=Mocha", "clip1": "orderDrink size=small"}
    found = evaluate(Listener(heard), orders, out=tmp_path / "intents", task="intent")
    assert found.metrics["accuracy"] == found.metrics["command_accuracy"] == 0.5
    assert found.metrics["slot_recall"] == 0.75
    assert items_of(tmp_path / "intents")[0]["reference"] == "orderDrink coffeeDrink=mocha; size=small"


def test_options_are_chosen_by_likelihood(tmp_path: Path) -> None:
    label = {"options": ["one", "the other", "in"], "answer": "in"}
    asked = rows(tmp_path / "data", 3, label=label, task="choice")
    (tmp_path / "data" / "1.wav").write_bytes(b"")
    listener = Listener()
    found = evaluate(listener, asked, out=tmp_path / "out", task="choice")
    assert listener.asked == []  # nothing is written
    items = {i["id"]: i for i in items_of(tmp_path / "out")}
    assert all(items[f"clip{n}"]["hypothesis"] in label["options"] for n in (0, 2))
    assert items["clip1"]["failed"] and (found.items, found.failed, found.metrics["scored"]) == (3, 1, 2)
    assert found.metrics["chance"] == pytest.approx(1 / 3) and found.metrics["unparsed"] == 0
    assert items["clip0"]["reference"] == "in" and found.metrics["accuracy"] in (0.0, 0.5, 1.0)


def test_silence_and_the_tables_of_a_report(tmp_path: Path) -> None:
    quiet = rows(tmp_path / "data", 4, transcript="", speaker="room")
    found = evaluate(Listener({"clip0": "", "clip1": "..."}), quiet, out=tmp_path / "out", task="silence")
    assert found.metrics["false_transcript_rate"] == 0.5 and found.metrics["mean_words"] == 1.0
    (row,) = report_of(tmp_path / "out")["tables"]["by_length"]
    assert (row["seconds"], row["items"], row["accuracy"]) == ("0 to 1", 4, 0.5)


def test_answers_to_other_noise_are_not_mixed_in(tmp_path: Path) -> None:
    utterances = rows(tmp_path / "data", 2)
    noise = str(tmp_path / "data" / "1.wav")
    noisy = with_noise(utterances, noise, [12, 6])
    found = evaluate(Listener({"clip0@12dB": "word 0"}), noisy, out=tmp_path / "out")
    assert found.items == 4 and found.metrics["accuracy"] == 0.25
    assert [row["snr_db"] for row in report_of(tmp_path / "out")["tables"]["by_snr"]] == [6, 12]
    with pytest.raises(DataError, match="noise"):
        evaluate(Listener(), with_noise(utterances, noise, [12, 6], seed=1), out=tmp_path / "out")


def test_nothing_to_score_against_is_said_before_any_work(tmp_path: Path) -> None:
    listener, utterances = Listener(), rows(tmp_path / "data", 2)
    with pytest.raises(DataError, match=r"2 of 2 rows have no 'label'.*clip0, clip1"):
        evaluate(listener, utterances, out=tmp_path / "out", task="intent")
    with pytest.raises(DataError, match="at least one row"):
        evaluate(listener, [], out=tmp_path / "out")
    with pytest.raises(DataError, match="'sing'"):
        evaluate(listener, utterances, out=tmp_path / "out", task="sing")  # type: ignore[arg-type]
    assert listener.asked == [] and not (tmp_path / "out").exists()


def test_other_data_under_the_same_ids_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers to one set of recordings are never scored against another."""
    engine = Engine(*student(), checkpoint="tiny")
    first = list(read_utterances(tiny.tiny_manifest(tmp_path, count=3, name="first")))
    second = list(read_utterances(tiny.tiny_manifest(tmp_path, count=3, seed=5, name="second")))
    other = [replace(u, audio=o.audio) for u, o in zip(first, second, strict=True)]
    asked: list[str] = []
    generate = engine.generate

    def counted(examples: Sequence[Example], **options: Any) -> list[Generation]:
        asked.extend(example.id for example in examples)
        return generate(examples, **options)

    monkeypatch.setattr(engine, "generate", counted)
    for rows, total in ((first, 3), (first, 3), (other, 6)):
        evaluate(engine, rows, out=tmp_path / "out", max_new_tokens=2, show_progress=False)
        assert len(asked) == total


def test_ids_that_collide_with_numbered_ones(tmp_path: Path) -> None:
    engine = Engine(*student(), checkpoint="tiny")
    rows = list(read_utterances(tiny.tiny_manifest(tmp_path, count=3)))
    rows = [replace(row, id=id_) for row, id_ in zip(rows, ("a", "a", "a (2)"), strict=True)]
    result = evaluate(engine, rows, out=tmp_path / "out", max_new_tokens=2, show_progress=False)
    lines = [json.loads(line) for line in (tmp_path / "out" / "items.jsonl").read_text().splitlines()]
    assert result.items == 3 and len({line["id"] for line in lines}) == 3
