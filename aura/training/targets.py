"""Teacher -> targets: which layers, standardised how, one per patch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch

from aura.audio.patches import SAMPLE_RATE, PatchGrid
from aura.distill.frame_map import TargetStatistics, frames_to_targets
from aura.distill.layer_map import LayerPair
from aura.distill.loss import DistillHeads
from aura.errors import ModelError
from aura.teacher.encoder import Teacher

CALIBRATION_BATCH = 32  # utterances the teacher hears at once in the calibration pass


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
    def calibrate(self, waveforms: Iterable[np.ndarray], seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation (layers, E) over about `seconds` of speech."""
        statistics = TargetStatistics()
        waiting: list[np.ndarray] = []
        heard = 0.0
        for waveform in waveforms:
            waiting.append(waveform)
            heard += len(waveform) / SAMPLE_RATE
            if len(waiting) == CALIBRATION_BATCH:
                statistics.add(self.teacher(waiting, self.layers).hidden_LFE.cpu())
                waiting = []
            if heard >= seconds:
                break
        if waiting:
            statistics.add(self.teacher(waiting, self.layers).hidden_LFE.cpu())
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
