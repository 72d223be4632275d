"""Heads and the cosine loss: what pulls a student layer toward a teacher layer. Training only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class DistillHead(nn.Module):
    """RMS norm, a gain and shift per channel, and a bias-free Linear: student width -> target width.

    VoRA's head has no per-channel part. LLMs carry a few channels hundreds of times larger than the rest; behind a bare
    RMS norm the others are next to nothing, and the head learns as slowly as they are small. Gain and shift start at the
    standardisation of a calibration pass (our choice; dev/LOG.md has the figures).
    """

    def __init__(self, width: int, target_width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        self.linear = nn.Linear(width, target_width, bias=False)

    def channels(self, hidden: torch.Tensor) -> torch.Tensor:
        """(P, D) -> RMS-normed, standardised (P, D)."""
        return nn.functional.rms_norm(hidden.float(), hidden.shape[-1:], eps=1e-6) * self.gain + self.shift

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(P, D) -> (P, target width)."""
        return self.linear(self.channels(hidden))

    @torch.no_grad()
    def calibrate(self, hidden: torch.Tensor, target: torch.Tensor, ridge: float) -> None:
        """Standardise the channels, then start the Linear on the ridge regression to the targets."""
        normed = nn.functional.rms_norm(hidden.float(), hidden.shape[-1:], eps=1e-6)
        std = normed.std(0)
        self.gain.copy_(1.0 / std.clamp(min=float(std.median()) * 1e-2))
        self.shift.copy_(-normed.mean(0) * self.gain)
        inputs = self.channels(hidden)
        gram = inputs.T @ inputs
        gram.diagonal().add_(ridge * float(gram.diagonal().mean()))
        self.linear.weight.copy_(torch.linalg.solve(gram, inputs.T @ target.float()).T)


class DistillHeads(nn.Module):
    """One head per layer pair, and the standardisation of the targets.

    Args:
        pairs: number of layer pairs.
        width: D, of the student.
        target_width: channels of a target, frames per patch x E when stacked.
        mean, std: (pairs, E) standardisation of teacher frames; zeros and ones leave targets raw.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, *, pairs: int, width: int, target_width: int, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.heads = nn.ModuleList(DistillHead(width, target_width) for _ in range(pairs))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def standardise(self, hidden_LFE: torch.Tensor) -> torch.Tensor:
        """Teacher frames of the paired layers -> zero mean, unit variance per channel."""
        return (hidden_LFE.float() - self.mean[:, None]) / self.std[:, None]

    def calibrate(self, hidden_LPD: Sequence[torch.Tensor], targets_LPK: torch.Tensor, ridge: float = 0.1) -> None:
        """Start each head on what the untrained student already carries (our choice; the paper is silent).

        Args:
            hidden_LPD, targets_LPK: as `forward`, over some minutes of speech.
            ridge: penalty relative to the mean variance of the student's channels.
        """
        for head, hidden, target in zip(self.heads, hidden_LPD, targets_LPK, strict=True):
            head.calibrate(hidden, target, ridge)  # type: ignore[operator]

    def forward(self, hidden_LPD: Sequence[torch.Tensor], targets_LPK: torch.Tensor) -> torch.Tensor:
        """Sum over patches of 1 - cosine, per layer pair.

        Args:
            hidden_LPD: student hidden states at audio positions, one (P, D) per pair.
            targets_LPK: (pairs, P, K).

        Returns:
            (pairs,) float32; divide by the number of patches for the mean.
        """
        distances = [
            (1.0 - nn.functional.cosine_similarity(head(hidden).float(), target.float(), dim=-1)).sum()
            for head, hidden, target in zip(self.heads, hidden_LPD, targets_LPK, strict=True)
        ]
        return torch.stack(distances)


def response_kl(student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
    """Sum over positions of KL(teacher || student).

    Args:
        student_logits, teacher_logits: (N, V) at the same answer positions.
    """
    student = nn.functional.log_softmax(student_logits.float(), dim=-1)
    teacher = nn.functional.log_softmax(teacher_logits.float(), dim=-1)
    return nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
