"""Why a run stops or saves before its last step: signals and the clock, agreed on by all processes."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What all processes know after a step; the same on each of them.

    Args:
        stop, save: end the run, write a checkpoint.
        minutes: wall time of the run so far, earlier parts included.
        signal: number of the signal that asked for the stop; None without one.
    """

    stop: bool
    save: bool
    minutes: float
    signal: int | None = None


class StopWatch:
    """Catches SIGINT and SIGTERM during the block and keeps the time.

    The first signal lets the step finish, saves and ends the run; a second one interrupts at once.

    Args:
        max_minutes: wall time after which the run stops, the parts before a resume included.
        save_minutes: time between checkpoints.
    """

    def __init__(self, *, max_minutes: float | None, save_minutes: float | None) -> None:
        self.max_minutes = max_minutes
        self.save_minutes = save_minutes
        self.before = 0.0  # minutes of earlier parts of the run
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
        """Of the whole run, on this process's clock."""
        return self.before + (time.monotonic() - self.started) / 60

    def agree(self, accelerator: Any) -> Agreement:
        """Of this step; one process that stopped, saved or slowed its learning rate alone would part from the rest."""
        minutes = self.minutes
        out_of_time = self.max_minutes is not None and minutes >= self.max_minutes
        due = self.save_minutes is not None and (time.monotonic() - self.saved) / 60 >= self.save_minutes
        mine = [float(out_of_time or self.signal is not None), float(due), float(self.signal or 0), minutes]
        if accelerator.num_processes > 1:
            mine = accelerator.gather(torch.tensor([mine], device=accelerator.device)).amax(0).tolist()
        stop, save, number, minutes = mine
        return Agreement(stop=stop > 0, save=save > 0, minutes=minutes, signal=int(number) or None)

    def mark_saved(self) -> None:
        self.saved = time.monotonic()
