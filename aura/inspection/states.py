"""Hidden states at audio positions: of the student, of the stock LLM, of the untrained student and of the teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from aura.audio.patches import PatchGrid
from aura.batch.collate import Batch
from aura.distill.frame_map import frames_to_targets
from aura.errors import ModelError
from aura.student.embedding import AudioEmbedding
from aura.student.gate import GATE_KEY, decoder_layers
from aura.student.model import AuraForConditionalGeneration
from aura.teacher.encoder import Teacher

STUDENT, STOCK, UNTRAINED, TEACHER = "student", "stock", "untrained", "teacher"
HEARERS = (STUDENT, STOCK, UNTRAINED)


@dataclass(frozen=True, kw_only=True)
class TeacherPatches:
    """The teacher on one batch.

    Args:
        patches_LPK: (layers, patches, frames of a patch stacked or pooled).
        pooled_LPE: (layers, patches, E), the mean of a patch's frames.
    """

    patches_LPK: torch.Tensor
    pooled_LPE: torch.Tensor


class Hearers:
    """The student and what it is compared with, on the same batch.

    `student`: as trained. `stock`: the same audio embedding, LoRA off: what the adapter adds is the difference.
    `untrained`: LoRA off and an audio embedding as training starts with: what all of the training adds.

    Args:
        model: the student.
        untrained: audio embedding of the untrained student; None leaves it out.
    """

    def __init__(self, model: AuraForConditionalGeneration, untrained: AudioEmbedding | None) -> None:
        self.model = model.eval()
        self.untrained = untrained
        self.layers = len(decoder_layers(model.language_model))
        self.width = int(model.language_model.config.hidden_size)

    @property
    def names(self) -> tuple[str, ...]:
        return HEARERS if self.untrained is not None else HEARERS[:2]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Name -> (layers + 1, patches, D) float32: the audio embedding's output, then each layer's raw output.

        Positions behind the last audio are not computed: they cannot reach it.

        Args:
            batch: padded on the right, on the model's device.
        """
        model = self.model
        embeds_BSD, is_audio_BS = model.embed(batch.input_ids, batch.input_features, batch.input_features_mask)
        end = int(is_audio_BS.any(0).nonzero().max()) + 1
        is_audio_BS, attention_mask = is_audio_BS[:, :end], batch.attention_mask[:, :end]
        found = {
            STUDENT: self._decode(embeds_BSD[:, :end], is_audio_BS, attention_mask, lora=True),
            STOCK: self._decode(embeds_BSD[:, :end], is_audio_BS, attention_mask, lora=False),
        }
        if self.untrained is not None and batch.input_features is not None and batch.input_features_mask is not None:
            fresh = self.untrained(batch.input_features, batch.input_features_mask.sum(dim=1)).to(embeds_BSD.dtype)
            embeds_BSD = embeds_BSD[:, :end].masked_scatter(is_audio_BS[..., None], fresh)
            found[UNTRAINED] = self._decode(embeds_BSD, is_audio_BS, attention_mask, lora=False)
        return found

    def _decode(
        self, embeds_BSD: torch.Tensor, is_audio_BS: torch.Tensor, attention_mask: torch.Tensor, *, lora: bool
    ) -> torch.Tensor:
        inputs: dict[str, Any] = self.model.decoder_inputs(embeds_BSD, is_audio_BS, attention_mask)
        if not lora:
            inputs[GATE_KEY] = "off"
        states = [embeds_BSD[is_audio_BS].float()]
        with _layer_outputs(self.model.language_model, is_audio_BS, states):
            self.model.get_decoder()(**inputs, use_cache=False)
        return torch.stack(states)


@contextlib.contextmanager
def _layer_outputs(language_model: nn.Module, where_BS: torch.Tensor, states: list[torch.Tensor]) -> Iterator[None]:
    """Append each layer's raw output at some positions, (P, D) float32, while the block runs.

    By hooks: the last of Hugging Face's `hidden_states` is after the final norm. Only the positions are kept, so that
    memory does not grow with the text around the audio.
    """

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[where_BS].float())

    handles = [layer.register_forward_hook(keep) for layer in decoder_layers(language_model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class TeacherHearer:
    """The teacher's raw states, one row per patch.

    Args:
        frames: `stack` keeps the frames of a patch side by side, as training does by default; `pool` averages them.

    Raises:
        ModelError: the teacher's frames do not divide a patch.
    """

    def __init__(self, teacher: Teacher, grid: PatchGrid, frames: Literal["stack", "pool"]) -> None:
        self.teacher = teacher
        self.frames: Literal["stack", "pool"] = frames
        self.layers = teacher.spec.layers
        try:
            self.per_patch = grid.teacher_frames(teacher.spec.frame_samples)
        except ValueError as error:
            raise ModelError(f"{error}. Give another encoder with --teacher") from error
        self.width = teacher.spec.width * (self.per_patch if frames == "stack" else 1)

    def __call__(self, batch: Batch) -> TeacherPatches:
        hidden_LFE = self.teacher(batch.waveforms, range(1, self.layers + 1)).hidden_LFE.float()
        pooled = frames_to_targets(hidden_LFE, self.per_patch, how="pool")
        patches = pooled if self.frames == "pool" else frames_to_targets(hidden_LFE, self.per_patch, how="stack")
        return TeacherPatches(patches_LPK=patches, pooled_LPE=pooled)


def untrained_embedding(model: AuraForConditionalGeneration, teacher: Teacher, *, seed: int) -> AudioEmbedding:
    """An audio embedding as training starts with: random, its convolutions the teacher's where the shapes allow it."""
    config, trained = model.config, model.audio_embedding
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = AudioEmbedding(
            width=config.text_config.hidden_size,
            n_mels=config.n_mels,
            patch_frames=config.patch_frames,
            stem=config.stem,  # type: ignore[arg-type]  # checked when it was trained
            stem_width=config.stem_width,
            scale=config.embedding_scale,
        )
    front_end = teacher.front_end()
    if config.stem == "conv" and front_end is not None:
        weights = {name: tensor for name, tensor in front_end.items() if isinstance(tensor, torch.Tensor)}
        with contextlib.suppress(ModelError):  # another teacher than the one it was trained with
            fresh.warm_start(weights)
    reference = trained.project.weight
    return fresh.to(reference.device, reference.dtype).eval().requires_grad_(False)
