"""What routes are compared on: the headline of a task and the measures beside it, as rates of sums.

Each item gives a part and a weight (wrong words and words; 1 or 0 and 1). That is all that intervals and paired
tests need. A task of `aura.evaluation.tasks.TASKS` gets its headline compared without a word here; `BESIDE` lists
what its rows can tell beyond that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aura.data.utterance import Utterance
from aura.errors import DataError
from aura.evaluation.scores import bootstrap_interval
from aura.evaluation.significance import PairedDifference, mcnemar_exact, paired_bootstrap, sign_test
from aura.evaluation.tasks import Task, TaskScore, references_of

Parts = tuple[float, float]  # part, weight


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a task.

    Args:
        name: as in the task's metrics, e.g. `wer`.
        label: for people.
        better: which end is good.
        binary: parts are 0 or 1 against weights of 1, so McNemar's test applies.
        of_row: a row of the task's score -> (part, weight), for measures beside the headline.
    """

    name: str
    label: str
    better: Literal["low", "high"]
    binary: bool = False
    of_row: Callable[[Any], Parts] | None = None


def _share(field: str) -> Callable[[Any], Parts]:
    """A yes-or-no field of a row; None does not count."""

    def parts(row: Any) -> Parts:
        value = getattr(row, field)
        return (0.0, 0.0) if value is None else (float(value), 1.0)

    return parts


def _slot_f1(row: Any) -> Parts:
    # F1 = 2 right / (predicted + expected), a rate of sums as well.
    return 2.0 * row.slots_right, 2.0 * row.slots_right + row.slots_wrong + row.slots_missed


def _characters(row: Any) -> Parts:
    return row.character_errors, row.characters


_EXACT = Measure(name="exact_match", label="Exact answers", better="high", binary=True, of_row=_share("exact"))
_HOLDS = Measure(name="contains", label="Holds the answer", better="high", binary=True, of_row=_share("contains"))
_NUMBER = Measure(
    name="numeric_match", label="Ends in the number", better="high", binary=True, of_row=_share("numeric")
)
_F1 = Measure(name="f1", label="Word F1", better="high", of_row=_share("f1"))

BESIDE: Mapping[str, tuple[Measure, ...]] = {
    "transcribe": (
        Measure(name="cer", label="Character error rate", better="low", of_row=_characters),
        Measure(name="exact_match", label="Without an error", better="high", binary=True, of_row=_share("exact")),
    ),
    "answer": (_HOLDS, _NUMBER, _F1),
    "contains": (_EXACT, _F1),
    "number": (_EXACT, _HOLDS),
    "intent": (
        Measure(name="intent_accuracy", label="Intent right", better="high", binary=True, of_row=_share("intent")),
        Measure(name="slot_f1", label="Slot F1", better="high", of_row=_slot_f1),
    ),
}
"""By task: what is compared beside the headline."""

LABELS = {
    "wer": "Word error rate",
    "accuracy": "Right answers",
    "false_transcript_rate": "Words heard in silence",
}


def measures_of(task: Task) -> tuple[Measure, ...]:
    """The headline first."""
    headline = Measure(
        name=task.headline,
        label=LABELS.get(task.headline, task.headline.replace("_", " ")),
        better="low" if task.lower_is_better else "high",
        binary=task.headline != "wer",  # of today's headlines only words are counted, not items
    )
    return (headline, *BESIDE.get(task.name, ()))


def parts_of(measure: Measure, score: TaskScore) -> list[Parts]:
    """(part, weight) per item; (0, 0) for one that failed or does not count."""
    if measure.of_row is not None:
        return [(0.0, 0.0) if row.failed else measure.of_row(row) for row in score.rows]
    found: list[Parts] = []
    for error, weight in zip(score.errors, score.weights, strict=True):
        if error is None:
            found.append((0.0, 0.0))
        else:
            found.append((error if measure.better == "low" else weight - error, weight))
    return found


def rate_of(parts: Sequence[Parts], *, seed: int) -> dict[str, Any]:
    """`value`, its 95 % bootstrap `interval`, and the `items` that count; None over nothing."""
    whole = sum(weight for _, weight in parts)
    if not whole > 0:
        return {"value": None, "interval": None, "items": 0}
    return {
        "value": sum(part for part, _ in parts) / whole,
        "interval": bootstrap_interval([part for part, _ in parts], [weight for _, weight in parts], seed=seed),
        "items": sum(weight > 0 for _, weight in parts),
    }


def compare_parts(measure: Measure, a: Sequence[Parts], b: Sequence[Parts], *, seed: int) -> dict[str, Any]:
    """Two routes' parts of the same items: difference, interval, p-value, and who won how many items.

    0/1 measures get McNemar's exact test; others the paired bootstrap's p-value, with a sign test over items beside
    it. Wins count items on which one did better than the other, whichever end is good.
    """
    found: PairedDifference = paired_bootstrap(
        [part for part, _ in a], [weight for _, weight in a], [part for part, _ in b], [weight for _, weight in b],
        seed=seed,
    )  # fmt: skip
    sign = 1.0 if measure.better == "high" else -1.0
    gains = [sign * (_own(x) - _own(y)) for x, y in zip(a, b, strict=True) if x[1] > 0 or y[1] > 0]
    wins_a, wins_b = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    undefined = found.difference is None
    return {
        "items": len(gains),
        "value_a": found.a,
        "value_b": found.b,
        "difference": found.difference,
        "interval": found.interval,
        "wins_a": wins_a,
        "wins_b": wins_b,
        "test": "McNemar, exact" if measure.binary else "paired bootstrap",
        "p_value": None if undefined else mcnemar_exact(wins_a, wins_b) if measure.binary else found.p_value,
        "sign_test_p_value": None if undefined or measure.binary else sign_test(gains),
    }


def _own(parts: Parts) -> float:
    return parts[0] / parts[1] if parts[1] else 0.0


@dataclass(frozen=True, kw_only=True)
class Item:
    """An utterance under a name of its own, with what its answers are scored against."""

    id: str
    utterance: Utterance
    reference: Any


def items_of(task: Task, utterances: Sequence[Utterance]) -> list[Item]:
    """Utterances with their references; ids that repeat get a number, `clip (2)`.

    Raises:
        DataError: no utterances, or some without a reference.
    """
    if not utterances:
        raise DataError("there are no utterances to evaluate; expected at least one row in the manifest")
    numbers: dict[str, int] = {}
    used: set[str] = set()
    own = {utterance.id for utterance in utterances}
    ids = []
    for utterance in utterances:
        id_ = utterance.id
        while id_ in used or (id_ != utterance.id and id_ in own):
            numbers[utterance.id] = numbers.get(utterance.id, 1) + 1
            id_ = f"{utterance.id} ({numbers[utterance.id]})"
        used.add(id_)
        ids.append(id_)
    references = references_of(task, utterances, ids)
    return [Item(id=i, utterance=u, reference=r) for i, u, r in zip(ids, utterances, references, strict=True)]


def score_items(task: Task, items: Sequence[Item], hypotheses: Sequence[str | None]) -> TaskScore:
    """Answers scored against their items; failed ones (None) counted and left out of the rates."""
    langs = [item.utterance.lang or "en" for item in items]
    return task.score([item.reference for item in items], hypotheses, lang=langs)
