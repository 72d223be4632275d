"""The headline of a comparison as lines of cells, and as one Markdown table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aura.evaluation.json_text import replace_text


@dataclass(frozen=True, kw_only=True)
class Cell:
    """`text`, with what belongs under it (`note`), and whether it is the best of its line (never the ceiling)."""

    text: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """One measure across the routes; `group` is quality, speed or size."""

    group: str
    label: str
    hint: str
    cells: tuple[Cell, ...]


def percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def interval_text(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def seconds_text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{1000 * value:.0f} ms" if value < 0.9995 else f"{value:.2f} s" if value < 9.995 else f"{value:.1f} s"


def bytes_text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def count_text(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e9:.2f} B" if value >= 1e9 else f"{value / 1e6:.0f} M" if value >= 1e6 else f"{value:,.0f}"


def p_text(value: float | None) -> str:
    return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def headline(report: Mapping[str, Any]) -> list[Line]:
    """What the first table shows: quality with intervals, speed, size."""
    routes = list(report["routes"].values())
    lines = []
    for measure in report["task"]["measures"]:
        name = measure["name"]
        arrow = "lower" if measure["better"] == "low" else "higher"
        cells = _cells(
            routes,
            lambda r, name=name: r["shared"][name]["value"],  # type: ignore[misc]
            percent,
            measure["better"],
            lambda r, name=name: interval_text(r["shared"][name]["interval"]),  # type: ignore[misc]
        )
        lines.append(Line(group="Quality", label=measure["label"], hint=f"{arrow} is better", cells=cells))
    shared = report["shared_items"]
    if any(route["counts"]["failed"] for route in routes):
        main = report["task"]["measures"][0]
        lines.append(
            Line(
                group="Quality",
                label=f"{main['label']} on all it answered",
                hint="other items for each route: not to be compared",
                cells=tuple(
                    Cell(text=percent(r["answered"][main["name"]]["value"]), note=f"{r['counts']['answered']} items")
                    for r in routes
                ),
            )
        )
    lines.append(
        Line(
            group="Quality",
            label="Failed",
            hint=f"of {report['counts']['items']} items; {shared} were answered by every route",
            cells=_cells(routes, lambda r: r["counts"]["failed"], str, None),
        )
    )
    return [*lines, *_speed(routes), *_size(routes)]


def _speed(routes: Sequence[Any]) -> list[Line]:
    def first(field: str) -> Callable[[Any], float | None]:
        return lambda route: (route["first_token"] or {}).get(field)

    def timing(field: str) -> Callable[[Any], float | None]:
        return lambda route: route["timings"][field]

    count = max((route["first_token"]["items"] for route in routes if route["first_token"]), default=0)
    lines = [
        ("Time to first token, median", f"after the end of speech, {count} items, one at a time",
         first("median"), seconds_text, "low"),
        ("Time to first token, 95 %", "of the same items", first("p95"), seconds_text, "low"),
        ("Real-time factor", "seconds of work per second of audio, in batches",
         timing("real_time_factor"), lambda v: "-" if v is None else f"{v:.3f}", "low"),
        ("Answer tokens per second", "all work counted, in batches",
         timing("answer_tokens_per_second"), lambda v: "-" if v is None else f"{v:.1f}", "high"),
    ]  # fmt: skip
    return [
        Line(group="Speed", label=label, hint=hint, cells=_cells(routes, value, text, better))
        for label, hint, value, text, better in lines
    ]


def _size(routes: Sequence[Any]) -> list[Line]:
    def memory(field: str) -> Callable[[Any], float | None]:
        return lambda route: (route["memory"] or {}).get(field)

    lines = [
        ("Peak memory", "resident, own process, while answering", memory("peak_bytes"), bytes_text),
        ("Parameters at run time", "of all networks", lambda r: r["parameters"], count_text),
        ("Weights on disk", "", lambda r: r["bytes_on_disk"], bytes_text),
    ]
    if any(memory("accelerator_peak_bytes")(route) for route in routes):
        lines.insert(1, ("Peak accelerator memory", "tensors", memory("accelerator_peak_bytes"), bytes_text))
    return [
        Line(group="Size", label=label, hint=hint, cells=_cells(routes, value, text, "low"))
        for label, hint, value, text in lines
    ]


def _cells(
    routes: Sequence[Any],
    value_of: Callable[[Any], float | None],
    text_of: Callable[[Any], str],
    better: str | None,
    note_of: Callable[[Any], str] = lambda _: "",
) -> tuple[Cell, ...]:
    values = [value_of(route) for route in routes]
    texts = [text_of(value) for value in values]
    # The ceiling reads the truth and hears nothing: it is no candidate.
    runs = [route["kind"] != "text" for route in routes]
    known = [value for value, running in zip(values, runs, strict=True) if running and value is not None]
    best = None
    if better is not None and len({text_of(value) for value in known}) > 1:
        best = text_of(min(known) if better == "low" else max(known))  # what reads the same is as good
    return tuple(
        Cell(text=text, note=note_of(route), best=running and text == best)
        for route, text, running in zip(routes, texts, runs, strict=True)
    )


def markdown(report: Mapping[str, Any]) -> str:
    """One table: a line per measure, a column per route; the best of a line is bold."""
    lines = [
        f"| {_escaped(report['task']['help'])} | " + " | ".join(_escaped(name) for name in report["routes"]) + " |",
        "|---" * (len(report["routes"]) + 1) + "|",
    ]
    for line in headline(report):
        cells = []
        for cell in line.cells:
            text = f"**{cell.text}**" if cell.best else cell.text
            cells.append(_escaped(f"{text} ({cell.note})" if cell.note else text))
        hint = f" ({line.hint})" if line.hint else ""
        lines.append(f"| {_escaped(line.label + hint)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def write_table(out: Path, report: Mapping[str, Any]) -> Path:
    """Write `report.md`: the table, and the sentence that says what it is about."""
    path = out / "report.md"
    notes = [scope_text(report), "Intervals: 95 % bootstrap over items.", fairness(report)]
    replace_text(path, f"{markdown(report)}\n\n{' '.join(filter(None, notes))}\n")
    return path


KINDS = {
    "aura": "the LLM hears by itself",
    "bridge": "speech encoder, projector, LLM",
    "cascade": "speech recogniser, then LLM",
    "text": "LLM reads the true transcript: the ceiling",
    "endpoint": "a server",
}


def kind_text(route: Mapping[str, Any]) -> str:
    """What a route is, in a few words."""
    if route["kind"] == "cascade" and route["settings"].get("asr_only"):
        return "speech recogniser alone"
    return KINDS.get(route["kind"], route["kind"])


def fairness(report: Mapping[str, Any]) -> str:
    """What the routes that were trained know and the others do not; empty where that is no question."""
    trained = [name for name, route in report["routes"].items() if route["kind"] in ("aura", "bridge")]
    reading = {
        name: route["settings"]
        for name, route in report["routes"].items()
        if route["kind"] in ("cascade", "text") and not route["settings"].get("asr_only")
    }
    stock = [name for name, settings in reading.items() if not settings.get("adapter")]
    if not trained or not stock:
        return ""
    shots = {reading[name].get("shots") or 0 for name in stock}
    seen = (
        "no example of the task" if shots == {0} else f"{' or '.join(map(str, sorted(shots)))} examples in the prompt"
    )
    return (
        f"Training: {', '.join(trained)} learnt from data (see the checkpoint's recipe); {', '.join(stock)} read with the "
        f"stock LLM and {seen}."
    )


def scope_text(report: Mapping[str, Any]) -> str:
    """Which items the compared rates are about."""
    items, shared = report["counts"]["items"], report["shared_items"]
    if shared == items:
        return f"Rates are on all {items} items, which every route answered."
    return f"Rates are on the {shared} of {items} items that every route answered; the others are failed, not wrong."
