"""wav2vec 2.0, HuBERT, WavLM and other encoders that start from a stack of strided convolutions.

Anything that `transformers.AutoModel` loads, that has `.encoder.layers` and `config.conv_stride`, and whose
feature extractor makes `input_values`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from aura.errors import ModelError
from aura.teacher.states import SAMPLE_RATE, TeacherSpec

# Encoders whose positional convolution reads zeros beyond a masked item, as it does for a single item.
# (data2vec-audio and the conformers do not: they run by equal length.)
MASKABLE = frozenset({"wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"})


def is_conv_encoder(encoder: Any) -> bool:
    """Whether `Wav2Vec2Runner` can run this model."""
    config = encoder.config
    strides = getattr(config, "conv_stride", None)
    kernels = getattr(config, "conv_kernel", None)
    layers = getattr(getattr(encoder, "encoder", None), "layers", None)
    lists = isinstance(strides, (list, tuple)) and isinstance(kernels, (list, tuple))
    # SEW squeezes its frames between the convolutions and the layers: other arithmetic, not supported.
    return lists and isinstance(layers, nn.ModuleList) and getattr(config, "squeeze_factor", 1) == 1


class Wav2Vec2Runner:
    """Runs encoders of the wav2vec 2.0 line with hooks on their layers.

    A clip of k whole frames is given trailing zeros until the convolutions, which have no padding of their
    own, yield exactly k frames (80 samples for the usual 320-sample stride and 400-sample receptive field).
    """

    def __init__(self, encoder: Any, feature_extractor: Any) -> None:
        config: Any = encoder.config
        if feature_extractor.model_input_names[0] != "input_values":
            raise ModelError(
                f"teacher '{config.model_type}' comes with a feature extractor that makes "
                f"'{feature_extractor.model_input_names[0]}'; expected raw 'input_values'. "
                "Choose a checkpoint with a Wav2Vec2FeatureExtractor."
            )
        self.encoder = encoder
        self.window: int | None = None
        self.feature_extractor = feature_extractor
        # A group norm in the first convolution takes its statistics over the whole clip, padding included.
        group_norm = getattr(config, "feat_extract_norm", "group") == "group"
        batch_norm = getattr(config, "conv_pos_batch_norm", False)
        self.pads = config.model_type in MASKABLE and not group_norm and not batch_norm
        self.spec = TeacherSpec(
            layers=len(encoder.encoder.layers),
            width=config.hidden_size,
            frame_samples=math.prod(config.conv_stride),
            max_seconds=None,
        )
        self.receptive_samples = receptive_field(config.conv_kernel, config.conv_stride)

    def run(self, waveforms: Sequence[np.ndarray], frames: Sequence[int], layers: Sequence[int]) -> list[torch.Tensor]:
        """Return for each of `layers` its raw output, (B, T, E); see `Runner.run`."""
        inputs = self._inputs(waveforms, frames)
        outputs: dict[int, torch.Tensor] = {}

        def keep(number: int) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                outputs[number] = output[0] if isinstance(output, tuple) else output  # WavLM adds a bias

            return hook

        modules = self.encoder.encoder.layers
        handles = [modules[number - 1].register_forward_hook(keep(number)) for number in set(layers)]
        try:
            self.encoder(**inputs)
        finally:
            for handle in handles:
                handle.remove()
        for hidden_BTE in outputs.values():
            self._check_output(hidden_BTE, max(frames))
        return [outputs[number] for number in layers]

    def _check_output(self, hidden_BTE: torch.Tensor, frames: int) -> None:
        # Cropping would hide a wrong frame rate, so too many frames are as wrong as too few.
        if hidden_BTE.shape[1:] != (frames, self.spec.width):
            raise ModelError(
                f"a layer of teacher '{self.encoder.config.model_type}' made (frames, width) = "
                f"{tuple(hidden_BTE.shape[1:])}; expected {(frames, self.spec.width)} from its config. "
                "Choose another teacher: this architecture has a frame rate of its own."
            )

    def _inputs(self, waveforms: Sequence[np.ndarray], frames: Sequence[int]) -> dict[str, torch.Tensor]:
        """Normalised samples (B, N), each clip by itself, and a mask (B, N) where lengths differ."""
        reference = next(self.encoder.parameters())
        sizes = [max(len(w), self._samples_for(k)) for w, k in zip(waveforms, frames)]
        values_BN = torch.zeros(len(waveforms), max(sizes))
        for row, waveform in zip(values_BN, waveforms):
            values = self.feature_extractor(waveform, sampling_rate=SAMPLE_RATE)["input_values"][0]
            row[: len(waveform)] = torch.as_tensor(np.asarray(values, dtype=np.float32))
        inputs = {"input_values": values_BN.to(reference.device, reference.dtype)}
        if min(sizes) < max(sizes):
            positions = torch.arange(max(sizes), device=reference.device)
            valid = positions < torch.tensor(sizes, device=reference.device)[:, None]
            inputs["attention_mask"] = valid.long()
        return inputs

    def _samples_for(self, frames: int) -> int:
        """Fewest samples from which the convolutions make this many frames."""
        return (frames - 1) * self.spec.frame_samples + self.receptive_samples

    def front_end(self) -> None:
        """No mel stem to start from: these encoders read samples."""
        return None


def receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    """Samples that one output frame of a stack of unpadded convolutions sees."""
    samples = 1
    for kernel, stride in zip(reversed(kernels), reversed(strides)):
        samples = (samples - 1) * stride + kernel
    return samples
