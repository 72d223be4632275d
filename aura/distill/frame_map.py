"""Teacher frames -> one target per patch, and the statistics that standardise them."""

from __future__ import annotations

from typing import Literal

import torch


def frames_to_targets(
    hidden_LFE: torch.Tensor, frames_per_patch: int, *, how: Literal["stack", "pool"]
) -> torch.Tensor:
    """Teacher frames of one patch -> its target.

    Args:
        hidden_LFE: (layers, frames, E), frames a multiple of `frames_per_patch`.
        how: `stack` keeps all frames side by side (k E channels); `pool` averages them (E channels).

    Returns:
        (layers, patches, k E or E).
    """
    layers, frames, width = hidden_LFE.shape
    grouped = hidden_LFE.reshape(layers, frames // frames_per_patch, frames_per_patch, width)
    return grouped.flatten(2) if how == "stack" else grouped.mean(2)


class TargetStatistics:
    """Running mean and variance per layer and channel, over teacher frames.

    Whisper's states have a few channels hundreds of times larger than the rest; a raw cosine sees only those.
    """

    def __init__(self) -> None:
        self.count = 0
        self.total: torch.Tensor | None = None
        self.squares: torch.Tensor | None = None

    def add(self, hidden_LFE: torch.Tensor) -> None:
        """Take in the frames of a few utterances."""
        hidden = hidden_LFE.double()
        total, squares = hidden.sum(1), hidden.square().sum(1)
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares
        self.count += hidden.shape[1]

    def mean_std(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(L, E) mean and standard deviation (at least 1e-4 of the layer's largest), float32."""
        if self.total is None or self.squares is None:
            raise ValueError("no frames were added; the calibration pass needs at least one utterance")
        mean = self.total / self.count
        std = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        return mean.float(), torch.maximum(std, std.amax(1, keepdim=True) * 1e-4).float()
