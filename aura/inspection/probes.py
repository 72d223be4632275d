"""Linear probes: what can be read out of a layer.

Cross-validated: each clip is read by a ridge classifier that was fitted on the other folds, never on its own clip nor, for
content, on its own speaker. A layer's score is over all clips once; its interval is a bootstrap over clips or speakers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from aura.inspection import resample
from aura.inspection.labels import Task
from aura.inspection.ridge import fit_predict

Features = Callable[[str, int], torch.Tensor]
"""(model, layer) -> (clips or positions, D)."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One model's scores over its layers.

    Args:
        score, low, high: (layers,) with a 95 % bootstrap interval.
        unseen: (layers,) over clips that the student was not trained on; empty where that is unknown or all.
    """

    score: list[float]
    low: list[float]
    high: list[float]
    unseen: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One task's result.

    Args:
        metric: `accuracy`, or `auc` (mean over the labels of the area under the ROC curve).
        chance: of guessing.
        majority: of always saying what is most common in the training folds.
        curves: by model.
        drawn: what the bootstrap draws.
        unseen_clips: clips behind `Curve.unseen`.
    """

    task: Task
    metric: str
    chance: float
    majority: float
    curves: dict[str, Curve]
    drawn: str
    unseen_clips: int

    def as_dict(self) -> dict[str, Any]:
        task = self.task
        return {
            "question": task.question,
            "level": task.level,
            "metric": self.metric,
            "chance": self.chance,
            "majority": self.majority,
            "labelled": len(task.members),
            "unseen": self.unseen_clips,
            "folds": int(task.folds.max()) + 1,
            "kept_apart": task.split,
            "bootstrap_over": self.drawn,
            "classes": list(task.classes),
            "curves": {name: vars(curve) for name, curve in self.curves.items()},
        }


def run_probe(
    task: Task,
    features: Features,
    layers: dict[str, int],
    *,
    unseen: np.ndarray | None,
    owners: np.ndarray,
    clips: np.ndarray,
    seed: int,
    device: torch.device,
    progress: Callable[[], None],
) -> Probe:
    """Train and test a probe on every layer of every model.

    Args:
        features: reads one layer.
        layers: how many each model has.
        unseen: (n,) bool per member, whether the student was trained without it; None where unknown.
        owners: (n,) speaker of each member (its clip where that is unknown), drawn as a whole where there are enough.
        clips: (n,) clip of each member, drawn otherwise.
        progress: called after each layer.
    """
    few = len(set(owners.tolist())) < resample.FEWEST_SPEAKERS or task.name == "speaker"
    draws = resample.draws(clips if few else owners, seed=seed)
    some = _worth_telling(task, unseen)
    curves = {}
    for name, count in layers.items():
        scores, low, high, other = [], [], [], []
        for layer in range(count):
            guess = cross_validated(task, features(name, layer), seed=seed, device=device)
            score, ends = _score(task, guess, draws)
            scores.append(score)
            low.append(ends[0])
            high.append(ends[1])
            if some is not None:
                other.append(_score(task, guess, some[None].astype(float))[0])
            progress()
        curves[name] = Curve(score=scores, low=low, high=high, unseen=other)
    return Probe(
        task=task,
        metric="accuracy" if task.kind == "class" else "auc",
        chance=1 / len(task.classes) if task.kind == "class" else 0.5,
        majority=_majority(task),
        curves=curves,
        drawn="clips" if few else "speakers",
        unseen_clips=int(some.sum()) if some is not None else 0,
    )


def _worth_telling(task: Task, unseen: np.ndarray | None) -> np.ndarray | None:
    """`unseen` where some were trained on and others not, and those not are of several classes; else None."""
    if unseen is None or unseen.all() or not unseen.any() or not (task.targets[unseen].std(0) > 0).any():
        return None
    return unseen


def cross_validated(task: Task, states: torch.Tensor, *, seed: int, device: torch.device) -> np.ndarray:
    """(n, C) scores of each member, from probes that did not see its fold."""
    states = states[torch.from_numpy(task.members)].to(device)
    targets = torch.from_numpy(task.targets).float().to(device)
    guess = np.zeros(task.targets.shape)
    for fold in range(int(task.folds.max()) + 1):
        test = task.folds == fold
        guess[test] = fit_predict(states[~test], targets[~test], states[test], task.groups[~test], seed=seed).numpy(
            force=True
        )
        if task.kind == "presence":
            # Where a label is common in one fold, it is rare in those trained on: left in, their means would rank the folds
            # the wrong way round, and noise would score below one half.
            guess[test] -= task.targets[~test].mean(0)
    return guess


def _score(task: Task, guess: np.ndarray, draws: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Score of all members (of the only draw, where there is one), and the interval over the draws."""
    if task.kind == "class":
        right = (guess.argmax(1) == task.targets.argmax(1)).astype(float)[None]
        one = np.ones_like(right)
        drawn = resample.ratios(draws, right, one)
        whole = float(right.mean())
    else:
        weights = np.concatenate([np.ones((1, len(guess))), draws])
        per_label = [resample.weighted_auc(guess[:, c], task.targets[:, c], weights) for c in range(guess.shape[1])]
        found = _mean_defined(np.stack(per_label))
        whole, drawn = float(found[0]), found[1:, None]
    if len(draws) == 1:
        return float(drawn[0, 0]), (float("nan"), float("nan"))
    low, high = resample.interval(drawn)
    return whole, (float(low[0]), float(high[0]))


def _mean_defined(values_CR: np.ndarray) -> np.ndarray:
    """(R,) mean over the labels that a draw has both classes of."""
    count = (~np.isnan(values_CR)).sum(0)
    return np.where(count > 0, np.nansum(values_CR, axis=0) / np.maximum(count, 1), np.nan)


def _majority(task: Task) -> float:
    if task.kind == "presence":
        return 0.5  # a constant score ranks nothing
    labels = task.targets.argmax(1)
    right = 0
    for fold in range(int(task.folds.max()) + 1):
        common = Counter(labels[task.folds != fold].tolist()).most_common(1)[0][0]
        right += int((labels[task.folds == fold] == common).sum())
    return right / len(labels)


def best_layer(curve: Sequence[float]) -> int:
    """Index of the highest score."""
    return int(np.nanargmax(curve))
