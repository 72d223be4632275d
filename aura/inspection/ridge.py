"""Ridge regression in closed form: what every head and every probe here is.

One factorisation of the smaller Gram matrix serves all penalties and all targets. No optimiser, no learning rate, no
stopping rule: two layers differ by what they carry, not by how well a probe's training went.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from aura.inspection.splits import grouped_folds

# Relative to the channels' mean variance (our choice). Half decades: with whole ones, layers that chose 1 and layers that
# chose 10 were up to 0.08 of cosine apart, and a curve jumped where nothing in the states did.
PENALTIES = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
INNER_FOLDS = 5  # one of them is set aside to choose the penalty
NO_CHOICE = 0.1  # penalty where there are too few groups to choose one; that of the training's heads

Loss = Callable[[torch.Tensor, torch.Tensor], list[float]]
"""Predictions and targets (n, K) -> a loss for each part of the targets that gets a penalty of its own."""


def rms_norm(hidden: torch.Tensor) -> torch.Tensor:
    """Each position at RMS 1, as the next layer of a pre-norm LLM (and a training head) reads it."""
    return torch.nn.functional.rms_norm(hidden, hidden.shape[-1:], eps=1e-6)


class Standardiser:
    """Zero mean and unit variance per channel, by the statistics of what is fitted on.

    Args:
        fitted: (n, D). Channels that hardly vary are held back: their noise must not be blown up.
    """

    def __init__(self, fitted: torch.Tensor) -> None:
        self.mean = fitted.mean(0)
        std = fitted.std(0, unbiased=False)
        self.std = std.clamp(min=max(float(std.median()) * 1e-2, 1e-8))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        return (values - self.mean) / self.std


class Ridge:
    """argmin over W of |inputs W - targets|^2 / n + penalty * v |W|^2, v the mean variance of the inputs.

    Args:
        inputs: (n, D), standardised; the targets are expected to have zero mean.
    """

    def __init__(self, inputs: torch.Tensor) -> None:
        n, width = inputs.shape
        gram = inputs.T @ inputs if n >= width else inputs @ inputs.T
        values, vectors = torch.linalg.eigh(gram)
        self.scale = float(inputs.square().sum()) / width  # n v
        self.values = values.clamp(min=0)
        self.basis = vectors if n >= width else inputs.T @ vectors  # (D, k)
        self.inner = inputs @ vectors if n >= width else vectors  # (n, k)

    def project(self, inputs: torch.Tensor) -> torch.Tensor:
        """(m, D) -> (m, k), on the left of `coefficients`."""
        return inputs @ self.basis

    def coefficients(self, targets: torch.Tensor, penalty: float) -> torch.Tensor:
        """(n, K) -> (k, K): `project(x) @ coefficients(y, penalty)` predicts."""
        return (self.inner.T @ targets) / (self.values + penalty * self.scale)[:, None]


def squared_error(guess: torch.Tensor, truth: torch.Tensor) -> list[float]:
    """Of all targets together."""
    return [float((guess - truth).square().sum())]


def choose_penalties(
    inputs: torch.Tensor, targets: torch.Tensor, groups: np.ndarray, *, seed: int, loss: Loss = squared_error
) -> list[float]:
    """For each part of the targets the penalty with the least loss on a fifth of the data that the fit does not see.

    Args:
        inputs: (n, D), not standardised yet.
        targets: (n, K).
        groups: (n,); a group is set aside as a whole, as in the split around this one.
        loss: of (n, K) predictions and targets, both without the mean of the targets that were fitted.
    """
    if len(set(groups.tolist())) < 3:
        return [NO_CHOICE] * len(loss(targets, targets))
    # Folds of equal size: a fifth of the speakers may be a handful of clips.
    aside = torch.from_numpy(grouped_folds(groups, folds=INNER_FOLDS, seed=seed) == 0)
    scale, mean = Standardiser(inputs[~aside]), targets[~aside].mean(0)
    ridge = Ridge(scale(inputs[~aside]))
    held_out, truth = ridge.project(scale(inputs[aside])), targets[aside] - mean
    losses = [loss(held_out @ ridge.coefficients(targets[~aside] - mean, penalty), truth) for penalty in PENALTIES]
    return [PENALTIES[best] for best in np.argmin(losses, axis=0)]


def fit_predict(
    inputs: torch.Tensor, targets: torch.Tensor, unseen: torch.Tensor, groups: np.ndarray, *, seed: int
) -> torch.Tensor:
    """Fit on (n, D) and (n, K), predict for (m, D): (m, K)."""
    [penalty] = choose_penalties(inputs, targets, groups, seed=seed)
    scale, mean = Standardiser(inputs), targets.mean(0)
    ridge = Ridge(scale(inputs))
    return ridge.project(scale(unseen)) @ ridge.coefficients(targets - mean, penalty) + mean
