"""The table of tasks: what is compared with what, choices, silence, tables by speaker, length and noise."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer")

import json

from aura.data.utterance import AudioRef, Utterance, build_messages
from aura.errors import DataError
from aura.evaluation.choices import choices, most_likely, named_option
from aura.evaluation.json_text import plain
from aura.evaluation.metrics import answers, silence, transcription
from aura.evaluation.tables import tables
from aura.evaluation.tasks import TASKS, get_task, references_of

CAPITAL = {"options": ["A", "B", "C", "D"], "answer": "B"}


def utterance(id_: str = "u", *, seconds: float = 1.5, **fields: Any) -> Utterance:
    transcript, label, task = fields.get("transcript"), fields.get("label"), fields.get("task")
    if "messages" not in fields:
        fields["messages"] = build_messages(transcript=transcript, label=label, task=task)
    audio = (AudioRef(source=f"{id_}.wav", seconds=seconds),)
    return Utterance(id=id_, audio=audio, **fields)


# ------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("task", "fields", "reference"),
    [
        ("transcribe", {"transcript": "hello"}, "hello"),
        ("transcribe", {"transcript": ""}, ""),
        ("transcribe", {}, None),
        ("answer", {"label": {"answers": ["7", "seven"]}, "transcript": "three plus four"}, ["7", "seven"]),
        ("answer", {"transcript": "seven"}, "seven"),
        ("contains", {"label": {"answers": ["Paris"]}}, ["Paris"]),
        ("number", {"label": {"answers": ["seven", "a few"]}}, ["seven"]),
        ("number", {"label": {"answers": ["a few"]}}, None),
        ("choice", {"label": CAPITAL}, CAPITAL),
        ("choice", {"label": {"options": ["A", "B"], "answer": "C"}}, None),
        ("choice", {"transcript": "hello"}, None),
        ("intent", {"label": {"intent": "stop"}}, {"intent": "stop"}),
        ("intent", {"label": "stop"}, "stop"),
        ("intent", {"label": CAPITAL}, None),
        ("silence", {"transcript": ""}, ""),
        ("silence", {}, ""),
        ("silence", {"transcript": "hello"}, None),
    ],
)
def test_what_an_answer_is_compared_with(task: str, fields: dict[str, Any], reference: Any) -> None:
    if fields.get("label") == {"options": ["A", "B"], "answer": "C"}:
        fields = {**fields, "messages": ()}  # no such label makes a conversation
    assert get_task(task).reference_of(utterance(**fields)) == reference


def test_rows_without_a_reference_are_named() -> None:
    rows = [utterance("a", transcript="x"), utterance("b"), utterance("c")]
    with pytest.raises(DataError, match=r"2 of 3 rows have no 'transcript' to score against: b, c\."):
        references_of(TASKS["transcribe"], rows)
    with pytest.raises(
        DataError, match="expected one of transcribe, answer, contains, number, choice, intent, silence"
    ):
        get_task("sing")


@pytest.mark.parametrize(
    ("task", "references", "hypotheses", "accuracy", "correct"),
    [
        ("transcribe", ["a cat", "a dog", "x"], ["a cat", "a cow", None], 1 / 2, (True, False, None)),
        (
            "answer",
            ["7", ["Paris", "the city of Paris"], "x"],
            ["seven", "It is Paris", None],
            1 / 2,
            (True, False, None),
        ),
        ("contains", ["7", ["Paris"], "x"], ["it is 17", "It is Paris", None], 1 / 2, (False, True, None)),
        ("number", [["7"], ["21"], ["x 1"]], ["3 + 4 = 7", "twenty-one miles", None], 1.0, (True, True, None)),
        ("choice", [CAPITAL] * 3, ["B", "The answer is C.", None], 1 / 2, (True, False, None)),
        ("intent", ["stop", "stop", "stop"], ["stop", "go", None], 1 / 2, (True, False, None)),
        ("silence", ["", "", ""], ["...", "thank you", None], 1 / 2, (True, False, None)),
    ],
)
def test_every_task_scores_alike(task: str, references: Any, hypotheses: Any, accuracy: float, correct: Any) -> None:
    score = get_task(task).score(references, hypotheses)
    assert score.metrics["accuracy"] == accuracy and score.correct == correct
    assert (score.metrics["items"], score.metrics["scored"], score.metrics["failed"]) == (3, 2, 1)
    assert score.errors[2] is None and len(score.rows) == len(score.weights) == 3
    json.dumps(plain(score.metrics), allow_nan=False)
    headline = score.metrics[get_task(task).headline]
    pairs = [(e, w) for e, w in zip(score.errors, score.weights, strict=True) if e is not None]
    rate = sum(e for e, _ in pairs) / sum(w for _, w in pairs)
    assert headline == pytest.approx(rate if get_task(task).lower_is_better else 1 - rate)
    failed = get_task(task).score(references[:1], [None])
    assert failed.metrics["accuracy"] is None and failed.metrics[get_task(task).headline] is None
    assert isinstance(get_task(task).written(references[0]), str)


def test_the_label_is_what_a_row_without_messages_learns() -> None:
    assert utterance(label=CAPITAL).answer == "B"
    assert utterance(label={"answers": ["Paris", "city of Paris"]}, transcript="where?").answer == "Paris"
    with pytest.raises(DataError, match="answers"):
        utterance(label={"answers": []})


# ------------------------------------------------------------------------------------- word F1, published examples


def test_word_f1_follows_squad() -> None:
    (row,) = answers(["the cat sat"], ["a cat sat down"]).rows
    assert row.f1 == pytest.approx(2 * 2 / (2 + 3))  # articles do not count
    assert answers([["Denver Broncos", "Broncos"]], ["the Broncos"]).f1 == 1.0
    assert answers(["twenty one"], ["21 km"]).f1 == pytest.approx(2 / 3)
    assert answers([""], [""]).f1 == 1.0 and answers(["x y"], [""]).f1 == 0.0
    assert answers(["x"], [None]).f1 is None


def test_published_example_of_the_evaluate_package() -> None:
    """Its documentation gives 0.5 and 0.34146341463414637 for these."""
    references = ["this is the reference", "there is another one"]
    score = transcription(references, ["this is the prediction", "there is an other sample"])
    assert score.wer == 0.5 and score.cer == pytest.approx(0.34146341463414637)


# ------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B).", "B"),
        ("B. Paris", "B"),
        ("B) because it is", "B"),
        ("The answer is B", "B"),
        ("the answer is b.", "B"),
        ("The correct answer would be (D), as", "D"),
        ("Answer: **D**", "D"),
        ("The answer is A because", "A"),
        ("I would go with C", "C"),
        ("A good answer is B", "B"),
        ("A dog or a cat", None),
        ("the answer is a dog", None),
        ("B or C", None),
        ("It's D, not A.", None),
        ("None", None),
        ("", None),
    ],
)
def test_the_letter_that_a_reply_names(reply: str, letter: str | None) -> None:
    assert named_option(reply, ["A", "B", "C", "D"]) == letter


@pytest.mark.parametrize(
    ("reply", "option"),
    [
        ("It is Paris.", "Paris"),
        ("paris", "Paris"),
        ("New York City", "New York"),
        ("Paris or Rome", None),
        ("Parisian", None),
        ("C++", "C++"),
    ],
)
def test_the_option_that_a_reply_names(reply: str, option: str | None) -> None:
    assert named_option(reply, ["Paris", "Rome", "New York", "York", "C++"]) == option


def test_choices_count_chance_and_replies_without_an_option() -> None:
    two = {"options": ["yes", "no"], "answer": "no"}
    score = choices([CAPITAL, two, two, two], ["B", "hm", "no", None])
    assert (score.choice_accuracy, score.unparsed, score.failed) == (2 / 3, 1, 1)
    assert score.chance == pytest.approx((1 / 4 + 1 / 2 + 1 / 2) / 3)
    with pytest.raises(DataError, match="the answer among the options"):
        choices([{"options": ["A"], "answer": "A"}], ["A"])


def test_the_most_likely_option() -> None:
    assert most_likely(["A", "B"], [-2.0, -1.0]) == "B"
    assert most_likely(["no", "certainly not"], [-3.0, -9.0]) == "no"
    assert most_likely(["no", "certainly not"], [-3.0, -9.0], per_character=True) == "certainly not"
    for wrong in ([-1.0], [float("nan"), -1.0]):
        with pytest.raises(DataError, match="one number each"):
            most_likely(["A", "B"], wrong)


# ------------------------------------------------------------------------------------- silence


def test_any_letter_or_digit_in_silence_is_invented() -> None:
    score = silence(["", " ... ", "Thank you.", "[music]", "7", None, "♪"])
    assert [row.invented for row in score.rows] == [False, False, True, True, True, None, False]
    assert (score.items, score.failed, score.false_transcripts, score.false_transcript_rate) == (7, 1, 3, 1 / 2)
    assert score.mean_words == (2 + 1 + 1) / 3
    assert score.mean_characters == (10 + 7 + 1) / 3
    low, high = score.false_transcript_interval
    assert 0 <= low < 1 / 2 < high <= 1
    quiet = silence([""])
    assert (quiet.false_transcript_rate, quiet.mean_words, quiet.quiet) == (0.0, None, 1.0)
    assert silence([None]).false_transcript_rate is None


# ------------------------------------------------------------------------------------- tables


def test_tables_by_speaker_length_and_language() -> None:
    rows = [
        utterance("a", speaker="anna", seconds=0.5, transcript="a cat", lang="en"),
        utterance("b", speaker="anna", seconds=3.0, transcript="a cat and dog", lang="en"),
        utterance("c", speaker="ben", seconds=3.5, transcript="five", lang="fr"),
        utterance("d", seconds=300.0, transcript="six", lang="fr"),
    ]
    score = TASKS["transcribe"].score([u.transcript for u in rows], ["a cat", "a", "six", None])
    found = tables(rows, score)
    assert set(found) == {"by_speaker", "by_length", "by_lang"}
    anna, ben, unknown = found["by_speaker"]
    assert (anna["speaker"], anna["items"], anna["wer"], anna["deletions"], anna["accuracy"]) == (
        "anna",
        2,
        3 / 6,
        3,
        0.5,
    )
    assert (ben["wer"], ben["substitutions"]) == (1.0, 1)
    assert (unknown["speaker"], unknown["failed"], unknown["wer"], unknown["accuracy"]) == ("unknown", 1, None, None)
    assert [row["seconds"] for row in found["by_length"]] == ["0 to 1", "2 to 5", "30 and more"]
    assert sum(row["words"] for row in found["by_length"]) == score.metrics["reference_words"]
    assert [row["lang"] for row in found["by_lang"]] == ["en", "fr"]


def test_tables_of_commands_and_of_clips_that_cannot_be_measured() -> None:
    label = {"intent": "order", "slots": {"size": "small", "drink": "tea"}}
    rows = [utterance("a", label=label, speaker="x"), utterance("b", label=label, speaker="y")]
    rows.append(Utterance(id="c", audio=(AudioRef(source="absent.wav"),), messages=(), label=label))
    score = TASKS["intent"].score([label] * 3, ["order drink=tea; size=small", "order drink=tea", None])
    found = tables(rows, score)
    assert [row["slot_f1"] for row in found["by_speaker"][:2]] == [1.0, pytest.approx(2 / 3)]
    assert [row["accuracy"] for row in found["by_speaker"]] == [1.0, 0.0, None]
    assert found["by_length"][-1]["seconds"] == "unknown"


@pytest.mark.parametrize(
    ("options", "reply"), [(["5", ".5"], "5"), (["No", "no"], "No"), (["(x)", "x"], "(x)"), (["!", "?"], "!")]
)
def test_an_option_to_the_letter_is_that_option(options: list[str], reply: str) -> None:
    """What was chosen by likelihood is not read again as prose."""
    assert named_option(reply, options) == reply
