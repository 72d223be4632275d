"""Short questions with one right short answer, made from tables and arithmetic, to be spoken and answered.

What is asked about is a fact; it may be asked in several ways. A fact belongs to `train` or to `test` by a hash of its
key, so no fact that is tested was ever trained on, in whatever words or order of its parts: 3 + 4, 4 + 3, 7 - 3 and 7 - 4
are one fact, and so are a country's capital and the capital's country.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from aura.errors import RecipeError
from aura.synthesis.question_facts import CATEGORIES, Fact

Split = Literal["train", "test"]
TEST_SHARE = 0.3  # of the facts; our choice


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question.

    Args:
        text: as it is spoken, numbers in words.
        answers: accepted, the one to learn first.
        category: what kind of question it is.
    """

    text: str
    answers: tuple[str, ...]
    category: str

    def row(self, *, instruction: str | None = None) -> dict[str, Any]:
        """For `aura data synthesize`. The answer follows from the label, behind whatever prompt a recipe asks; with an
        instruction it is written out, behind that."""
        label = {"answers": list(self.answers), "category": self.category}
        row: dict[str, Any] = {"text": self.text, "task": "answer", "label": label}
        return row if instruction is None else {**row, "answer": self.answers[0], "instruction": instruction}


def questions(count: int, *, seed: int = 0, split: Split = "train") -> list[Question]:
    """Draw questions, no text twice, categories as even as their facts allow.

    Every fact of a category is asked once before one is asked in other words.

    Raises:
        RecipeError: no such part, or it holds fewer questions than that.
    """
    if split not in ("train", "test"):
        raise RecipeError(f"split is {split!r}; expected train or test")
    rng = np.random.default_rng(seed)
    queues = [_in_turn(name, facts, rng) for name, facts in facts_of(split).items()]
    most = sum(map(len, queues))
    if not 1 <= count <= most:
        raise RecipeError(f"count is {count}; expected 1 to {most}, which is all there is in the part {split}")
    evenly = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    return list(itertools.islice((question for question in evenly if question is not None), count))


def _in_turn(category: str, facts: list[Fact], rng: np.random.Generator) -> list[Question]:
    """All questions about the facts: each once, in an order and in words that are drawn, then all in other words."""
    ways = [[fact.asked[i] for i in rng.permutation(len(fact.asked))] for fact in facts]
    rounds = itertools.zip_longest(*(ways[i] for i in rng.permutation(len(ways))))
    found = {text: answers for way in rounds for text, answers in (pair for pair in way if pair is not None)}
    return [Question(text=text, answers=answers, category=category) for text, answers in found.items()]


def facts_of(split: Split) -> dict[str, list[Fact]]:
    """Every fact of the part, by category."""
    found = {}
    for category, make in CATEGORIES.items():
        facts = [fact for fact in make() if _split_of(fact) == split]
        if facts:
            found[category] = facts
    return found


def _split_of(fact: Fact) -> Split:
    digest = hashlib.sha256(repr(fact.key).encode()).digest()
    return "test" if int.from_bytes(digest[:4], "big") < TEST_SHARE * 2**32 else "train"
