"""Routes that answer from a table: they need no model, and can fail in every way that a real one can."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aura.errors import AudioError, ModelError
from aura.evaluation.routes.route import Progress, Question, Reply, RouteFacts

ASKED: list[tuple[str, list[str]]] = []
"""(route, ids) of each call of `answer` in this process, in order."""


class FakeRoute:
    """Answers `answers[id]`; a missing id is a failed reply.

    Args:
        raises: ids on which `answer` raises, with what: `aura`, `bug`, `interrupt` or `die`.
        delay: seconds that a first token takes.
        score_table: id -> log-likelihood per option; without it, the route cannot score.
    """

    def __init__(
        self,
        name: str,
        answers: Mapping[str, str],
        *,
        raises: Mapping[str, str] | None = None,
        delay: float = 0.0,
        setting: Any = 1,
        score_table: Mapping[str, Sequence[float]] | None = None,
        kind: Any = "aura",
    ) -> None:
        self.answers = dict(answers)
        self.raises = dict(raises or {})
        self.delay = delay
        self.score_table = score_table
        self.facts = RouteFacts(
            name=name,
            kind=kind,
            settings={"setting": setting, "process": "another"},
            parameters=270_000_000,
            bytes_on_disk=540_000_000,
        )

    def answer(
        self, questions: Sequence[Question], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        ASKED.append((self.facts.name, [question.id for question in questions]))
        print("a library that prints to stdout")
        for question in questions:
            how = self.raises.get(question.id)
            if how == "aura":
                raise AudioError(f"{question.id} is too loud")
            if how == "bug":
                raise ZeroDivisionError("float division\nby zero")
            if how == "interrupt":
                raise KeyboardInterrupt
            if how == "die":
                os._exit(3)
        if progress is not None:
            progress(len(questions))
        return [self._reply(question, max_new_tokens) for question in questions]

    def first_token(self, question: Question) -> float:
        if question.id not in self.answers:
            raise ModelError(f"{question.id} has no answer")
        start = time.perf_counter()
        time.sleep(self.delay)
        return time.perf_counter() - start

    def score(self, question: Question, options: Sequence[str]) -> list[float]:
        if self.score_table is None:
            raise ModelError("this route scores nothing")
        return list(self.score_table[question.id])

    def _reply(self, question: Question, max_new_tokens: int) -> Reply:
        text = self.answers.get(question.id)
        if text is None:
            return Reply(text=None, finished=False, new_tokens=0, wall_seconds=0.0, error="the route gave up")
        words = text.split()[:max_new_tokens]
        heard = " ".join(question.transcripts or ()) if self.facts.kind == "cascade" else None
        return Reply(
            text=" ".join(words),
            finished=len(words) == len(text.split()),
            new_tokens=len(words),
            wall_seconds=0.01 * (1 + len(words)),
            heard=heard,
        )


def fake(name: str, answers: Mapping[str, str], **options: Any) -> Callable[[], FakeRoute]:
    """An opener, as `compare` takes it; it can be sent to another process."""
    return functools.partial(FakeRoute, name, dict(answers), **options)


def unopenable() -> FakeRoute:
    raise ModelError("no such checkpoint; copy it here")


def greedy_for_memory(megabytes: int, name: str, answers: Mapping[str, str]) -> FakeRoute:
    """A route that holds that much memory."""
    route = FakeRoute(name, answers)
    route.ballast = bytearray(os.urandom(1024) * 1024 * megabytes)  # type: ignore[attr-defined]
    return route
