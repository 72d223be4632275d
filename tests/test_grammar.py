"""Grammars: syntax, counting, drawing, labels."""

from __future__ import annotations

import collections
import json

import pytest

from aura.data.utterance import label_text
from aura.errors import DataError
from aura.synthesis.builtin_slots import builtin_values, spell, spell_ordinal
from aura.synthesis.expression import parse_expression
from aura.synthesis.grammar import SlotValue
from aura.synthesis.grammar_file import grammar_from_tree, read_grammar
from aura.synthesis.texts import mend_articles, read_lines

PICOVOICE = """
context:
  expressions:
    turnOn:
      - "(please, kindly) [turn on, switch on] the $color:lightColor light"
      - "@start the $place:where light (now)"
    setTimer:
      - "set a timer for $pv.TwoDigitInteger:minutes [minute, minutes]"
  slots:
    color: [red, green]
    place: [kitchen, living room]
  macros:
    start:
      - "light up"
      - "[put on, @again]"
    again: ["put (back) on"]
"""


@pytest.fixture
def lights(tmp_path):
    path = tmp_path / "lights.yaml"
    path.write_text(PICOVOICE)
    return read_grammar(path)


def test_every_sentence_is_counted_and_drawn(lights):
    # 3 * 2 * 2 of the first; (1 + 1 + 2) starts * 2 places * 2 of the second; 100 numbers * 2 of the timer
    assert lights.count() == 12 + 16 + 200
    drawn = lights.sample(10_000, seed=3)
    # "put on the ..." comes about in two ways: 2 places * 2
    assert len(drawn) == 224 == len({sentence.text for sentence in drawn})


def test_sentences_carry_their_labels(lights):
    by_text = {sentence.text: sentence.label for sentence in lights.sample(1000)}
    assert by_text["please switch on the green light"] == {"intent": "turnOn", "slots": {"lightColor": "green"}}
    assert by_text["put back on the living room light now"] == {"intent": "turnOn", "slots": {"where": "living room"}}
    assert by_text["set a timer for forty two minutes"] == {"intent": "setTimer", "slots": {"minutes": "42"}}
    assert label_text(by_text["turn on the red light"]) == "turnOn lightColor=red"


def test_a_seed_fixes_the_drawing_and_more_begins_with_less(lights):
    assert lights.sample(20, seed=5) == lights.sample(40, seed=5)[:20]
    assert lights.sample(20, seed=5) != lights.sample(20, seed=6)


def test_weights_and_synonyms_of_the_json_form(tmp_path):
    path = tmp_path / "tea.json"
    tree = {
        "intents": {
            "order": {"weight": 3, "expressions": [{"say": "a $size:size tea number $n:n", "weight": 9}, "tea $n:n"]},
            "cancel": {"expressions": ["cancel $n:n"]},
        },
        "slots": {
            "size": ["small", {"value": "large", "say": ["large", "big"], "weight": 3}],
            "n": [str(number) for number in range(1000)],
        },
    }
    path.write_text(json.dumps(tree))
    drawn = read_grammar(path).sample(2000, seed=0)
    intents = collections.Counter(sentence.intent for sentence in drawn)
    sizes = collections.Counter(sentence.slots.get("size") for sentence in drawn if sentence.intent == "order")
    assert intents["order"] / len(drawn) == pytest.approx(0.75, abs=0.03)
    assert sizes["large"] / (sizes["large"] + sizes["small"]) == pytest.approx(0.75, abs=0.04)
    assert sizes[None] / sum(sizes.values()) == pytest.approx(0.1, abs=0.03)
    big = [sentence for sentence in drawn if " big " in sentence.text]
    assert big and all(sentence.slots["size"] == "large" for sentence in big)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ({"intent": "turnOn", "slots": {"lightColor": " green "}}, None),
        ({"intent": "turnOff"}, "the intent 'turnOff' is none of turnOn, setTimer"),
        ({"intent": "turnOn", "slots": {"size": "big"}}, "turnOn has no slot 'size'"),
        ({"intent": "turnOn", "slots": {"lightColor": "blue"}}, "lightColor has no value 'blue'"),
        ({"intent": "turnOn", "slots": {"lightColor": "red", "where": "kitchen"}}, "fills exactly lightColor, where"),
        ({"intent": "setTimer", "slots": {}}, "fills exactly no slots"),
        ({"intent": "setTimer", "slots": {"minutes": "forty two"}}, "but says it for '42'"),
    ],
)
def test_labels_are_checked_against_the_grammar(lights, label, reason):
    report = lights.check_labels([label])
    assert report.total == 1 and report.expressible == (reason is None)
    if reason is not None:
        assert reason in next(iter(report.problems)) and reason in report.as_text()


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is empty"),
        ("turn [on, off", "lacks a ']'"),
        ("turn on)", "closes nothing"),
        ("turn [on,] it", "an empty phrase"),
        ("a $size tea", "cannot be read from '$size tea'"),
        ("a @ tea", "cannot be read from '@ tea'"),
        ("(,)", "an empty phrase"),
        (",", "holds no words"),
    ],
)
def test_expressions_that_cannot_be_read_say_where(text, what):
    with pytest.raises(DataError) as caught:
        parse_expression(text)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "what"),
    [
        ({"expressions": {"a": ["$size:s"]}}, "no slot type 'size'"),
        ({"expressions": {"a": ["@more"]}}, "no macro 'more'"),
        ({"expressions": {"a": ["@x"]}, "macros": {"x": ["@y"], "y": ["@x"]}}, "the macros x, y lead back"),
        ({"expressions": {"a": []}}, "expected a list that is not empty"),
        ({"expressions": {}}, "has no expressions"),
        ({"sentences": {}}, "has the key 'sentences'"),
        ({"expressions": {"a": [{"say": "x", "weight": -1}]}}, "weight -1"),
        ({"expressions": {"a": ["[x"]}}, "intent a: the expression '[x'"),
        ([], "holds no mapping"),
    ],
)
def test_grammars_that_cannot_be_used_say_why(tree, what):
    with pytest.raises(DataError) as caught:
        grammar_from_tree(tree)
    assert what in str(caught.value)


