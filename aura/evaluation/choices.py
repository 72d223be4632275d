"""Multiple choice: the option of the highest likelihood, or the one that a written reply names.

A label of this kind is `{"options": ["A", "B", "C", "D"], "answer": "C"}`: the answers as the model would give
them, and the right one among them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aura.errors import DataError
from aura.evaluation.scores import Interval, Score, aligned, ratio, share_interval

# "the answer is B", "option (C)", "Answer: **D**"
_NAMED = r"(?:answer|option|choice)(?:\s+(?:is|would\s+be|should\s+be))?\W{0,6}(?:option\s+)?\W{0,3}"


@dataclass(frozen=True, kw_only=True)
class ChoiceItem:
    """One question. `chosen` is None where the reply names no option or several: wrong, but not failed."""

    failed: bool
    reference: str
    hypothesis: str | None
    chosen: str | None
    correct: bool | None


@dataclass(frozen=True, kw_only=True)
class ChoiceScore(Score):
    """Share of right choices; `chance` is what guessing would reach, `unparsed` replies that name no option."""

    choice_accuracy: float | None
    choice_accuracy_interval: Interval | None
    chance: float | None
    unparsed: int


def choices(references: Sequence[Mapping[str, Any]], hypotheses: Sequence[str | None]) -> ChoiceScore:
    """Accuracy of choices, given as the text of the option or as a reply that names it.

    Args:
        references: `{"options": [...], "answer": "..."}` per item.
        hypotheses: the chosen option (see `most_likely`) or a written reply, None for an item that failed.

    Raises:
        DataError: lengths differ, or a reference is no such mapping.
    """
    aligned(references, hypotheses, None)
    rows = [_choice_item(reference, text) for reference, text in zip(references, hypotheses, strict=True)]
    kept = [len(ref["options"]) for ref, row in zip(references, rows, strict=True) if not row.failed]
    scored = [row for row in rows if not row.failed]
    return ChoiceScore(
        items=len(rows),
        scored=len(scored),
        failed=len(rows) - len(scored),
        rows=tuple(rows),
        choice_accuracy=ratio(sum(bool(row.correct) for row in scored), len(scored)),
        choice_accuracy_interval=share_interval([int(not row.correct) for row in scored]),
        chance=ratio(sum(1 / count for count in kept), len(kept)),
        unparsed=sum(row.chosen is None for row in scored),
    )


def is_choice(label: Any) -> bool:
    """Whether a label holds options and the right one among them."""
    if not isinstance(label, Mapping) or not isinstance(label.get("options"), (list, tuple)):
        return False
    options = label["options"]
    return len(options) > 1 and all(isinstance(o, str) and o for o in options) and label.get("answer") in options


def most_likely(options: Sequence[str], log_likelihoods: Sequence[float], *, per_character: bool = False) -> str:
    """The option of the highest summed log-likelihood; the first of equals.

    Args:
        options: as they were scored.
        log_likelihoods: nats, as `Route.score` gives them.
        per_character: divide by the option's length first, so that long options are not at a disadvantage. Off
            by default: options that are letters have one length.

    Raises:
        DataError: not one finite number per option.
    """
    if len(options) != len(log_likelihoods) or not options or any(value != value for value in log_likelihoods):
        raise DataError(
            f"{len(options)} options came with the log-likelihoods {list(log_likelihoods)!r}; expected one number each"
        )
    lengths = [len(option) if per_character else 1 for option in options]
    return options[max(range(len(options)), key=lambda i: log_likelihoods[i] / lengths[i])]


def named_option(reply: str, options: Sequence[str]) -> str | None:
    """The one option that a written reply names; None where it names none, or several.

    In this order: the reply is the option, to the letter or but for case and outer punctuation;
    it starts with it ("B. Paris"); it says "the answer is B"; it holds one
    option only, as whole words. An "A" before a word in lower case is an article, unless "the answer is" stands
    before it. Our choice of rules.
    """
    if reply.strip() in options:
        return reply.strip()
    folded = {_folded(option): option for option in options}
    if (text := _folded(reply)) in folded:
        return folded[text]
    one = "|".join(sorted((re.escape(option) for option in options), key=len, reverse=True))
    if all(len(option) == 1 for option in options):  # "a" is a word, "A" may be an option
        patterns = [
            rf"^\W*({one})(?=\s*(?:[.):,*\n]|$))",
            rf"(?i:{_NAMED})(?<!\w)({one})(?!\w)",
            rf"(?i:{_NAMED}(?<!\w)({one})(?=\W*$|[.):,*]))",
            rf"(?<![\w'])({one})(?![\w'])(?!(?<=A)\s+[a-z])",
        ]
    else:
        patterns = [rf"(?i)^\W*({one})(?=\s*(?:[.):,*\n]|$))", rf"(?i){_NAMED}(?<!\w)({one})(?!\w)"]
        patterns.append(rf"(?i)(?<!\w)({one})(?!\w)")
    for pattern in patterns:
        if len(found := {_folded(option) for option in re.findall(pattern, reply)}) == 1:
            return folded[found.pop()]
    return None


def _choice_item(reference: Mapping[str, Any], text: str | None) -> ChoiceItem:
    if not is_choice(reference):
        raise DataError(
            f"label {reference!r:.120}: expected {{'options': ['A', 'B'], 'answer': 'B'}}, the answer among the options"
        )
    if text is None:
        return ChoiceItem(failed=True, reference=reference["answer"], hypothesis=None, chosen=None, correct=None)
    chosen = named_option(text, reference["options"])
    return ChoiceItem(
        failed=False,
        reference=reference["answer"],
        hypothesis=text,
        chosen=chosen,
        correct=chosen == reference["answer"],
    )


def _folded(text: str) -> str:
    """Without case and the punctuation around it: "(B)." and "b" are one."""
    return " ".join(text.split()).strip(" .,;:!?()[]*\"'").casefold()
