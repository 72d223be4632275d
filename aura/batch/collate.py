"""Utterances -> one padded batch; the same type for training, evaluation and generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from aura.batch.prompt import IGNORE, Message, Prompt, build_prompt, replace_audio
from aura.errors import PromptError
from aura.student.processor import AuraProcessor


@dataclass(frozen=True, kw_only=True)
class Example:
    """One conversation with its audio decoded.

    Args:
        id: of the utterance.
        messages: turns, the assistant's answer last when it is to be learnt.
        waveforms: (samples,) float32 at 16 kHz per audio part, in reading order.
        transcripts: what each audio part says, where known; for the text teacher.
    """

    id: str
    messages: Sequence[Message]
    waveforms: Sequence[np.ndarray]
    transcripts: Sequence[str] | None = None


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B conversations with A audio parts in all.

    Args:
        ids: B utterance ids.
        input_ids: (B, S), the audio token at audio positions.
        attention_mask: (B, S), 0 on padding.
        labels: (B, S), `IGNORE` but on answers.
        input_features: (A, M, T) log-mel, parts in reading order; None without audio.
        input_features_mask: (A, T) bool.
        waveforms: A arrays of whole patches, for the teacher; empty when not asked for.
    """

    ids: tuple[str, ...]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    input_features: torch.Tensor | None = None
    input_features_mask: torch.Tensor | None = None
    waveforms: tuple[np.ndarray, ...] = field(default=())
    spelled: tuple[tuple[int, ...] | None, ...] = ()  # B transcripts as tokens, for CTC; empty when not asked for
    text: Batch | None = None  # the same answers behind the transcript, for the response KL

    def model_inputs(self) -> dict[str, Any]:
        """What `AuraForConditionalGeneration.forward` and `generate` take."""
        inputs: dict[str, Any] = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.input_features is not None:
            inputs |= {"input_features": self.input_features, "input_features_mask": self.input_features_mask}
        return inputs

    @property
    def answer_tokens(self) -> int:
        """Positions with a loss."""
        return int((self.labels != IGNORE).sum())

    @property
    def audio_seconds(self) -> float:
        mask = self.input_features_mask
        return 0.0 if mask is None else int(mask.sum()) / 100.0

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; waveforms stay where they are."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }
        return replace(self, **moved, text=self.text.to(device) if self.text is not None else None)


def collate(
    processor: AuraProcessor,
    examples: Sequence[Example],
    *,
    answer: bool,
    padding_side: Literal["left", "right"] = "left",
    keep_waveforms: bool = False,
    features: Sequence[torch.Tensor] | None = None,
    text_teacher: bool = False,
    spell: bool = False,
) -> Batch:
    """Pad conversations and their audio to one batch.

    Args:
        answer: the last turn is the assistant's and gets labels; False ends with the generation prompt.
        keep_waveforms: carry the padded waveforms along for the teacher.
        features: log-mel (M, T) per audio part, if already computed (and perhaps masked by augmentation).
        text_teacher: add the batch in which each audio is replaced by its transcript.
        spell: add the tokens of the transcripts.

    Raises:
        PromptError: see `build_prompt`.
    """
    extractor = processor.feature_extractor
    waveforms = [extractor.grid.pad(w) for example in examples for w in example.waveforms]
    prompts = [
        build_prompt(processor, e.messages, [extractor.grid.count(len(w)) for w in e.waveforms], answer=answer)
        for e in examples
    ]
    batch = _pad(processor, [e.id for e in examples], prompts, padding_side)
    if waveforms:
        mel: Any = _pad_features(features) if features is not None else extractor(waveforms)
        batch = replace(batch, input_features=mel["input_features"], input_features_mask=mel["input_features_mask"])
    if text_teacher:
        batch = replace(batch, text=_text_batch(processor, examples, padding_side))
    if spell:
        batch = replace(batch, spelled=tuple(_spelled(processor, example) for example in examples))
    return replace(batch, waveforms=tuple(waveforms)) if keep_waveforms else batch


def _spelled(processor: AuraProcessor, example: Example) -> tuple[int, ...] | None:
    if example.transcripts is None or len(example.waveforms) != 1:
        return None
    ids: Any = processor.tokenizer(example.transcripts[0], add_special_tokens=False)["input_ids"]
    return tuple(ids)


def _text_batch(processor: AuraProcessor, examples: Sequence[Example], side: Literal["left", "right"]) -> Batch:
    prompts = []
    for example in examples:
        if example.transcripts is None:
            raise PromptError(
                f"{example.id} has no transcript; the response KL needs one (or set distill.response_kl: 0)"
            )
        prompts.append(build_prompt(processor, replace_audio(example.messages, example.transcripts), answer=True))
    return _pad(processor, [e.id for e in examples], prompts, side)


def _pad(processor: AuraProcessor, ids: Sequence[str], prompts: Sequence[Prompt], side: str) -> Batch:
    length = max(len(p.input_ids) for p in prompts)
    shape = (len(prompts), length)
    input_ids = torch.full(shape, processor.tokenizer.pad_token_id)
    labels = torch.full(shape, IGNORE)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        n = len(prompt.input_ids)
        where = slice(length - n, length) if side == "left" else slice(0, n)
        input_ids[row, where] = torch.tensor(prompt.input_ids)
        labels[row, where] = torch.tensor(prompt.labels)
        attention_mask[row, where] = 1
    return Batch(ids=tuple(ids), input_ids=input_ids, attention_mask=attention_mask, labels=labels)


def _pad_features(features: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    frames = torch.tensor([f.shape[1] for f in features])
    padded = torch.zeros(len(features), features[0].shape[0], int(frames.max()))
    for row, mel in zip(padded, features, strict=True):
        row[:, : mel.shape[1]] = mel
    return {"input_features": padded, "input_features_mask": torch.arange(padded.shape[2]) < frames[:, None]}
