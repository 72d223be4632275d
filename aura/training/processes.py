"""Where a run computes: processes, device, precision."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from aura.config import Recipe
from aura.errors import RecipeError, TrainingError


@contextlib.contextmanager
def float32_matmul(precision: str) -> Iterator[None]:
    """torch's setting, which is the process's, for the time of a run."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def open_accelerator(recipe: Recipe) -> Accelerator:
    """The processes that train together, and their device.

    Raises:
        TrainingError: they would not find each other.
        RecipeError: micro-batches that cannot be shared out among them.
    """
    mixed = recipe.run.mixed_precision
    if mixed == "auto":
        mixed = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    if AcceleratorState._shared_state.get("_mixed_precision", mixed) != mixed:
        AcceleratorState._reset_state()  # an earlier run of this process had another one; accelerate keeps it for good
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # left to itself, accelerate would not join CPU processes at all
        mixed_precision=mixed,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise TrainingError(
            f"{started} processes were started, but {accelerator.num_processes} of them would train together on "
            f"{accelerator.device}; start one, or choose CPUs with ACCELERATE_USE_CPU=1"
        )
    if recipe.batch.micro_batches % accelerator.num_processes:
        raise RecipeError(
            f"batch.micro_batches is {recipe.batch.micro_batches} on {accelerator.num_processes} processes; expected a "
            f"multiple, e.g. --batch.micro_batches {accelerator.num_processes}"
        )
    return accelerator
