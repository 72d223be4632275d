"""Windows of a recording through the server's scheduler, as `transcribe_each` asks them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # Python's own only from 3.11 on
from functools import partial

from aura.batch.collate import Example
from aura.errors import AuraError
from aura.inference.generate import Generation
from aura.serve.failures import ApiError, left, model_failed, timed_out
from aura.serve.jobs import Completion, Event, Failure, Job, Piece
from aura.serve.models import Served
from aura.serve.service import Service

logger = logging.getLogger(__name__)

WINDOW_TOKENS = 256  # per window of 30 s, as `aura transcribe`
GRACE = 5.0  # s that the scheduler has to say itself that the time is up
AHEAD = 8  # windows of one recording in the queue at once: a long one must not keep the others waiting


class Listener:
    """Stands in for an engine: the windows of a recording go through the server's scheduler.

    Its `generate` runs on a thread of the pool; `leave` (from any thread) ends what it waits for.
    """

    def __init__(self, service: Service, served: Served) -> None:
        self.service = service
        self.served = served
        self.model = served.engine.model
        self.processor = served.engine.processor
        self._jobs: set[Job] = set()
        self._left = threading.Event()
        self._deadline = time.monotonic() + service.options.timeout

    def leave(self) -> None:
        self._left.set()
        for job in tuple(self._jobs):
            job.cancel()

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int, batch_tokens: int) -> list[Generation]:
        """Texts of windows, a few of them in the queue at a time.

        Raises:
            ApiError: one of them failed, or the client left.
        """
        found: list[Generation] = []
        for first in range(0, len(examples), AHEAD):
            futures = [self._submit(example, max_new_tokens) for example in examples[first : first + AHEAD]]
            found += [self._generation(future) for future in futures]
        return found

    def confidence(
        self, examples: Sequence[Example], generations: Sequence[Generation], *, batch_tokens: int
    ) -> list[float]:
        """One window at a time on the model's thread, so that nobody's next token waits for all of them.

        Raises:
            ApiError: the client left, the time is up, the model failed, or the server stops.
        """
        engine, found = self.served.engine, []
        for example, generation in zip(examples, generations, strict=True):
            run = partial(engine.confidence, [example], [generation], batch_tokens=batch_tokens)
            seconds = self._seconds_left()
            future = self.service.scheduler.call(self.served.name, run)
            try:
                found += future.result(timeout=seconds)
            except FutureTimeoutError as error:
                future.cancel()
                raise timed_out(self.service.options.timeout) from error
            except (ApiError, AuraError):
                raise
            except Exception as failure:
                logger.exception("a transcript could not be scored")
                raise model_failed(failure) from failure
        return found

    def _seconds_left(self) -> float:
        """Raises `ApiError` where the client left or none are."""
        if self._left.is_set():
            raise left()
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise timed_out(self.service.options.timeout)
        return seconds

    def _submit(self, example: Example, max_new_tokens: int) -> Future[Completion]:
        seconds = self._seconds_left()
        future: Future[Completion] = Future()

        def emit(event: Event) -> None:
            if isinstance(event, Piece):
                return
            self._jobs.discard(job)
            if isinstance(event, Failure):
                future.set_exception(event.error)
            else:
                self.service.metrics.answered(self.served.name, event)
                future.set_result(event)

        job = self.service.job(self.served, example, max_new_tokens=max_new_tokens, emit=emit, timeout=seconds)
        self._jobs.add(job)
        if self._left.is_set():  # since the time was asked for
            job.cancel()
        self.service.scheduler.submit(job)
        return future

    def _generation(self, future: Future[Completion]) -> Generation:
        """Raises `ApiError` where there is none."""
        try:
            # The scheduler looks at the clock between tokens; a hung model must not hang who waits for it.
            done = future.result(timeout=max(0.1, self._deadline + GRACE - time.monotonic()))
        except FutureTimeoutError as error:
            raise timed_out(self.service.options.timeout) from error
        return Generation(text=done.text, token_ids=done.token_ids, finished=done.finished)