def test_one_text_with_two_meanings_is_refused():
    grammar = grammar_from_tree({"expressions": {"a": ["go"], "b": ["go"]}})
    with pytest.raises(DataError, match="one meaning"):
        grammar.sample(5)


def test_numbers_in_words():
    assert [spell(n) for n in (0, 13, 20, 42, 100)] == ["zero", "thirteen", "twenty", "forty two", "one hundred"]
    assert [spell_ordinal(n) for n in (1, 4, 12, 20, 33)] == ["first", "fourth", "twelfth", "twentieth", "thirty third"]
    assert builtin_values("pv.Percent")[50] == ("fifty percent", "50%")  # type: ignore[index]
    assert builtin_values("pv.Unheard") is None
    assert SlotValue(value="x", say=("x",)).weight == 1.0


def test_articles_are_mended():
    assert mend_articles("a iced tea and an latte, A eight ounce") == "an iced tea and a latte, An eight ounce"
    assert mend_articles("an one and a hour") == "a one and an hour"


def test_lines_from_lists_and_rows(tmp_path):
    (tmp_path / "list.txt").write_text("hello  there\n\nhello there\nbye\n")
    assert [line.text for line in read_lines(tmp_path / "list.txt")] == ["hello there", "bye"]
    rows = [
        {"prompt": "two plus two", "answer": "four"},
        {"text": "lights", "label": {"intent": "on", "slots": {"n": "1"}}},
        {"text": "say it", "answer": "it", "instruction": "Transcribe."},
        {"prompt": "two plus two", "answer": "four"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, two, three = read_lines(tmp_path / "rows.jsonl")
    assert one.fields["messages"][-1] == {"role": "assistant", "content": "four"}
    assert one.fields["messages"][0]["content"] == [{"type": "audio"}]
    assert two.fields == {"transcript": "lights", "label": rows[1]["label"]}
    assert three.fields["messages"][0]["content"][1] == {"type": "text", "text": "Transcribe."}
    assert len(read_lines(tmp_path / "rows.jsonl", count=1)) == 1
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": ""}\n')
    with pytest.raises(DataError, match="line 2: has the text ''"):
        read_lines(tmp_path / "bad.jsonl")


def test_a_grammar_needs_a_count(tmp_path):
    (tmp_path / "lights.yaml").write_text(PICOVOICE)
    with pytest.raises(DataError, match="--count"):
        read_lines(tmp_path / "lights.yaml")
    [line] = read_lines(tmp_path / "lights.yaml", count=1)
    assert line.fields["task"] == "intent" and line.fields["label"]["intent"] in ("turnOn", "setTimer")
