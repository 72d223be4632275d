"""Is one route better than another, or was it lucky? Both answered the same items, so the tests are paired.

- 0/1 scores (right or wrong): McNemar's exact test (McNemar 1947, *Note on the sampling error of the difference
  between correlated proportions or percentages*), the sign test of the items on which the two differ.
- Rates of sums (errors / words): paired bootstrap (Koehn 2004, *Statistical significance tests for machine
  translation evaluation*; Bisani and Ney 2004), both routes on the same drawn items.
- Several pairs at once: Holm's correction (Holm 1979, *A simple sequentially rejective multiple test procedure*).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from aura.errors import DataError
from aura.evaluation.scores import Interval

SAMPLES = 10_000  # draws of a paired bootstrap: the smallest p-value it can give is 2 / 10 001
DRAWN_AT_ONCE = 1 << 20  # indices in memory at a time, 8 MB


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """a - b of two rates on the same items.

    Args:
        items: paired items.
        a, b, difference: rates and a - b; None where a rate is undefined.
        interval: percentile bootstrap interval of the difference.
        p_value: two-sided; None with the rates.
    """

    items: int
    a: float | None
    b: float | None
    difference: float | None
    interval: Interval | None
    p_value: float | None


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test.

    Under the null hypothesis each item that just one of two got right is as likely to be the one's as the
    other's: binomial with 1/2. Twice the smaller tail, at most 1.

    Args:
        only_a: items that a got right and b wrong.
        only_b: items that b got right and a wrong. (Items on which they agree do not matter.)

    Raises:
        DataError: a count is negative.
    """
    if only_a < 0 or only_b < 0:
        raise DataError(f"mcnemar_exact got the counts {only_a} and {only_b}; expected numbers of items, 0 or more")
    trials = only_a + only_b
    # Exact integers: with floats the tail of some thousand items underflows.
    tail = sum(math.comb(trials, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**trials)))


def sign_test(differences: Sequence[float]) -> float:
    """Two-sided exact p-value that a positive difference is as likely as a negative one; zeros are left out."""
    return mcnemar_exact(sum(d > 0 for d in differences), sum(d < 0 for d in differences))


def paired_bootstrap(
    parts_a: Sequence[float],
    weights_a: Sequence[float],
    parts_b: Sequence[float],
    weights_b: Sequence[float],
    *,
    seed: int = 0,
    samples: int = SAMPLES,
    confidence: float = 0.95,
) -> PairedDifference:
    """Difference of two rates sum(parts) / sum(weights), items drawn with replacement for both alike.

    The p-value is twice the smaller share of draws on either side of zero, each count raised by one, so that it
    is never 0: what no draw showed is rarer than 1 / samples, not impossible.

    Args:
        parts_a, weights_a: (n,) per item, e.g. word errors and reference words of route a.
        parts_b, weights_b: (n,) of route b on the same items in the same order.
        seed: fixed, so that one report gives one interval.
        samples: draws.
        confidence: share of draws inside the interval.

    Raises:
        DataError: no items, or different lengths.
    """
    columns = [np.asarray(values, float) for values in (parts_a, weights_a, parts_b, weights_b)]
    shapes = {column.shape for column in columns}
    if len(shapes) != 1 or columns[0].ndim != 1 or not len(columns[0]):
        raise DataError(
            f"paired_bootstrap got arrays of shapes {', '.join(map(str, sorted(shapes)))}; expected one part and "
            "one weight per item and route, of the same items, at least one"
        )
    table = np.stack(columns)
    items, totals = table.shape[1], table.sum(axis=1)
    if not (totals[1] > 0 and totals[3] > 0):
        return PairedDifference(items=items, a=None, b=None, difference=None, interval=None, p_value=None)
    a, b = float(totals[0] / totals[1]), float(totals[2] / totals[3])
    drawn = _drawn_differences(table, np.random.default_rng(seed), samples)
    # Sums in another order may differ in the last bit: 1e-12 is zero.
    below, above = int((drawn <= 1e-12).sum()), int((drawn >= -1e-12).sum())
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return PairedDifference(
        items=items,
        a=a,
        b=b,
        difference=a - b,
        interval=(float(low), float(high)),
        p_value=min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1)),
    )


def _drawn_differences(table: np.ndarray, rng: np.random.Generator, samples: int) -> np.ndarray:
    """(<= samples,) differences; draws without any weight are left out."""
    items = table.shape[1]
    at_once = max(1, DRAWN_AT_ONCE // items)
    differences = []
    for first in range(0, samples, at_once):
        drawn = rng.integers(items, size=(min(at_once, samples - first), items))
        part_a, weight_a, part_b, weight_b = (column[drawn].sum(axis=1) for column in table)
        weighty = (weight_a > 0) & (weight_b > 0)
        differences.append(part_a[weighty] / weight_a[weighty] - part_b[weighty] / weight_b[weighty])
    return np.concatenate(differences)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number: the chance of one false finding among all of them stays below each."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
