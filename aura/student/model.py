"""The student as a Hugging Face model: stock LLM + audio embedding + gated LoRA.

The same class carries the *bridge*, the baseline with a frozen speech encoder and a projector in place of the audio
embedding; the encoder's code is imported for such a checkpoint only.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast

from aura.errors import CheckpointError, ModelError
from aura.student.cache_key import CACHE_KEY
from aura.student.configuration import AuraConfig, read_config
from aura.student.embedding import AudioEmbedding
from aura.student.files import checkpoint_folder, load_embedding, save_embedding, whole_folder
from aura.student.gate import GATE_KEY, Gate, attach_gate
from aura.student.llm import check_fingerprint, load_llm
from aura.student.lora import load_lora, save_lora
from aura.student.mask import attention_masks, block_ids

AUDIO_TYPE_ID = 3  # audio in Hugging Face's mm_token_type_ids


class AuraForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """LLM that takes log-mel next to token ids.

    Args:
        config: `AuraConfig`.
        language_model: the stock LLM; built from `config.text_config` with random weights when None.
        speech_encoder: of a bridge, a `WhisperEncoder`; an aura student has none.
    """

    config_class = AuraConfig
    base_model_prefix = "language_model"
    input_modalities = ("audio", "text")  # type: ignore[assignment]  # Hugging Face uses tuples itself
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: AuraConfig,
        language_model: PreTrainedModel | None = None,
        speech_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__(config)
        if language_model is None:
            language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.language_model = language_model
        self.speech_encoder: nn.Module | None = None
        self.audio_embedding: Any  # `AudioEmbedding`, or a bridge's `Projector`
        if config.is_bridge:
            self._build_bridge(config, speech_encoder)
        else:
            self.audio_embedding = AudioEmbedding(
                width=config.text_config.hidden_size,
                n_mels=config.n_mels,
                patch_frames=config.patch_frames,
                stem=config.stem,  # type: ignore[arg-type]
                stem_width=config.stem_width,
                scale=config.embedding_scale,
            )
        self.generation_config = language_model.generation_config

    def _build_bridge(self, config: AuraConfig, encoder: nn.Module | None) -> None:
        from aura.bridge.encoder import FrozenEncoder
        from aura.bridge.projector import Projector

        if encoder is None:
            raise ModelError(
                f"a bridge hears through its speech encoder '{config.encoder}', which was not given; expected "
                "speech_encoder=aura.bridge.encoder.load_encoder(...), or use from_pretrained"
            )
        frozen = FrozenEncoder(
            encoder,
            patch_frames=config.patch_frames,
            silence_seconds=config.silence_seconds,
            floor=config.floor,  # type: ignore[arg-type]  # a number or "clip"
        )
        self.speech_encoder = frozen
        self.audio_embedding = Projector(
            width=config.text_config.hidden_size,
            encoder_width=config.stem_width,
            frames_per_patch=frozen.frames_per_patch,
            hidden_width=config.projector_width,
            scale=config.embedding_scale,
        )

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the LLM and the audio embedding initialise themselves."""

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        self.language_model.gradient_checkpointing_enable(*args, **kwargs)

    def get_audio_features(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Log-mel (A, M, T) and its mask (A, T) -> `.pooler_output` (all valid patches back to back, D)."""
        frames_A = input_features_mask.sum(dim=1)
        if self.speech_encoder is not None:
            patches = self.audio_embedding(self.speech_encoder(input_features, frames_A))
        else:
            patches = self.audio_embedding(input_features, frames_A)
        return BaseModelOutputWithPooling(last_hidden_state=None, pooler_output=patches)

    def embed(
        self,
        input_ids: torch.Tensor,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids with audio put in place of the placeholders.

        Args:
            input_ids: (B, S), `config.audio_token_id` at audio positions.
            input_features: (A, M, T) log-mel of the A audio parts of the batch, in reading order.
            input_features_mask: (A, T) bool.

        Returns:
            inputs_embeds (B, S, D), is_audio (B, S) bool.

        Raises:
            ModelError: placeholders and patches differ in number.
        """
        is_audio_BS = input_ids == self.config.audio_token_id
        # The placeholder may lie beyond the LLM's table: look another token up and overwrite it.
        embeds_BSD = self.get_input_embeddings()(input_ids.masked_fill(is_audio_BS, 0))
        if input_features is None:
            if bool(is_audio_BS.any()):
                raise ModelError(f"the prompt holds {int(is_audio_BS.sum())} audio positions but no audio was given")
            return embeds_BSD, is_audio_BS
        if input_features_mask is None:
            input_features_mask = torch.ones_like(input_features[:, 0], dtype=torch.bool)
        patches: Any = self.get_audio_features(input_features, input_features_mask).pooler_output
        if patches.shape[0] != int(is_audio_BS.sum()):
            raise ModelError(
                f"the prompt holds {int(is_audio_BS.sum())} audio positions but the audio fills {patches.shape[0]} patches; "
                "build both with the same processor"
            )
        return embeds_BSD.masked_scatter(is_audio_BS[..., None], patches.to(embeds_BSD.dtype)), is_audio_BS

    def gate(self, is_audio_BS: torch.Tensor) -> Gate:
        """Where the LoRA update works in this call."""
        if self.config.gate == "all":
            return None
        return is_audio_BS if bool(is_audio_BS.any()) else "off"

    def decoder_inputs(
        self,
        inputs_embeds: torch.Tensor,
        is_audio_BS: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
    ) -> dict[str, Any]:
        """Masks, positions and gate for the LLM's decoder; one place for training, prefill and decode."""
        past = cache.get_seq_length() if cache is not None else 0
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        masks: Any = attention_mask
        if not isinstance(attention_mask, dict) and (attention_mask is None or attention_mask.dim() == 2):
            blocks = block_ids(
                is_audio_BS,
                pattern=self.config.attention,  # type: ignore[arg-type]
                block_patches=self.config.block_patches,
            )
            if blocks is not None and past:
                blocks = nn.functional.pad(blocks, (past, 0), value=-1)
            masks = attention_masks(
                self.language_model.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                cache=cache,
                blocks=blocks,
            )
        return {
            "inputs_embeds": inputs_embeds,
            "attention_mask": masks,
            "position_ids": position_ids,
            CACHE_KEY: cache,
            GATE_KEY: self.gate(is_audio_BS),
        }

    def logits(self, hidden: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """Final hidden states (..., D) -> logits (..., V), with the family's own scaling.

        Training takes logits at answer positions only; the LLM's forward cannot choose them per row.

        Args:
            tokens: (C,) ids to score instead of the whole vocabulary: logits are (..., C) then.
        """
        config = self.language_model.config
        head: Any = self.get_output_embeddings()
        if tokens is None:
            logits = head(hidden)
        else:
            bias = getattr(head, "bias", None)
            logits = nn.functional.linear(hidden, head.weight[tokens], None if bias is None else bias[tokens])
        if (divisor := getattr(config, "logits_scaling", None)) is not None:  # Granite
            logits = logits / divisor
        if (cap := getattr(config, "final_logit_softcapping", None)) is not None:  # Gemma 2
            logits = torch.tanh(logits / cap) * cap
        return logits

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass of the LLM.

        Args:
            input_ids: (B, S) with one placeholder per patch.
            inputs_embeds: (B, S, D) instead of `input_ids`; `mm_token_type_ids` then says what is audio.
            input_features, input_features_mask: see `embed`; only in the pass that holds the placeholders.
            mm_token_type_ids: (B, S), 3 at audio positions; derived from `input_ids` when None.
            labels: (B, S), -100 where no loss is meant.
            cache: keys and values of the positions before; also by its older name, `past_key_values`.

        Returns:
            logits (B, S or `logits_to_keep`, V), loss, cache.
        """
        cache = past_key_values if cache is None else cache
        if inputs_embeds is None:
            if input_ids is None:
                raise ModelError("neither input_ids nor inputs_embeds given; expected one of them")
            if input_features is None and input_ids.shape[1] == 1 and cache is not None:
                # A token the LLM has just written is text, even where it is the one reserved for audio.
                inputs_embeds, is_audio_BS = self.get_input_embeddings()(input_ids), torch.zeros_like(input_ids).bool()
            else:
                inputs_embeds, is_audio_BS = self.embed(input_ids, input_features, input_features_mask)
        elif mm_token_type_ids is not None:
            is_audio_BS = mm_token_type_ids[:, -inputs_embeds.shape[1] :] == AUDIO_TYPE_ID
        else:
            is_audio_BS = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
        inputs = self.decoder_inputs(inputs_embeds, is_audio_BS, attention_mask, position_ids, cache)
        return self.language_model(
            **inputs, labels=labels, use_cache=use_cache, logits_to_keep=logits_to_keep, **kwargs
        )

    def prepare_inputs_for_generation(
        self, input_ids: Any, *args: Any, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Audio goes in with the prompt only; later steps are text."""
        is_first = kwargs.get("is_first_iteration", False)
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]  # its self is a protocol
            input_ids, *args, inputs_embeds=inputs_embeds, **kwargs
        )
        if not is_first and kwargs.get("use_cache", True):
            for name in ("input_features", "input_features_mask", "mm_token_type_ids"):
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Any = None,
        **kwargs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Rows repeated for beams or samples, each with all of its audio parts."""
        expand: Any = super()._expand_inputs_for_generation  # type: ignore[misc]  # its self is a protocol
        mel = kwargs.get("input_features")
        if expand_size == 1 or mel is None or input_ids is None:
            return expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        if (mask := kwargs.get("input_features_mask")) is None:
            mask = torch.ones_like(mel[:, 0], dtype=torch.bool)
        cache = kwargs.get(CACHE_KEY)
        uncached = input_ids[:, cache.get_seq_length() if cache is not None else 0 :]
        # Parts stand in reading order: a part belongs to the row in which the running count of patches ends.
        row_ends = (uncached == self.config.audio_token_id).sum(1).cumsum(0)
        part_ends = (mask.sum(1) // self.config.patch_frames).cumsum(0)
        rows = torch.searchsorted(row_ends, part_ends)
        parts = torch.cat([(rows == row).nonzero()[:, 0].repeat(expand_size) for row in range(len(input_ids))])
        kwargs |= {"input_features": None, "input_features_mask": None}
        input_ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | {"input_features": mel[parts], "input_features_mask": mask[parts]}

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the LLM's weights are not in the checkpoint
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        config: AuraConfig | None = None,
        language_model: PreTrainedModel | None = None,
        llm: str | None = None,
        encoder: str | None = None,
        dtype: str | torch.dtype = "float32",
        attn_implementation: str = "sdpa",
        **kwargs: Any,
    ) -> AuraForConditionalGeneration:
        """Stock LLM + this checkpoint's audio embedding and adapter.

        Args:
            pretrained_model_name_or_path: checkpoint folder or Hub id.
            language_model: an LLM already in memory.
            llm: reference to load the LLM from, instead of the one named in the checkpoint.
            encoder: the same for the speech encoder of a bridge.
            dtype: of the LLM's weights (and of a bridge's encoder); audio embedding and LoRA stay float32.

        Raises:
            CheckpointError: no checkpoint, one of another LLM, or a bridge without its speech encoder.
            ModelReferenceError: the LLM cannot be found.
        """
        folder = checkpoint_folder(pretrained_model_name_or_path)
        config = config if isinstance(config, AuraConfig) else read_config(folder)
        reference = llm or config.base_model
        dtype = "float32" if dtype == "auto" else dtype
        # A missing encoder shows before the LLM is loaded.
        speech_encoder = _load_speech_encoder(config, encoder, folder, dtype) if config.is_bridge else None
        if language_model is None:
            language_model = load_llm(reference, dtype=dtype, attention=attn_implementation)
        if config.base_fingerprint:
            check_fingerprint(config.base_fingerprint, language_model, checkpoint=str(folder), llm=reference)
        model = cls(config, language_model, speech_encoder)
        if config.adapter:
            load_lora(language_model, folder)
        else:
            attach_gate(language_model)  # of nothing: it keeps the gate's keyword from the attention kernels
        load_embedding(model.audio_embedding, folder)
        device = kwargs.get("device_map")
        if isinstance(device, (str, torch.device)) and device != "auto":
            model.to(device)  # type: ignore[arg-type]  # Hugging Face's wrapper loses the signature
        return model.eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:  # type: ignore[override]
        """What was learnt, and nothing of the LLM: config, adapter and audio embedding.

        Raises:
            ModelError: the folder cannot be written.
        """
        with whole_folder(Path(save_directory)) as folder:
            self.write_files(folder)

    def write_files(self, folder: Path) -> None:
        """The model's part of a checkpoint, into an existing folder."""
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)
        if self.config.adapter:
            save_lora(self.language_model, folder)
        save_embedding(self.audio_embedding, folder)

    @staticmethod
    def create_masks_for_generate(attention_mask: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Leave the mask 2D: the blocks are known in `forward` only."""
        return attention_mask


def _load_speech_encoder(config: AuraConfig, given: str | None, folder: Path, dtype: str | torch.dtype) -> nn.Module:
    """Raises `CheckpointError` where a bridge's encoder is missing, or another than it was trained on."""
    from aura.bridge.encoder import check_encoder, load_encoder

    reference = given or config.encoder or ""
    try:
        encoder = load_encoder(reference, dtype=dtype)
    except ModelError as error:
        raise CheckpointError(
            f"{folder} is a bridge and cannot hear without its speech encoder '{reference}': {error} Or say where it is "
            "with aura.load(..., encoder=...)"
        ) from error
    check_encoder(config.encoder_fingerprint or {}, encoder, checkpoint=str(folder), reference=reference)
    return encoder
