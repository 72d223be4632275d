"""Cosine to the teacher, for every student layer and every teacher layer, on speech that the heads were not fitted on.

The heads of training are not in a checkpoint, and the stock LLM never had any. So each layer gets new ones: RMS norm,
standardised channels and a linear map, as in training, but the map is the ridge regression to the teacher's standardised
states, fitted on one half of the speech (its penalty chosen on a fifth of that half) and measured on the other half. No
speaker is in both halves where speakers are known. The same for every model, so that a difference is one of the states.

A head is a strong reader: the stock LLM already scores well above 0, as its layers pass the audio embedding's output on.
What the adapter internalised is the difference to it, not the height of the curve.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from aura.inspection.ridge import Ridge, Standardiser, choose_penalties, rms_norm
from aura.inspection.splits import Split
from aura.inspection.states import TEACHER
from aura.inspection.store import StateStore

CHOICE_COLUMNS = 64  # target channels per teacher layer that the penalty is chosen on


@dataclass(frozen=True, kw_only=True)
class Cosines:
    """Cosines of one model, summed within each measured clip.

    Args:
        sums: (layers, teacher layers, measured clips).
        counts: (measured clips,) positions.
        clips: (measured clips,) their numbers; a clip of which no position was sampled is not among them.
        penalties: (layers, teacher layers) as chosen.
    """

    sums: np.ndarray
    counts: np.ndarray
    clips: np.ndarray
    penalties: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> np.ndarray:
        """(layers, teacher layers)."""
        return self.sums.sum(2) / self.counts.sum()


class Targets:
    """The teacher's sampled states, standardised on the fitted half.

    Args:
        fit, measure: rows of the sample.
    """

    def __init__(self, store: StateStore, fit: np.ndarray, measure: np.ndarray, device: torch.device) -> None:
        self.store, self.fit, self.measure, self.device = store, fit, measure, device
        self.layers = store.shapes[TEACHER].layers

    def __call__(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(fitted rows, K), (measured rows, K)."""
        states = self.store.positions(TEACHER, layer).to(self.device)
        scale = Standardiser(states[self.fit])
        return scale(states[self.fit]), scale(states[self.measure])

    def some_columns(self, seed: int) -> torch.Tensor:
        """(fitted rows, some channels of every layer), for the choice of a penalty."""
        width = self.store.shapes[TEACHER].width
        columns = np.random.default_rng(seed).permutation(width)[:CHOICE_COLUMNS]
        return torch.cat([self(layer)[0][:, columns] for layer in range(self.layers)], dim=1)


def distances(guess: torch.Tensor, truth: torch.Tensor, *, layers: int) -> list[float]:
    """1 - cosine for each teacher layer, some channels of each side by side: what is measured decides the penalty.

    The squared error would rather have a head say little than something wrong, which costs no cosine.
    """
    guess_NLK, truth_NLK = (values.unflatten(1, (layers, -1)) for values in (guess, truth))
    cosine = torch.nn.functional.cosine_similarity(guess_NLK, truth_NLK, dim=-1)
    return (1.0 - cosine.mean(0)).tolist()


def fit_and_measure(
    store: StateStore,
    split: Split,
    groups: np.ndarray,
    names: Sequence[str],
    *,
    seed: int,
    device: torch.device,
    progress: Callable[[], None],
) -> dict[str, Cosines]:
    """Cosines of each model.

    Args:
        groups: (clips,) what is set aside as a whole for the choice of the penalty: speakers or clips.
        names: models in the store.
        progress: called after each layer.
    """
    is_measured = np.isin(store.clips, split.measure)
    fit, measure = np.flatnonzero(~is_measured), np.flatnonzero(is_measured)
    clips, owner = np.unique(store.clips[measure], return_inverse=True)
    targets = Targets(store, fit, measure, device)
    chosen_on, loss = targets.some_columns(seed), partial(distances, layers=targets.layers)
    found = {}
    for name in names:
        sums = np.zeros((store.shapes[name].layers, targets.layers, len(clips)))
        penalties = []
        for layer in range(len(sums)):
            states = rms_norm(store.positions(name, layer).to(device))
            chosen = choose_penalties(states[fit], chosen_on, groups[store.clips[fit]], seed=seed, loss=loss)
            penalties.append(tuple(chosen))
            scale = Standardiser(states[fit])
            ridge = Ridge(scale(states[fit]))
            heard = ridge.project(scale(states[measure]))
            for teacher_layer in range(targets.layers):
                learnt, truth = targets(teacher_layer)
                guess = heard @ ridge.coefficients(learnt, chosen[teacher_layer])
                cosine = torch.nn.functional.cosine_similarity(guess, truth, dim=-1).numpy(force=True)
                sums[layer, teacher_layer] = np.bincount(owner, weights=cosine, minlength=len(clips))
            progress()
        found[name] = Cosines(
            sums=sums, counts=np.bincount(owner).astype(float), clips=clips, penalties=tuple(penalties)
        )
    return found
