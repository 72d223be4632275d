"""Linear centred kernel alignment between layers, debiased, over minibatches.

Kornblith et al. 2019 (*Similarity of Neural Network Representations Revisited*) for CKA; Song et al. 2012 for the
unbiased HSIC; Nguyen et al. 2021 (*Do Wide and Deep Networks Learn the Same Things?*) for averaging it over minibatches.
The plain estimate tends to 1 for noise when channels outnumber positions; this one tends to 0, and may fall just below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

BATCH = 512  # positions per minibatch (our choice): the Gram matrices of 60 layers then take 130 MB
FEWEST = 8  # positions; the unbiased estimate needs more than three

Layer = Callable[[np.ndarray], torch.Tensor]
"""Positions (n,) -> states (n, D)."""


def u_centred_gram(states: torch.Tensor) -> torch.Tensor:
    """(n, D) -> (n, n) in float64, U-centred: rows sum to zero without the diagonal, which is zero.

    The inner product of two of these, over n (n - 3), is the unbiased HSIC (Szekely and Rizzo 2014).
    """
    states = states - states.mean(0)
    gram = (states @ states.T).double()
    gram.fill_diagonal_(0.0)
    n = len(gram)
    rows = gram.sum(1)
    centred = gram - (rows[:, None] + rows[None, :]) / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0.0)


def cka_matrix(
    left: Sequence[Layer], right: Sequence[Layer], positions: int, *, seed: int, batch: int = BATCH
) -> np.ndarray:
    """(left layers, right layers) debiased linear CKA; NaN where a layer does not vary.

    Args:
        left, right: layers whose states are read a minibatch at a time.
        positions: how many there are; shuffled with the seed, as neighbours within a clip are alike.

    Raises:
        ValueError: fewer than `FEWEST` positions.
    """
    if positions < FEWEST:
        raise ValueError(f"{positions} positions; CKA needs at least {FEWEST}")
    order = np.random.default_rng(seed).permutation(positions)
    cross = np.zeros((len(left), len(right)))
    own_left, own_right = np.zeros(len(left)), np.zeros(len(right))
    for members in np.array_split(order, max(1, positions // batch)):
        ours = torch.stack([u_centred_gram(layer(members)).flatten() for layer in left])
        theirs = torch.stack([u_centred_gram(layer(members)).flatten() for layer in right])
        weight = len(members) / positions / (len(members) * (len(members) - 3))
        cross += (ours @ theirs.T).numpy(force=True) * weight
        own_left += ours.square().sum(1).numpy(force=True) * weight
        own_right += theirs.square().sum(1).numpy(force=True) * weight
    scale = np.sqrt(own_left[:, None] * own_right[None, :])
    return np.where(scale > 0, cross / np.where(scale > 0, scale, 1.0), np.nan)


def linear_cka(left: torch.Tensor, right: torch.Tensor, *, batch: int = BATCH, seed: int = 0) -> float:
    """Debiased linear CKA of (n, D) and (n, E)."""
    read = [lambda rows, states=states: states[torch.from_numpy(rows)] for states in (left, right)]
    return float(cka_matrix(read[:1], read[1:], len(left), seed=seed, batch=batch)[0, 0])
