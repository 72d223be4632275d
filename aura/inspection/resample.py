"""Bootstrap intervals over clips or speakers: one set of draws for all layers and models, so that differences are paired."""

from __future__ import annotations

import numpy as np

DRAWS = 1000
FEWEST_SPEAKERS = 10  # with fewer, speakers drawn with replacement say little; clips are drawn instead (our choice)
TAIL = 2.5  # per cent on either side


def draws(groups: np.ndarray, *, seed: int, samples: int = DRAWS) -> np.ndarray:
    """(samples, n) how often each clip stands in each draw; clips of a group are drawn together."""
    names, members = np.unique(groups, return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=samples)
    return counts[:, members].astype(np.float64)


def ratios(weights_RN: np.ndarray, parts_CN: np.ndarray, wholes_CN: np.ndarray) -> np.ndarray:
    """(R, C) sum(parts) / sum(wholes) of each draw; NaN where a draw holds nothing."""
    whole = weights_RN @ wholes_CN.T
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, (weights_RN @ parts_CN.T) / whole, np.nan)


def interval(drawn_RC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C,) low and high ends of the 95 % percentile interval."""
    empty = np.isnan(drawn_RC).all(0)
    low, high = np.nanpercentile(np.where(empty, 0.0, drawn_RC), [TAIL, 100 - TAIL], axis=0)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)


def weighted_auc(scores_N: np.ndarray, present_N: np.ndarray, weights_RN: np.ndarray) -> np.ndarray:
    """(R,) area under the ROC curve of each draw; ties count half; NaN where a draw has one class only."""
    order = np.argsort(scores_N, kind="stable")
    _, rank = np.unique(scores_N[order], return_inverse=True)
    present = present_N[order].astype(bool)
    weights = weights_RN[:, order]
    starts = np.flatnonzero(np.diff(rank, prepend=-1))
    positive = np.add.reduceat(np.where(present, weights, 0.0), starts, axis=1)
    negative = np.add.reduceat(np.where(present, 0.0, weights), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(1) * negative.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (positive * below).sum(1) / pairs, np.nan)
