"""Where a route runs during a comparison: in a process of its own, or in ours."""

from __future__ import annotations

import contextlib
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from aura.errors import AuraError, ModelError
from aura.evaluation.route_worker import describe
from aura.evaluation.routes.route import Progress, Question, Reply, Route, RouteFacts

OpenRoute = Callable[[], Route]

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from aura.evaluation.route_worker import main; main()"
)


class RouteBroke(Exception):
    """A route raised something that aura did not mean to: one question's failure, or a bug. One line."""


class RouteHost(Protocol):
    """A running route. Its questions raise `AuraError`, or `RouteBroke` for anything unforeseen."""

    facts: RouteFacts
    load_seconds: float

    def answer(self, questions: Sequence[Question], *, max_new_tokens: int, progress: Progress) -> list[Reply]: ...

    def first_token(self, question: Question) -> float: ...

    def score(self, question: Question, options: Sequence[str]) -> list[float]: ...

    def memory(self) -> dict[str, Any] | None:
        """Bytes of this route alone; None where they cannot be told from the others'."""
        ...

    def alive(self) -> bool:
        """Whether it can still be asked."""
        ...

    def close(self) -> None: ...


class RouteHere:
    """A route in this process: no second interpreter to start, but memory that cannot be told apart."""

    def __init__(self, opener: OpenRoute) -> None:
        start = time.perf_counter()
        self.route = opener()
        self.load_seconds = time.perf_counter() - start
        self.facts = self.route.facts

    def answer(self, questions: Sequence[Question], *, max_new_tokens: int, progress: Progress) -> list[Reply]:
        return _told(lambda: self.route.answer(questions, max_new_tokens=max_new_tokens, progress=progress))

    def first_token(self, question: Question) -> float:
        return _told(lambda: self.route.first_token(question))

    def score(self, question: Question, options: Sequence[str]) -> list[float]:
        return _told(lambda: self.route.score(question, options))

    def memory(self) -> None:
        return None

    def alive(self) -> bool:
        return True

    def close(self) -> None:
        del self.route


def _told(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except AuraError:
        raise
    except Exception as error:
        raise RouteBroke(describe(error)) from error


class RouteProcess:
    """A route in a process of its own.

    Args:
        opener: picklable: a module's function, or a `functools.partial` of one.

    Raises:
        AuraError: what opening the route raised.
        ModelError: it could not be opened for a reason nobody foresaw.
    """

    def __init__(self, opener: OpenRoute) -> None:
        self.facts: RouteFacts = None  # type: ignore[assignment]  # until the first answer below
        try:
            pickle.dumps(opener)
        except Exception as error:
            raise ModelError(
                f"the route opener {opener!r:.80} cannot be sent to another process ({error}); expected a function of "
                "a module, or a functools.partial of one. Or run it here: compare(..., isolate=False)"
            ) from error
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
        )
        try:
            self.facts, self.load_seconds = self._ask("open", opener)
        except RouteBroke as error:
            self.close()
            raise ModelError(f"A route could not be opened: {error}. Check its models and settings.") from error
        except BaseException:
            self.close()
            raise

    def answer(self, questions: Sequence[Question], *, max_new_tokens: int, progress: Progress) -> list[Reply]:
        return self._ask("answer", list(questions), max_new_tokens, progress=progress)

    def first_token(self, question: Question) -> float:
        return self._ask("first_token", question)

    def score(self, question: Question, options: Sequence[str]) -> list[float]:
        return self._ask("score", question, list(options))

    def memory(self) -> dict[str, Any]:
        return self._ask("memory")

    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        if self._stderr.closed:
            return
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]
        try:
            # A worker that waits sees the end of its stdin; one that works has nobody left to answer to.
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]
        self._stderr.close()

    def _ask(self, name: str, *arguments: Any, progress: Progress | None = None) -> Any:
        requests, messages = self._process.stdin, self._process.stdout
        assert requests is not None and messages is not None
        try:
            requests.write(pickle.dumps((name, arguments)))
            requests.flush()
            while True:
                kind, value = pickle.load(messages)
                if kind == "progress":
                    if progress is not None:
                        progress(value)
                elif kind == "refused":
                    raise value
                elif kind == "broke":
                    raise RouteBroke(value)
                else:
                    return value
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            raise self._died() from None

    def _died(self) -> ModelError:
        status = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        name = f"The route {self.facts.name!r}" if self.facts is not None else "A route"
        how = f"signal {-status}" if status < 0 else f"status {status}"
        out_of_memory = " (often: out of memory)" if status == -9 else ""
        return ModelError(
            f"{name} ended with {how}{out_of_memory}: {said:.300}. Answers so far are kept: run the same command "
            "again, with --one-at-a-time or a smaller --batch-tokens if memory is short."
        )
