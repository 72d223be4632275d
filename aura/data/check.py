"""Decode every row once and say what is there and what is wrong: `aura data check MANIFEST`."""

from __future__ import annotations

import itertools
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from aura.audio.waveform import SAMPLE_RATE
from aura.data.collect import Result
from aura.data.manifest import is_manifest, manifest_results, read_utterances
from aura.data.utterance import Utterance, no_speech_kind
from aura.errors import AudioError

WORKERS = 2  # threads; the decoders release the interpreter lock
CHUNK = 64  # rows in flight, so that a streamed dataset of any length fits
EDGES = (
    0.0,
    1.0,
    2.0,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    60.0,
    600.0,
)  # s, bins of the histogram, the last one open
SILENCE = 1e-4  # peak below which a clip holds nothing to hear, -80 dBFS
SECONDS_SLACK = 0.1  # s by which a row's `seconds` may differ from what was decoded
SHOWN_GROUPS = 10  # speakers, tasks and languages named in the text report


@dataclass(frozen=True, kw_only=True)
class RowProblem:
    """place: `line 7` or `row 7`; id: of the utterance where there is one; reason: one line."""

    place: str
    id: str | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What a manifest or dataset holds. Durations are in seconds, of what was decoded.

    bad: rows that training would have to drop; notes: rows that work but look wrong (silence, a wrong
    `seconds`, the same id twice, no answer); speakers, tasks, languages: rows by name; histogram: `[from, to,
    rows]`.
    """

    source: str
    rows: int
    good: int
    hours: float
    seconds_min: float
    seconds_median: float
    seconds_mean: float
    seconds_max: float
    histogram: tuple[tuple[float, float | None, int], ...]
    speakers: Mapping[str, int]
    tasks: Mapping[str, int]
    languages: Mapping[str, int]
    bad: tuple[RowProblem, ...]
    notes: tuple[RowProblem, ...]

    @property
    def ok(self) -> bool:
        """Every row can be used."""
        return not self.bad

    def as_dict(self) -> dict[str, Any]:
        """For JSON: all fields and `ok`."""
        return {"ok": self.ok, **asdict(self)}

    def as_text(self) -> str:
        """For people: a few lines, a histogram, then every bad row with its reason."""
        lines = [
            f"{self.source}: {self.good} of {self.rows} rows can be used, {self.hours:.2f} h",
            f"  seconds    min {self.seconds_min:.2f}  median {self.seconds_median:.2f}  "
            f"mean {self.seconds_mean:.2f}  max {self.seconds_max:.2f}",
            _groups("speakers", self.speakers),
            _groups("tasks", self.tasks),
            _groups("languages", self.languages),
            *_bars(self.histogram),
        ]
        for title, problems in (("bad rows", self.bad), ("notes", self.notes)):
            if problems:
                lines.append(f"{title}: {len(problems)}")
                lines.extend(f"  {problem.place}: {problem.reason}" for problem in problems)
        return "\n".join(lines)


def check_manifest(
    source: str | os.PathLike | Iterable[Utterance],
    *,
    data_root: str | os.PathLike | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    name: str | None = None,
    limit: int | None = None,
    workers: int = WORKERS,
    on_row: Callable[[int], None] | None = None,
) -> DataReport:
    """Decode everything once.

    Args:
        source: what `read_utterances` takes, or utterances.
        data_root, columns, split, name, limit: as in `read_utterances`.
        workers: decoding threads.
        on_row: called after each row with the number of rows done, for a progress bar.

    Raises:
        DataError: the source itself cannot be opened; bad rows are reported, not raised.
    """
    if isinstance(source, (str, os.PathLike)):
        title = os.fspath(source)
        results = _results(title, data_root=data_root, columns=columns, split=split, name=name, limit=limit)
    else:
        title = "utterances"
        results = ((f"row {index}", u) for index, u in enumerate(itertools.islice(source, limit)))
    tally = _Tally()
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        while chunk := list(itertools.islice(results, CHUNK)):
            for (place, result), heard in zip(chunk, pool.map(_listen, chunk), strict=True):
                tally.add(place, result, heard)
                if on_row is not None:
                    on_row(tally.rows)
    return tally.report(title)


def _results(source: str, *, data_root: Any, columns: Any, split: Any, name: Any, limit: Any) -> Iterator[Result]:
    if is_manifest(source) and split is None and name is None:
        yield from manifest_results(source, data_root=data_root, columns=columns, limit=limit)
        return
    found = read_utterances(
        source, data_root=data_root, columns=columns, split=split, name=name, limit=limit, skip_bad=True
    )
    for reason in getattr(found, "skipped", ()):
        place, _, text = reason.partition(": ")
        yield place, text
    yield from ((utterance.id, utterance) for utterance in found)


@dataclass(frozen=True, kw_only=True)
class _Heard:
    """What decoding one row gave: its length and its peak, or why it failed."""

    seconds: float = 0.0
    peak: float = 0.0
    failure: str | None = None


def _listen(row: Result) -> _Heard:
    utterance = row[1]
    if isinstance(utterance, str):
        return _Heard(failure=utterance)
    seconds = peak = 0.0
    for part in utterance.audio:
        try:
            wave = part.load()
        except AudioError as error:
            return _Heard(failure=str(error))
        seconds += len(wave) / SAMPLE_RATE
        peak = max(peak, float(np.abs(wave).max()))
    return _Heard(seconds=seconds, peak=peak)


class _Tally:
    """Counts rows as they come."""

    def __init__(self) -> None:
        self.rows = 0
        self.seconds: list[float] = []
        self.groups: dict[str, Counter[str]] = {key: Counter() for key in ("speaker", "task", "lang")}
        self.bad: list[RowProblem] = []
        self.notes: list[RowProblem] = []
        self.places: dict[str, str] = {}

    def add(self, place: str, result: Utterance | str, heard: _Heard) -> None:
        self.rows += 1
        if isinstance(result, str) or heard.failure is not None:
            id_ = None if isinstance(result, str) else result.id
            self.bad.append(RowProblem(place=place, id=id_, reason=heard.failure or str(result)))
            return
        self.seconds.append(heard.seconds)
        for key, counter in self.groups.items():
            value = getattr(result, key)
            if value is not None:
                counter[value] += 1
        reasons = _reasons(result, heard, self.places.get(result.id))
        self.notes.extend(RowProblem(place=place, id=result.id, reason=reason) for reason in reasons)
        self.places.setdefault(result.id, place)

    def report(self, source: str) -> DataReport:
        seconds = self.seconds or [0.0]
        bounds = [*EDGES, float("inf")]
        counts = np.histogram(self.seconds, bins=bounds)[0] if self.seconds else [0] * len(EDGES)
        histogram = tuple(
            (low, None if high == float("inf") else high, int(count))
            for low, high, count in zip(EDGES, bounds[1:], counts, strict=True)
        )
        return DataReport(
            source=source,
            rows=self.rows,
            good=len(self.seconds),
            hours=sum(seconds) / 3600,
            seconds_min=min(seconds),
            seconds_median=statistics.median(seconds),
            seconds_mean=statistics.fmean(seconds),
            seconds_max=max(seconds),
            histogram=histogram,
            speakers=dict(self.groups["speaker"].most_common()),
            tasks=dict(self.groups["task"].most_common()),
            languages=dict(self.groups["lang"].most_common()),
            bad=tuple(self.bad),
            notes=tuple(self.notes),
        )


def _reasons(utterance: Utterance, heard: _Heard, earlier: str | None) -> Iterator[str]:
    """What looks wrong about a row that works."""
    if heard.peak < SILENCE and no_speech_kind(utterance.label) is None:
        yield f"silence: the loudest sample is {heard.peak:.1e}"
    stated = [part.seconds for part in utterance.audio]
    if all(seconds is not None for seconds in stated):
        total = sum(seconds or 0.0 for seconds in stated)
        if abs(total - heard.seconds) > SECONDS_SLACK:
            yield f"the row says {total:.2f} s, {heard.seconds:.2f} s were decoded"
    if not utterance.answer.strip():
        yield "no answer to learn: neither transcript, label nor assistant message"
    if earlier is not None:
        yield f"the id {utterance.id!r} is also that of {earlier}"


def _groups(title: str, counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name} ({count})" for name, count in itertools.islice(counts.items(), SHOWN_GROUPS))
    more = f", and {len(counts) - SHOWN_GROUPS} more" if len(counts) > SHOWN_GROUPS else ""
    return f"  {title:<10} {len(counts)}" + (f": {shown}{more}" if counts else "")


def _bars(histogram: Iterable[tuple[float, float | None, int]]) -> Iterator[str]:
    bins = list(histogram)
    most = max(count for _, _, count in bins) or 1
    for low, high, count in bins:
        if count:
            reach = f"{low:g} to {high:g} s" if high is not None else f"over {low:g} s"
            yield f"  {reach:>12} {count:>7} {'#' * max(1, round(30 * count / most))}"
