"""Several reports beside each other: what changed in the numbers, and what was set otherwise.

The first report is what the others are compared with. Where the answers still lie beside the reports
(`items.jsonl`), the items that both answered are compared pair by pair.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aura.errors import DataError
from aura.evaluation.report import folder_of
from aura.evaluation.significance import mcnemar_exact

IGNORED = ("command", "created", "timings.this_run_seconds")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One set of answers: a report, or one route of a report.

    Args:
        name: file or folder of the report, with the route where there are several.
        metrics: numbers by name; intervals under their own names.
        settings: everything that was set, flat.
        right: by item, whether the answer was right; None where the answers are not there any more.
    """

    name: str
    metrics: Mapping[str, Any]
    settings: Mapping[str, Any]
    right: Mapping[str, bool] | None


@dataclass(frozen=True, kw_only=True)
class ReportDiff:
    """What the reports say beside each other.

    Args:
        names: of the columns, the first is what the others are compared with.
        metrics: a row per metric: `values`, `intervals` and `differences` per column.
        paired: per further column, the items that both answered: who was right on how many, and McNemar's p-value.
        settings: a row per setting that differs: its values per column.
        task: what was scored; None where the reports do not say, or say different things.
    """

    names: tuple[str, ...]
    metrics: tuple[dict[str, Any], ...]
    paired: tuple[dict[str, Any] | None, ...]
    settings: tuple[dict[str, Any], ...]
    task: str | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "reports": self.names,
            "task": self.task,
            "metrics": self.metrics,
            "paired": self.paired,
            "settings": self.settings,
        }


def compare_reports(paths: Sequence[str | os.PathLike[str]]) -> ReportDiff:
    """Read reports (or the folders they lie in) and set them beside each other.

    Raises:
        DataError: fewer than two columns, or a file that is no report.
    """
    columns = [column for path in paths for column in _columns(Path(path), several=len(paths) > 1)]
    if len(columns) < 2:
        raise DataError(
            f"{len(columns)} report was given to compare; expected two or more: aura report A/report.json B/report.json"
        )
    tasks = {column.settings.get("settings.task") for column in columns}
    return ReportDiff(
        names=tuple(column.name for column in columns),
        metrics=tuple(_metrics(columns)),
        paired=tuple(_paired(columns[0], column) for column in columns[1:]),
        settings=tuple(_settings(columns)),
        task=tasks.pop() if len(tasks) == 1 else None,
    )


def _columns(path: Path, *, several: bool) -> list[Column]:
    """A column per route of a report, or one where it has none."""
    path = path / "report.json" if path.is_dir() else path
    report = _read(path)
    flat = _flat({key: report.get(key) for key in ("settings", "versions", "machine", "counts")})
    name = str(path.parent / path.name) if path.name != "report.json" else str(path.parent)
    routes = report.get("routes")
    if not isinstance(routes, Mapping):
        return [Column(name=name, metrics=report["metrics"], settings=flat, right=_right(path.parent))]
    return [
        Column(
            name=f"{name}:{route}" if several else route,
            metrics={**facts["metrics"], **_measured(facts)},
            settings={**flat, **_flat({"route": {"kind": facts["kind"], **facts["settings"]}})},
            right=_right(path.parent / folder_of(route)),
        )
        for route, facts in routes.items()
    ]


def _measured(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison knows of a route beyond its task's metrics."""
    first = facts.get("first_token") or {}
    memory = facts.get("memory") or {}
    return {
        "first_token_median_seconds": first.get("median"),
        "first_token_p95_seconds": first.get("p95"),
        "real_time_factor": facts["timings"]["real_time_factor"],
        "answer_tokens_per_second": facts["timings"]["answer_tokens_per_second"],
        "peak_memory_bytes": memory.get("peak_bytes"),
        "parameters": facts["parameters"],
        "bytes_on_disk": facts["bytes_on_disk"],
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror or error}); expected a report.json, or the --out folder of aura "
            "evaluate"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); expected a report.json of aura evaluate") from error
    if not isinstance(report, dict) or not isinstance(report.get("metrics"), dict):
        raise DataError(f"{path} holds no 'metrics'; expected a report.json of aura evaluate")
    return report


