"""Encoder frames -> audio positions of the LLM: what a bridge learns."""

from __future__ import annotations

import torch
from torch import nn


class Projector(nn.Module):
    """The encoder frames of one patch stacked, normed, and sent through two layers with a GELU between.

    The form of the public bridges (stack, then two layers: SLAM-LLM, Ultravox); the sizes are our choice. The last RMS
    norm sets the scale of the LLM's token embeddings, as in `AudioEmbedding`.

    Args:
        width: D, of the LLM.
        encoder_width: E.
        frames_per_patch: encoder frames stacked per audio position.
        hidden_width: between the two layers.
        scale: RMS of the token embeddings that the LLM's layers see.
    """

    def __init__(
        self, *, width: int, encoder_width: int, frames_per_patch: int, hidden_width: int, scale: float
    ) -> None:
        super().__init__()
        self.stacked = encoder_width * frames_per_patch
        self.stack_norm = nn.LayerNorm(self.stacked)
        self.up = nn.Linear(self.stacked, hidden_width)
        self.down = nn.Linear(hidden_width, width)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        nn.init.constant_(self.norm.weight, scale)

    def forward(self, hidden_FE: torch.Tensor) -> torch.Tensor:
        """Encoder frames of whole patches, back to back -> (sum of patches, D)."""
        stacked = hidden_FE.to(self.up.weight.dtype).reshape(-1, self.stacked)
        return self.norm(self.down(nn.functional.gelu(self.up(self.stack_norm(stacked)))))  # type: ignore[no-any-return]
