"""Every route's answers to every item, chunk by chunk, each written down as soon as it is there."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aura.audio.patches import SAMPLE_RATE
from aura.batch.collate import Example
from aura.errors import AudioError, AuraError
from aura.evaluation.choices import most_likely
from aura.evaluation.item_log import ItemLog
from aura.evaluation.measures import Item, score_items
from aura.evaluation.question import asked_messages, question_digest
from aura.evaluation.route_host import RouteBroke, RouteHost
from aura.evaluation.routes.route import Reply
from aura.evaluation.tasks import Task
from aura.progress import Advance

CHUNK = 64  # items that each route answers in its turn, so that like lengths can be batched; our choice


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How every route is asked.

    Args:
        task: what is asked, and whether answers are chosen among options.
        prompt: asked behind the audio instead of what the utterances' own user turns say.
        max_new_tokens: per answer.
        chunk: items that one route answers before the next route's turn.
    """

    task: Task
    prompt: str | None
    max_new_tokens: int
    chunk: int = CHUNK


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A running route and its log."""

    host: RouteHost
    log: ItemLog

    @property
    def name(self) -> str:
        return self.host.facts.name


def question_of(item: Item, prompt: str | None) -> Example:
    """The item without its answer, decoded.

    Raises:
        AudioError: audio that cannot be heard.
    """
    utterance = item.utterance
    waveforms = [part.load() for part in utterance.audio]
    # One transcript belongs to one recording; with several, nobody knows who says what.
    known = utterance.transcript is not None and len(waveforms) == 1
    return Example(
        id=item.id,
        messages=asked_messages(utterance, prompt),
        waveforms=waveforms,
        transcripts=[utterance.transcript] if known else None,  # type: ignore[list-item]
    )


def digest_of(item: Item, asking: Asking) -> str:
    """Names the question: an item whose turns, recording, options or transcript changed is another one."""
    options = asking.task.options_of(item.utterance)
    return question_digest(item.utterance, prompt=asking.prompt, also=[options])


def pending_items(candidate: Candidate, items: Sequence[Item], asking: Asking) -> list[Item]:
    """Items without an answer in the log: new ones, failed ones, and those that are asked differently now."""
    done = {row["id"]: row.get("question") for row in candidate.log.rows() if not row["failed"]}
    return [item for item in items if done.get(item.id) != digest_of(item, asking)]


def answer_items(
    candidates: Sequence[Candidate], items: Sequence[Item], asking: Asking, advance: Advance
) -> dict[str, int]:
    """Let every candidate answer what it has not answered yet; how many that were, by name.

    The routes take turns chunk by chunk, so that a machine that is slow for a while is slow for all of them.

    Raises:
        AuraError: a route's process ended, or a log cannot be written. Rows so far are kept.
    """
    pending = {c.name: {item.id for item in pending_items(c, items, asking)} for c in candidates}
    scoring: set[str] = set()  # routes that can tell likelihoods: what they fail on is a failure, not one to write
    for first in range(0, len(items), asking.chunk):
        chunk = items[first : first + asking.chunk]
        wanted = [item for item in chunk if any(item.id in ids for ids in pending.values())]
        questions, unheard = _decode(wanted, asking.prompt)
        seconds = {id_: sum(map(len, question.waveforms)) / SAMPLE_RATE for id_, question in questions.items()}
        for candidate in candidates:
            mine = [item for item in wanted if item.id in pending[candidate.name]]
            heard = [item for item in mine if item.id in questions]
            replies = _answer_chunk(candidate.host, heard, questions, asking, advance, scoring)
            advance(len(mine) - len(heard), sum(seconds[item.id] for item in heard))
            for row in _rows(mine, {**unheard, **replies}, seconds, asking):
                candidate.log.append(row)
    return {name: len(ids) for name, ids in pending.items()}


def _decode(items: Sequence[Item], prompt: str | None) -> tuple[dict[str, Example], dict[str, Reply]]:
    """Questions by id; failed replies for those that cannot be heard."""
    questions, unheard = {}, {}
    for item in items:
        try:
            questions[item.id] = question_of(item, prompt)
        except AudioError as error:
            unheard[item.id] = _failed(error)
    return questions, unheard


def _answer_chunk(
    host: RouteHost,
    items: Sequence[Item],
    questions: Mapping[str, Example],
    asking: Asking,
    advance: Advance,
    scoring: set[str],
) -> dict[str, Reply]:
    """Replies by id: chosen by likelihood where there are options and the route can tell, else in writing.

    Args:
        scoring: names of routes that have told a likelihood; added to.
    """
    replies: dict[str, Reply] = {}
    for item in items:
        if (options := asking.task.options_of(item.utterance)) is not None and (
            chosen := _choose(host, questions[item.id], options, scoring)
        ) is not None:
            replies[item.id] = chosen
    advance(len(replies), 0.0)
    written = [questions[item.id] for item in items if item.id not in replies]
    return replies | dict(zip((q.id for q in written), _answer(host, written, asking, advance), strict=True))


def _choose(host: RouteHost, question: Example, options: Sequence[str], scoring: set[str]) -> Reply | None:
    """The likeliest option; None where the route has never told one; failed where it has, and not for this question."""
    start = time.perf_counter()
    try:
        text = most_likely(options, host.score(question, options))
    except (AuraError, RouteBroke) as error:
        _stop_if_gone(host, error)
        return _failed(error) if host.facts.name in scoring else None
    scoring.add(host.facts.name)
    return Reply(text=text, finished=True, new_tokens=0, wall_seconds=time.perf_counter() - start)


def _answer(host: RouteHost, questions: Sequence[Example], asking: Asking, advance: Advance) -> list[Reply]:
    """Replies in writing; where the route raises, one question at a time, so that one cannot fail the others."""
    if not questions:
        return []
    counted = 0

    def progress(count: int) -> None:
        nonlocal counted
        counted += count
        advance(count, 0.0)

    try:
        replies = host.answer(questions, max_new_tokens=asking.max_new_tokens, progress=progress)
        if len(replies) != len(questions):
            raise RouteBroke(f"the route gave {len(replies)} replies to {len(questions)} questions")
    except (AuraError, RouteBroke) as error:
        _stop_if_gone(host, error)
        if len(questions) == 1:
            replies = [_failed(error)]
        else:
            replies = [_answer(host, [question], asking, lambda *_: None)[0] for question in questions]
    advance(len(questions) - counted, 0.0)
    return replies


def _stop_if_gone(host: RouteHost, error: Exception) -> None:
    """Raise again where there is no route left to ask."""
    if not host.alive():
        raise error


def _failed(error: Exception) -> Reply:
    text = " ".join(str(error).split()) or type(error).__name__
    return Reply(text=None, finished=False, new_tokens=0, wall_seconds=0.0, error=text)


def _rows(
    items: Sequence[Item], replies: Mapping[str, Reply], seconds: Mapping[str, float], asking: Asking
) -> list[dict[str, Any]]:
    rows = []
    for item in items:
        reply = replies[item.id]
        rows.append(
            {
                "id": item.id,
                "question": digest_of(item, asking),
                "hypothesis": reply.text,
                "heard": reply.heard,
                "finished": None if reply.text is None else reply.finished,
                "new_tokens": reply.new_tokens,
                "audio_seconds": seconds.get(item.id),
                "wall_seconds": round(reply.wall_seconds, 6),
                "failed": reply.text is None,
                "error": reply.error,
            }
        )
    return scored_rows(items, rows, asking.task)


def scored_rows(items: Sequence[Item], rows: Sequence[Mapping[str, Any]], task: Task) -> list[dict[str, Any]]:
    """Rows with their `reference` and whether they are `correct`; None where they failed or cannot tell."""
    if not rows:
        return []
    correct = score_items(task, items, [row["hypothesis"] for row in rows]).correct
    return [
        {**row, "reference": task.written(item.reference), "correct": right}
        for item, row, right in zip(items, rows, correct, strict=True)
    ]
