"""The frozen speech encoder: waveforms -> hidden state per layer, at real length.

Training only; nothing under `aura.inference` imports this package. Layer numbers are 1-based and name the
*output* of a transformer layer, taken at the layer itself: Hugging Face's `hidden_states[-1]` is after the
final norm for Whisper and the pre-norm wav2vec 2.0 encoders, and would not be the last layer's own output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from aura.errors import DataError, ModelError, ModelReferenceError, RecipeError
from aura.references.quiet import no_load_report
from aura.teacher.states import (
    CPU_GROUP_FRAMES,
    CPU_PADDING_SHARE,
    SAMPLE_RATE,
    Runner,
    TeacherSpec,
    TeacherStates,
    group_by_length,
)
from aura.teacher.wav2vec2 import Wav2Vec2Runner, is_conv_encoder
from aura.teacher.whisper import WhisperRunner

__all__ = ["Teacher", "TeacherSpec", "TeacherStates"]

SUPPORTED = "Whisper, wav2vec 2.0, HuBERT, WavLM (or an AutoModel with .encoder.layers and conv_stride)"
# Only used to mask frames while training the encoder itself; some checkpoints leave it out.
MAY_BE_MISSING = frozenset({"masked_spec_embed"})


class Teacher:
    """A frozen encoder with its feature extractor.

    Args:
        encoder: a `WhisperEncoder` (or a model whose `.encoder` is one), or a conv-and-transformer encoder.
        feature_extractor: the one that belongs to it.
        pad_to_30s: feed Whisper its whole window and crop the frames, instead of the real length.

    Raises:
        ModelError: the architecture is not supported, or the two do not fit together.
    """

    spec: TeacherSpec

    def __init__(self, encoder: nn.Module, feature_extractor: Any, *, pad_to_30s: bool = False) -> None:
        self._runner = _runner_for(encoder, feature_extractor, pad_to_30s=pad_to_30s)
        self.spec = self._runner.spec
        self.encoder = self._runner.encoder
        self.encoder.eval().requires_grad_(False)

    @classmethod
    def load(
        cls,
        path_or_id: str,
        *,
        dtype: torch.dtype | str | None = None,
        device: str | torch.device = "cpu",
        pad_to_30s: bool = False,
    ) -> Teacher:
        """Load a folder or a hub id; of a Whisper checkpoint only the encoder.

        Args:
            path_or_id: a Hugging Face folder, or a hub id (resolve `pip:` references first).
            dtype: default float32 on a CPU, the checkpoint's own dtype elsewhere.
            device: where the encoder runs.
            pad_to_30s: see `Teacher`.

        Raises:
            ModelReferenceError: there is no model of that name.
            ModelError: the model is of no supported family, or its weights are incomplete.
        """
        device = torch.device(device)
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else "auto"
        encoder = _load_encoder(path_or_id, dtype)
        extractor = _load_feature_extractor(path_or_id)
        return cls(encoder.to(device), extractor, pad_to_30s=pad_to_30s)

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[np.ndarray], layers: Sequence[int]) -> TeacherStates:
        """Run the encoder and return the raw outputs of some of its layers.

        Args:
            waveforms: mono float32 at 16 kHz; each length a positive multiple of `spec.frame_samples`.
            layers: 1-based layer numbers, at most `spec.layers`; the result keeps their order.

        Returns:
            exactly `len(w) // spec.frame_samples` frames of every waveform, in order, in the encoder's dtype.

        Raises:
            DataError: a length is no multiple of a frame, or beyond `spec.max_seconds`.
            RecipeError: a layer that the encoder does not have.
        """
        layers = self._check_layers(layers)
        frames = tuple(self._count_frames(waveform) for waveform in waveforms)
        reference = next(self.encoder.parameters())
        hidden_LFE = reference.new_empty(len(layers), sum(frames), self.spec.width)
        starts = np.cumsum((0, *frames))
        for group in self._groups(frames):
            outputs = self._runner.run([waveforms[i] for i in group], [frames[i] for i in group], layers)
            for states_FE, hidden_BTE in zip(hidden_LFE, outputs):
                for row, i in enumerate(group):
                    states_FE[starts[i] : starts[i + 1]] = hidden_BTE[row, : frames[i]]
        return TeacherStates(hidden_LFE=hidden_LFE, frames=frames)

    def front_end(self) -> dict[str, Any] | None:
        """Weights for a warm start of the student's conv stem, or None (see `WhisperRunner.front_end`)."""
        return self._runner.front_end()

    def _groups(self, frames: Sequence[int]) -> list[list[int]]:
        on_cpu = next(self.encoder.parameters()).device.type == "cpu"
        share = (CPU_PADDING_SHARE if on_cpu else 1.0) if self._runner.pads else 0.0
        fed = [self._runner.window or count for count in frames]
        return group_by_length(fed, padding_share=share, max_frames=CPU_GROUP_FRAMES if on_cpu else None)

    def _check_layers(self, layers: Sequence[int]) -> list[int]:
        wrong = [layer for layer in layers if not 1 <= layer <= self.spec.layers]
        if wrong or not layers:
            raise RecipeError(
                f"teacher layers {list(layers)} were asked for; expected numbers from 1 (output of the first "
                f"layer) to {self.spec.layers} (output of the last). Correct the layer map in the recipe."
            )
        return list(layers)

    def _count_frames(self, waveform: np.ndarray) -> int:
        frames, rest = divmod(len(waveform), self.spec.frame_samples)
        if rest or not frames:
            raise DataError(
                f"the teacher was given {len(waveform)} samples; expected a positive multiple of "
                f"{self.spec.frame_samples}, the samples of one teacher frame. "
                "Pad the waveform with zeros to whole patches first."
            )
        seconds, limit = len(waveform) / SAMPLE_RATE, self.spec.max_seconds
        if limit is not None and seconds > limit:
            raise DataError(
                f"the teacher was given {seconds:.2f} s of audio; expected at most {limit:g} s, the window "
                f"of this encoder. Split the row, or drop rows longer than {limit:g} s with "
                f"`--data.max_seconds {limit:g}`."
            )
        return frames


