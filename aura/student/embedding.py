"""Log-mel -> audio positions of the LLM: the light layer that stays at run time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from aura.errors import ModelError


class AudioEmbedding(nn.Module):
    """Log-mel patches -> vectors of the LLM's width, at the scale of its token embeddings.

    `conv` is the front-end of a Whisper encoder (two convolutions, the second with stride 2), then the frames of one
    patch stacked and projected; `linear` projects the bare mel frames of a patch. A last RMS norm, whose weight starts
    at the RMS of the LLM's token embeddings, sets the scale (our choice; the paper says "lightweight" only).

    Args:
        width: D, of the LLM.
        n_mels: M.
        patch_frames: mel frames per patch.
        stem: `conv` or `linear`.
        stem_width: C, channels of the convolutions.
        scale: RMS of the token embeddings that the LLM's layers see.
    """

    def __init__(
        self,
        *,
        width: int,
        n_mels: int,
        patch_frames: int,
        stem: Literal["conv", "linear"],
        stem_width: int,
        scale: float,
    ) -> None:
        super().__init__()
        self.patch_frames = patch_frames
        self.stem = stem
        if stem == "conv":
            self.conv1 = nn.Conv1d(n_mels, stem_width, kernel_size=3, padding=1)
            self.conv2 = nn.Conv1d(stem_width, stem_width, kernel_size=3, stride=2, padding=1)
            stacked = stem_width * patch_frames // 2
        else:
            stacked = n_mels * patch_frames
        self.stack_norm = nn.LayerNorm(stacked)
        self.project = nn.Linear(stacked, width)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        nn.init.constant_(self.norm.weight, scale)

    def forward(self, mel_BMT: torch.Tensor, frames_B: torch.Tensor) -> torch.Tensor:
        """Embed the valid patches of each item, back to back.

        Args:
            mel_BMT: log-mel, any values behind each item's end.
            frames_B: valid mel frames per item, whole patches.

        Returns:
            (sum of patches, D), items in order.
        """
        valid_BT = torch.arange(mel_BMT.shape[2], device=mel_BMT.device) < frames_B.to(mel_BMT.device)[:, None]
        # Zero behind each item's end, so that its neighbours in the batch do not change its last frame. The second
        # convolution needs no such care: with stride 2 its last frame does not reach beyond an even end.
        hidden = mel_BMT.to(self.project.weight.dtype).masked_fill(~valid_BT[:, None], 0.0)
        if self.stem == "conv":
            hidden = nn.functional.gelu(self.conv1(hidden))
            hidden = nn.functional.gelu(self.conv2(hidden))
            per_patch = self.patch_frames // 2
        else:
            per_patch = self.patch_frames
        batch, channels, length = hidden.shape
        stacked = hidden.transpose(1, 2).reshape(batch, length // per_patch, per_patch * channels)
        patches_valid = valid_BT[:, :: self.patch_frames]
        return self.norm(self.project(self.stack_norm(stacked[patches_valid])))

    @torch.no_grad()
    def warm_start(self, front_end: Mapping[str, torch.Tensor]) -> None:
        """Copy a Whisper encoder's two convolutions into the conv stem.

        Raises:
            ModelError: the shapes differ; the message names the recipe fields to set.
        """
        given = tuple(front_end["conv1.weight"].shape)
        expected = tuple(self.conv1.weight.shape)
        if given != expected:
            raise ModelError(
                f"the teacher's first convolution has {given[1]} mel bins and {given[0]} channels; the audio embedding has "
                f"{expected[1]} and {expected[0]}. Set audio.n_mels: {given[1]} and audio.stem_width: {given[0]}"
            )
        for name, tensor in front_end.items():
            self.get_parameter(name).copy_(tensor)
