"""Several routes, the same questions, one report: who is right how often, how fast, with how much memory.

    OUT/
      report.json  report.md  report.html
      first_token.json           time to the first token, kept so that a second run need not measure again
      <route>/items.jsonl        each answer as soon as it is there: what an interrupted run goes on from
      <route>/items.settings.json
      <route>/run.json           peak memory and load time

Each route runs in a process of its own: only then is peak memory the route's, and a route that is killed for
memory takes no other with it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aura.data.one_writer import one_writer
from aura.data.utterance import Utterance
from aura.errors import DataError
from aura.evaluation.item_log import ItemLog
from aura.evaluation.json_text import plain, replace_text
from aura.evaluation.latency import (
    FirstTokens,
    kept_first_tokens,
    measure_first_tokens,
    sample_items,
    save_first_tokens,
)
from aura.evaluation.measures import Item, items_of, score_items
from aura.evaluation.report import folder_of
from aura.evaluation.route_answers import CHUNK, Asking, Candidate, answer_items, scored_rows
from aura.evaluation.route_host import OpenRoute, RouteHere, RouteHost, RouteProcess
from aura.evaluation.route_results import RouteOutcome, report_parts
from aura.evaluation.routes.route import RouteFacts
from aura.evaluation.tasks import get_task
from aura.progress import audio_progress

FIRST_TOKEN_ITEMS = 20  # our choice: a minute for four routes on a small machine
PAGE_ROWS = 60  # our choice: about 1 MB of audio


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What came out.

    Args:
        report, table, page: paths of report.json, report.md and report.html.
        content: what report.json holds.
        items: utterances given.
        failed: by route, those among them without an answer.
        errors: the first few reasons, `route: id: reason`.
    """

    report: Path
    table: Path
    page: Path
    content: Mapping[str, Any]
    items: int
    failed: Mapping[str, int]
    errors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How routes are compared.

    Args:
        max_new_tokens: per answer.
        prompt: asked behind the audio instead of what the utterances' own user turns say.
        limit: first N utterances.
        first_token_items: items (a fixed-seed sample) on which the time to the first token is measured; 0: not.
        page_rows: rows to hear on the page at most.
        seed: of every sample and bootstrap.
        chunk: items that one route answers before the next route's turn.
        isolate: a process per route; False runs them here, and then memory cannot be told apart.
        one_at_a_time: open, ask and close one route after the other: the least memory, but the timings are then
            not taken side by side.
        resume: go on with the items in `out`; False starts over.
    """

    max_new_tokens: int = 128
    prompt: str | None = None
    limit: int | None = None
    first_token_items: int = FIRST_TOKEN_ITEMS
    page_rows: int = PAGE_ROWS
    seed: int = 0
    chunk: int = CHUNK
    isolate: bool = True
    one_at_a_time: bool = False
    resume: bool = True


def compare(
    routes: Sequence[OpenRoute],
    utterances: Iterable[Utterance],
    *,
    task: str = "transcribe",
    out: str | os.PathLike[str],
    options: CompareOptions = CompareOptions(),  # frozen
    command: str = "aura.evaluation.compare.compare(...)",
    settings: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> Comparison:
    """Let every route answer every utterance, and report how they did beside each other.

    An item that a route cannot answer is written down as failed and counted, never scored as an empty answer.
    What is compared between routes is computed on the items that every route answered; what a route reached on
    all it answered stands beside it.

    Args:
        routes: functions that open a route each (picklable ones with `isolate`); the first is the one that
            `metrics` in the report is about.
        utterances: with what the task needs to score against.
        task: a name of `aura.evaluation.tasks.TASKS`.
        out: folder of the reports and the answers.
        options: see `CompareOptions`.
        command: what reproduces the report, kept in it.
        settings: kept in the report, e.g. the manifests.

    Raises:
        DataError: nothing to score against, two routes of one name, `out` holds answers given under other
            settings, or another process writes there.
        AuraError: a route cannot be opened, or its process ended. Answers so far are kept.
    """
    if not routes:
        raise DataError("no routes were given to compare; expected at least one, e.g. aura=CHECKPOINT")
    asking = Asking(
        task=get_task(task), prompt=options.prompt, max_new_tokens=options.max_new_tokens, chunk=options.chunk
    )
    items = items_of(asking.task, list(itertools.islice(utterances, options.limit)))
    score_items(asking.task, items[:1], [None])  # the scoring package is missing: say so now, not after an hour
    run = _Run(Path(out), items, asking, options, show_progress)
    start = time.monotonic()
    with one_writer(run.out):
        outcomes, first_tokens = run.ask_all(routes)
    report, content = report_parts(
        asking.task,
        items,
        outcomes,
        first_tokens,
        out=Path(out),
        seed=options.seed,
        command=command,
        settings={
            **(settings or {}),
            "task": task,
            "prompt": options.prompt,
            "max_new_tokens": options.max_new_tokens,
            "limit": options.limit,
            "seed": options.seed,
            "first_token_items": options.first_token_items,
            "chunk": options.chunk,
            "isolated": options.isolate,
            "one_at_a_time": options.one_at_a_time,
        },
        seconds=time.monotonic() - start,
    )
    from aura.evaluation.page import write_page
    from aura.evaluation.report_table import write_table

    rows = {outcome.facts.name: outcome.rows for outcome in outcomes}
    return Comparison(
        report=report,
        table=write_table(Path(out), content),
        page=write_page(Path(out), content, items, rows, limit=options.page_rows, seed=options.seed),
        content=content,
        items=len(items),
        failed={outcome.facts.name: outcome.failed for outcome in outcomes},
        errors=tuple(
            f"{outcome.facts.name}: {row['id']}: {row['error']}"
            for outcome in outcomes
            for row in [row for row in outcome.rows if row["failed"]][:3]
        ),
    )


class _Run:
    """Routes opened, asked, measured and closed."""

    def __init__(
        self, out: Path, items: Sequence[Item], asking: Asking, options: CompareOptions, show_progress: bool
    ) -> None:
        self.out = out
        self.items = items
        self.asking = asking
        self.options = options
        self.show_progress = show_progress
        self.folders: dict[str, str] = {}  # folder -> route
        self.sample = sample_items(items, options.first_token_items, seed=options.seed)

    def ask_all(self, routes: Sequence[OpenRoute]) -> tuple[list[RouteOutcome], FirstTokens | None]:
        """Outcomes in the order of the routes, and what was measured beside them."""
        groups = [[route] for route in routes] if self.options.one_at_a_time else [list(routes)]
        outcomes: list[RouteOutcome] = []
        measured: FirstTokens | None = None
        for group in groups:
            with contextlib.ExitStack() as stack:
                hosts = [self._open(route, stack) for route in group]
                candidates = [Candidate(host=host, log=self._log(host, stack)) for host in hosts]
                outcomes += self._answer(candidates)
                found = self._first_tokens(hosts)
                measured = found if measured is None or found is None else measured.joined(found)
        return outcomes, measured

    def _open(self, opener: OpenRoute, stack: contextlib.ExitStack) -> RouteHost:
        host: RouteHost = RouteProcess(opener) if self.options.isolate else RouteHere(opener)
        stack.callback(host.close)
        name, folder = host.facts.name, folder_of(host.facts.name)
        if folder in self.folders:
            raise DataError(
                f"two routes would share the folder {folder!r}: {self.folders[folder]!r} and {name!r}; "
                "expected different names. Compare several checkpoints in several runs: aura report A.json B.json"
            )
        self.folders[folder] = name
        return host

    def _log(self, host: RouteHost, stack: contextlib.ExitStack) -> ItemLog:
        path = self.out / folder_of(host.facts.name) / "items.jsonl"
        decides = {
            "route": host.facts.kind,
            **host.facts.settings,
            "task": self.asking.task.name,
            "prompt": self.asking.prompt,
            "max_new_tokens": self.asking.max_new_tokens,
        }
        return stack.enter_context(ItemLog(path, settings=decides, resume=self.options.resume))

    def _answer(self, candidates: Sequence[Candidate]) -> list[RouteOutcome]:
        with self._bar("answering", len(candidates) * len(self.items)) as advance:
            asked = answer_items(candidates, self.items, self.asking, advance)
        outcomes = []
        for candidate in candidates:
            by_id = {row["id"]: row for row in candidate.log.rows()}
            rows = scored_rows(self.items, [by_id[item.id] for item in self.items], self.asking.task)
            for row in rows:
                if row != by_id[row["id"]]:  # its reference, or the rule that scores it, changed since
                    candidate.log.append(row)
            run = self._kept_run(candidate.host, asked=asked[candidate.name])
            outcomes.append(RouteOutcome(facts=candidate.host.facts, rows=plain(rows), **run))
        return outcomes

    def _kept_run(self, host: RouteHost, *, asked: int) -> dict[str, Any]:
        """Memory and load time of this run, or of the earlier one that answered."""
        path = self.out / folder_of(host.facts.name) / "run.json"
        memory = host.memory()
        kept: Any = None
        if self.options.resume and path.exists():
            with contextlib.suppress(ValueError, OSError):
                kept = json.loads(path.read_text(encoding="utf-8"))
        if memory and isinstance(kept, dict) and isinstance(kept.get("memory"), dict):
            memory = _larger(kept["memory"], memory) if asked else kept["memory"]
        found = {"memory": memory, "load_seconds": host.load_seconds}
        replace_text(path, json.dumps(plain(found), indent=2) + "\n")
        return found

    def _first_tokens(self, hosts: Sequence[RouteHost]) -> FirstTokens | None:
        """Measured now, or by an earlier run with the same routes on the same items."""
        if not self.sample:
            return None
        key = {
            "routes": {host.facts.name: _key(host.facts) for host in hosts},
            "items": [item.id for item in self.sample],
            "prompt": self.asking.prompt,
        }
        names = "-".join(folder_of(host.facts.name) for host in hosts) if self.options.one_at_a_time else ""
        path = self.out / (f"first_token-{names}.json" if names else "first_token.json")
        kept = kept_first_tokens(path, plain(key)) if self.options.resume else None
        if kept is not None:
            return kept
        with self._bar("time to first token", len(hosts) * len(self.sample)) as advance:
            measured = measure_first_tokens(hosts, self.sample, prompt=self.asking.prompt, advance=advance)
        save_first_tokens(path, measured, plain(key))
        return measured

    def _bar(self, title: str, total: int) -> contextlib.AbstractContextManager[Any]:
        return audio_progress(title, total, show=self.show_progress)


def _key(facts: RouteFacts) -> dict[str, Any]:
    return {"kind": facts.kind, **facts.settings}


def _larger(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The higher of two peaks, field by field."""
    both = {**a, **b}
    numbers: Iterator[str] = (key for key in both if isinstance(a.get(key), int) and isinstance(b.get(key), int))
    return {**both, **{key: max(a[key], b[key]) for key in numbers}}
