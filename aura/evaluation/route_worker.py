"""A route in a process of its own: reads requests from stdin, writes messages to what was stdout.

Its peak memory is then the route's alone, and a route that is killed for memory takes nothing with it.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

from aura.errors import AuraError
from aura.evaluation.memory import peak_accelerator_bytes, peak_bytes, reset_peak, resident_bytes

Message = tuple[str, Any]
"""("progress", questions) while it works; then ("done", value), ("refused", AuraError) or ("broke", text)."""


def main() -> None:
    """Serve one route until stdin ends."""
    # Ctrl-C reaches the whole group; the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, messages = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to stderr, not between the messages
    worker = Worker(messages)
    while True:
        try:
            name, arguments = pickle.load(requests)
        except EOFError:
            return
        except Exception as error:  # an opener that cannot be imported here
            worker.send(("broke", describe(error)))
            continue
        worker.serve(name, arguments)


class Worker:
    """The open route and where its messages go."""

    def __init__(self, messages: BinaryIO) -> None:
        self.messages = messages
        self.route: Any = None
        self.memory: dict[str, Any] = {}

    def send(self, message: Message) -> None:
        pickle.dump(message, self.messages)
        self.messages.flush()

    def serve(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Run one request and send its outcome; an exception is an outcome."""
        try:
            self.send(("done", getattr(self, f"do_{name}")(*arguments)))
        except AuraError as error:
            self.send(("refused", error))
        except BrokenPipeError:  # the parent is gone
            raise SystemExit(1) from None
        except Exception as error:
            self.send(("broke", describe(error)))

    def do_open(self, opener: Callable[[], Any]) -> Any:
        """Facts and seconds; memory before, and at most while loading."""
        self.memory["start_bytes"] = resident_bytes()
        start = time.perf_counter()
        self.route = opener()
        seconds = time.perf_counter() - start
        self.memory["load_peak_bytes"] = peak_bytes()
        self.memory["peak_is_of"] = "answering" if reset_peak() else "loading and answering"
        return self.route.facts, seconds

    def do_answer(self, questions: list[Any], max_new_tokens: int) -> list[Any]:
        return self.route.answer(
            questions, max_new_tokens=max_new_tokens, progress=lambda count: self.send(("progress", count))
        )

    def do_first_token(self, question: Any) -> float:
        return self.route.first_token(question)

    def do_score(self, question: Any, options: list[str]) -> list[float]:
        return self.route.score(question, options)

    def do_memory(self) -> dict[str, Any]:
        return {**self.memory, "peak_bytes": peak_bytes(), "accelerator_peak_bytes": peak_accelerator_bytes()}


def describe(error: BaseException) -> str:
    """An unexpected exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
