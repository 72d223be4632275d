"""Why a run stops or saves before its last step: signals and the clock, agreed on by all processes."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

import torch


class StopWatch:
    """Catches SIGINT and SIGTERM during the block and keeps the time.

    The first signal lets the step finish, saves and ends the run; a second one interrupts at once.

    Args:
        max_minutes: wall time after which the run stops.
        save_minutes: time between checkpoints.
    """

    def __init__(self, *, max_minutes: float | None, save_minutes: float | None) -> None:
        self.max_minutes = max_minutes
        self.save_minutes = save_minutes
        self.started = self.saved = time.monotonic()
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopWatch:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._catch)
            except ValueError:  # not the main thread: the caller handles signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self.started) / 60

    def agree(self, accelerator: Any) -> tuple[bool, bool]:
        """(stop, save) of this step, the same on every process: one that decided alone would leave the rest waiting."""
        out_of_time = self.max_minutes is not None and self.minutes >= self.max_minutes
        due = self.save_minutes is not None and (time.monotonic() - self.saved) / 60 >= self.save_minutes
        flags = torch.tensor([float(out_of_time or self.signal is not None), float(due)], device=accelerator.device)
        stop, save = accelerator.reduce(flags, reduction="sum").tolist() if accelerator.num_processes > 1 else flags.tolist()
        return stop > 0, save > 0

    def mark_saved(self) -> None:
        self.saved = time.monotonic()
