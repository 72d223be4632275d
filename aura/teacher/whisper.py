"""Whisper's encoder at the clip's real length.

Hugging Face's `WhisperEncoder.forward` insists on 30 s of mel frames, which for 2 s of speech is 15 times the
work. The same submodules are composed here for as many frames as the clip has. Padding in a batch is exact:
mel frames beyond an item are zero, as the convolution's own padding is, and its frames are masked as keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from aura.errors import ModelError
from aura.teacher.states import SAMPLE_RATE, TeacherSpec


class WhisperRunner:
    """Runs the encoder of any checkpoint whose model type is `whisper`.

    Args:
        encoder: a `transformers` `WhisperEncoder`.
        feature_extractor: a `WhisperFeatureExtractor`.
        pad_to_window: feed the whole 30 s window, as Whisper was trained, and crop the frames.
    """

    pads = True

    def __init__(self, encoder: Any, feature_extractor: Any, *, pad_to_window: bool = False) -> None:
        config: Any = encoder.config
        if feature_extractor.feature_size != config.num_mel_bins:
            raise ModelError(
                f"the feature extractor makes {feature_extractor.feature_size} mel bins, but the Whisper "
                f"encoder expects {config.num_mel_bins}. Use the preprocessor_config.json of this checkpoint."
            )
        self.encoder = encoder
        self.feature_extractor = feature_extractor
        self.window: int | None = config.max_source_positions if pad_to_window else None
        self.mels_per_frame = encoder.conv1.stride[0] * encoder.conv2.stride[0]
        frame_samples = self.mels_per_frame * feature_extractor.hop_length
        self.spec = TeacherSpec(
            layers=len(encoder.layers),
            width=config.d_model,
            frame_samples=frame_samples,
            max_seconds=config.max_source_positions * frame_samples / SAMPLE_RATE,
        )

    def run(self, waveforms: Sequence[np.ndarray], frames: Sequence[int], layers: Sequence[int]) -> list[torch.Tensor]:
        """Return for each of `layers` its raw output, (B, T, E); see `Runner.run`."""
        lengths = [self.window or count for count in frames]
        hidden_BTE = self._front_end(self._mel(waveforms, max(lengths)))
        mask = key_mask(lengths, hidden_BTE)
        outputs: dict[int, torch.Tensor] = {}
        for number, layer in enumerate(self.encoder.layers[: max(layers)], start=1):
            hidden_BTE = layer(hidden_BTE, mask)
            if number in layers:
                outputs[number] = hidden_BTE
        return [outputs[number] for number in layers]

    def _mel(self, waveforms: Sequence[np.ndarray], frames: int) -> torch.Tensor:
        """Log-mel by Whisper's own extractor, each clip by itself: (B, M, mel frames), zero beyond a clip.

        The extractor normalises by the maximum of what it is given, so clips must not see each other; one
        call per clip also lets each have its own length (its torch STFT, ~1 ms a 5 s clip, is what it uses).
        """
        weight = self.encoder.conv1.weight
        n_mels = self.feature_extractor.feature_size
        mel_BMT = torch.zeros(len(waveforms), n_mels, frames * self.mels_per_frame)
        padding: dict[str, Any] = {"padding": "longest"}
        if self.window:
            padding = {"padding": "max_length", "max_length": self.window * self.spec.frame_samples}
        for row, waveform in zip(mel_BMT, waveforms):
            features = self.feature_extractor(waveform, sampling_rate=SAMPLE_RATE, truncation=False, **padding)[
                "input_features"
            ][0]
            row[:, : features.shape[-1]] = torch.as_tensor(features)
        return mel_BMT.to(weight.device, weight.dtype)

    def _front_end(self, mel_BMT: torch.Tensor) -> torch.Tensor:
        """Two convolutions and positions: (B, T, E)."""
        encoder = self.encoder
        # conv1 turns zero padding into its bias, but conv2 (kernel 3, stride 2) does not carry that back: the
        # last frame of an item reads the item's own last two conv1 outputs and the one before them.
        features = nn.functional.gelu(encoder.conv1(mel_BMT))
        hidden_BTE = nn.functional.gelu(encoder.conv2(features)).transpose(1, 2)
        return hidden_BTE + encoder.embed_positions.weight[: hidden_BTE.shape[1]]

    def front_end(self) -> dict[str, Any]:
        """Weights of the two convolutions (copies) and the number of mel bins that conv1 reads."""
        weights: dict[str, Any] = {
            f"{conv}.{name}": getattr(getattr(self.encoder, conv), name).detach().clone()
            for conv in ("conv1", "conv2")
            for name in ("weight", "bias")
        }
        return weights | {"n_mels": self.encoder.conv1.in_channels}


def key_mask(lengths: Sequence[int], hidden_BTE: torch.Tensor) -> torch.Tensor | None:
    """Additive mask over keys, (B, 1, T, T), large and negative beyond each length; None if unpadded."""
    if min(lengths) == max(lengths):
        return None
    batch, longest = hidden_BTE.shape[:2]
    ends = torch.tensor(lengths, device=hidden_BTE.device)
    beyond = torch.arange(longest, device=hidden_BTE.device) >= ends[:, None]
    mask = hidden_BTE.new_zeros(batch, 1, 1, longest)
    mask.masked_fill_(beyond[:, None, None], torch.finfo(hidden_BTE.dtype).min)
    return mask.expand(batch, 1, longest, longest)
