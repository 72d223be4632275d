"""What all scores share: items, scored and failed; rates that may be undefined; bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from aura.errors import DataError

Interval = tuple[float, float]
Languages = str | None | Sequence[str | None]  # one for all items, or one per item


@dataclass(frozen=True, kw_only=True)
class Score:
    """What every metric reports. `rows` has one entry per item, in the order given, failed ones included."""

    items: int
    scored: int
    failed: int
    rows: tuple[Any, ...]

    def as_dict(self) -> dict[str, Any]:
        """The `metrics` object of a report: every field but the rows."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "rows"}

    def row_dicts(self) -> list[dict[str, Any]]:
        """The errors of each item, for `items.jsonl`."""
        return [asdict(row) for row in self.rows]


def bootstrap_interval(
    per_item_errors: Sequence[float],
    per_item_weights: Sequence[float],
    *,
    seed: int = 0,
    samples: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile bootstrap interval of sum(errors) / sum(weights), items drawn with replacement.

    Items are drawn whole, since the words of one clip err together (Bisani and Ney 2004, *Bootstrap estimates
    for confidence intervals in ASR performance evaluation*). Draws without any weight (silent clips only) are
    left out. It only knows the items it is given: without a single error it would say (0, 0). Where the items are right or
    wrong as a whole (weights of 1) and all are alike, the end that is not 0 or 1 is the exact binomial one (Clopper and
    Pearson 1934, *The use of confidence or fiducial limits*).

    Args:
        per_item_errors: (n,) errors, e.g. wrong words.
        per_item_weights: (n,) what they are counted against, e.g. reference words; 1 each for a share of
            items.
        seed: fixed, so that one report gives one interval.
        samples: draws; 1000 gives the ends to about a tenth of the interval's width.
        confidence: share of draws inside.

    Returns:
        (low, high) in the ratio's own unit.

    Raises:
        DataError: no items, different lengths, or no weight at all.
    """
    errors, weights = np.asarray(per_item_errors, float), np.asarray(per_item_weights, float)
    if errors.ndim != 1 or errors.shape != weights.shape:
        raise DataError(
            f"bootstrap_interval got errors of shape {errors.shape} and weights of shape {weights.shape}; "
            "expected one error count and one weight per item."
        )
    if not weights.sum() > 0:
        raise DataError(
            f"bootstrap_interval got {len(weights)} items with a total weight of {weights.sum():g}; "
            "expected a positive one. Leave the interval out where the rate itself is undefined."
        )
    tail = (1 - confidence) / 2
    if (weights == 1).all() and errors.min() == errors.max() and errors[0] in (0, 1):
        end = tail ** (1 / len(errors))
        return (end, 1.0) if errors[0] else (0.0, 1 - end)
    rng = np.random.default_rng(seed)
    ratios = []
    for _ in range(samples):  # one draw at a time: samples x items at once is too much memory for large sets
        drawn = rng.integers(len(errors), size=len(errors))
        weight = weights[drawn].sum()
        if weight > 0:
            ratios.append(errors[drawn].sum() / weight)
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def share_interval(wrong: Sequence[int]) -> Interval | None:
    """Interval of the share of right items, from 0/1 errors."""
    if not wrong:
        return None
    low, high = bootstrap_interval(wrong, [1] * len(wrong))
    return 1 - high, 1 - low


def ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def aligned(references: Sequence[Any], hypotheses: Sequence[Any], lang: Languages) -> list[str | None]:
    """The language of each item, once references, hypotheses and languages are known to fit together."""
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise DataError("A metric got a single text; expected a list with one text per item: [text].")
    langs = [lang] * len(references) if lang is None or isinstance(lang, str) else list(lang)
    if not len(references) == len(hypotheses) == len(langs):
        raise DataError(
            f"{len(references)} references, {len(hypotheses)} hypotheses and {len(langs)} languages do not "
            "pair up; expected one of each per item. Pass None as the hypothesis of an item that failed."
        )
    for index, reference in enumerate(references):
        if reference is None or (not isinstance(reference, (str, Mapping)) and not reference):
            raise DataError(
                f"item {index} has no reference to score against; expected a transcript, an answer or a "
                "label. Add it to the manifest, or leave the item out ('' stands for a clip without speech)."
            )
    return langs
