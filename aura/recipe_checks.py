"""Values of a recipe that are of the right type and impossible all the same."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from aura.config import Recipe

# Numbers that must be above 0 and at least 0; null passes where the field allows it.
POSITIVE = (
    *("audio.n_mels", "audio.stem_width", "audio.block_patches", "audio.max_seconds", "lora.rank", "lora.alpha"),
    *("distill.student_layers", "distill.calibration_seconds", "data.limit", "data.workers", "data.shuffle_buffer"),
    *(
        "batch.tokens",
        "batch.micro_batches",
        "batch.max_items",
        "optim.learning_rate",
        "optim.max_bad_steps",
        "optim.sampled_vocabulary",
    ),
    *("run.steps", "run.max_minutes", "run.log_every", "run.eval_items", "run.max_new_tokens", "run.save_minutes"),
    *("run.keep_last", "run.threads", "bridge.projector_width", "bridge.scale"),
)
NOT_NEGATIVE = (
    *(
        "distill.weight",
        "distill.ctc",
        "distill.final_weight",
        "distill.response_kl",
        "data.min_seconds",
        "optim.weight_decay",
    ),
    "bridge.silence_seconds",
    *(
        "optim.embedding_learning_rate",
        "optim.projector_learning_rate",
        "optim.head_learning_rate",
        "optim.warmup_steps",
        "optim.clip",
        "run.seed",
        "run.eval_every",
        "run.save_every",
    ),
)


def check(recipe: Recipe) -> list[str]:
    """Impossible values, each as one line: field, given, expected."""
    fields = {
        f"{section.name}.{f.name}": getattr(getattr(recipe, section.name), f.name)
        for section in dataclasses.fields(recipe)
        for f in dataclasses.fields(typing.cast(Any, section.default_factory))
        if getattr(recipe, section.name) is not None  # refused while it was built, and reported there
    }
    problems = [
        f"{name} is {fields[name]}; expected more than 0"
        for name in POSITIVE
        if not (fields[name] is None or fields[name] > 0)
    ]
    problems += [f"{name} is {fields[name]}; expected 0 or more" for name in NOT_NEGATIVE if (fields[name] or 0) < 0]
    if recipe.audio.patch_frames < 2 or recipe.audio.patch_frames % 2:
        problems.append(
            f"audio.patch_frames is {recipe.audio.patch_frames}; expected an even number of 10 ms frames, e.g. 8"
        )
    if recipe.lora.layers is not None and recipe.lora.layers < 1:
        problems.append(f"lora.layers is {recipe.lora.layers}; expected null or at least 1")
    if recipe.run.best_metric == "wer" and recipe.run.eval_task != "transcribe":
        problems.append(
            f"run.best_metric is wer, which run.eval_task {recipe.run.eval_task} does not score; expected accuracy, loss or none"
        )
    if recipe.run.route == "bridge":
        problems += _check_bridge(recipe)
    if not 0 <= recipe.distill.head_start <= 1:
        problems.append(f"distill.head_start is {recipe.distill.head_start}; expected 0 to 1")
    if recipe.optim.sampled_vocabulary and recipe.distill.response_kl:
        problems.append(
            f"optim.sampled_vocabulary is {recipe.optim.sampled_vocabulary} with distill.response_kl "
            f"{recipe.distill.response_kl:g}, which compares whole vocabularies; expected null"
        )
    if not recipe.lora.modules:
        problems.append("lora.modules is empty; expected module names such as q_proj")
    if recipe.data.min_seconds >= recipe.data.max_seconds:
        problems.append(
            f"data.min_seconds is {recipe.data.min_seconds}; expected less than data.max_seconds {recipe.data.max_seconds}"
        )
    if not all(0 <= beta < 1 for beta in recipe.optim.betas):
        problems.append(f"optim.betas is {list(recipe.optim.betas)}; expected two numbers from 0 up to 1")
    if not 0 <= recipe.optim.average < 1:
        problems.append(f"optim.average is {recipe.optim.average}; expected 0 up to 1, e.g. 0.98")
    if not 0 <= recipe.optim.final_ratio <= 1:
        problems.append(f"optim.final_ratio is {recipe.optim.final_ratio}; expected 0 to 1")
    if not 0 <= recipe.lora.dropout < 1:
        problems.append(f"lora.dropout is {recipe.lora.dropout}; expected 0 up to 1")
    return problems


def _check_bridge(recipe: Recipe) -> list[str]:
    """What a bridge has no use for is refused where it would have an effect on the run."""
    problems = [
        f"distill.{name} is {getattr(recipe.distill, name)} with run.route bridge, which is not distilled; expected "
        f"{expected} (aura train --route bridge sets it)"
        for name, expected in (("weight", "0"), ("final_weight", "null or 0"), ("head_start", "0"))
        if getattr(recipe.distill, name)
    ]
    if recipe.teacher.encoder is None:
        problems.append("teacher.encoder is null with run.route bridge; expected the speech encoder to build on")
    return problems
