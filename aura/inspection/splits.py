"""Fit on these, measure on those: no clip, and where speakers are known no speaker, on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aura.inspection.items import Clip

SMALLEST_SIDE = 0.2  # share of the clips on either side of a split (our choice)


@dataclass(frozen=True, kw_only=True)
class Split:
    """Clip numbers to fit on and to measure on.

    Args:
        unit: what is never on both sides, `speaker` or `clip`.
        note: why it is not the speaker, or what to keep in mind; empty otherwise.
    """

    fit: np.ndarray
    measure: np.ndarray
    unit: str
    note: str


def speaker_groups(clips: Sequence[Clip]) -> tuple[np.ndarray | None, str]:
    """A group number per clip, one for each speaker; or None and the reason."""
    speakers = [clip.utterance.speaker for clip in clips]
    if missing := sum(speaker is None for speaker in speakers):
        return None, f"{missing} of {len(clips)} clips name no speaker"
    if len(set(speakers)) < 2:
        return None, f"all clips are of one speaker, {speakers[0]}"
    return np.unique(np.asarray(speakers, dtype=object).astype(str), return_inverse=True)[1], ""


def halves(clips: Sequence[Clip], *, seed: int) -> Split:
    """Two halves of about equal size, by speaker where that can be done, else by clip.

    Groups with clips that the student has been trained on go to the side of the fit first, so that what is measured is
    held out from the student's training too, as far as its recipe tells.
    """
    trained = np.array([clip.trained_on is True for clip in clips])
    groups, note = speaker_groups(clips)
    if groups is not None:
        measured = _two_sides(groups, trained, seed)
        if SMALLEST_SIDE <= measured.mean() <= 1 - SMALLEST_SIDE:
            return _split(measured, "speaker", trained, "")
        note = "the speakers' numbers of clips are too unequal for two halves"
    return _split(_two_sides(np.arange(len(clips)), trained, seed), "clip", trained, note)


def _two_sides(groups: np.ndarray, trained: np.ndarray, seed: int) -> np.ndarray:
    """Bool per clip: whether it is measured."""
    sizes = Counter(groups.tolist())
    known = set(groups[trained].tolist())
    if sum(sizes[group] for group in sizes if group not in known) < SMALLEST_SIDE * len(groups):
        known = set()  # hardly anything would be left to measure
    order = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    order.sort(key=lambda group: -sizes[group])
    fit, measured = sum(sizes[group] for group in known), 0
    chosen = []
    for group in order:
        if group in known:
            continue
        if measured <= fit:
            chosen.append(group)
            measured += sizes[group]
        else:
            fit += sizes[group]
    return np.isin(groups, chosen)


def _split(measured: np.ndarray, unit: str, trained: np.ndarray, note: str) -> Split:
    if both := int((measured & trained).sum()):
        more = f"{both} of the {int(measured.sum())} clips that are measured were in the student's training data"
        note = f"{note}; {more}" if note else more
    return Split(fit=np.flatnonzero(~measured), measure=np.flatnonzero(measured), unit=unit, note=note)


def grouped_folds(groups: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """(n,) fold of each clip; the clips of a group share theirs, and folds are of about equal size."""
    sizes = Counter(groups.tolist())
    order = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    order.sort(key=lambda group: -sizes[group])
    filled = np.zeros(min(folds, len(sizes)))
    fold_of: dict[int, int] = {}
    for group in order:
        fold_of[group] = int(filled.argmin())
        filled[fold_of[group]] += sizes[group]
    return np.array([fold_of[group] for group in groups.tolist()])


def stratified_folds(labels: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """(n,) fold of each clip; each label's clips are dealt evenly over the folds."""
    rng = np.random.default_rng(seed)
    found = np.zeros(len(labels), dtype=int)
    next_fold = 0
    for label in sorted(set(labels.tolist())):
        members = rng.permutation(np.flatnonzero(labels == label))
        found[members] = (next_fold + np.arange(len(members))) % folds
        next_fold += len(members)  # small classes do not all start in the first fold
    return found
