"""Hugging Face processor of the student: log-mel features, placeholders and the chat template."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin, SequenceFeatureExtractor

from aura.audio.logmel import log_mel_batch
from aura.audio.patches import SAMPLE_RATE, PatchGrid
from aura.errors import AudioError

RESERVED_AUDIO_TOKENS = (
    "<|audio|>",
    "<|AUDIO|>",
    "<unused0>",
    "<|audio_pad|>",
    "<|vision_pad|>",
    "<|reserved_special_token_0|>",
)
"""Tokens that families keep free, tried in this order; a new token is added where a tokenizer has none."""

# For an LLM without a chat template of its own: the user's text, a line break, the answer. The break is an expression:
# Hugging Face renders with trim_blocks, which eats a bare one behind a tag.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}"
)

# LLM templates expect text; audio parts become the placeholder before the LLM's own template runs. A line break parts
# adjacent audio parts: the mask tells parts by the text between them. Hybrid thinkers (Qwen 3, SmolLM 3) answer at
# once unless the caller asks: otherwise an empty thought would stand in every label and every transcript.
FLATTEN_TEMPLATE = (
    "{% set enable_thinking = enable_thinking | default(false) %}"
    "{% set flat = namespace(messages=[], text='') %}"
    "{% for message in messages %}"
    "{% if message.content is string %}{% set flat.text = message.content %}"
    "{% else %}{% set flat.text = '' %}{% for part in message.content %}"
    "{% if part.type == 'audio' %}{% set flat.text = flat.text + ('\\n' if flat.text.endswith('AUDIO_TOKEN') else '') %}"
    "{% set flat.text = flat.text + 'AUDIO_TOKEN' %}"
    "{% else %}{% set flat.text = flat.text + part.text %}{% endif %}{% endfor %}{% endif %}"
    "{% set flat.messages = flat.messages + [dict(message, content=flat.text)] %}"
    "{% endfor %}{% set messages = flat.messages %}"
)


def audio_chat_template(tokenizer: PreTrainedTokenizerBase, audio_token: str) -> str:
    """The LLM's own chat template, or the plain one, taking `{"type": "audio"}` parts."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):
        own = own.get("default")
    return FLATTEN_TEMPLATE.replace("AUDIO_TOKEN", audio_token) + (own or PLAIN_TEMPLATE)


def pick_audio_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """A reserved token of the tokenizer, or a new special one (its id may lie behind the embedding table)."""
    vocabulary = tokenizer.get_vocab()
    for token in RESERVED_AUDIO_TOKENS:
        if token in vocabulary:
            return token
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|audio|>"]}, replace_extra_special_tokens=False)
    return "<|audio|>"


class AuraFeatureExtractor(SequenceFeatureExtractor):
    """Waveforms at 16 kHz -> log-mel at real length.

    Args:
        feature_size: mel bins.
        floor: see `aura.audio.logmel.log_mel`.
        patch_frames: mel frames per audio position; waveforms are padded to whole patches.
    """

    model_input_names = ["input_features", "input_features_mask"]  # noqa: RUF012  # Hugging Face's own form

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = SAMPLE_RATE,
        padding_value: float = 0.0,
        floor: float | Literal["clip"] = -6.0,
        patch_frames: int = 8,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.floor = floor
        self.patch_frames = patch_frames

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid(patch_frames=self.patch_frames)

    def __call__(
        self,
        raw_speech: np.ndarray | list[np.ndarray] | list[float],
        sampling_rate: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Waveform(s) -> `input_features` (A, M, T) and `input_features_mask` (A, T).

        Raises:
            AudioError: another sampling rate than 16 kHz.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise AudioError(
                f"audio at {sampling_rate} Hz was given, {self.sampling_rate} Hz expected; "
                "aura.audio.waveform.load_waveform(array, sampling_rate=...) converts it"
            )
        if isinstance(raw_speech, np.ndarray) and raw_speech.ndim == 1:
            raw_speech = [raw_speech]
        elif isinstance(raw_speech, list) and raw_speech and isinstance(raw_speech[0], float):
            raw_speech = [np.asarray(raw_speech)]
        waveforms = [torch.from_numpy(self.grid.pad(np.asarray(w, dtype=np.float32))) for w in raw_speech]
        mel_BMT, frames_B = log_mel_batch(waveforms, n_mels=self.feature_size, floor=self.floor)
        mask_BT = torch.arange(mel_BMT.shape[2]) < frames_B[:, None]
        return BatchFeature(
            {"input_features": mel_BMT, "input_features_mask": mask_BT},
            tensor_type=return_tensors if return_tensors != "pt" else None,
        )


class AuraProcessor(ProcessorMixin):
    """Feature extractor + the LLM's tokenizer; `{"type": "audio"}` parts become one placeholder per patch."""

    tokenizer_class = "AutoTokenizer"
    # Left, as generation appends on the right; the chat template brings the special tokens, a second BOS would not be
    # what training saw.
    text_kwargs = {"padding": True, "padding_side": "left", "add_special_tokens": False}  # noqa: RUF012
    audio_kwargs = {"sampling_rate": SAMPLE_RATE}  # noqa: RUF012
    return_mm_token_type_ids = True

    def __init__(
        self,
        feature_extractor: AuraFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | None = None,
        audio_token: str | None = None,
    ) -> None:
        self.audio_token = audio_token or pick_audio_token(tokenizer)
        self.audio_token_id: Any = tokenizer.convert_tokens_to_ids(self.audio_token)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        super().__init__(
            feature_extractor,
            tokenizer,
            chat_template=chat_template or audio_chat_template(tokenizer, self.audio_token),
        )

    def replace_audio_token(self, audio_inputs: dict[str, Any], audio_idx: int, **kwargs: Any) -> str:
        frames = int(audio_inputs["input_features_mask"][audio_idx].sum())
        return self.audio_token * (frames // self.feature_extractor.patch_frames)

    def _get_num_multimodal_tokens(self, audio_lengths: list[int] | None = None, **kwargs: Any) -> dict[str, list[int]]:
        """Placeholders per audio of the given sample counts, as serving engines ask for them."""
        return {"num_audio_tokens": [self.feature_extractor.grid.count(n) for n in audio_lengths or []]}
