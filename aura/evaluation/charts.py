"""Geometry of the page's plots; the template draws it, so that colours follow the reader's light or dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 400.0, 250.0  # SVG units: the size on a phone, scaled up elsewhere
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 10.0, 36.0
MARKS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",  # circle
    "M-3.6,-3.6h7.2v7.2h-7.2z",  # square
    "M0,-4.6L4.4,3.4H-4.4z",  # triangle
    "M0,-5L5,0L0,5L-5,0z",  # diamond
    "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",  # plus
    "M0,4.6L4.4,-3.4H-4.4z",  # triangle on its tip
)
"""A shape for each route, as colour alone tells nothing to many."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A bar with its interval; lengths in percent of the track."""

    route: str
    index: int
    text: str
    note: str
    length: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class BarChart:
    title: str
    hint: str
    longest: str  # what the full track stands for
    bars: tuple[Bar, ...]


@dataclass(frozen=True, kw_only=True)
class Point:
    x: float
    y: float
    index: int
    title: str


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """Points in SVG units, ticks as (place, text)."""

    points: tuple[Point, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def bar_charts(report: Mapping[str, Any], percent: Any, interval_text: Any) -> list[BarChart]:
    """A chart per measure, on the items that every route answered; measures without a value are left out."""
    charts = []
    for measure in report["task"]["measures"]:
        rates = {name: route["shared"][measure["name"]] for name, route in report["routes"].items()}
        ends = [max(rate["value"], *(rate["interval"] or ())) for rate in rates.values() if rate["value"] is not None]
        if not ends:
            continue
        longest = ticks(max(*ends, 0.01), 4)[-1]
        charts.append(
            BarChart(
                title=measure["label"],
                hint=f"{'lower' if measure['better'] == 'low' else 'higher'} is better",
                longest=percent(longest, 0 if longest >= 0.05 else 1),
                bars=tuple(
                    _bar(name, index, rate, longest, percent, interval_text)
                    for index, (name, rate) in enumerate(rates.items())
                ),
            )
        )
    return charts


def _bar(name: str, index: int, rate: Mapping[str, Any], longest: float, percent: Any, interval_text: Any) -> Bar:
    low, high = rate["interval"] or (None, None)
    return Bar(
        route=name,
        index=index,
        text=percent(rate["value"]),
        note=interval_text(rate["interval"]),
        length=100 * (rate["value"] or 0.0) / longest,
        low=None if low is None else 100 * low / longest,
        high=None if high is None else 100 * high / longest,
    )


def latency_scatter(report: Mapping[str, Any]) -> Scatter | None:
    """Seconds to the first token against seconds of audio; None where nothing was measured."""
    measured = [
        (index, name, audio, seconds)
        for index, (name, route) in enumerate(report["routes"].items())
        if route["first_token"]
        for audio, seconds in zip(route["first_token"]["audio_seconds"], route["first_token"]["seconds"], strict=True)
    ]
    if not measured:
        return None
    xs, ys = ticks(max(m[2] for m in measured), 5), ticks(max(m[3] for m in measured), 5)

    def place(audio: float, seconds: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * audio / xs[-1]
        return round(across, 2), round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * seconds / ys[-1], 2)

    points = []
    for index, name, audio, seconds in measured:
        x, y = place(audio, seconds)
        points.append(Point(x=x, y=y, index=index, title=f"{name}: {seconds:.3f} s after {audio:.1f} s of audio"))
    return Scatter(
        points=tuple(points),
        x_ticks=tuple((place(x, 0)[0], f"{x:g}") for x in xs),
        y_ticks=tuple((place(0, y)[1], f"{y:g}") for y in ys),
    )


def ticks(largest: float, count: int) -> list[float]:
    """Round numbers from 0 to at least `largest`, about `count` steps."""
    rough = max(largest, 1e-9) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * (1 - 1e-9))
    steps = math.ceil(largest / step - 1e-9)
    return [round(step * n, 12) for n in range(max(1, steps) + 1)]


def marks(count: int) -> Sequence[str]:
    """A shape per route, from the first again where there are more routes than shapes."""
    return [MARKS[index % len(MARKS)] for index in range(count)]
