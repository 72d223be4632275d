"""The training loop: recipe in, run folder out; resumes exactly."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from aura.batch.collate import Batch
from aura.batch.loader import BatchLoader
from aura.batch.plan import LengthEstimate, PlannedItem, plan_batches
from aura.config import Recipe
from aura.data.augment import Augment
from aura.errors import MissingExtraError, TrainingError
from aura.recipes import write_recipe
from aura.student.checkpoint import CARD, RECIPE
from aura.student.files import whole_folder
from aura.training.card import model_card
from aura.training.data import Data, read_data
from aura.training.display import Curves, Display
from aura.training.plots import plot_run
from aura.training.processes import float32_matmul, open_accelerator
from aura.training.run_folder import changed_fields, clear, make_folder, open_run, tidy
from aura.training.setup import Station, build_station
from aura.training.start import find_start
from aura.training.state import Progress, RunLog, load_state, recipe_text, save_state, write_student
from aura.training.step import Stepper
from aura.training.stop import Agreement, StopWatch
from aura.training.validate import Validation, pick, validate
from aura.training.window import Window


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


def train(recipe: Recipe, *, resume: bool = False, overwrite: bool = False, more_follow: bool = False) -> RunResult:
    """Train from a recipe.

    Args:
        resume: go on from the newest checkpoint in `run.out`; with none there, start.
        overwrite: start anew in a folder that holds a run.
        more_follow: several processes stay together for another run when this one has finished.

    Raises:
        AuraError: everything a user can mend, see `aura.errors`.
    """
    accelerator = open_accelerator(recipe)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    run = Path(recipe.run.out)
    if accelerator.is_main_process:
        make_folder(run)
        tidy(run)
    accelerator.wait_for_everyone()
    newest = open_run(run, resume=resume, overwrite=overwrite)
    changes = changed_fields(newest, recipe) if newest is not None else []
    start = find_start(recipe) if newest is None else None  # a resumed run has weights of its own
    data = read_data(recipe)
    station = build_station(recipe, data.train, calibrate=newest is None, start=start, device=accelerator.device)
    with (
        float32_matmul(recipe.run.float32_matmul),
        StopWatch(max_minutes=recipe.run.max_minutes, save_minutes=recipe.run.save_minutes) as watch,
    ):
        running = _Run(recipe, run, data, station, accelerator, watch, more_follow=more_follow)
        return running.go(newest, changes)


class _Run:
    """One run in one process: the pieces, and the loop over them."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        data: Data,
        station: Station,
        accelerator: Accelerator,
        watch: StopWatch,
        *,
        more_follow: bool = False,
    ) -> None:
        self.recipe, self.run, self.data, self.station = recipe, run, data, station
        self.accelerator, self.watch, self.more_follow = accelerator, watch, more_follow
        self.objective = station.objective
        self.stepper = Stepper(recipe, station, accelerator)
        self.optimizer, self.average = self.stepper.optimizer, self.stepper.average
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
            spell=recipe.distill.ctc > 0,
        )

    def go(self, newest: Path | None, changes: Sequence[str] = ()) -> RunResult:
        """All steps from where the run stands.

        Args:
            newest: checkpoint to go on from; None to start.
            changes: fields of the recipe that differ from it.
        """
        if newest is not None:
            self.progress = load_state(newest, self.objective, self.optimizer, self.average)
        recipe, progress, main = self.recipe, self.progress, self.accelerator.is_main_process
        self.watch.before = progress.minutes
        if main:
            if newest is None:
                clear(self.run)
            write_recipe(recipe, self.run / RECIPE)
        self.log = RunLog(self.run, step=progress.step, evaluated=progress.evaluated) if main else None
        self.scores: tuple[int, dict[str, float | None]] = (-1, {})  # of the last validation, and its step
        self.curves = Curves(self.run, enabled=main, from_step=progress.step)
        left = recipe.run.max_minutes and max(0.0, recipe.run.max_minutes - progress.minutes)
        self.display = Display(
            steps=recipe.run.steps, done=progress.step, minutes=left, is_main=main, label=recipe.run.name
        )
        with self.display, contextlib.closing(self.curves):
            self._announce(newest, changes)
            self.objective.train()
            return self._finish(self._steps())

    def _steps(self) -> Agreement | None:
        """Step after step; why it stopped before the last one, or None."""
        recipe, progress = self.recipe, self.progress
        self.window = Window(self.objective.pairs, progress.window)
        if progress.step and not self._is_last() and self._evaluation_due() and progress.evaluated != progress.step:
            self._evaluate()  # left out when a signal stopped the run at this step
        with contextlib.closing(self._groups()) as groups:
            while not self._is_last():
                self._step(next(groups))
                agreement = self.watch.agree(self.accelerator)
                progress.minutes = agreement.minutes
                self._show()
                if self._evaluation_due() and not self._is_last() and not agreement.stop:
                    self._evaluate()
                due = agreement.save or (recipe.run.save_every and progress.step % recipe.run.save_every == 0)
                if due or agreement.stop or self._is_last():
                    self._save()
                if agreement.stop:
                    return agreement
        return None

    def _is_last(self) -> bool:
        limit = self.recipe.run.max_minutes
        # By minutes too: a run that its clock ended needs no step more when it is resumed.
        return self.progress.step >= self.recipe.run.steps or (limit is not None and self.progress.minutes >= limit)

    def _evaluation_due(self) -> bool:
        every = self.recipe.run.eval_every
        return bool(self.valid and every) and self.progress.step % every == 0

    def _show(self) -> None:
        """The step on the bar and, every so often, in the log."""
        progress, step = self.progress, self.progress.step
        due = step % self.recipe.run.log_every == 0 or self._is_last()
        self.display.step(step, self.window.figures(), line=due)
        if due and not self.window.is_empty:
            self._record(
                {
                    "kind": "train",
                    "step": step,
                    **self.window.row(),
                    "learning_rate": self.stepper.learning_rate,
                    "distill_weight": self.stepper.distill_weight,
                }
                | {"bad_steps": progress.bad_steps, "minutes": round(progress.minutes, 3)}
            )
            self.window = Window(self.objective.pairs)

    def _groups(self) -> Generator[list[Batch], None, None]:
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
        with contextlib.closing(self.loader(mine)) as batches:  # its threads end with the run
            while group := list(islice(batches, size // world)):
                yield group

    def _step(self, group: Sequence[Batch]) -> None:
        """One optimiser step, or a counted skip when it is not finite."""
        taken = self.stepper(group, self.progress)
        if taken.good:
            self.window.add(taken.sums, taken.counts, taken.norm)
        else:
            self._bad_step(readable=taken.readable)

    def _bad_step(self, *, readable: bool) -> None:
        progress = self.progress
        progress.bad_steps += 1
        progress.bad_in_a_row += 1
        what = "loss or gradient is not finite" if readable else f"no row could be read ({self.loader.skipped[-1:]})"
        self.display.say(f"step {progress.step}: {what}; the step was skipped")
        if progress.bad_in_a_row < self.recipe.optim.max_bad_steps:
            return
        self._save()  # the weights of the last good step
        advice = (
            "Lower --optim.learning_rate or use --run.mixed_precision no"
            if readable
            else "Check the data with: aura data check"
        )
        raise TrainingError(
            f"{progress.bad_in_a_row} steps in a row were skipped: {what}. The weights of the last good step are in "
            f"{self.run / 'checkpoints'}. {advice}, then go on with --resume"
        )

    def _evaluate(self) -> None:
        """Validation on the main process; the others wait."""
        self.progress.evaluated = self.progress.step
        if self.accelerator.is_main_process and self.valid:
            # By oneDNN, an output layer over a large vocabulary takes gigabytes in the passes of decoding.
            with self.average.applied(), float32_matmul("highest"):
                result = validate(self.objective, self.station.processor, self.station.targets, self.valid, self.recipe)
                self._keep_best(result)
            self.scores = self.progress.step, result.scores
            self._record({"kind": "valid", "step": self.progress.step, **result.scores, **self._pairs(result.cosines)})
            self.display.say(
                f"  held out ({len(self.valid)}): "
                + "  ".join(f"{name} {value:.3f}" for name, value in result.scores.items() if value is not None)
            )
            for truth, heard in result.samples:
                self.display.say(f"    said {truth!r:.60}  heard {heard!r:.60}")
        self.accelerator.wait_for_everyone()

    def _keep_best(self, result: Validation) -> None:
        name = self.recipe.run.best_metric
        value = result.scores.get(name)
        if value is None or not math.isfinite(value):
            return
        best = self.progress.best
        if best is None or (value > best if name == "accuracy" else value < best):
            self.progress.best, self.progress.best_step = value, self.progress.step
            with whole_folder(self.run / "best") as folder:
                write_student(folder, self.objective.student, self.station.processor, self._texts(result.scores))

    def _save(self) -> None:
        self.progress.window = self.window.state()
        if self.accelerator.is_main_process:
            save_state(
                self.run,
                self.objective,
                self.station.processor,
                self.optimizer,
                self.average,
                self.progress,
                extra=self._texts(),
                keep_last=self.recipe.run.keep_last,
            )
            self._plot()
        self.watch.mark_saved()
        self.accelerator.wait_for_everyone()

    def _plot(self) -> None:
        try:
            plot_run(self.run)
        except MissingExtraError as error:  # the weights are worth more than the picture
            self.display.say(str(error))
        except OSError as error:
            raise TrainingError(
                f"the plots of {self.run} cannot be written: {error}. Free some space, then --resume"
            ) from error

    def _finish(self, stopped: Agreement | None) -> RunResult:
        progress, run = self.progress, self.run
        number = stopped.signal if stopped is not None else None
        checkpoint = None
        if self.loader.skipped:
            self.display.say(f"left out {len(self.loader.skipped)} unreadable row(s), first: {self.loader.skipped[0]}")
        if number is None:
            if progress.evaluated != progress.step:
                self._evaluate()
            checkpoint = run / "checkpoint"
            if self.accelerator.is_main_process:
                self._deliver(checkpoint)
                self._plot()
            self.accelerator.wait_for_everyone()
        self.stepper.close()
        if number is not None or not self.more_follow:
            self.accelerator.end_training()
        return RunResult(run=run, checkpoint=checkpoint, progress=progress, finished=number is None, signal=number)

    def _deliver(self, checkpoint: Path) -> None:
        """The best weights, or the last ones where no score chose; averaged, where the recipe asks for it."""
        with whole_folder(checkpoint) as folder:
            best = self.run / "best"
            if self.progress.best is not None and best.is_dir():
                shutil.copytree(best, folder, dirs_exist_ok=True)
            else:
                step, scores = self.scores
                with self.average.applied():
                    texts = self._texts(scores if step == self.progress.step else None)
                    write_student(folder, self.objective.student, self.station.processor, texts)

    def _announce(self, newest: Path | None, changes: Sequence[str]) -> None:
        say = self.display.say
        trainable = sum(p.numel() for p in self.stepper.parameters)
        total = sum(p.numel() for p in self.objective.student.parameters())
        for reason, count in self.data.dropped.items():
            say(f"left out {count} row(s): {reason}")
        rows = f"{len(self.data.train)} utterances" if isinstance(self.data.train, Sequence) else "a stream"
        say(
            f"training on {rows}, {len(self.valid)} held out; {trainable / 1e6:.1f}M of {total / 1e6:.1f}M weights learn"
        )
        if newest is not None:
            say(f"resumed from {newest} at step {self.progress.step}")
        elif self.recipe.run.init_from is not None:
            say(f"starts from the weights of {self.recipe.run.init_from}")
        for note in self.station.notes:
            say(note)
        for change in changes:
            say(f"changed since then: {change}")

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
