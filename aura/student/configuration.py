"""The student's Hugging Face config: what the run time must know besides the LLM's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from aura.errors import CheckpointError
from aura.student.files import CONFIG


class AuraConfig(PreTrainedConfig):
    """What the run time must know besides the LLM's own config.

    Args:
        text_config: config of the LLM (or its dict).
        base_model: reference the LLM's weights are loaded from (hub id, folder or pip:).
        base_fingerprint: the LLM's shapes and a sample of its weights, to refuse another LLM.
        audio_token_id: placeholder of one audio position; never looked up in the embedding table.
        stem, n_mels, floor, patch_frames, stem_width, attention, block_patches, max_seconds: see `AudioConfig`; of a
            bridge, stem is `encoder` and stem_width the encoder's.
        embedding_scale: RMS that audio positions start at.
        gate: `audio` or `all`, see `LoraConfig`.
        prompt: text that stood after the audio in training; the default prompt of transcribe.
        min_avg_logprob: transcripts less sure than this count as nothing said, see `transcribe_each`; None keeps all.
        lone_words: whether one word can be all of a transcript that is held to that bound.
        encoder, encoder_fingerprint: of a bridge: reference of its speech encoder, shapes and a sample of its weights.
        projector_width, silence_seconds: of a bridge, see `BridgeConfig`.
        adapter: whether LoRA weights belong to the checkpoint; only a bridge can do without.
    """

    model_type = "aura"
    sub_configs = {"text_config": AutoConfig}  # noqa: RUF012  # Hugging Face's own form

    text_config: Any = None
    base_model: str = ""
    base_fingerprint: dict[str, Any] | None = None
    audio_token_id: int = -1
    stem: str = "conv"
    n_mels: int = 80
    floor: float | str = -6.0
    patch_frames: int = 8
    stem_width: int = 512
    attention: str = "block"
    block_patches: int = 8
    max_seconds: float = 300.0
    embedding_scale: float = 1.0
    gate: str = "audio"
    prompt: str | None = None
    min_avg_logprob: float | None = None
    lone_words: bool = True
    encoder: str | None = None
    encoder_fingerprint: dict[str, Any] | None = None
    projector_width: int = 2048
    silence_seconds: float = 0.0
    adapter: bool = True

    @property
    def is_bridge(self) -> bool:
        """Whether a speech encoder is needed to hear."""
        return self.stem == "encoder"

    @property
    def context_length(self) -> int:
        """Positions that the LLM was made for; beyond any use where it does not say."""
        return getattr(self.text_config, "max_position_embeddings", None) or 1 << 30

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict):
            fields = dict(self.text_config)
            self.text_config = AutoConfig.for_model(fields.pop("model_type"), **fields)
        else:
            # The base class resets the attention kernel of its parts; the LLM keeps its own config.
            self.text_config = copy.deepcopy(self.text_config)
        super().__post_init__(**kwargs)


def read_config(folder: Path) -> AuraConfig:
    """The config of a checkpoint's folder.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        config = AuraConfig.from_pretrained(folder)
        bound = config.min_avg_logprob
        if bound is not None and not bound <= 0:
            raise ValueError(f"min_avg_logprob is {bound}; expected null or a log-probability, which is at most 0")
        if not isinstance(config.lone_words, bool):
            raise ValueError(f"lone_words is {config.lone_words!r}; expected true or false")
        return config
    except Exception as error:  # torn JSON, fields of another type or another version's
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CheckpointError(
            f"{folder / CONFIG} cannot be read ({reason}); copy or save the checkpoint again"
        ) from error
