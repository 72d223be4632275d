"""The report as one page that needs nothing else: no network, no script, audio and plots inside."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aura.audio.patches import SAMPLE_RATE
from aura.data.utterance import message_text
from aura.errors import AudioError
from aura.evaluation import charts
from aura.evaluation.json_text import replace_text
from aura.evaluation.measures import Item
from aura.evaluation.normalise import normalise
from aura.evaluation.report_table import (
    bytes_text,
    count_text,
    fairness,
    headline,
    interval_text,
    kind_text,
    p_text,
    percent,
    scope_text,
    seconds_text,
)
from aura.evaluation.word_diff import Piece, diff_words

LONGEST_CLIP = 30.0  # seconds of a recording that go into the page
Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # by route, in the items' order


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One route's answer to one item."""

    route: str
    index: int
    right: bool | None  # None: failed, or the task cannot tell
    failed: bool
    error: str | None
    pieces: tuple[Piece, ...]
    transcript: str | None  # what a cascade's recogniser wrote
    cut: bool


@dataclass(frozen=True, kw_only=True)
class ShownItem:
    """One row of the page."""

    id: str
    seconds: float | None
    audio: tuple[str, ...]  # data URIs
    note: str
    asked: str
    said: str
    truth: str
    agree: bool
    heard: tuple[Heard, ...]


def write_page(
    out: Path, report: Mapping[str, Any], items: Sequence[Item], rows: Rows, *, limit: int, seed: int
) -> Path:
    """Write `report.html`.

    Args:
        report: what `report.json` holds.
        items, rows: the items and each route's rows for them.
        limit: items to hear at most; a sample where there are more, disagreements first.
        seed: of the sample.
    """
    chosen, disagreements = choose_items(items, rows, limit=limit, seed=seed)
    shown = [shown_item(items[index], {name: own[index] for name, own in rows.items()}) for index in chosen]
    path = out / "report.html"
    replace_text(path, render(report, shown, disagreements=disagreements))
    return path


