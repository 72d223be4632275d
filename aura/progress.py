"""The progress bar of everything that takes longer than a breath: on stderr, with rate and time left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

Advance = Callable[[int, float], None]  # items done, and how much of the rate's unit is in them


@contextlib.contextmanager
def audio_progress(title: str, total: int | None, *, show: bool = True, unit: str = "audio-s") -> Iterator[Advance]:
    """A bar that counts items, with the seconds of audio done per second; nothing where stderr is no terminal.

    Args:
        title: in front of the bar.
        total: items; None for a bar without an end.
        show: False gives a function that does nothing.
        unit: of the rate.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task(title, total=total, rate="")
        start, done = time.monotonic(), 0.0

        def advance(items: int, amount: float) -> None:
            nonlocal done
            done += amount
            rate = done / max(1e-6, time.monotonic() - start)
            bar.update(task, advance=items, rate=f"{rate:.1f} {unit}/s")

        yield advance
