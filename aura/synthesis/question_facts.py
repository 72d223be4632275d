"""The facts behind spoken questions, by category, each with the ways to ask for it and the answers that are right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aura.synthesis import question_tables as t
from aura.synthesis.builtin_slots import spell, spell_ordinal


@dataclass(frozen=True)
class Fact:
    """What is known: `key` names it, whichever way it is asked; `asked` is (text, accepted answers) for each way."""

    key: tuple[Any, ...]
    asked: tuple[tuple[str, tuple[str, ...]], ...]


# --- words --------------------------------------------------------------------------------------------------------


def _number(value: int, unit: str = "") -> tuple[str, ...]:
    """Accepted forms: "seven", "7", and both with their unit."""
    forms = (spell(value), str(value))
    return forms + tuple(f"{form} {unit}" for form in forms if unit)


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _noun(word: str) -> tuple[str, ...]:
    short = (word.removeprefix("piece of "),) if " of " in word else ()  # "clothing" will do
    return word, _a(word), f"the {word}", *short


def _yes(true: bool) -> tuple[str, ...]:
    return ("yes", "yes it is", "true") if true else ("no", "no it is not", "false")


def _sum(a: int, b: int) -> tuple[str, int, int]:
    """The key of a + b and of what follows from it."""
    return "sum", min(a, b), max(a, b)


def _product(a: int, b: int) -> tuple[str, int, int]:
    return "product", min(a, b), max(a, b)


def _all(answers: tuple[str, ...], *texts: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((text, answers) for text in texts)


# --- numbers ------------------------------------------------------------------------------------------------------


def _addition() -> Iterator[Fact]:
    for a, b in itertools.combinations_with_replacement(range(1, 21), 2):
        ways = []
        for x, y in {(a, b), (b, a)}:
            p, q = spell(x), spell(y)
            ways += [f"What is {p} plus {q}?", f"How much is {p} plus {q}?", f"What is the sum of {p} and {q}?"]
        yield Fact(_sum(a, b), _all(_number(a + b), *sorted(ways)))


def _subtraction() -> Iterator[Fact]:
    for a in range(2, 21):
        for b in range(1, a + 1):
            p, q = spell(a), spell(b)
            texts = (
                f"What is {p} minus {q}?",
                f"How much is {p} minus {q}?",
                f"What is left if you take {q} from {p}?",
            )
            yield Fact(_sum(b, a - b), _all(_number(a - b), *texts))


def _multiplication() -> Iterator[Fact]:
    for a, b in itertools.combinations_with_replacement(range(2, 13), 2):
        ways = []
        for x, y in {(a, b), (b, a)}:
            ways += [f"What is {spell(x)} times {spell(y)}?", f"How much is {spell(x)} times {spell(y)}?"]
        yield Fact(_product(a, b), _all(_number(a * b), *sorted(ways)))


def _division() -> Iterator[Fact]:
    for divisor, result in itertools.product(range(2, 11), range(2, 11)):
        p, q = spell(divisor * result), spell(divisor)
        texts = (f"What is {p} divided by {q}?", f"How many times does {q} go into {p}?")
        yield Fact(_product(divisor, result), _all(_number(result), *texts))


def _double_half() -> Iterator[Fact]:
    for n in range(2, 51):
        double, half = _number(2 * n), _number(n)
        asked = _all(double, f"What is double {spell(n)}?", f"What is twice {spell(n)}?")
        yield Fact(_product(2, n), (*asked, *_all(half, f"What is half of {spell(2 * n)}?")))


def _counting() -> Iterator[Fact]:
    for n in range(1, 100):
        after, before = _number(n + 1), _number(n)
        asked = _all(after, f"What number comes after {spell(n)}?", f"Which number follows {spell(n)}?")
        yield Fact(_sum(1, n), (*asked, *_all(before, f"What number comes before {spell(n + 1)}?")))


def _comparison() -> Iterator[Fact]:
    for a, b in itertools.combinations((*range(1, 21), 25, 30, 40, 50, 60, 75, 90, 100), 2):
        if (a * b + a + b) % 3 == 0:  # a third of them is plenty
            p, q = spell(a), spell(b)
            large = _all(_number(b), f"Which number is bigger, {p} or {q}?", f"Which is more, {q} or {p}?")
            small = _all(_number(a), f"Which number is smaller, {q} or {p}?")
            said = (f"Is {q} more than {p}?", _yes(True)), (f"Is {p} more than {q}?", _yes(False))
            yield Fact(("order", a, b), (*large, *small, *said))


def _units() -> Iterator[Fact]:
    for small, large, plural, size in t.UNITS:
        one = _number(size, small)
        name = "an hour" if large == "hour" else _a(large)
        yield Fact(
            (small, 1), _all(one, f"How many {small} are in {name}?", f"How many {small} are there in one {large}?")
        )
        for n in range(2, t.MOST_UNITS + 1):
            yield Fact((small, n), _all(_number(n * size, small), f"How many {small} are in {spell(n)} {plural}?"))


def _how_many() -> Iterator[Fact]:
    for what, (number, unit) in t.COUNTS.items():
        yield Fact(("count", what), _all(_number(number, unit), f"How many {what}?"))


# --- time ---------------------------------------------------------------------------------------------------------


def _days() -> Iterator[Fact]:
    for i, day in enumerate(t.DAYS):
        after, two = t.DAYS[(i + 1) % 7], t.DAYS[(i + 2) % 7]
        asked = _all((after,), f"What day comes after {day}?", f"Which day follows {day}?")
        back = _all((day,), f"What day comes before {after}?", f"Which day is just before {after}?")
        yield Fact(("next", day), (*asked, *back))
        yield Fact(("two", day), _all((two,), f"What day is two days after {day}?"))
        yield Fact(("between", day), _all((after,), f"Which day is between {day} and {two}?"))
        weekend = _yes(i >= 5)
        yield Fact(("weekend", day), _all(weekend, f"Is {day} part of the weekend?", f"Is {day} a weekend day?"))


def _months() -> Iterator[Fact]:
    for i, month in enumerate(t.MONTHS):
        after, two = t.MONTHS[(i + 1) % 12], t.MONTHS[(i + 2) % 12]
        asked = _all((after,), f"What month comes after {month}?", f"Which month follows {month}?")
        yield Fact(("next", month), (*asked, *_all((month,), f"What month comes before {after}?")))
        yield Fact(("between", month), _all((after,), f"Which month is between {month} and {two}?"))
        yield Fact(("number", month), _all((month,), f"What is the {spell_ordinal(i + 1)} month of the year?"))
        if (days := t.DAYS_OF_MONTHS[i]) is not None:
            yield Fact(("days", month), _all(_number(days, "days"), f"How many days are in {month}?"))


# --- words and the world ------------------------------------------------------------------------------------------


def _opposites() -> Iterator[Fact]:
    for pair in t.OPPOSITES:
        ways = []
        for word, other in (pair, pair[::-1]):
            if word not in t.ONE_WAY:
                forms = (other, *t.OTHER_FORMS.get(other, ()))
                ways += [*_all(forms, f"What is the opposite of {word}?", f"What is the opposite of the word {word}?")]
        yield Fact(("opposites", *sorted(pair)), tuple(ways))


def _capitals() -> Iterator[Fact]:
    for country, city in t.CAPITALS.items():
        forms = t.CAPITAL_FORMS.get(city, (city,))
        texts = (f"What is the capital of {country}?", f"Which city is the capital of {country}?")
        countries = (country.removeprefix("the "), country)
        back = _all(tuple(dict.fromkeys(countries)), f"{city} is the capital of which country?")
        yield Fact(("capital", country), (*_all(forms, *texts), *back))


def _classes() -> Iterator[Fact]:
    names = list(t.CLASSES)
    for place, (name, words) in enumerate(t.CLASSES.items()):
        for i, word in enumerate(words.split()):
            other = names[(place + 1 + i % (len(names) - 1)) % len(names)]
            thing = word if word in t.UNCOUNTED else _a(word)
            asked = (
                (f"Is {thing} {_a(name)}?", _yes(True)),
                (f"Is {thing} {_a(other)}?", _yes(False)),
                (f"Is {thing} {_a(name)} or {_a(other)}?", _noun(name)),
                (f"Is {thing} {_a(other)} or {_a(name)}?", _noun(name)),
            )
            yield Fact(("class", word), asked)


def _colors() -> Iterator[Fact]:
    for thing, color in t.COLORS.items():
        yield Fact(("color", thing), _all((color,), f"What color is {thing}?"))
    for (a, b), forms in t.MIXTURES.items():
        texts = (f"What color do you get when you mix {p} and {q}?" for p, q in ((a, b), (b, a)))
        yield Fact(("mixture", a, b), _all(forms, *texts))


def _grammar() -> Iterator[Fact]:
    for one, many in t.PLURALS.items():
        texts = (f"What is the plural of {one}?", f"What is the plural of the word {one}?")
        yield Fact(("plural", one), _all((many,), *texts))
    for verb, past in t.PASTS.items():
        yield Fact(("past", verb), _all((past,), f"What is the past tense of {verb}?"))


def _animals() -> Iterator[Fact]:
    for animal, sound in t.SOUNDS.items():
        yield Fact(("sound", animal), _all(_noun(animal), f"Which animal says {sound}?"))
    for animal, forms in t.YOUNG.items():
        accepted = tuple(itertools.chain.from_iterable(_noun(form) for form in forms))
        yield Fact(("young", animal), _all(accepted, f"What is a baby {animal} called?"))
    for (i, small), (j, big) in itertools.combinations(enumerate(t.SIZES), 2):
        if j - i > 1:  # a small horse and a large sheep
            p, q = _a(small), _a(big)
            asked = (
                _all(_noun(big), f"Which is bigger, {p} or {q}?"),
                _all(_noun(small), f"Which is smaller, {p} or {q}?"),
            )
            yield Fact(("size", small, big), (*asked[0], *asked[1]))


def _yes_or_no() -> Iterator[Fact]:
    for text, true in t.TRUE_OR_FALSE.items():
        yield Fact(("true", text), ((f"{text}?", ("yes", "true") if true else ("no", "false")),))


CATEGORIES: Mapping[str, Callable[[], Iterator[Fact]]] = {
    "addition": _addition,
    "subtraction": _subtraction,
    "multiplication": _multiplication,
    "division": _division,
    "double and half": _double_half,
    "counting": _counting,
    "comparison": _comparison,
    "units": _units,
    "how many": _how_many,
    "days": _days,
    "months": _months,
    "opposites": _opposites,
    "capitals": _capitals,
    "classes": _classes,
    "colors": _colors,
    "grammar": _grammar,
    "animals": _animals,
    "yes or no": _yes_or_no,
}
"""In the order in which questions take turns."""
