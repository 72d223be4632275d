"""Scores against jiwer and hand counts; silence, failed items and numbers; bootstrap intervals."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("jiwer")
pytest.importorskip("whisper_normalizer")

import jiwer
from hypothesis import given, settings
from hypothesis import strategies as st

from aura.errors import DataError
from aura.evaluation.metrics import answers, bootstrap_interval, intents, transcription
from aura.evaluation.normalise import normalise, numbers

# ---------------------------------------------------------------------------------------- the normaliser

ENGLISH = [  # (written, compared)
    ("Let's go!", "let us go"),
    ("he's like", "he is like"),
    ("she's been like", "she has been like"),
    ("I can't, won't, don't.", "i can not will not do not"),
    ("10km", "10 km"),
    ("RC232", "rc 232"),
    ("Mr. Park visited Assoc. Prof. Kim Jr.", "mister park visited associate professor kim junior"),
    ("colour and Labour", "color and labor"),
    ("um, [noise] well (laughs) yes", "well yes"),
    ("Café", "cafe"),
    ("two hundred and sixty eight", "268"),
    ("nineteen ninety nine", "1999"),
    ("double oh seven", "007"),
    ("one oh one", "101"),
    ("twenty-five percent", "25%"),
    ("$20 million", "$20000000"),
    ("1,000", "1000"),
    ("minus 3.5", "-3.5"),
    ("Seven.", "7"),
    ("  spaces \t and\nlines ", "spaces and lines"),
    ("", ""),
    ("...", ""),
    ("uh", ""),
]


@pytest.mark.parametrize(("written", "compared"), ENGLISH)
def test_english_text_is_compared_as_whisper_does(written: str, compared: str) -> None:
    assert normalise(written, "en") == compared
    assert normalise(written, "en-US") == compared


@pytest.mark.parametrize(
    ("written", "lang", "compared"),
    [
        ("L'été, c'est «chaud»!", "fr", "l été c est chaud"),
        ("Sieben (7) Äpfel", "de", "sieben äpfel"),
        ("seven", "de", "seven"),
        ("Colour", None, "colour"),
        ("你好，世界。", "zh", "你 好 世 界"),
    ],
)
def test_other_languages_get_the_basic_normaliser(written: str, lang: str | None, compared: str) -> None:
    assert normalise(written, lang) == compared


# ---------------------------------------------------------------------------------------- transcription

LIBRISPEECH_LIKE = [  # (reference, hypothesis, hits, substitutions, deletions, insertions), counted by hand
    ("the cat sat on the mat", "the cat sat on the mat", 6, 0, 0, 0),
    ("the cat sat on the mat", "the cat sit on mat", 4, 1, 1, 0),
    ("the cat sat", "the big cat sat down", 3, 0, 0, 2),
    ("hello world", "goodbye moon", 0, 2, 0, 0),
    ("hello world", "", 0, 0, 2, 0),
]


def test_counts_equal_those_made_by_hand() -> None:
    score = transcription([row[0] for row in LIBRISPEECH_LIKE], [row[1] for row in LIBRISPEECH_LIKE])
    for row, (_, _, *counts) in zip(score.rows, LIBRISPEECH_LIKE, strict=True):
        assert [row.hits, row.substitutions, row.deletions, row.insertions] == counts
    assert (score.hits, score.substitutions, score.deletions, score.insertions) == (13, 3, 3, 2)
    assert score.reference_words == 6 + 6 + 3 + 2 + 2
    assert score.wer == 8 / 19
    assert score.exact_match == 1 / 5
    assert (score.items, score.scored, score.failed) == (5, 5, 0)


def test_published_examples_of_jiwer() -> None:
    assert transcription(["hello world"], ["hello duck"]).wer == 0.5
    readme = transcription(["hello world", "i like monty python"], ["hello duck", "i like python"])
    assert readme.wer == pytest.approx(2 / 6)  # corpus level: not the mean of 1/2 and 1/4
    assert transcription(["i can spell"], ["i cam spel"]).cer == pytest.approx(2 / 11)


def test_normalisation_comes_before_counting() -> None:
    score = transcription(["Mr. Smith's colour: twenty-five."], ["mister smith is color 25"])
    assert (score.wer, score.cer, score.exact_match) == (0.0, 0.0, 1.0)


words = st.lists(st.sampled_from(["a", "b", "c", "cat", "dog", "seven"]), max_size=8).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_rates_equal_jiwer_on_any_text(pairs: list[tuple[str, str]]) -> None:
    references = ["x " + reference for reference, _ in pairs]  # jiwer's rate needs one reference word
    hypotheses = [hypothesis for _, hypothesis in pairs]
    score = transcription(references, hypotheses)
    clean = [normalise(text) for text in references], [normalise(text) for text in hypotheses]
    assert score.wer == pytest.approx(jiwer.wer(*clean))
    assert score.cer == pytest.approx(jiwer.cer(*clean))
    output = jiwer.process_words(*clean)
    assert (score.hits, score.substitutions) == (output.hits, output.substitutions)
    assert (score.deletions, score.insertions) == (output.deletions, output.insertions)


def test_silence_counts_insertions_and_false_transcripts() -> None:
    score = transcription(["", "um", "hello world"], ["thank you", "", "hello world"])
    assert score.silent_items == 2
    assert (score.false_transcripts, score.false_words, score.insertions) == (1, 2, 2)
    assert score.wer == 2 / 2  # two inserted words over the two words of the spoken clip
    assert score.exact_match == 2 / 3
    assert transcription([""], ["..."]).false_transcripts == 0


def test_silence_only_has_no_rate_but_is_counted() -> None:
    score = transcription(["", ""], ["", "you"])
    assert score.wer is None and score.cer is None and score.wer_interval is None
    assert (score.false_transcripts, score.exact_match) == (1, 0.5)


def test_unspaced_languages_are_scored_by_grapheme() -> None:
    score = transcription(["你好世界"], ["你好 地界。"], lang="zh")
    assert (score.wer, score.cer, score.reference_words) == (0.25, 0.25, 4)


def test_each_item_may_have_its_language() -> None:
    score = transcription(["colour", "colour"], ["color", "color"], lang=["en", "fr"])
    assert [row.word_errors for row in score.rows] == [0, 1]


# ---------------------------------------------------------------------------------------- failed items


def test_a_failed_item_is_no_empty_answer() -> None:
    failed = transcription(["hello world", "good morning"], ["hello duck", None])
    empty = transcription(["hello world", "good morning"], ["hello duck", ""])
    assert (failed.items, failed.scored, failed.failed, failed.wer) == (2, 1, 1, 0.5)
    assert (failed.reference_words, failed.deletions) == (2, 0)
    assert (empty.scored, empty.failed, empty.wer) == (2, 0, 0.75)
    assert failed.rows[1].failed and failed.rows[1].hypothesis is None and failed.rows[1].exact is None


def test_a_failed_silent_clip_is_no_success() -> None:
    score = transcription(["", "hi"], [None, "hi"])
    assert (score.silent_items, score.exact_match, score.failed) == (0, 1.0, 1)


def test_failed_answers_and_commands_leave_the_rates() -> None:
    score = answers(["7", "yes"], [None, "yes"])
    assert (score.items, score.failed, score.exact_match, score.numeric_items) == (2, 1, 1.0, 0)
    label = {"intent": "stop", "slots": {}}
    assert intents([label, label], [None, "stop"]).command_accuracy == 1.0


@pytest.mark.parametrize("metric", [transcription, answers])
def test_when_everything_failed_there_is_no_rate(metric) -> None:
    score = metric(["a", "b"], [None, None])
    assert (score.failed, score.scored, score.exact_match) == (2, 0, None)


def test_no_items_give_no_rates() -> None:
    assert transcription([], []).wer is None
    assert answers([], []).exact_match is None
    assert intents([], []).slot_f1 is None


def test_wrong_lengths_and_missing_references_are_named() -> None:
    with pytest.raises(DataError, match="2 references, 1 hypotheses"):
        transcription(["a", "b"], ["a"])
    with pytest.raises(DataError, match="item 1 has no reference"):
        transcription(["a", None], ["a", "b"])  # type: ignore[list-item]
    with pytest.raises(DataError, match="single text"):
        transcription("abc", "abc")


# ---------------------------------------------------------------------------------------- answers

NUMBERS = [  # (text, values)
    ("seven", [7]),
    ("7", [7]),
    ("Seven.", [7]),
    ("7th", [7]),
    ("The answer is twenty-one!", [21]),
    ("-7", [-7]),
    ("minus seven", [-7]),
    ("1,000", [1000]),
    ("one thousand", [1000]),
    ("a hundred", [100]),
    ("one", [1]),
    ("1.5", [1.5]),
    ("one point five", [1.5]),
    ("1 2 3", [123]),
    ("one two three", [123]),
    ("$5", [5]),
    ("five dollars", [5]),
    ("3 plus 4 is 7", [3, 4, 7]),
    ("no number", []),
]


@pytest.mark.parametrize(("text", "values"), NUMBERS)
def test_numbers_are_read_by_value(text: str, values: list[float]) -> None:
    assert [float(value) for value in numbers(text)] == values


@pytest.mark.parametrize(
    ("reference", "hypothesis", "exact", "contains", "numeric"),
    [
        ("7", "seven", True, True, True),
        ("seven", "7", True, True, True),
        ("7", "The answer is seven.", False, True, True),
        ("7", "3 plus 4 is 7", False, True, True),
        ("7", "7 or 8", False, True, False),
        ("7", "17", False, False, False),
        ("-7", "minus seven", False, False, True),  # Whisper's normaliser drops a written minus
        ("7", "no idea", False, False, False),
        ("7", "", False, False, False),
        ("Paris", "It is Paris, of course", False, True, None),
        ("Paris", "Parisian", False, False, None),
        ("", "", True, True, None),
        ("", "something", False, False, None),
        (("New York", "NYC"), "nyc", True, True, None),
    ],
)
def test_answers(reference, hypothesis, exact, contains, numeric) -> None:
    (row,) = answers([reference], [hypothesis]).rows
    assert (row.exact, row.contains, row.numeric) == (exact, contains, numeric)


def test_answer_shares() -> None:
    score = answers(["7", "8", "Paris", "9"], ["seven", "it is 8", "Rome", "8"])
    assert (score.exact_match, score.contains) == (1 / 4, 2 / 4)
    assert (score.numeric_match, score.numeric_items) == (2 / 3, 3)
    low, high = score.exact_match_interval
    assert low <= score.exact_match <= high


# ---------------------------------------------------------------------------------------- intents

MOCHA = {
    "intent": "orderDrink",
    "slots": {"coffeeDrink": "mocha", "size": "small", "sugarAmount": " sweetener"},
}


@pytest.mark.parametrize(
    ("text", "command", "intent", "right", "wrong", "missed"),
    [
        ("orderDrink coffeeDrink=mocha; size=small; sugarAmount=sweetener", True, True, 3, 0, 0),
        ("orderDrink size=Small; sugarAmount=sweetener;  coffeeDrink=mocha", True, True, 3, 0, 0),
        ("orderDrink coffeeDrink=latte; size=small; sugarAmount=sweetener", False, True, 2, 1, 1),
        ("orderDrink coffeeDrink=mocha; size=small", False, True, 2, 0, 1),
        ("orderDrink coffeeDrink=mocha; size=small; sugarAmount=sweetener; roast=dark", False, True, 3, 1, 0),
        ("cancel coffeeDrink=mocha; size=small; sugarAmount=sweetener", False, False, 3, 0, 0),
        ("", False, False, 0, 0, 3),
        ("orderDrink coffeeDrink=mocha; size=sm", False, True, 1, 1, 2),
        ("orderDrink coffeeDrink=mocha; size=small; sugarAmount=sweetener; roast", False, True, 3, 0, 0),
        ("orderDrink size=large; coffeeDrink=mocha; size=small; sugarAmount=sweetener", False, True, 3, 0, 0),
    ],
)
def test_a_command_is_right_with_every_slot(text, command, intent, right, wrong, missed) -> None:
    (row,) = intents([MOCHA], [text]).rows
    assert (row.command, row.intent) == (command, intent)
    assert (row.slots_right, row.slots_wrong, row.slots_missed) == (right, wrong, missed)


def test_intent_shares_are_micro_averages() -> None:
    score = intents(
        [MOCHA, MOCHA, {"intent": "cancel", "slots": {}}],
        [
            "orderDrink coffeeDrink=mocha; size=small; sugarAmount=sweetener",
            "orderDrink size=large",
            "cancel",
        ],
    )
    assert (score.command_accuracy, score.intent_accuracy) == (2 / 3, 1.0)
    assert (score.slot_precision, score.slot_recall, score.slot_f1) == (3 / 4, 3 / 6, 2 * 3 / (4 + 6))


def test_free_text_is_a_wrong_command_not_a_failed_item() -> None:
    score = intents([MOCHA], ["I am sorry; I = cannot ; hear = = you"])
    assert (score.failed, score.scored, score.command_accuracy, score.unparsed) == (0, 1, 0.0, 1)
    chatty = intents([{"intent": "cancel", "slots": {}}], ["cancel that, please"])
    assert (chatty.command_accuracy, chatty.intent_accuracy, chatty.unparsed) == (0.0, 1.0, 1)


def test_a_class_name_is_compared_whole() -> None:
    score = intents(["turn on", "turn on"], ["Turn  on", "turn off"])
    assert [row.command for row in score.rows] == [True, False]
    assert (score.unparsed, score.slot_f1) == (0, None)


# ---------------------------------------------------------------------------------------- intervals


def test_interval_holds_the_rate_and_repeats() -> None:
    errors, weights = [0, 1, 2, 0, 3, 1, 0, 0] * 5, [5, 6, 7, 5, 6, 9, 2, 8] * 5
    low, high = bootstrap_interval(errors, weights, seed=1)
    assert low < sum(errors) / sum(weights) < high
    assert bootstrap_interval(errors, weights, seed=1) == (low, high)
    assert bootstrap_interval(errors, weights, seed=2) != (low, high)


def test_interval_of_a_share_is_as_wide_as_the_binomial() -> None:
    low, high = bootstrap_interval([1] * 50 + [0] * 50, [1] * 100, samples=4000)
    half_width = 1.96 * (0.5 * 0.5 / 100) ** 0.5
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1)


@pytest.mark.parametrize("count", [1, 20, 240])
def test_no_error_among_few_items_is_not_certainty(count: int) -> None:
    low, high = bootstrap_interval([0] * count, [1] * count)
    assert low == 0 and (1 - high) ** count == pytest.approx(
        0.025
    )  # of that rate, so few errors are just likely enough
    assert bootstrap_interval([1] * count, [1] * count) == (pytest.approx(1 - high), 1.0)
    assert bootstrap_interval([0] * count, [3] * count) == (0.0, 0.0)  # words of one clip err together: no such bound


def test_interval_without_spread_and_without_weight() -> None:
    assert bootstrap_interval([2, 2], [4, 4]) == (0.5, 0.5)
    low, high = bootstrap_interval([1, 0], [0, 1])  # draws of the silent clip alone have no rate
    assert 0 <= low <= high
    for errors, weights in (([], []), ([1], [0]), ([1, 2], [1])):
        with pytest.raises(DataError, match="bootstrap_interval got"):
            bootstrap_interval(errors, weights)


# ---------------------------------------------------------------------------------------- what comes out


def test_scores_and_rows_are_json() -> None:
    for score in (transcription(["hi"], ["ho"]), answers(["7"], ["8"]), intents([MOCHA], ["cancel"])):
        metrics = json.loads(json.dumps(score.as_dict()))
        assert "rows" not in metrics and metrics["items"] == 1
        assert len(json.loads(json.dumps(score.row_dicts()))) == 1


def test_metrics_do_not_import_torch() -> None:
    code = "import sys, aura.evaluation.metrics, aura.evaluation.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