def render(report: Mapping[str, Any], shown: Sequence[ShownItem], *, disagreements: int) -> str:
    """The page's HTML; every text in it is escaped by the template engine."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("aura.evaluation", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval_text,
        "p": p_text,
        "kind": kind_text,
    }
    return environment.get_template("comparison.html.j2").render(
        report=report,
        names=list(report["routes"]),
        route_facts={name: _facts(route) for name, route in report["routes"].items()},
        lines=headline(report),
        findings=findings(report),
        scope=scope_text(report),
        fairness=fairness(report),
        bars=charts.bar_charts(report, percent, interval_text),
        scatter=charts.latency_scatter(report),
        chart=charts,
        marks=charts.marks(len(report["routes"])),
        pairs=[(measure, [p for p in report["pairs"] if p["measure"] == measure["name"]])
               for measure in report["task"]["measures"]],
        shown=shown,
        shown_disagreements=sum(not item.agree for item in shown),
        disagreements=disagreements,
    )  # fmt: skip


def _facts(route: Mapping[str, Any]) -> dict[str, Any]:
    """What is listed of a route: settings, and its figures in units for people."""
    memory = {
        key.removesuffix("_bytes").replace("_", " ") + " memory": bytes_text(value)
        for key, value in (route["memory"] or {}).items()
        if key.endswith("_bytes")
    }
    load = route["load_seconds"]
    return {
        "kind": route["kind"],
        **route["settings"],
        "parameters": count_text(route["parameters"]),
        "weights on disk": bytes_text(route["bytes_on_disk"]),
        "load": "-" if load is None else f"{load:.1f} s",
        **(memory or {"memory": "not told apart: the routes ran in one process"}),
        "answers cut": route["timings"]["cut_answers"],
    }


def findings(report: Mapping[str, Any]) -> list[str]:
    """What the numbers say, in sentences."""
    measure = report["task"]["measures"][0]
    values = {name: route["shared"][measure["name"]]["value"] for name, route in report["routes"].items()}
    known = {name: value for name, value in values.items() if value is not None}
    if not known or len(values) < 2:
        return []
    order = sorted(known, key=lambda name: known[name] if measure["better"] == "low" else -known[name])
    said = [f"{measure['label']}: " + ", ".join(f"{name} {percent(known[name])}" for name in order) + "."]
    told = [pair for pair in report["pairs"] if pair["measure"] == measure["name"]]
    if better := [f"{p['better']} over {p['b'] if p['better'] == p['a'] else p['a']}" for p in told if p["better"]]:
        said.append(f"Shown beyond chance (p < 0.05 after Holm): {', '.join(better)}.")
    if open_ := [f"{p['a']} and {p['b']}" for p in told if not p["better"]]:
        said.append(f"Not told apart by these {report['shared_items']} items: {', '.join(open_)}.")
    first = {
        n: r["first_token"]["median"] for n, r in report["routes"].items() if r["first_token"] and r["kind"] != "text"
    }
    if len(timed := {name: value for name, value in first.items() if value is not None}) > 1:
        fastest = min(timed, key=lambda name: timed[name])
        said.append(f"Fastest to its first token: {fastest}, {seconds_text(timed[fastest])} in the median.")
    return said


def choose_items(items: Sequence[Item], rows: Rows, *, limit: int, seed: int) -> tuple[list[int], int]:
    """Indices of the items to show, in the manifest's order, and how many disagreements there are in all.

    Disagreements first: with more of them than room, a fixed-seed sample of them; else all, and a sample of the
    rest.
    """
    rng = random.Random(seed)
    agreeing = [_agree(items[index], [own[index] for own in rows.values()]) for index in range(len(items))]
    apart = [index for index, agree in enumerate(agreeing) if not agree]
    alike = [index for index, agree in enumerate(agreeing) if agree]
    chosen = rng.sample(apart, min(limit, len(apart)))
    chosen += rng.sample(alike, min(limit - len(chosen), len(alike)))
    return sorted(chosen), len(apart)


def _agree(item: Item, rows: Sequence[Mapping[str, Any]]) -> bool:
    """All routes gave the same answer, up to what scores ignore; a failed one agrees with failed ones only."""
    lang = item.utterance.lang or "en"
    return len({None if row["failed"] else normalise(row["hypothesis"], lang) for row in rows}) == 1


def shown_item(item: Item, rows: Mapping[str, Mapping[str, Any]]) -> ShownItem:
    """Audio and answers of one item."""
    audio, note, seconds = clip_uris(item)
    first = next(iter(rows.values()))
    reference = first["reference"]
    truth = reference if isinstance(reference, str) else " / ".join(map(str, reference))
    users = [message for message in item.utterance.messages if message["role"] == "user"]
    said = item.utterance.transcript or ""
    return ShownItem(
        id=item.id,
        seconds=seconds,
        audio=tuple(audio),
        note=note,
        asked=message_text(users[-1]) if users else "",
        said=said if said != truth else "",
        truth=truth,
        agree=_agree(item, list(rows.values())),
        heard=tuple(_heard(item, name, index, row) for index, (name, row) in enumerate(rows.items())),
    )


def _heard(item: Item, name: str, index: int, row: Mapping[str, Any]) -> Heard:
    answer = row["hypothesis"]
    if answer is None:
        pieces: list[Piece] = []
    elif row["correct"]:
        pieces = [Piece(kind="same", answer=answer)]  # whole texts may be equal where single words are not
    else:
        pieces = diff_words(row["reference"], answer, lang=item.utterance.lang or "en")
    return Heard(
        route=name,
        index=index,
        right=row["correct"],
        failed=row["failed"],
        error=row["error"],
        pieces=tuple(pieces),
        transcript=row["heard"],
        cut=row["finished"] is False,
    )


def clip_uris(item: Item) -> tuple[list[str], str, float | None]:
    """Data URIs of the item's recordings, a note where something is missing, and their length in seconds."""
    uris, note, seconds = [], "", 0.0
    try:
        for part in item.utterance.audio:
            wave_N = part.load()
            seconds += len(wave_N) / SAMPLE_RATE
            if len(wave_N) > LONGEST_CLIP * SAMPLE_RATE:
                note = f"The player holds the first {LONGEST_CLIP:g} s."
            uris.append(data_uri(wave_N[: int(LONGEST_CLIP * SAMPLE_RATE)]))
    except AudioError as error:
        return uris, f"Cannot be heard: {error}", None
    return uris, note, seconds


def data_uri(wave_N: np.ndarray) -> str:
    """16 kHz mono samples as `data:audio/...;base64,...`: Ogg Opus, a tenth of a WAV; WAV where it cannot be made."""
    import soundfile

    opus = soundfile.check_format("OGG", "OPUS")
    file = io.BytesIO()
    container, coding = ("OGG", "OPUS") if opus else ("WAV", "PCM_16")
    soundfile.write(file, np.clip(wave_N, -1.0, 1.0), SAMPLE_RATE, format=container, subtype=coding)
    return f"data:audio/{'ogg' if opus else 'wav'};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
