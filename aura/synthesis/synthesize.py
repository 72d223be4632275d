"""Jobs -> an output folder, in parallel; once interrupted or killed, it goes on where it stopped.

out/
  audio/ab/ab12....opus   one file a row, written whole or not at all
  rows.jsonl              a row as soon as its audio is there: the memory of an interrupted run
  manifest.jsonl          the rows of the last complete run, in the order of the texts
  README.md               the data card
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import multiprocessing
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from aura.data.one_writer import one_writer
from aura.errors import AuraError, RecipeError
from aura.evaluation.item_log import ItemLog
from aura.evaluation.json_text import replace_text
from aura.synthesis.card import data_card
from aura.synthesis.engine import Engine, EngineOptions
from aura.synthesis.engines import open_engine
from aura.synthesis.plan import Cast, Job, Style, plan_jobs
from aura.synthesis.render import make_row
from aura.synthesis.texts import Line

LOG, MANIFEST, CARD = "rows.jsonl", "manifest.jsonl", "README.md"
AHEAD = 4  # jobs handed out per worker: enough that none waits, few enough that Ctrl-C ends soon

OnRow = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """What a run made.

    Args:
        manifest: the file; None when every row failed.
        rows: of the manifest; made: of them, by this run; the others were there before.
        failed: texts that could not be spoken, with the reason.
        seconds: of audio.
        strangers: rows of the log that belong to other texts or settings; they are in no manifest.
    """

    manifest: Path | None
    rows: int
    made: int
    failed: tuple[str, ...]
    seconds: float
    strangers: int


def synthesize(
    lines: Sequence[Line],
    cast: Cast,
    out: str | os.PathLike[str],
    *,
    style: Style | None = None,
    takes: int = 1,
    seed: int = 0,
    workers: int = 1,
    options: EngineOptions | None = None,
    source: str = "",
    command: str | None = None,
    on_start: Callable[[int], None] | None = None,
    on_row: OnRow | None = None,
) -> Synthesis:
    """Speak every line and write a manifest.

    Args:
        out: folder; rows that are there already (same text, answer, engine, voice, style and seed) are kept.
        takes: how often each text is spoken, by different voices.
        workers: processes; 1 works in this one.
        options: for the workers' own engines, which must be those of the cast.
        source, command: for the data card.
        on_start: called with the number of rows still to be made; on_row with each row as it is done.

    Raises:
        AuraError: the folder cannot be written, is in use, or a worker died; rows made so far are kept.
    """
    if workers < 1:
        raise RecipeError(f"workers is {workers}; expected at least 1")
    folder, style, options = Path(out), style or Style(), options or EngineOptions()
    jobs = plan_jobs(lines, cast, style, takes=takes, seed=seed)
    with one_writer(folder), ItemLog(folder / LOG) as log:
        remove_leftovers(folder)
        known = {row["id"]: row for row in log.rows()}
        waiting = [job for job in jobs if not _is_done(known.get(job.id), folder)]
        if on_start is not None:
            on_start(len(waiting))
        for row in _rows(waiting, cast, style, folder, workers, options):
            log.append(row)
            if on_row is not None:
                on_row(row)
        known = {row["id"]: row for row in log.rows()}
    found = [known[job.id] for job in jobs]
    good = [row for row in found if not row.get("failed")]
    failed = tuple(f"{row['engine']}:{row['voice']}: {row['error']}" for row in found if row.get("failed"))
    manifest = folder / MANIFEST if good else None
    if manifest is not None:
        replace_text(manifest, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in good))
        command = command or shlex.join(["aura", *sys.argv[1:]])
        card = data_card(good, cast, style, source=source, command=command, seed=seed, failed=len(failed))
        replace_text(folder / CARD, card)
    return Synthesis(
        manifest=manifest,
        rows=len(good),
        made=sum(not known[job.id].get("failed") for job in waiting),
        failed=failed,
        seconds=sum(row["seconds"] for row in good),
        strangers=len(known) - len({job.id for job in jobs}),
    )


def _is_done(row: Mapping[str, Any] | None, folder: Path) -> bool:
    return row is not None and not row.get("failed") and (folder / row["audio"]).is_file()


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run left half written."""
    for partial in folder.glob("audio/*/.*.partial"):
        partial.unlink(missing_ok=True)


def _rows(
    jobs: Sequence[Job], cast: Cast, style: Style, folder: Path, workers: int, options: EngineOptions
) -> Iterator[dict[str, Any]]:
    """A row for each job, in the order they are done."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield make_row(job, cast.engines[job.engine], style, folder)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(jobs)),
        # Nothing is inherited: a fork of a process with threads (BLAS, onnxruntime) may hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(options, style, folder),
    )
    remaining = iter(jobs)
    try:
        running = {pool.submit(_work, job) for job in itertools.islice(remaining, AHEAD * workers)}
        while running:
            done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
            running |= {pool.submit(_work, job) for job in itertools.islice(remaining, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise AuraError(
            "a worker process died, perhaps for lack of memory; the rows made so far are kept. Run the same command again, "
            "with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: dict[str, Any] = {}


def _start_worker(options: EngineOptions, style: Style, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, which lets the workers finish their row
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.update(options=options, style=style, folder=folder, engines={})


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, and they would wait for the next job for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(job: Job) -> dict[str, Any]:
    engines: dict[str, Engine] = _worker["engines"]
    if job.engine not in engines:
        engines[job.engine] = open_engine(job.engine, _worker["options"])
    return make_row(job, engines[job.engine], _worker["style"], _worker["folder"])
