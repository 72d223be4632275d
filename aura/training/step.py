"""One optimiser step: losses of a group of micro-batches, gradients over all processes, new weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from aura.batch.collate import Batch
from aura.config import Recipe
from aura.training.average import WeightAverage
from aura.training.objective import Weights
from aura.training.schedule import answer_weight, distill_weight, make_optimizer, rate_factor, set_rate
from aura.training.setup import Station
from aura.training.state import Progress


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A step that was tried.

    Args:
        sums: cross entropy, KL and the distance of each layer pair, summed over what `counts` counts.
        counts: answer tokens, patches, audio seconds, positions, over all processes.
        norm: of the gradient, before it is clipped.
        good: the weights were changed; False where the loss or a gradient is not finite, or no row could be read.
    """

    sums: list[float]
    counts: list[float]
    norm: float
    good: bool

    @property
    def readable(self) -> bool:
        """Whether there was anything to learn."""
        return bool(self.counts[0])


class Stepper:
    """Objective, optimiser and average of a run in one process."""

    def __init__(self, recipe: Recipe, station: Station, accelerator: Accelerator) -> None:
        self.recipe, self.station, self.accelerator = recipe, station, accelerator
        self.objective = station.objective
        self.parameters = list(self.objective.trainable().values())
        self.optimizer = make_optimizer(
            self.objective.trainable(), recipe.optim, is_bridge=recipe.run.route == "bridge"
        )
        self.distill_weight = 0.0  # lambda of the last step
        self.average = WeightAverage(self.objective.trainable(), recipe.optim.average)
        self.wrapped: Any = accelerator.prepare_model(self.objective)

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def __call__(self, group: Sequence[Batch], progress: Progress) -> Taken:
        """One step over the group's micro-batches; the weights stay as they are when it is not finite.

        Args:
            progress: counts the step.
        """
        recipe, accelerator = self.recipe, self.accelerator
        counts = self._counts(group)
        planned = self._planned_step(progress)
        weights = Weights(
            distill=distill_weight(planned, recipe.run.steps, recipe.distill),
            kl=recipe.distill.response_kl,
            answer=answer_weight(planned, recipe.run.steps, recipe.distill),
            answer_tokens=max(1, int(counts[0])),
            patches=max(1, int(counts[1])),
            ctc=recipe.distill.ctc,
            micro_batches=recipe.batch.micro_batches,
        )
        self.distill_weight = weights.distill
        warm = progress.step < recipe.optim.warmup_steps
        set_rate(self.optimizer, rate_factor(progress.step if warm else planned, recipe.run.steps, recipe.optim))
        sums = torch.zeros(2 + len(self.objective.pairs), device=accelerator.device)
        for number, batch in enumerate(group):
            batch = batch.to(accelerator.device)
            targets = self._targets(batch)
            self._seed(number, progress)
            synchronise = number == len(group) - 1
            with self._maybe_no_sync(synchronise), accelerator.autocast():
                losses = self.wrapped(batch, targets, weights)
            with self._maybe_no_sync(synchronise):
                # A distributed wrapper averages over processes; the counts already are those of all of them.
                accelerator.backward(losses.total * accelerator.num_processes)
            sums[0] += losses.cross_entropy
            sums[1] += losses.kl
            if len(losses.distances):
                sums[2:] += losses.distances
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, recipe.optim.clip or float("inf")))
        good = math.isfinite(norm) and bool(counts[0])
        if good:
            self.optimizer.step()
            self.average.update(progress.step)
            progress.bad_in_a_row = 0
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.micro_batches += recipe.batch.micro_batches
        progress.audio_seconds += float(counts[2])
        if good and accelerator.num_processes > 1:
            sums = accelerator.reduce(sums, reduction="sum")
        return Taken(sums=sums.tolist(), counts=counts.tolist(), norm=norm, good=good)

    def close(self) -> None:
        """Let go of the wrapper before the process group: were it the last to hold it, its destructor would hold the
        interpreter's lock and wait for a thread that needs it.
        """
        self.wrapped = None
        self.accelerator.free_memory()

    def _seed(self, number: int, progress: Progress) -> None:
        """Dropout of a micro-batch depends on the seed and its place in the plan, not on processes or on a resume."""
        if self.recipe.lora.dropout:
            place = progress.micro_batches + number * self.accelerator.num_processes + self.accelerator.process_index
            torch.manual_seed(int(np.random.default_rng([self.recipe.run.seed, place]).integers(2**63)))

    def _maybe_no_sync(self, synchronise: bool) -> Any:
        return contextlib.nullcontext() if synchronise else self.accelerator.no_sync(self.wrapped)

    def _counts(self, group: Sequence[Batch]) -> torch.Tensor:
        """(answer tokens, patches, audio seconds, positions) of the step, over all processes."""
        audio: Any = self.station.processor.audio_token_id
        mine = torch.tensor(
            [
                [b.answer_tokens, torch.eq(b.input_ids, audio).sum().item(), b.audio_seconds, b.input_ids.numel()]
                for b in group
            ],
            dtype=torch.float64,
        ).sum(0)
        if self.accelerator.num_processes == 1:
            return mine
        total: torch.Tensor = self.accelerator.reduce(mine.float().to(self.accelerator.device), reduction="sum").cpu()
        return total

    def _planned_step(self, progress: Progress) -> int:
        """Where the run is in its schedules: by steps, or by the clock where that ends the run first."""
        steps, limit = self.recipe.run.steps, self.recipe.run.max_minutes
        if not limit:
            return progress.step
        return max(progress.step, min(steps - 1, int(progress.minutes / limit * steps)))

    def _targets(self, batch: Batch) -> torch.Tensor | None:
        if self.station.targets is None or self.objective.heads is None:
            return None
        return self.station.targets(batch.waveforms, self.objective.heads)
