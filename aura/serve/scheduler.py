"""Who goes through the model when: one thread owns it, and requests of many clients share its batches."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import torch

from aura.serve.decode import decode_batch
from aura.serve.failures import ApiError, model_failed, timed_out
from aura.serve.jobs import Failure, Job
from aura.serve.models import Served

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Scheduler(Protocol):
    """What the server needs of whatever runs the model."""

    def submit(self, job: Job) -> None:
        """Queue a job; its events come through `job.emit`. From any thread."""
        ...

    def call(self, model: str, function: Callable[[], T]) -> Future[T]:
        """Run a short piece of work with that model, soon: between two tokens of what runs. From any thread."""
        ...

    def close(self, *, seconds: float) -> None:
        """Take nothing more, give what is in work that long to end, then stop."""
        ...

    @property
    def alive(self) -> bool: ...

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        ...


class MicroBatcher:
    """Batches in order of arrival: the oldest job's model, and as many of its jobs as the budget holds.

    Args:
        models: by name.
        batch_tokens: positions (prompt, answer and padding) of one batch; a single longer job still runs.
        window: seconds that the oldest job waits for company.
        on_batch: called with the number of rows of each batch.
    """

    def __init__(
        self,
        models: Mapping[str, Served],
        *,
        batch_tokens: int,
        window: float,
        on_batch: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self.models = models
        self.batch_tokens = batch_tokens
        self.window = window
        self.on_batch = on_batch
        self._jobs: list[Job] = []
        self._running: list[Job] = []
        self._calls: list[tuple[str, Callable[[], Any], Future[Any]]] = []
        self._changed = threading.Condition()
        self._closing = False
        self._active: str | None = None
        self._thread = threading.Thread(target=self._run, name="aura-model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        with self._changed:
            if not self._closing:
                self._jobs.append(job)
                self._changed.notify()
                return
        job.end(Failure(error=stopping()))

    def call(self, model: str, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                future.set_exception(stopping())
            else:
                self._calls.append((model, function, future))
                self._changed.notify()
        return future

    def close(self, *, seconds: float) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        with self._changed:
            for job in (*self._jobs, *self._running):
                job.cancel(stopping())
        self._thread.join(10.0)  # up to the next token; a daemon thread does not keep the process

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._calls or self._jobs or self._closing):
                    self._changed.wait()
                if self._closing and not self._jobs and not self._calls:
                    return
            self._run_calls()
            if batch := self._take():
                self._answer(batch)

    def _take(self) -> list[Job]:
        """The next batch; empty where nothing waits or the window is still open."""
        with self._changed:
            self._drop_dead()
            if not self._jobs:
                return []
            oldest = self._jobs[0]
            remaining = oldest.arrived + self.window - time.monotonic()
            mates = [job for job in self._jobs if job.model == oldest.model]
            batch = self._fit(mates)
            if remaining > 0 and len(batch) == len(mates) and not self._closing:
                self._changed.wait(remaining)
                return []
            self._jobs = [job for job in self._jobs if job not in batch]
            self._running = batch
            return batch

    def _fit(self, jobs: list[Job]) -> list[Job]:
        """The first jobs whose padded prompts and answers stay within the budget; at least one."""
        batch: list[Job] = []
        prompt = answer = 0
        for job in jobs:
            prompt, answer = max(prompt, job.prompt_tokens), max(answer, job.max_new_tokens)
            if batch and (len(batch) + 1) * (prompt + answer) > self.batch_tokens:
                break
            batch.append(job)
        return batch

    def _drop_dead(self) -> None:
        for job in self._jobs:
            if job.cancelled is not None:
                job.end(Failure(error=job.cancelled))
            elif job.expired:
                job.end(Failure(error=timed_out(job.timeout)))
        self._jobs = [job for job in self._jobs if not job.over]

    def _answer(self, batch: list[Job]) -> None:
        self.on_batch(len(batch))
        now = time.monotonic()
        for job in batch:
            job.started = now
        error = self._decode(batch)
        if error is not None and len(batch) > 1:
            # One of them did it; the others shall not fail with it. What a client has begun to read cannot begin again.
            for job in batch:
                if not (job.over or job.heard_of or job.cancelled):
                    job.end(Failure(error=self._decode([job]) or _unanswered()))
        for job in batch:
            job.end(Failure(error=job.cancelled or error or _unanswered()))  # nothing where it has ended well
        self._running = []

    def _decode(self, batch: list[Job]) -> ApiError | None:
        """Run a batch; the error of its jobs that have not ended where the model failed."""
        try:
            self._activate(batch[0].model)
            decode_batch(self.models[batch[0].model].engine, batch, between=lambda: self._between(batch[0].model))
        except Exception as failure:  # whatever it was, the next batch must run
            logger.exception("a batch of %d failed", len(batch))
            return model_failed(failure)
        return None

    def _between(self, model: str) -> None:
        if self._calls:
            self._run_calls()
            self._activate(model)

    def _run_calls(self) -> None:
        with self._changed:
            calls, self._calls = self._calls, []
        for model, function, future in calls:
            if not future.set_running_or_notify_cancel():
                continue
            try:
                self._activate(model)
                with torch.no_grad():
                    future.set_result(function())
            except BaseException as error:  # it belongs to who waits for it
                future.set_exception(error)

    def _activate(self, model: str) -> None:
        if self._active != model:
            self.models[model].activate()
            self._active = model


def _unanswered() -> ApiError:
    return ApiError(500, "the model ended without an answer", code="internal_error")


def stopping() -> ApiError:
    """What a request hears while the server shuts down."""
    return ApiError(503, "the server is shutting down; try again in a few seconds", headers={"Retry-After": "5"})
