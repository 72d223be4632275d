"""FLOPs and bytes of a training step, counted from the model's own modules; for the dry run and the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from aura.student.gate import decoder_layers
from aura.student.model import AuraForConditionalGeneration

BYTES = {"float32": 4, "bfloat16": 2}
ADAM_COPIES = 4  # weight, gradient and two moments, float32


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Multiply-adds counted twice, attention scores included, element-wise work left out.

    Args:
        frozen, trained: weights of linear and convolution layers a position passes (without the output layer).
        attention_width: heads x head size, summed over layers; one score and one sum per pair of positions.
        output: weights of the output layer, used at answer positions only.
        stem_patch: FLOPs of the audio embedding's convolutions per patch, forward.
        teacher_frame: FLOPs of the teacher per frame, forward.
        head_patch: weights of the distillation heads, used per patch.
    """

    frozen: int
    trained: int
    attention_width: int
    output: int
    stem_patch: int
    teacher_frame: int
    head_patch: int

    def student(self, *, positions: int, length: float, answers: int, patches: int) -> float:
        """Forward and backward of the student: frozen weights need no gradient of their own, trained ones do.

        Args:
            positions: B x S, padding included; length: S; answers: labelled positions; patches: audio positions.
        """
        layers = positions * (4 * self.frozen + 6 * self.trained)
        scores = positions * 3 * 4 * self.attention_width * length / 2
        return layers + scores + answers * 4 * self.output + patches * (3 * self.stem_patch + 6 * self.head_patch)

    def teacher(self, frames: int) -> float:
        """Forward of the teacher over its frames."""
        return frames * float(self.teacher_frame)


def step_cost(
    student: AuraForConditionalGeneration,
    *,
    teacher: nn.Module | None = None,
    teacher_width: int = 0,
    target_width: int = 0,
    pairs: int = 0,
) -> StepCost:
    """Count the modules of a student (on any device, meta included) and of its teacher's transformer layers.

    Args:
        teacher: the encoder, the teacher's or a bridge's; its parameters are taken as passed once per frame.
        target_width: K, channels of a target; pairs: layer pairs.
    """
    config: Any = student.language_model.config
    output: Any = student.get_output_embeddings()
    frozen, trained = _linear_weights(decoder_layers(student.language_model))
    heads = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    embedding: Any = student.audio_embedding
    stem = 2 * sum(_linear_weights(embedding))
    if getattr(embedding, "stem", None) == "conv":
        frames = embedding.patch_frames
        stem += 2 * (embedding.conv1.weight.numel() * frames + embedding.conv2.weight.numel() * frames // 2)
    return StepCost(
        frozen=frozen,
        trained=trained,
        attention_width=heads * config.num_hidden_layers,
        output=output.weight.numel(),
        stem_patch=stem,
        teacher_frame=2 * sum(p.numel() for p in teacher.parameters()) if teacher is not None else 0,
        head_patch=pairs * config.hidden_size * target_width,
    )


def _linear_weights(modules: Sequence[nn.Module] | nn.Module) -> tuple[int, int]:
    """(frozen, trained) weights of the linear layers below."""
    frozen = trained = 0
    for module in (
        modules.modules() if isinstance(modules, nn.Module) else (m for part in modules for m in part.modules())
    ):
        if isinstance(module, nn.Linear):
            if module.weight.requires_grad:
                trained += module.weight.numel()
            else:
                frozen += module.weight.numel()
    return frozen, trained


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of a training process; activations are an estimate, the rest is counted."""

    weights: int
    trained: int
    teacher: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.teacher + self.activations + self.logits


def memory_estimate(
    student: AuraForConditionalGeneration,
    *,
    trained: int,
    dtype: str,
    teacher_bytes: int,
    positions: int,
    answers: int,
    checkpointing: bool,
) -> MemoryEstimate:
    """Where the memory of a step goes.

    Activations kept for the backward pass, per position and layer: about 10 hidden-size and 4 intermediate-size
    vectors with LoRA on all modules (our count over a Llama-type layer), or one hidden-size vector with gradient
    checkpointing.
    """
    config: Any = student.language_model.config
    output: Any = student.get_output_embeddings()
    frozen = sum(p.numel() for p in student.parameters()) - trained
    size = BYTES[dtype]
    per_layer = config.hidden_size if checkpointing else 10 * config.hidden_size + 4 * config.intermediate_size
    return MemoryEstimate(
        weights=frozen * size,
        trained=trained * 4 * ADAM_COPIES,
        teacher=teacher_bytes,
        activations=positions * config.num_hidden_layers * per_layer * size,
        logits=answers * output.weight.shape[0] * 4 * 2,
    )
