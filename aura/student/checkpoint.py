"""Students: built from a stock LLM, saved as a checkpoint folder, loaded back; and the Auto classes' registration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from aura.config import AudioConfig, BridgeConfig, LoraConfig
from aura.errors import CheckpointError
from aura.student.configuration import AuraConfig
from aura.student.files import checkpoint_folder, whole_folder
from aura.student.gate import attach_gate
from aura.student.llm import embedding_rms, fingerprint
from aura.student.lora import attach_lora
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraFeatureExtractor, AuraProcessor

RECIPE = "recipe.yaml"
CARD = "README.md"
PROCESSOR_FILES = ("processor_config.json", "tokenizer_config.json")

AutoConfig.register("aura", AuraConfig, exist_ok=True)
AutoFeatureExtractor.register(AuraConfig, AuraFeatureExtractor, exist_ok=True)
AutoProcessor.register(AuraConfig, AuraProcessor, exist_ok=True)
AutoModel.register(AuraConfig, AuraForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(AuraConfig, AuraForConditionalGeneration, exist_ok=True)


def new_processor(
    tokenizer: PreTrainedTokenizerBase, audio: AudioConfig, *, floor: float | Literal["clip"] | None = None
) -> AuraProcessor:
    """Processor for a tokenizer and an audio front-end.

    Args:
        floor: of the log-mel where it is not `audio.floor`: a bridge's encoder has its own.
    """
    extractor = AuraFeatureExtractor(
        feature_size=audio.n_mels,
        floor=audio.floor if floor is None else floor,
        patch_frames=audio.patch_frames,
    )
    return AuraProcessor(extractor, tokenizer)


def new_student(
    language_model: PreTrainedModel,
    processor: AuraProcessor,
    *,
    base: str,
    audio: AudioConfig,
    lora: LoraConfig,
    prompt: str | None = None,
) -> AuraForConditionalGeneration:
    """Stock LLM + fresh audio embedding + fresh adapter; only the latter two are trainable.

    Args:
        base: reference the LLM came from, kept in the checkpoint.
        prompt: text behind the audio in training, the default of transcribe.
    """
    config = AuraConfig(
        **_shared_fields(language_model, processor, base=base, audio=audio, scale=audio.scale, prompt=prompt),
        stem=audio.stem,
        floor=audio.floor,
        stem_width=audio.stem_width,
        gate=lora.gate,
    )
    language_model.requires_grad_(False)
    _attach(language_model, lora, base)
    return AuraForConditionalGeneration(config, language_model)


def new_bridge(
    language_model: PreTrainedModel,
    speech_encoder: nn.Module,
    processor: AuraProcessor,
    *,
    base: str,
    encoder: str,
    audio: AudioConfig,
    bridge: BridgeConfig,
    lora: LoraConfig,
    prompt: str | None = None,
) -> AuraForConditionalGeneration:
    """Frozen speech encoder + fresh projector + stock LLM, with a fresh adapter where `bridge.lora` asks for one.

    Args:
        speech_encoder: from `aura.bridge.encoder.load_encoder`.
        base, encoder: references the two came from, kept in the checkpoint.
        prompt: as in `new_student`.
    """
    from aura.bridge.encoder import encoder_fingerprint

    known = encoder_fingerprint(speech_encoder)
    scale = audio.scale if bridge.scale is None else bridge.scale
    config = AuraConfig(
        **_shared_fields(language_model, processor, base=base, audio=audio, scale=scale, prompt=prompt),
        stem="encoder",
        floor=bridge.floor,
        stem_width=known["width"],
        gate=lora.gate if bridge.lora else "audio",
        encoder=encoder,
        encoder_fingerprint=known,
        projector_width=bridge.projector_width,
        silence_seconds=bridge.silence_seconds,
        adapter=bridge.lora,
    )
    language_model.requires_grad_(False)
    if bridge.lora:
        _attach(language_model, lora, base)
    else:
        attach_gate(language_model)  # of nothing: it keeps the gate's keyword from the attention kernels
    return AuraForConditionalGeneration(config, language_model, speech_encoder)


def _shared_fields(
    language_model: PreTrainedModel,
    processor: AuraProcessor,
    *,
    base: str,
    audio: AudioConfig,
    scale: float,
    prompt: str | None,
) -> dict[str, Any]:
    """Fields of `AuraConfig` that both routes fill alike."""
    return {
        "text_config": language_model.config,
        "base_model": base,
        "base_fingerprint": fingerprint(language_model),
        "audio_token_id": int(processor.audio_token_id),  # one token, one id
        "n_mels": audio.n_mels,
        "patch_frames": audio.patch_frames,
        "attention": audio.attention,
        "block_patches": audio.block_patches,
        "max_seconds": audio.max_seconds,
        "embedding_scale": embedding_rms(language_model) * scale,
        "prompt": prompt,
    }


def _attach(language_model: PreTrainedModel, lora: LoraConfig, base: str) -> None:
    attach_lora(
        language_model,
        rank=lora.rank,
        alpha=lora.alpha,
        rslora=lora.rslora,
        dropout=lora.dropout,
        layers=lora.layers,
        modules=lora.modules,
        base=base,
        gate=lora.gate,
    )


def save_checkpoint(
    folder: str | os.PathLike[str],
    model: AuraForConditionalGeneration,
    processor: AuraProcessor,
    *,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Model, processor and further text files (recipe, card) as one folder, whole or not at all.

    Raises:
        ModelError: the folder cannot be written; what stood there before is untouched.
    """
    target = Path(folder)
    with whole_folder(target) as temporary:
        model.write_files(temporary)
        processor.save_pretrained(temporary)
        for name, text in (extra or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
    return target


def load_checkpoint(
    folder: str | os.PathLike[str], **kwargs: Any
) -> tuple[AuraForConditionalGeneration, AuraProcessor]:
    """Checkpoint folder -> model (eval mode) and processor.

    Args:
        kwargs: as `AuraForConditionalGeneration.from_pretrained`.

    Raises:
        CheckpointError: no checkpoint, a torn one, or one of another LLM.
    """
    path = checkpoint_folder(folder)
    processor = _load_processor(path)  # cheap: what is torn shows before the LLM is loaded
    return AuraForConditionalGeneration.from_pretrained(path, **kwargs), processor


def _load_processor(folder: Path) -> AuraProcessor:
    # Without tokenizer_config.json a tokenizer loads all the same, but without its special tokens.
    missing = [name for name in PROCESSOR_FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} is an incomplete checkpoint: {', '.join(missing)} missing; copy or save it again"
        )
    try:
        return AuraProcessor.from_pretrained(folder)
    except Exception as error:  # Hugging Face raises OSError, ValueError, TypeError or JSON errors for a torn file
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise CheckpointError(
            f"the processor files in {folder} cannot be loaded ({reason}); copy or save them again"
        ) from error