def _runner_for(encoder: Any, feature_extractor: Any, *, pad_to_30s: bool) -> Runner:
    model_type = encoder.config.model_type
    rate = feature_extractor.sampling_rate
    if rate != SAMPLE_RATE:
        raise ModelError(
            f"teacher '{model_type}' expects audio at {rate} Hz; aura feeds {SAMPLE_RATE} Hz. "
            f"Choose a {SAMPLE_RATE} Hz checkpoint."
        )
    if model_type == "whisper":
        encoder = getattr(encoder, "model", encoder)  # WhisperForConditionalGeneration
        encoder = getattr(encoder, "encoder", encoder)  # WhisperModel
        return WhisperRunner(encoder, feature_extractor, pad_to_window=pad_to_30s)
    if not is_conv_encoder(encoder):
        raise _unsupported(model_type)
    if pad_to_30s:
        raise ModelError(
            f"pad_to_30s was given for teacher '{model_type}', which has no fixed window; expected a Whisper "
            "encoder. Leave pad_to_30s out."
        )
    return Wav2Vec2Runner(encoder, feature_extractor)


def _unsupported(model_type: str) -> ModelError:
    return ModelError(
        f"teacher of model type '{model_type}' is not supported; expected one of: {SUPPORTED}. "
        "Choose another teacher in the recipe."
    )


def _load_encoder(path_or_id: str, dtype: torch.dtype | str) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    try:
        config = AutoConfig.from_pretrained(path_or_id)
    except OSError as error:
        raise ModelReferenceError(
            f"teacher '{path_or_id}' was not found; expected a Hugging Face folder or hub id. "
            f"Check the spelling and the connection. ({_first_line(error)})"
        ) from error
    except ValueError as error:
        raise ModelError(
            f"teacher '{path_or_id}' has no configuration that transformers knows ({_first_line(error)}); "
            f"expected one of: {SUPPORTED}."
        ) from error
    # Whisper's decoder is never needed: read the encoder's tensors only, wherever the checkpoint keeps them.
    whisper = config.model_type == "whisper"
    if not whisper and not hasattr(config, "conv_stride"):
        raise _unsupported(config.model_type)  # before reading what may be gigabytes of weights
    loader: Any = WhisperEncoder if whisper else AutoModel
    options: dict[str, Any] = {"key_mapping": {r"^(model\.)?encoder\.": ""}} if whisper else {}
    try:
        with no_load_report():
            encoder, info = loader.from_pretrained(
                path_or_id, config=config, dtype=dtype, output_loading_info=True, **options
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"the weights of teacher '{path_or_id}' cannot be loaded ({_first_line(error)}); expected a "
            "complete checkpoint. Download it again."
        ) from error
    missing = sorted(set(info["missing_keys"]) - MAY_BE_MISSING)
    if missing:
        # A part that is missing would be random, and the student would be taught noise.
        raise ModelError(
            f"teacher '{path_or_id}' lacks {len(missing)} tensors of its encoder, e.g. '{missing[0]}'; "
            "expected a complete checkpoint. Download it again or choose another."
        )
    return encoder


def _load_feature_extractor(path_or_id: str) -> Any:
    from transformers import AutoFeatureExtractor

    try:
        return AutoFeatureExtractor.from_pretrained(path_or_id)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"teacher '{path_or_id}' has no usable feature extractor ({_first_line(error)}); expected a "
            "preprocessor_config.json beside its weights. Copy it from the original checkpoint."
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
