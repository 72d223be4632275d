"""Paired tests against published values, an independent computation, and draws where the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from aura.errors import DataError
from aura.evaluation.scores import bootstrap_interval
from aura.evaluation.significance import holm, mcnemar_exact, paired_bootstrap, sign_test


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        # The 314 patients of McNemar's textbook example, and its variants in the statsmodels test suite, which
        # took them from the exact calculator of VassarStats; six decimals there.
        (121, 59, 0.000004),
        (70, 59, 0.378688),
        (80, 59, 0.089452),
        (30, 60, 0.002060),
        (10, 30, 0.002221),
        (10, 10, 1.0),
        # Tables of the sign test, two-sided: n = 10 with 1 against, n = 8 with none, 17 couples with 3 against.
        (1, 9, 0.021484),
        (0, 8, 0.007812),
        (3, 11, 0.057373),
        (0, 0, 1.0),
        (5, 5, 1.0),
    ],
)
def test_mcnemar_agrees_with_published_values(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar_exact(only_a, only_b) == pytest.approx(p, abs=6e-7)
    assert mcnemar_exact(only_b, only_a) == mcnemar_exact(only_a, only_b)


def test_mcnemar_to_full_precision_and_for_many_items() -> None:
    assert mcnemar_exact(121, 59) == pytest.approx(4.4344492637555101e-06, rel=1e-12)  # mlxtend's exact test
    assert 0 < mcnemar_exact(2000, 3000) < 1e-44  # floats alone would underflow on the way: 2 ** -5000
    z = (2550 - 2500) / math.sqrt(5000 / 4)
    assert mcnemar_exact(2450, 2550) == pytest.approx(math.erfc((z - 0.5 / math.sqrt(1250)) / math.sqrt(2)), rel=1e-3)
    with pytest.raises(DataError, match="-1"):
        mcnemar_exact(-1, 3)


def test_mcnemar_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for only_a, only_b in np.random.default_rng(0).integers(0, 60, (50, 2)).tolist():
        if only_a + only_b:
            expected = stats.binomtest(only_a, only_a + only_b, 0.5).pvalue
            assert mcnemar_exact(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_the_sign_test_leaves_ties_out() -> None:
    assert sign_test([0.5, -0.1, 0.0, 0.2, 0.3, 0.0]) == mcnemar_exact(3, 1)
    assert sign_test([0.0, 0.0]) == sign_test([]) == 1.0


def test_holm_on_a_worked_example() -> None:
    # 0.005 x 4, 0.01 x 3, then 0.03 x 2 which also holds 0.04 x 1 up.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.5]) == [0.5] and holm([0.6, 0.9]) == [1.0, 1.0]


def test_paired_bootstrap_gives_the_rates_and_is_seeded() -> None:
    errors_a, errors_b, words = [0, 1, 2, 0], [1, 1, 3, 1], [4, 5, 6, 5]
    found = paired_bootstrap(errors_a, words, errors_b, words)
    assert (found.items, found.a, found.b) == (4, 3 / 20, 6 / 20)
    assert found.difference == pytest.approx(-0.15) and found.interval is not None
    assert found.interval[0] <= -0.15 <= found.interval[1] <= 0
    assert found == paired_bootstrap(errors_a, words, errors_b, words)
    assert found != paired_bootstrap(errors_a, words, errors_b, words, seed=1)


def test_paired_bootstrap_against_an_empty_route_is_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(1)
    errors, words = rng.integers(0, 5, 80), rng.integers(5, 20, 80)
    found = paired_bootstrap(errors, words, [0] * 80, words)
    assert found.interval == pytest.approx(bootstrap_interval(errors, words, samples=4000), abs=4e-3)


def test_paired_bootstrap_agrees_with_the_normal_approximation() -> None:
    # Shares of right items: the variance of the mean difference is known in closed form.
    rng = np.random.default_rng(2)
    a, b = (rng.random(400) < 0.8).astype(int), (rng.random(400) < 0.74).astype(int)
    found = paired_bootstrap(a, np.ones(400), b, np.ones(400))
    error = float((a - b).std()) / 20
    assert found.interval == pytest.approx((found.difference - 1.96 * error, found.difference + 1.96 * error), abs=6e-3)
    assert found.p_value == pytest.approx(math.erfc(abs(found.difference) / error / math.sqrt(2)), abs=0.02)


def test_pairing_finds_what_two_intervals_hide() -> None:
    # Both routes fail on the hard items; b makes one more error on every tenth.
    rng = np.random.default_rng(3)
    hard = rng.integers(0, 10, 200)
    worse = hard + (np.arange(200) % 10 == 0)
    found = paired_bootstrap(hard, np.full(200, 10), worse, np.full(200, 10))
    own_a = bootstrap_interval(hard, np.full(200, 10))
    assert found.b is not None and own_a[0] < found.b < own_a[1]
    assert found.p_value == pytest.approx(2 / 10_001) and found.interval[1] < 0  # type: ignore[index]


def test_equal_routes_are_not_told_apart() -> None:
    found = paired_bootstrap([0, 1, 2], [3, 3, 3], [0, 1, 2], [3, 3, 3])
    assert found.difference == 0.0 and found.interval == (0.0, 0.0) and found.p_value == 1.0


def test_false_findings_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(4)
    found = 0
    for trial in range(200):
        a, b = (rng.random((2, 60)) < 0.7).astype(int)
        found += (paired_bootstrap(a, np.ones(60), b, np.ones(60), samples=400, seed=trial).p_value or 1) < 0.05
    assert found <= 22  # 5 % of 200 is 10; 22 is four standard deviations up


def test_paired_bootstrap_of_nothing() -> None:
    found = paired_bootstrap([1, 2], [0, 0], [1, 1], [0, 0])  # silent clips: no word error rate
    assert found.difference is None and found.interval is None and found.p_value is None
    with pytest.raises(DataError, match=r"\(2,\)"):
        paired_bootstrap([1, 2], [1, 1], [1], [1])
    with pytest.raises(DataError, match="at least one"):
        paired_bootstrap([], [], [], [])
