"""Spoken questions: every answer is right, nothing comes twice, and test asks for nothing that train knows."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import pytest
from fake_engine import FakeEngine

from aura.cli import main
from aura.data.manifest import read_utterances
from aura.data.utterance import Utterance
from aura.errors import RecipeError
from aura.evaluation.tables import tables
from aura.evaluation.tasks import TASKS
from aura.synthesis import question_tables
from aura.synthesis.builtin_slots import spell
from aura.synthesis.plan import Cast, Style
from aura.synthesis.question_facts import CATEGORIES
from aura.synthesis.questions import Question, facts_of, questions
from aura.synthesis.synthesize import synthesize
from aura.synthesis.texts import read_lines

ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
VALUES = {word: n for n, word in enumerate([*ONES.split(), "eighteen", "nineteen"])}
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
VALUES |= {word: 20 + 10 * n for n, word in enumerate(TENS)}
NUMBER = r"((?:(?:" + "|".join(sorted(VALUES, key=len, reverse=True)) + r"|hundred|thousand)\b ?)+)"


def value(words: str) -> int:
    """Number words by their own rules, not by those that wrote them."""
    total = part = 0
    for word in words.split():
        if word == "thousand":
            total, part = total + 1000 * part, 0
        else:
            part = 100 * part if word == "hundred" else part + VALUES[word]
    return total + part


def everything(split: str) -> list[Question]:
    with pytest.raises(RecipeError, match="which is all there is") as said:
        questions(10**6, split=split)
    return questions(int(re.search(r"1 to (\d+)", str(said.value))[1]), split=split)


TRAIN, TEST = everything("train"), everything("test")


def test_numbers_in_words() -> None:
    assert [spell(n) for n in (0, 7, 13, 40, 42, 100)] == [
        "zero",
        "seven",
        "thirteen",
        "forty",
        "forty two",
        "one hundred",
    ]
    assert spell(365) == "three hundred sixty five" and spell(5000) == "five thousand"
    assert spell(3600) == "three thousand six hundred"
    assert all(value(spell(n)) == n for n in range(10_000))


ARITHMETIC = (
    (rf"^(?:What|How much) is {NUMBER} ?plus {NUMBER}\?$", lambda a, b: a + b),
    (rf"^What is the sum of {NUMBER} ?and {NUMBER}\?$", lambda a, b: a + b),
    (rf"^(?:What|How much) is {NUMBER} ?minus {NUMBER}\?$", lambda a, b: a - b),
    (rf"^What is left if you take {NUMBER} ?from {NUMBER}\?$", lambda a, b: b - a),
    (rf"^(?:What|How much) is {NUMBER} ?times {NUMBER}\?$", lambda a, b: a * b),
    (rf"^What is {NUMBER} ?divided by {NUMBER}\?$", lambda a, b: a / b),
    (rf"^How many times does {NUMBER} ?go into {NUMBER}\?$", lambda a, b: b / a),
    (rf"^What is (?:double|twice) {NUMBER}\?$", lambda a: 2 * a),
    (rf"^What is half of {NUMBER}\?$", lambda a: a / 2),
    (rf"^(?:What number comes after|Which number follows) {NUMBER}\?$", lambda a: a + 1),
    (rf"^What number comes before {NUMBER}\?$", lambda a: a - 1),
    (rf"^Which (?:number is bigger|is more), {NUMBER} ?or {NUMBER}\?$", max),
    (rf"^Which number is smaller, {NUMBER} ?or {NUMBER}\?$", min),
    (rf"^Is {NUMBER} ?more than {NUMBER}\?$", lambda a, b: "yes" if a > b else "no"),
)
ABOUT_NUMBERS = frozenset(
    {"addition", "subtraction", "multiplication", "division", "double and half", "counting", "comparison"}
)


def test_every_sum_is_right() -> None:
    met: dict[str, int] = {}
    for question in (*TRAIN, *TEST):
        for pattern, computed in ARITHMETIC:
            if found := re.match(pattern, question.text):
                right = computed(*(value(words) for words in found.groups()))
                said = question.answers[0]
                assert (said if isinstance(right, str) else value(said)) == right, question
                if not isinstance(right, str):
                    assert question.answers[1] == str(int(right))
                met[pattern] = met.get(pattern, 0) + 1
                break
        else:
            assert question.category not in ABOUT_NUMBERS, f"no rule checks {question.text!r}"
    assert all(met.get(pattern, 0) >= 10 for pattern, _ in ARITHMETIC)


def test_days_months_and_units_agree_with_the_calendar() -> None:
    answers = {question.text: question.answers[0] for question in (*TRAIN, *TEST)}
    monday = datetime.date(2024, 1, 1)
    days = [(monday + datetime.timedelta(n)).strftime("%A") for n in range(9)]
    for today, tomorrow, later in zip(days, days[1:], days[2:], strict=False):
        assert (
            answers[f"What day comes after {today}?"]
            == tomorrow
            == answers[f"Which day is between {today} and {later}?"]
        )
        assert answers[f"What day comes before {tomorrow}?"] == today
        assert answers[f"What day is two days after {today}?"] == later
        assert answers[f"Is {today} a weekend day?"] == ("yes" if today[0] == "S" else "no")
    for n in range(1, 13):
        first = datetime.date(2023, n, 1)
        after = datetime.date(2023 + n // 12, n % 12 + 1, 1)
        month, following = first.strftime("%B"), after.strftime("%B")
        assert answers[f"What month comes after {month}?"] == following
        assert answers[f"What month comes before {following}?"] == month
        if month != "February":
            assert value(answers[f"How many days are in {month}?"]) == (after - first).days
    assert answers["What is the third month of the year?"] == "March"
    expected = {"minutes are in an hour": 60, "minutes are in two hours": 120, "seconds are in five minutes": 300}
    expected |= {
        "hours are in three days": 72,
        "years are in four centuries": 400,
        "meters are in five kilometers": 5000,
    }
    for what, number in expected.items():
        assert value(answers[f"How many {what}?"]) == number


def test_tables_name_one_answer_each() -> None:
    words = [word for pair in question_tables.OPPOSITES for word in pair]
    assert all(len(pair) == 2 for pair in question_tables.OPPOSITES)
    assert {word for word in words if words.count(word) > 1} <= question_tables.ONE_WAY
    assert set(words) >= question_tables.ONE_WAY and set(question_tables.OTHER_FORMS) <= set(words)
    assert len(set(question_tables.CAPITALS.values())) == len(question_tables.CAPITALS)
    members = [word for words in question_tables.CLASSES.values() for word in words.split()]
    assert len(members) == len(set(members))
    assert len(question_tables.SIZES) == len(set(question_tables.SIZES))


def test_nothing_comes_twice_and_one_text_has_one_answer() -> None:
    for part in (TRAIN, TEST):
        texts = [question.text for question in part]
        assert len(texts) == len(set(texts)) and all(re.fullmatch(r"[A-Z][A-Za-z ,.']+\?", text) for text in texts)
        assert all(question.answers and all(question.answers) for question in part)
    page = " ".join((Path(__file__).parent.parent / "docs" / "synthesis.md").read_text().split())
    assert f"There are {len(TRAIN)} questions in `train` and {len(TEST)} in `test`" in page


def test_train_and_test_share_no_fact() -> None:
    assert not {q.text for q in TRAIN} & {q.text for q in TEST}
    keys = [{fact.key for facts in facts_of(split).values() for fact in facts} for split in ("train", "test")]
    assert not keys[0] & keys[1]
    # 3 + 4, 4 + 3, 7 - 3 and 7 - 4 lie in one part, and so do a country and its capital
    for text in ("What is {} plus {}?", "How much is {} plus {}?"):
        for a, b in ((3, 4), (8, 15), (2, 9), (6, 6)):
            same = {text.format(spell(a), spell(b)), text.format(spell(b), spell(a))}
            same |= {f"What is {spell(a + b)} minus {spell(a)}?", f"What is {spell(a + b)} minus {spell(b)}?"}
            known = same & {q.text for q in (*TRAIN, *TEST)}
            assert known and (known <= {q.text for q in TRAIN}) != (known <= {q.text for q in TEST})
    train, test = ({q.text for q in part} for part in (TRAIN, TEST))
    for country, city in question_tables.CAPITALS.items():
        pair = {f"What is the capital of {country}?", f"{city} is the capital of which country?"}
        assert pair <= train or pair <= test


def test_the_same_seed_draws_the_same_and_kinds_are_even() -> None:
    assert questions(600, seed=3, split="test") == questions(600, seed=3, split="test")
    assert questions(600, seed=3, split="test") != questions(600, seed=4, split="test")
    assert questions(100, seed=3) == questions(300, seed=3)[:100]
    drawn = questions(len(CATEGORIES) * 5)
    assert {sum(q.category == name for q in drawn) for name in CATEGORIES} == {5}
    with pytest.raises(RecipeError, match="expected train or test"):
        questions(5, split="valid")  # type: ignore[arg-type]


def test_they_are_spoken_and_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "q.jsonl"
    assert main(["data", "questions", str(file), "--count", "36", "--split", "test", "--seed", "5"]) == 0
    assert "36 questions of 18 kinds" in capsys.readouterr().out
    lines = read_lines(file)
    result = synthesize(lines, Cast(engines={"fake": FakeEngine()}), tmp_path / "out", style=Style.plain())
    rows = list(read_utterances(result.manifest, prompt="Answer in one word."))
    assert len(rows) == 36 and {row.task for row in rows} == {"answer"}
    assert [row.transcript for row in rows] == [line.text for line in lines]
    assert rows[0].messages[0]["content"][1] == {"type": "text", "text": "Answer in one word."}
    assert [row.answer for row in rows] == [q.answers[0] for q in questions(36, split="test", seed=5)]
    task = TASKS["answer"]
    references = [task.reference_of(row) for row in rows]
    in_digits = [reference[min(1, len(reference) - 1)].capitalize() + "." for reference in references]
    score = task.score(references, in_digits)
    assert score.metrics["accuracy"] == 1.0
    assert {row["category"] for row in tables(rows, score)["by_category"]} == set(CATEGORIES)


def test_words_digits_and_sentences_are_scored_alike() -> None:
    row = Utterance(id="a", audio=(), messages=(), label={"answers": ["sixty", "60", "sixty minutes", "60 minutes"]})
    task = TASKS["answer"]
    replies = ["sixty", "60", "Sixty.", "60 minutes", "sixty minutes.", "sixteen", "600", "6"]
    score = task.score([task.reference_of(row)] * len(replies), replies)
    assert score.correct == (True,) * 5 + (False,) * 3


def test_an_instruction_is_written_behind_the_question(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    assert main(["data", "questions", str(file), "--count", "5", "--instruction", "Answer."]) == 0
    line = read_lines(file)[0]
    user, assistant = line.fields["messages"]
    assert user["content"] == [{"type": "audio"}, {"type": "text", "text": "Answer."}]
    assert assistant["content"] == json.loads(file.read_text().splitlines()[0])["label"]["answers"][0]
    assert main(["data", "questions", str(tmp_path / "q.txt")]) == 2
