"""Optimiser, learning rate and lambda over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from aura.config import DistillConfig, OptimConfig


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], config: OptimConfig, *, is_bridge: bool = False
) -> torch.optim.AdamW:
    """AdamW with a rate for LoRA, one for the audio embedding (or projector) and one for the heads; decay on matrices."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault((_peak(name, config, is_bridge), parameter.dim() > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "lr": peak, "peak": peak, "weight_decay": config.weight_decay if is_matrix else 0.0}
            for (peak, is_matrix), members in groups.items()
        ],
        betas=config.betas,
        fused=True,
    )


def _peak(name: str, config: OptimConfig, is_bridge: bool) -> float:
    if "audio_embedding" in name:
        return config.projector_learning_rate if is_bridge else config.embedding_learning_rate
    return config.head_learning_rate if name.startswith("heads.") else config.learning_rate


def rate_factor(step: int, steps: int, config: OptimConfig) -> float:
    """Learning rate over its peak at a step (0-based) of a run of `steps`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.decay == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if config.decay == "cosine" else 1 - progress
    return config.final_ratio + (1 - config.final_ratio) * shape


def set_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def answer_weight(step: int, steps: int, config: DistillConfig) -> float:
    """Weight of the answer's loss: 0 during the head start, then up to 1 over as many steps again."""
    head_start = config.head_start * steps
    if not head_start:
        return 1.0
    return min(1.0, max(0.0, (step - head_start) / head_start))


def distill_weight(step: int, steps: int, config: DistillConfig) -> float:
    """Lambda at a step: constant, or linear to `final_weight`."""
    if config.final_weight is None:
        return config.weight
    progress = min(1.0, step / max(1, steps - 1))
    return config.weight + (config.final_weight - config.weight) * progress
