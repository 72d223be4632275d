"""Rows of several routes -> the numbers of a comparison, and `report.json`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aura.evaluation.latency import FirstTokens
from aura.evaluation.measures import Item, Measure, Parts, compare_parts, measures_of, parts_of, rate_of, score_items
from aura.evaluation.report import write_report
from aura.evaluation.routes.route import RouteFacts
from aura.evaluation.scores import ratio
from aura.evaluation.significance import holm
from aura.evaluation.tables import tables
from aura.evaluation.tasks import Task, TaskScore

FAILURES_KEPT = 20  # per route, in the report; items.jsonl holds all


@dataclass(frozen=True, kw_only=True)
class RouteOutcome:
    """One route after its work.

    Args:
        facts: what the route is.
        rows: as in `items.jsonl`, one per item in the items' order.
        memory: bytes, see `route_worker`; None where they cannot be told from other routes'.
        load_seconds: to open the route.
    """

    facts: RouteFacts
    rows: Sequence[Mapping[str, Any]]
    memory: Mapping[str, Any] | None
    load_seconds: float | None

    @property
    def failed(self) -> int:
        return sum(row["failed"] for row in self.rows)


def report_parts(
    task: Task,
    items: Sequence[Item],
    outcomes: Sequence[RouteOutcome],
    first_tokens: FirstTokens | None,
    *,
    out: Path,
    seed: int,
    command: str,
    settings: Mapping[str, Any],
    seconds: float,
) -> tuple[Path, dict[str, Any]]:
    """Write `report.json`; its path and what it holds."""
    scores = {o.facts.name: score_items(task, items, [row["hypothesis"] for row in o.rows]) for o in outcomes}
    shared = [index for index in range(len(items)) if not any(o.rows[index]["failed"] for o in outcomes)]
    parts = {
        name: {measure.name: parts_of(measure, score) for measure in measures_of(task)}
        for name, score in scores.items()
    }
    first = outcomes[0].facts.name
    extra = {
        "task": {
            "name": task.name,
            "help": task.help,
            "measures": [
                {"name": m.name, "label": m.label, "better": m.better, "binary": m.binary} for m in measures_of(task)
            ],
        },
        "shared_items": len(shared),
        "routes": {
            o.facts.name: _route(task, items, o, scores[o.facts.name], parts[o.facts.name], shared, first_tokens, seed)
            for o in outcomes
        },
        "pairs": pairs_of(measures_of(task), parts, shared, seed=seed),
    }
    report = write_report(
        out,
        metrics=scores[first].metrics,
        settings=settings,
        command=command,
        timings={"this_run_seconds": round(seconds, 3)},
        items=len(items),
        failed=len(items) - len(shared),
        extra=extra,
    )
    return report, json.loads(report.read_text(encoding="utf-8"))


def _route(
    task: Task,
    items: Sequence[Item],
    outcome: RouteOutcome,
    score: TaskScore,
    parts: Mapping[str, Sequence[Parts]],
    shared: Sequence[int],
    first_tokens: FirstTokens | None,
    seed: int,
) -> dict[str, Any]:
    facts, failed = outcome.facts, [row for row in outcome.rows if row["failed"]]
    names = [measure.name for measure in measures_of(task)]
    return {
        "kind": facts.kind,
        "settings": facts.settings,
        "counts": {"items": len(items), "answered": len(items) - len(failed), "failed": len(failed)},
        "failures": [{"id": row["id"], "error": row["error"]} for row in failed[:FAILURES_KEPT]],
        "shared": {name: rate_of([parts[name][index] for index in shared], seed=seed) for name in names},
        "answered": {name: rate_of(parts[name], seed=seed) for name in names},
        "metrics": score.metrics,
        "tables": tables([item.utterance for item in items], score),
        "timings": speed([outcome.rows[index] for index in shared]),
        "first_token": None if first_tokens is None else first_tokens.summary(facts.name),
        "memory": outcome.memory,
        "load_seconds": outcome.load_seconds,
        "parameters": facts.parameters,
        "bytes_on_disk": facts.bytes_on_disk,
    }


def speed(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of answered rows: seconds of audio and of work, and what follows from them.

    `answer_tokens_per_second` counts all work of a route (hearing, prompt, answer), as a user waits for all of it.
    """
    audio, wall = sum(row["audio_seconds"] or 0.0 for row in rows), sum(row["wall_seconds"] for row in rows)
    tokens = sum(row["new_tokens"] for row in rows)
    return {
        "items": len(rows),
        "audio_seconds": round(audio, 6),
        "wall_seconds": round(wall, 6),
        "answer_tokens": tokens,
        "real_time_factor": ratio(wall, audio),
        "answer_tokens_per_second": ratio(tokens, wall),
        "cut_answers": sum(row["finished"] is False for row in rows),
    }


def pairs_of(
    measures: Sequence[Measure],
    parts: Mapping[str, Mapping[str, Sequence[Parts]]],
    shared: Sequence[int],
    *,
    seed: int,
) -> list[dict[str, Any]]:
    """Every two routes on every measure, on the items that all routes answered.

    p-values of one measure are corrected for the number of pairs (Holm): `p_value_holm`. `better` names the route
    that is better with `p_value_holm` below 0.05, None where the items do not show it.
    """
    if not shared:
        return []
    found: list[dict[str, Any]] = []
    for measure in measures:
        rows: list[dict[str, Any]] = []
        for a, b in itertools.combinations(parts, 2):
            own = [[parts[name][measure.name][index] for index in shared] for name in (a, b)]
            rows.append({"a": a, "b": b, "measure": measure.name, **compare_parts(measure, *own, seed=seed)})
        told = [row for row in rows if row["p_value"] is not None]
        for row, corrected in zip(told, holm([row["p_value"] for row in told]), strict=True):
            row["p_value_holm"] = corrected
        found += [{**row, "better": _better(row, measure)} for row in rows]
    return found


def _better(row: Mapping[str, Any], measure: Measure) -> str | None:
    if row.get("p_value_holm") is None or row["p_value_holm"] >= 0.05 or not row["difference"]:
        return None
    a_is_better = (row["difference"] > 0) == (measure.better == "high")
    return row["a"] if a_is_better else row["b"]