def _right(folder: Path) -> dict[str, bool] | None:
    """Whether each item's answer was right; failed items are left out."""
    found: dict[str, bool] = {}
    try:
        for line in (folder / "items.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found.pop(row["id"], None)  # a later row replaces it
            if row.get("correct") is not None:
                found[row["id"]] = bool(row["correct"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found or None


def _metrics(columns: Sequence[Column]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for column in columns for name in column.metrics))
    rows = []
    for name in names:
        values = [_number(column.metrics.get(name)) for column in columns]
        if name.endswith("_interval") or all(value is None for value in values):
            continue
        rows.append(
            {
                "name": name,
                "values": values,
                "intervals": [_interval(column.metrics, name) for column in columns],
                "differences": [
                    None if value is None or values[0] is None else value - values[0] for value in values[1:]
                ],
            }
        )
    return rows


def _interval(metrics: Mapping[str, Any], name: str) -> Any:
    if name == "accuracy" and name in metrics:  # under the name of the metric that it repeats
        same = [key for key, value in metrics.items() if value == metrics[name] and f"{key}_interval" in metrics]
        name = same[0] if same else name
    return metrics.get(f"{name}_interval")


def _number(value: Any) -> float | int | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _paired(first: Column, other: Column) -> dict[str, Any] | None:
    """Who was right on the items that both answered; None where the answers are gone or share no item."""
    if first.right is None or other.right is None or not (both := first.right.keys() & other.right.keys()):
        return None
    only_first = sum(first.right[id_] and not other.right[id_] for id_ in both)
    only_other = sum(other.right[id_] and not first.right[id_] for id_ in both)
    return {
        "items": len(both),
        "accuracy_first": sum(first.right[id_] for id_ in both) / len(both),
        "accuracy": sum(other.right[id_] for id_ in both) / len(both),
        "only_first_right": only_first,
        "only_other_right": only_other,
        "p_value": mcnemar_exact(only_first, only_other),
    }


def _settings(columns: Sequence[Column]) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for column in columns for name in column.settings))
    rows = []
    for name in names:
        values = [column.settings.get(name) for column in columns]
        if name not in IGNORED and any(value != values[0] for value in values[1:]):
            rows.append({"name": name.removeprefix("settings."), "values": values})
    return rows


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def markdown_diff(diff: ReportDiff) -> str:
    """Three Markdown tables: numbers, pairs, settings that differ."""
    lines = [f"Compared with **{_cell(diff.names[0])}**" + (f", task {diff.task}." if diff.task else "."), ""]
    lines += _table(["metric", *diff.names], [_metric_row(row) for row in diff.metrics])
    pairs = [
        [
            name,
            str(pair["items"]),
            f"{pair['accuracy_first']:.4f}",
            f"{pair['accuracy']:.4f}",
            f"{pair['only_first_right']} : {pair['only_other_right']}",
            f"{pair['p_value']:.4g}",
        ]
        for name, pair in zip(diff.names[1:], diff.paired, strict=True)
        if pair is not None
    ]
    if pairs:
        head = ["same items", "answered by both", f"right: {diff.names[0]}", "right", "only one right", "p (McNemar)"]
        lines += ["", *_table(head, pairs)]
    lines.append("")
    if diff.settings:
        rows = [[row["name"], *(_shown(value) for value in row["values"])] for row in diff.settings]
        lines += _table(["setting", *diff.names], rows)
    else:
        lines.append("No setting differs.")
    return "\n".join(lines)


def _metric_row(row: Mapping[str, Any]) -> list[str]:
    cells = [row["name"]]
    for index, value in enumerate(row["values"]):
        text = _shown(value)
        if row["intervals"][index] is not None:
            text += " ({:.4f} to {:.4f})".format(*row["intervals"][index])
        if index and row["differences"][index - 1]:
            text += f", {_signed(row['differences'][index - 1])}"
        cells.append(text)
    return cells


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "-" if value is None else str(value)


def _signed(value: float) -> str:
    return f"{value:+,}" if isinstance(value, int) else f"{value:+.4f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(map(_cell, head)) + " |", "|---" * len(head) + "|"]
    return [*lines, *("| " + " | ".join(map(_cell, row)) + " |" for row in rows)]


def _cell(text: str) -> str:
    return " ".join(str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
