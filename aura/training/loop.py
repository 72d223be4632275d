"""The training loop: recipe in, run folder out; resumes exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from aura.batch.collate import Batch
from aura.batch.loader import BatchLoader
from aura.batch.plan import LengthEstimate, PlannedItem, plan_batches
from aura.config import Recipe, write_recipe
from aura.data.augment import Augment
from aura.errors import RecipeError, TrainingError
from aura.student.checkpoint import CARD, RECIPE
from aura.student.files import whole_folder
from aura.training.card import model_card
from aura.training.display import Curves, Display
from aura.training.objective import Weights
from aura.training.plots import plot_run
from aura.training.schedule import distill_weight, make_optimizer, rate_factor, set_rate
from aura.training.setup import Data, Station, build_station, read_data
from aura.training.state import Progress, RunLog, load_state, recipe_text, save_state, step_folders, write_student
from aura.training.stop import StopWatch
from aura.training.validate import Validation, pick, validate


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended.

    Args:
        run: its folder.
        checkpoint: what it delivers; None when it was stopped before its last step.
        finished: False when a signal stopped it; `--resume` goes on.
        signal: number of the signal, if one stopped it.
    """

    run: Path
    checkpoint: Path | None
    progress: Progress
    finished: bool
    signal: int | None = None


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Train from a recipe.

    Args:
        resume: go on from the newest checkpoint in `run.out`; with none there, start.
        overwrite: start anew in a folder that holds a run.

    Raises:
        AuraError: everything a user can mend, see `aura.errors`.
    """
    accelerator = _accelerator(recipe)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    run = Path(recipe.run.out)
    newest = _open_run(run, recipe, resume=resume, overwrite=overwrite, accelerator=accelerator)
    data = read_data(recipe)
    station = build_station(recipe, data.train, calibrate=newest is None, device=accelerator.device)
    with StopWatch(max_minutes=recipe.run.max_minutes, save_minutes=recipe.run.save_minutes) as watch:
        return _Run(recipe, run, data, station, accelerator, watch).go(newest)


def _accelerator(recipe: Recipe) -> Accelerator:
    mixed = recipe.run.mixed_precision
    if mixed == "auto":
        mixed = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    accelerator = Accelerator(
        mixed_precision=mixed, kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    )
    if recipe.batch.micro_batches % accelerator.num_processes:
        raise RecipeError(
            f"batch.micro_batches is {recipe.batch.micro_batches} on {accelerator.num_processes} processes; expected a "
            f"multiple, e.g. --batch.micro_batches {accelerator.num_processes}"
        )
    return accelerator


def _open_run(run: Path, recipe: Recipe, *, resume: bool, overwrite: bool, accelerator: Accelerator) -> Path | None:
    """The run folder, made or checked; the checkpoint to resume from, if any."""
    if accelerator.is_main_process:
        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"the run folder {run} cannot be made: {error}. Choose another with --run.out") from error
    accelerator.wait_for_everyone()
    folders = step_folders(run)
    if folders and not resume and not overwrite:
        raise TrainingError(
            f"{run} holds a run with checkpoints up to {folders[-1].name}; go on with --resume, start anew with --overwrite, "
            "or choose another folder with --run.out"
        )
    newest = folders[-1] if folders and resume else None
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if overwrite and not resume:
            import shutil

            for stale in (run / "checkpoints", run / "best", run / "checkpoint", run / "tensorboard"):
                shutil.rmtree(stale, ignore_errors=True)
        write_recipe(recipe, run / RECIPE)
    accelerator.wait_for_everyone()
    return newest


class _Run:
    """One run in one process: the pieces, and the loop over them."""

    def __init__(
        self, recipe: Recipe, run: Path, data: Data, station: Station, accelerator: Accelerator, watch: StopWatch
    ) -> None:
        self.recipe, self.run, self.data, self.station = recipe, run, data, station
        self.accelerator, self.watch = accelerator, watch
        self.objective = station.objective
        self.parameters = list(self.objective.trainable().values())
        self.optimizer = make_optimizer(self.objective.trainable(), recipe.optim)
        self.wrapped: Any = accelerator.prepare_model(self.objective)
        self.valid = pick(data.valid, recipe.run.eval_items)
        self.progress = Progress()
        self.loader = BatchLoader(
            station.processor,
            augment=Augment(recipe.augment),
            seed=recipe.run.seed,
            workers=recipe.data.workers,
            skip_bad=recipe.data.skip_bad,
            keep_waveforms=station.targets is not None,
            text_teacher=recipe.distill.response_kl > 0,
        )

    def go(self, newest: Path | None) -> RunResult:
        """All steps from where the run stands."""
        if newest is not None:
            self.progress = load_state(newest, self.objective, self.optimizer)
        recipe, progress, main = self.recipe, self.progress, self.accelerator.is_main_process
        minutes_before = progress.minutes
        self.log = RunLog(self.run, from_step=progress.step) if main else None
        self.curves = Curves(self.run, enabled=main, from_step=progress.step)
        display = Display(
            steps=recipe.run.steps, done=progress.step, minutes=recipe.run.max_minutes, is_main=main, label=recipe.run.name
        )
        self.display = display
        stopped = False
        with display:
            self._announce(newest)
            self.objective.train()
            window = _Window(self.station)
            for group in self._groups():
                if progress.step >= recipe.run.steps:
                    break
                self._step(group, window)
                progress.minutes = minutes_before + self.watch.minutes
                step = progress.step
                last = step >= recipe.run.steps
                display.step(step, window.figures(), line=step % recipe.run.log_every == 0 or last)
                if step % recipe.run.log_every == 0 or last:
                    self._record(window.row(step, self.optimizer.param_groups[0]["lr"], progress.minutes))
                    window = _Window(self.station)
                stopped, due = self.watch.agree(self.accelerator)
                if self.valid and not last and not stopped and recipe.run.eval_every and step % recipe.run.eval_every == 0:
                    self._evaluate()
                if due or (recipe.run.save_every and step % recipe.run.save_every == 0) or stopped or last:
                    self._save()
                if stopped:
                    break
            return self._finish(stopped)

    def _groups(self) -> Iterator[list[Batch]]:
        """This process's micro-batches of each optimiser step, from where the run stands."""
        accelerator, recipe = self.accelerator, self.recipe
        size, world, rank = recipe.batch.micro_batches, accelerator.num_processes, accelerator.process_index
        plan = plan_batches(
            self.data.train,
            LengthEstimate(self.station.processor),
            tokens=recipe.batch.tokens,
            max_items=recipe.batch.max_items,
            seed=recipe.run.seed,
            buffer=recipe.data.shuffle_buffer if recipe.data.streaming else None,
            skip=self.progress.micro_batches,
        )
        mine: Iterator[list[PlannedItem]] = islice(plan, rank, None, world)
        batches = self.loader(mine)
        while group := list(islice(batches, size // world)):
            yield group

    def _step(self, group: Sequence[Batch], window: _Window) -> None:
        """One optimiser step over the group's micro-batches, or a counted skip when it is not finite."""
        recipe, progress, accelerator = self.recipe, self.progress, self.accelerator
        counts = self._counts(group)
        weights = Weights(
            distill=distill_weight(progress.step, recipe.run.steps, recipe.distill),
            kl=recipe.distill.response_kl,
            answer_tokens=int(counts[0]),
            patches=max(1, int(counts[1])),
        )
        self._set_rates()
        sums = torch.zeros(2 + len(self.objective.pairs), device=accelerator.device)
        for number, batch in enumerate(group):
            batch = batch.to(accelerator.device)
            targets = self._targets(batch)
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
        good = norm == norm and norm != float("inf")
        if good:
            self.optimizer.step()
            progress.bad_in_a_row = 0
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        progress.micro_batches += recipe.batch.micro_batches
        progress.audio_seconds += float(counts[2])
        if not good:
            self._bad_step()
            return
        sums = accelerator.reduce(sums, reduction="sum") if accelerator.num_processes > 1 else sums
        window.add(sums.tolist(), counts.tolist(), norm)

    def _bad_step(self) -> None:
        progress = self.progress
        progress.bad_steps += 1
        progress.bad_in_a_row += 1
        self.display.say(f"step {progress.step}: loss or gradient is not finite; the step was skipped")
        if progress.bad_in_a_row >= self.recipe.optim.max_bad_steps:
            raise TrainingError(
                f"{progress.bad_in_a_row} steps in a row had a non-finite loss or gradient; the weights are those of the last "
                f"good step in {self.run}/checkpoints. Lower --optim.learning_rate or use --run.mixed_precision no"
            )

    def _maybe_no_sync(self, synchronise: bool) -> Any:
        import contextlib

        return contextlib.nullcontext() if synchronise else self.accelerator.no_sync(self.wrapped)

    def _counts(self, group: Sequence[Batch]) -> torch.Tensor:
        """(answer tokens, patches, audio seconds, positions) of the step, over all processes."""
        audio = self.station.processor.audio_token_id
        mine = torch.tensor(
            [
                [b.answer_tokens, int((b.input_ids == audio).sum()), b.audio_seconds, b.input_ids.numel()]
                for b in group
            ],
            dtype=torch.float64,
        ).sum(0)
        if self.accelerator.num_processes == 1:
            return mine
        total: torch.Tensor = self.accelerator.reduce(mine.float().to(self.accelerator.device), reduction="sum").cpu()
        return total

    def _set_rates(self) -> None:
        """Learning rate by steps, or by the clock where that ends the run first."""
        step, steps = self.progress.step, self.recipe.run.steps
        limit = self.recipe.run.max_minutes
        if limit:
            step = max(step, min(steps - 1, int(self.watch.minutes / limit * steps)))
        warm = self.progress.step < self.recipe.optim.warmup_steps
        set_rate(self.optimizer, rate_factor(self.progress.step if warm else step, steps, self.recipe.optim))

    def _targets(self, batch: Batch) -> torch.Tensor | None:
        if self.station.targets is None or self.objective.heads is None:
            return None
        return self.station.targets(batch.waveforms, self.objective.heads)

    def _evaluate(self) -> Validation | None:
        """Validation on the main process; the others wait."""
        result = None
        if self.accelerator.is_main_process and self.valid:
            result = validate(self.objective, self.station.processor, self.station.targets, self.valid, self.recipe)
            self._record({"kind": "valid", "step": self.progress.step, **result.scores, **self._pairs(result.cosines)})
            self.display.say(
                f"  held out ({len(self.valid)}): "
                + "  ".join(f"{name} {value:.3f}" for name, value in result.scores.items() if value is not None)
            )
            for truth, heard in result.samples:
                self.display.say(f"    said {truth!r:.60}  heard {heard!r:.60}")
            self._keep_best(result)
        self.accelerator.wait_for_everyone()
        return result

    def _keep_best(self, result: Validation) -> None:
        name = self.recipe.run.best_metric
        value = result.scores.get(name)
        if value is None:
            return
        best = self.progress.best
        if best is None or (value > best if name == "accuracy" else value < best):
            self.progress.best, self.progress.best_step = value, self.progress.step
            with whole_folder(self.run / "best") as folder:
                write_student(folder, self.objective.student, self.station.processor, self._texts(result.scores))

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            save_state(
                self.run,
                self.objective,
                self.station.processor,
                self.optimizer,
                self.progress,
                extra=self._texts(),
                keep_last=self.recipe.run.keep_last,
            )
            plot_run(self.run)
        self.watch.mark_saved()
        self.accelerator.wait_for_everyone()

    def _finish(self, stopped: bool) -> RunResult:
        progress, run = self.progress, self.run
        number = self.watch.signal
        finished = not stopped or number is None
        checkpoint = None
        if finished:
            self._evaluate()
            checkpoint = run / "checkpoint"
            if self.accelerator.is_main_process:
                with whole_folder(checkpoint) as folder:
                    best = run / "best"
                    if best.is_dir():
                        import shutil

                        shutil.copytree(best, folder, dirs_exist_ok=True)
                    else:
                        write_student(folder, self.objective.student, self.station.processor, self._texts())
                plot_run(run)
        self.curves.close()
        self.accelerator.end_training()
        return RunResult(run=run, checkpoint=checkpoint, progress=progress, finished=finished, signal=number)

    def _announce(self, newest: Path | None) -> None:
        say = self.display.say
        trainable = sum(p.numel() for p in self.parameters)
        total = sum(p.numel() for p in self.objective.student.parameters())
        for reason, count in self.data.dropped.items():
            say(f"left out {count} row(s): {reason}")
        rows = f"{len(self.data.train)} utterances" if isinstance(self.data.train, Sequence) else "a stream"
        say(f"training on {rows}, {len(self.valid)} held out; {trainable / 1e6:.1f}M of {total / 1e6:.1f}M weights learn")
        if newest is not None:
            say(f"resumed from {newest} at step {self.progress.step}")

    def _record(self, row: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.add(row)
        self.curves.add(row)

    def _pairs(self, cosines: Sequence[float]) -> dict[str, Any]:
        if not cosines:
            return {}
        return {"cosines": list(cosines), "pairs": [[p.teacher, p.student] for p in self.objective.pairs]}

    def _texts(self, scores: dict[str, float | None] | None = None) -> dict[str, str]:
        return {RECIPE: recipe_text(self.run), CARD: model_card(self.recipe, self.progress, scores)}


class _Window:
    """Sums since the last log row."""

    def __init__(self, station: Station) -> None:
        self.pairs = [[pair.teacher, pair.student] for pair in station.objective.pairs]
        self.started = time.monotonic()
        self.sums = [0.0] * (2 + len(self.pairs))
        self.counts = [0.0] * 4
        self.norms: list[float] = []

    def add(self, sums: list[float], counts: list[float], norm: float) -> None:
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)]
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.norms.append(norm)

    @property
    def seconds(self) -> float:
        return max(1e-9, time.monotonic() - self.started)

    def figures(self) -> str:
        """Loss, mean distance and rate, for the bar."""
        tokens, patches, audio, _ = self.counts
        if not tokens:
            return ""
        text = f"loss {self.sums[0] / tokens:.3f}"
        if self.pairs and patches:
            text += f"  1-cos {sum(self.sums[2:]) / len(self.pairs) / patches:.3f}"
        return f"{text}  {audio / self.seconds:.1f} audio-s/s"

    def row(self, step: int, rate: float, minutes: float) -> dict[str, Any]:
        """One log row: means per answer token and per patch."""
        tokens, patches, audio, positions = (max(1e-9, count) for count in self.counts)
        row: dict[str, Any] = {
            "kind": "train",
            "step": step,
            "loss": self.sums[0] / tokens,
            "kl": self.sums[1] / tokens,
            "gradient_norm": sum(self.norms) / max(1, len(self.norms)),
            "learning_rate": rate,
            "audio_seconds_per_second": audio / self.seconds,
            "positions_per_second": positions / self.seconds,
            "minutes": round(minutes, 3),
        }
        if self.pairs:
            distances = [value / patches for value in self.sums[2:]]
            row |= {"distance": sum(distances) / len(distances), "cosines": [1 - d for d in distances], "pairs": self.pairs}
        return row
