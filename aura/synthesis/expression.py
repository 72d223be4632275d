"""One expression of a grammar, in the syntax of Picovoice's Rhino -> a tree that can be counted and drawn from.

    turn [on, off] the light        one of several phrases
    (please, kindly) turn it off    one of them, or none
    a $size:drinkSize coffee        a value of the slot type `size`, kept as the slot `drinkSize`
    @greeting, a coffee             a phrase of the macro `greeting`

Phrases may hold all of these in turn. A comma outside brackets, such as the one above, is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from aura.errors import DataError

_TOKEN = re.compile(
    r"\s*(?:(?P<slot>\$(?P<type>[\w.]+):(?P<name>\w+))|@(?P<macro>\w+)|(?P<mark>[\[\](),])|(?P<word>[^\s\[\](),$@]+))"
)


@dataclass(frozen=True, kw_only=True)
class Words:
    """Words as they are spoken."""

    text: str


@dataclass(frozen=True, kw_only=True)
class SlotUse:
    """A value of a slot type, kept under a name."""

    type: str
    name: str


@dataclass(frozen=True, kw_only=True)
class MacroUse:
    """One of a macro's phrases."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several phrases; with `optional`, or none."""

    phrases: tuple[Phrase, ...]
    optional: bool


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """Parts, one after the other."""

    parts: tuple[Part, ...]


Part = Words | SlotUse | MacroUse | Choice


def parse_expression(text: str) -> Phrase:
    """Parse one expression.

    Raises:
        DataError: brackets that do not close, an empty choice, or a `$` or `@` without a name.
    """
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"the expression {text!r} is empty; expected text such as 'turn [on, off] the $light:light'")
    tokens = _Tokens(text)
    phrase = _phrase(tokens, closing=None)
    if not phrase.parts:
        raise DataError(f"the expression {text!r} holds no words")
    return phrase


class _Tokens:
    def __init__(self, text: str) -> None:
        self.text = text
        self.found: list[re.Match[str]] = []
        at, stripped = 0, text.rstrip()
        while at < len(stripped):
            match = _TOKEN.match(stripped, at)
            if match is None:
                raise self.error(
                    f"cannot be read from {stripped[at:].strip()!r} on; expected $type:name for a slot, @name for a macro"
                )
            self.found.append(match)
            at = match.end()
        self.found.reverse()

    def next(self) -> re.Match[str] | None:
        return self.found.pop() if self.found else None

    def error(self, what: str) -> DataError:
        return DataError(f"the expression {self.text!r} {what}")


_CLOSING = {"[": "]", "(": ")"}


def _phrase(tokens: _Tokens, *, closing: str | None) -> Phrase:
    """A whole expression: commas are punctuation here."""
    [phrase] = _phrases(tokens, closing=closing)
    return phrase


def _phrases(tokens: _Tokens, *, closing: str | None) -> tuple[Phrase, ...]:
    """Phrases up to the closing bracket; without brackets around them, one phrase."""
    phrases: list[Phrase] = []
    parts: list[Part] = []
    while (token := tokens.next()) is not None:
        mark = token["mark"]
        if mark is None:
            parts.append(_part(token))
        elif mark in _CLOSING:
            choice = _phrases(tokens, closing=_CLOSING[mark])
            parts.append(Choice(phrases=choice, optional=mark == "("))
        elif mark == "," and closing is None:
            continue
        elif mark == "," or mark == closing:
            if not parts:
                raise tokens.error("holds an empty phrase between brackets or commas")
            phrases.append(Phrase(parts=tuple(parts)))
            parts = []
            if mark == closing:
                return tuple(phrases)
        else:
            raise tokens.error(f"has a {mark!r} that closes nothing")
    if closing is not None:
        raise tokens.error(f"lacks a {closing!r}")
    return (Phrase(parts=tuple(parts)),)


def _part(token: re.Match[str]) -> Part:
    if token["slot"]:
        return SlotUse(type=token["type"], name=token["name"])
    if token["macro"]:
        return MacroUse(name=token["macro"])
    return Words(text=token["word"])


def uses(phrase: Phrase) -> Iterator[SlotUse | MacroUse]:
    """Every slot and macro a phrase names."""
    for part in phrase.parts:
        if isinstance(part, (SlotUse, MacroUse)):
            yield part
        elif isinstance(part, Choice):
            for inner in part.phrases:
                yield from uses(inner)


def count_sentences(phrase: Phrase, *, slot: Callable[[str], int], macro: Callable[[str], int]) -> int:
    """How many sentences a phrase stands for, equal ones counted as often as they come."""
    total = 1
    for part in phrase.parts:
        if isinstance(part, Choice):
            total *= sum(count_sentences(p, slot=slot, macro=macro) for p in part.phrases) + part.optional
        elif isinstance(part, SlotUse):
            total *= slot(part.type)
        elif isinstance(part, MacroUse):
            total *= macro(part.name)
    return total


def slot_sets(phrase: Phrase, *, macro: Callable[[str], frozenset[frozenset[str]]]) -> frozenset[frozenset[str]]:
    """Every set of slot names that a sentence of the phrase can fill."""
    found: frozenset[frozenset[str]] = frozenset([frozenset()])
    for part in phrase.parts:
        if isinstance(part, Choice):
            inner = frozenset().union(*(slot_sets(p, macro=macro) for p in part.phrases))
            choices = inner | {frozenset()} if part.optional else inner
        elif isinstance(part, SlotUse):
            choices = frozenset([frozenset([part.name])])
        elif isinstance(part, MacroUse):
            choices = macro(part.name)
        else:
            continue
        found = frozenset(a | b for a in found for b in choices)
    return found
