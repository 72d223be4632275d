"""Teacher -> targets: which layers, standardised how, one per patch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch

from aura.audio.patches import PatchGrid
from aura.distill.frame_map import TargetStatistics, frames_to_targets
from aura.distill.layer_map import LayerPair
from aura.distill.loss import DistillHeads
from aura.errors import ModelError
from aura.teacher.encoder import Teacher


class TargetMaker:
    """Runs the teacher on waveforms of whole patches and shapes its states into targets.

    Args:
        how: `stack` or `pool`, see `frames_to_targets`.

    Raises:
        ModelError: the teacher's frame rate does not fit the patch size.
    """

    def __init__(
        self, teacher: Teacher, pairs: Sequence[LayerPair], grid: PatchGrid, how: Literal["stack", "pool"]
    ) -> None:
        self.teacher = teacher
        self.layers = [pair.teacher for pair in pairs]
        self.how: Literal["stack", "pool"] = how
        try:
            self.frames_per_patch = grid.teacher_frames(teacher.spec.frame_samples)
        except ValueError as error:
            raise ModelError(str(error)) from error

    @property
    def width(self) -> int:
        """Channels of a target."""
        return self.teacher.spec.width * (self.frames_per_patch if self.how == "stack" else 1)

    @torch.no_grad()
    def statistics(self, groups: Iterable[Sequence[np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (layers, E) over groups of waveforms."""
        statistics = TargetStatistics()
        for waveforms in groups:
            statistics.add(self.teacher(waveforms, self.layers).hidden_LFE.cpu())
        return statistics.mean_std()

    def raw_statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeros and ones: targets as they are."""
        shape = (len(self.layers), self.teacher.spec.width)
        return torch.zeros(shape), torch.ones(shape)

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[np.ndarray], heads: DistillHeads) -> torch.Tensor | None:
        """(pairs, patches of all waveforms, K) on the heads' device; None without audio."""
        if not waveforms:
            return None
        hidden = self.teacher(waveforms, self.layers).hidden_LFE.to(heads.mean.device)
        return frames_to_targets(heads.standardise(hidden), self.frames_per_patch, how=self.how)
