"""What a run shows: a bar with loss, rate and ETA on a terminal, plain lines elsewhere; and TensorBoard."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display:
    """Progress of a run; silent on every process but the main one.

    Args:
        steps: optimiser steps of the whole run.
        done: steps done before this part of it.
        minutes: wall-time limit, if any; the bar then shows whichever is further.
    """

    def __init__(self, *, steps: int, done: int, minutes: float | None, is_main: bool, label: str) -> None:
        self.is_main = is_main
        self.is_terminal = sys.stderr.isatty()
        self.minutes = minutes
        self.steps = steps
        self.first = done
        self.started = time.monotonic()
        self.console = Console(stderr=True, quiet=not is_main, soft_wrap=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (is_main and self.is_terminal),
        )
        self.task = self.bar.add_task(label, total=steps, completed=done, figures="")

    def __enter__(self) -> Display:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def step(self, step: int, figures: str, *, line: bool) -> None:
        """Advance; `line` also writes the figures where no bar can be drawn."""
        self.bar.update(self.task, completed=step, figures=figures)
        if line and not self.is_terminal:
            self.say(f"step {step}/{self.steps}  {figures}  {self.eta(step)}")

    def eta(self, step: int) -> str:
        """Time left, by steps and by the wall-time limit, whichever ends first."""
        spent = time.monotonic() - self.started
        left = spent / max(1, step - self.first) * (self.steps - step)
        if self.minutes is not None:
            left = min(left, max(0.0, self.minutes * 60 - spent))
        return f"{int(left) // 60}:{int(left) % 60:02d} left"

    def say(self, text: str) -> None:
        if self.is_main:
            self.console.print(text, markup=False)


class Curves:
    """TensorBoard events beside `log.jsonl`; nothing where TensorBoard is not installed."""

    def __init__(self, run: Path, *, enabled: bool, from_step: int) -> None:
        self.writer: Any = None
        if enabled:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=from_step + 1 if from_step else None)

    def add(self, row: dict[str, Any]) -> None:
        if self.writer is None:
            return
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "step":
                self.writer.add_scalar(f"{row['kind']}/{name}", value, row["step"])
        for (teacher, student), cosine in zip(row.get("pairs") or [], row.get("cosines") or [], strict=True):
            self.writer.add_scalar(f"{row['kind']}/cosine/teacher{teacher}-student{student}", cosine, row["step"])

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
