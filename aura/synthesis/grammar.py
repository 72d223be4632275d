"""A grammar -> sentences with their labels: counted, drawn with weights and a fixed seed, and checked against data."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from aura.errors import DataError
from aura.synthesis.expression import Choice, MacroUse, Phrase, SlotUse, count_sentences, slot_sets, uses

PATIENCE = 200  # sentences in a row that were there before, and ten times those found: then a grammar counts as used up
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Weighted:
    """A phrase and how often it is drawn, against the other phrases of its intent or macro."""

    phrase: Phrase
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class SlotValue:
    """One value of a slot type.

    Args:
        value: as the label has it.
        say: how it is spoken; synonyms are drawn evenly.
        weight: how often it is drawn, against the other values of its type.
    """

    value: str
    say: tuple[str, ...]
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One thing that a speaker may want."""

    name: str
    expressions: tuple[Weighted, ...]
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """One sentence of a grammar, with what it means."""

    text: str
    intent: str
    slots: Mapping[str, str]

    @property
    def label(self) -> dict[str, Any]:
        """As manifests carry it."""
        return {"intent": self.intent, "slots": dict(self.slots)}


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """How many labels a grammar can express.

    Args:
        total: labels looked at.
        expressible: of them.
        problems: why the others are not, each reason with its count, the most frequent first.
    """

    total: int
    expressible: int
    problems: Mapping[str, int]

    def as_text(self) -> str:
        lines = [f"{self.expressible} of {self.total} labels can be expressed by the grammar"]
        return "\n".join([*lines, *(f"  {count:5d}  {reason}" for reason, count in self.problems.items())])


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """Intents with their expressions, slot types with their values, macros with their phrases.

    Raises:
        DataError: an expression names a slot type or a macro that is not there, or macros name each other in a circle;
            all problems in one message.
    """

    intents: tuple[Intent, ...]
    slots: Mapping[str, tuple[SlotValue, ...]]
    macros: Mapping[str, tuple[Weighted, ...]]

    def __post_init__(self) -> None:
        problems = [*self._missing(), *self._circles()]
        if problems:
            raise DataError(f"the grammar has {len(problems)} problem(s): {'; '.join(problems[:10])}")

    def count(self) -> int:
        """How many sentences it stands for, before equal ones are joined."""
        return sum(self._count(e.phrase) for intent in self.intents for e in intent.expressions)

    def sample(self, count: int, *, seed: int = 0) -> list[Sentence]:
        """Draw sentences, no two with the same text.

        Intents, then expressions, macros' phrases and slot values are drawn by their weights, choices and synonyms
        evenly. The first N of a larger count are the N of a smaller one.

        Args:
            count: how many; fewer come back where the grammar has no more that turn up.
            seed: of the drawing.

        Raises:
            DataError: two sentences with one text and different labels.
        """
        rng = np.random.default_rng(seed)
        found: dict[str, Sentence] = {}
        misses = 0
        while len(found) < count and misses < PATIENCE + 10 * len(found):
            sentence = self._draw(rng)
            known = found.get(sentence.text)
            if known is not None and known.label != sentence.label:
                raise DataError(
                    f"the grammar says {sentence.text!r} for {known.label} and for {sentence.label}; expected one meaning "
                    "for each sentence. Take one of the two out"
                )
            misses = misses + 1 if known is not None else 0
            found.setdefault(sentence.text, sentence)
        return list(found.values())

    def check_labels(self, labels: Iterable[Any]) -> LabelReport:
        """Whether each label could have come from this grammar: intent, the set of its slots, and their values."""
        problems: collections.Counter[str] = collections.Counter()
        total = 0
        for label in labels:
            total += 1
            problem = self._why_not(label)
            if problem:
                problems[problem] += 1
        good = total - sum(problems.values())
        return LabelReport(total=total, expressible=good, problems=dict(problems.most_common()))

    @cached_property
    def slot_names(self) -> dict[str, dict[str, str]]:
        """For each intent the slot names it can fill, with their types."""
        names: dict[str, dict[str, str]] = {}
        for intent in self.intents:
            found = names.setdefault(intent.name, {})
            for phrase in self._reached(e.phrase for e in intent.expressions):
                found.update({use.name: use.type for use in uses(phrase) if isinstance(use, SlotUse)})
        return names

    @cached_property
    def _slot_sets(self) -> dict[str, frozenset[frozenset[str]]]:
        sets: dict[str, frozenset[frozenset[str]]] = {}
        for intent in self.intents:
            found = frozenset().union(*(slot_sets(e.phrase, macro=self._macro_sets) for e in intent.expressions))
            sets[intent.name] = sets.get(intent.name, frozenset()) | found
        return sets

    def _macro_sets(self, name: str) -> frozenset[frozenset[str]]:
        return frozenset().union(*(slot_sets(w.phrase, macro=self._macro_sets) for w in self.macros[name]))

    def _why_not(self, label: Any) -> str | None:
        intent = label.get("intent") if isinstance(label, Mapping) else None
        if intent not in self._slot_sets:
            return f"the intent {intent!r} is none of {', '.join(self._slot_sets)}"
        types = self.slot_names[intent]
        slots = {name: _squeeze(value) for name, value in (label.get("slots") or {}).items() if value is not None}
        for name, value in slots.items():
            if name not in types:
                return f"{intent} has no slot {name!r}"
            if value not in (known.value for known in self.slots[types[name]]):
                spoken = next((k.value for k in self.slots[types[name]] if value in k.say), None)
                hint = f", but says it for {spoken!r}" if spoken else ""
                return f"{name} has no value {value!r}{hint}"
        if frozenset(slots) not in self._slot_sets[intent]:
            return f"no expression of {intent} fills exactly {', '.join(sorted(slots)) or 'no slots'}"
        return None

    def _draw(self, rng: np.random.Generator) -> Sentence:
        intent = _pick(self.intents, rng)
        words: list[str] = []
        slots: dict[str, str] = {}
        self._expand(_pick(intent.expressions, rng).phrase, rng, words, slots)
        return Sentence(text=" ".join(words), intent=intent.name, slots=slots)

    def _expand(self, phrase: Phrase, rng: np.random.Generator, words: list[str], slots: dict[str, str]) -> None:
        for part in phrase.parts:
            if isinstance(part, Choice):
                index = int(rng.integers(len(part.phrases) + part.optional))
                if index < len(part.phrases):
                    self._expand(part.phrases[index], rng, words, slots)
            elif isinstance(part, MacroUse):
                self._expand(_pick(self.macros[part.name], rng).phrase, rng, words, slots)
            elif isinstance(part, SlotUse):
                value = _pick(self.slots[part.type], rng)
                words.append(value.say[int(rng.integers(len(value.say)))])
                slots[part.name] = value.value
            else:
                words.append(part.text)

    def _count(self, phrase: Phrase) -> int:
        return count_sentences(
            phrase,
            slot=lambda type: sum(len(value.say) for value in self.slots[type]),
            macro=lambda name: sum(self._count(w.phrase) for w in self.macros[name]),
        )

    def _reached(self, phrases: Iterable[Phrase]) -> list[Phrase]:
        """The phrases and those of every macro they lead to."""
        found, waiting, seen = [], list(phrases), set()
        while waiting:
            phrase = waiting.pop()
            found.append(phrase)
            for use in uses(phrase):
                if isinstance(use, MacroUse) and use.name not in seen:
                    seen.add(use.name)
                    waiting += [w.phrase for w in self.macros[use.name]]
        return found

    def _missing(self) -> list[str]:
        phrases = [e.phrase for intent in self.intents for e in intent.expressions]
        phrases += [w.phrase for group in self.macros.values() for w in group]
        missing: dict[str, None] = {}
        for use in (use for phrase in phrases for use in uses(phrase)):
            if isinstance(use, SlotUse) and use.type not in self.slots:
                missing[f"no slot type {use.type!r}; defined are: {', '.join(self.slots) or 'none'}"] = None
            elif isinstance(use, MacroUse) and use.name not in self.macros:
                missing[f"no macro {use.name!r}; defined are: {', '.join(self.macros) or 'none'}"] = None
        return list(missing)

    def _circles(self) -> list[str]:
        leads_to = {
            name: {use.name for w in group for use in uses(w.phrase) if isinstance(use, MacroUse)}
            for name, group in self.macros.items()
        }
        while leaves := [name for name, others in leads_to.items() if not others & leads_to.keys()]:
            for name in leaves:
                del leads_to[name]
        return [f"the macros {', '.join(leads_to)} lead back to themselves"] if leads_to else []


def _pick(items: Sequence[Item], rng: np.random.Generator) -> Item:
    weights = np.array([getattr(item, "weight", 1.0) for item in items], dtype=np.float64)
    return items[
        min(len(items) - 1, int(np.searchsorted(weights.cumsum(), rng.random() * weights.sum(), side="right")))
    ]


def _squeeze(text: Any) -> str:
    return " ".join(str(text).split())
