"""Heads and the cosine loss: what pulls a student layer toward a teacher layer. Training only."""

from __future__ import annotations

import torch
from torch import nn


class DistillHeads(nn.Module):
    """One head per layer pair: RMSNorm + bias-free Linear, student width -> target width (as in VoRA).

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
        self.heads = nn.ModuleList(
            nn.Sequential(nn.RMSNorm(width, eps=1e-6), nn.Linear(width, target_width, bias=False)) for _ in range(pairs)
        )
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def standardise(self, hidden_LFE: torch.Tensor) -> torch.Tensor:
        """Teacher frames of the paired layers -> zero mean, unit variance per channel."""
        return (hidden_LFE.float() - self.mean[:, None]) / self.std[:, None]

    def forward(self, hidden_LPD: list[torch.Tensor], targets_LPK: torch.Tensor) -> torch.Tensor:
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
