"""A recording of any length -> windows that a model can hear at once, read from disk one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from aura.audio.patches import HOP, SAMPLE_RATE
from aura.audio.waveform import load_waveform, probe_seconds
from aura.errors import RecipeError

# All of these are our choice.
WINDOW = 30.0  # s; longer stretches than training has seen are where speech LLMs lose the thread
OVERLAP = 2.0  # s; holds the word that a hard cut would split
SEARCH = 5.0  # s before the end of a window in which a quiet place is looked for
QUIET_SPAN = 20  # frames of 10 ms: the pause between two words, longer than a stop consonant's closure
QUIET_DB = 25.0  # a pause lies that far below the loud parts of its window ...
QUIET_FLOOR = 1e-3  # ... or below -60 dBFS
TAIL = 1.0  # s; no window is cut so that less than this is left for the next
SILENT_PEAK = 1e-4  # -80 dBFS: nobody speaks there, and no model is asked


@dataclass(frozen=True, kw_only=True)
class Window:
    """One stretch of a recording.

    Args:
        start, end: seconds in the recording.
        overlaps: it begins before the window in front of it ended, so both may hold the same words.
        wave_N: its samples, float32 at 16 kHz.
    """

    start: float
    end: float
    overlaps: bool
    wave_N: np.ndarray

    @property
    def is_silent(self) -> bool:
        return bool(np.abs(self.wave_N).max(initial=0.0) < SILENT_PEAK)


def check_window(window: float, overlap: float, *, max_seconds: float) -> None:
    """Refuse windows that cannot work.

    Raises:
        RecipeError: naming both numbers.
    """
    if not 2.0 <= window <= max_seconds:
        raise RecipeError(
            f"window is {window:g} s; expected 2 s to {max_seconds:g} s, the longest audio this checkpoint "
            "takes at once"
        )
    if not 0 <= overlap <= window / 2:
        raise RecipeError(f"overlap is {overlap:g} s; expected 0 to {window / 2:g} s, half of the window")


def read_windows(source: Any, *, window: float = WINDOW, overlap: float = OVERLAP) -> Iterator[Window]:
    """Cut at pauses where there are any, with overlap where there are none; one window in memory at a time.

    Args:
        source: anything `load_waveform` takes that can be read more than once.
        window: s, the longest window.
        overlap: s that two windows share when no pause was found near their border.

    Raises:
        AudioError: as `load_waveform`; perhaps only after some windows, when the damage lies further on.
    """
    total = round(probe_seconds(source) * SAMPLE_RATE)
    longest, shared = round(window * SAMPLE_RATE), round(overlap * SAMPLE_RATE)
    search, tail = round(min(SEARCH, window / 4) * SAMPLE_RATE), round(TAIL * SAMPLE_RATE)
    first, overlaps = 0, False  # in samples: seconds would add up rounding errors over hours
    while total - first > longest:
        wave_N = load_waveform(source, start=first / SAMPLE_RATE, end=(first + longest) / SAMPLE_RATE)
        last = min(longest, total - first - tail)
        cut = quiet_place(wave_N, last - search, last)
        length = last if cut is None else cut
        yield _window(first, wave_N[:length], overlaps)
        first += length if cut is not None else length - shared
        overlaps = cut is None and shared > 0
    wave_N = load_waveform(source, start=first / SAMPLE_RATE) if first else load_waveform(source)
    yield _window(first, wave_N, overlaps)


def _window(first: int, wave_N: np.ndarray, overlaps: bool) -> Window:
    end = (first + len(wave_N)) / SAMPLE_RATE
    return Window(start=first / SAMPLE_RATE, end=end, overlaps=overlaps, wave_N=wave_N)


def quiet_place(wave_N: np.ndarray, first: int, last: int) -> int | None:
    """Sample in [first, last) in the middle of the quietest 0.2 s, or None where no pause is.

    Args:
        wave_N: a window.
        first, last: samples between which to look.
    """
    frames = len(wave_N) // HOP
    power_T = np.square(wave_N[: frames * HOP].reshape(frames, HOP), dtype=np.float64).mean(axis=1)
    smooth_T = np.convolve(power_T, np.ones(QUIET_SPAN) / QUIET_SPAN, mode="valid")  # index t: frames t to t + span
    middle = QUIET_SPAN // 2
    low, high = first // HOP - middle, last // HOP - middle
    searched = smooth_T[max(0, low) : max(0, high)]
    if not len(searched):
        return None
    # The last of equally quiet places: windows as long as possible.
    best = len(searched) - 1 - int(np.argmin(searched[::-1]))
    loud = np.quantile(smooth_T, 0.9)
    if searched[best] > max(QUIET_FLOOR**2, loud * 10 ** (-QUIET_DB / 10)):
        return None
    return (max(0, low) + best + middle) * HOP
