"""A session whose passes a pool does: its audio waits in a bounded queue, its answer in another."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition
from typing import Any

import numpy as np

from aura.audio.patches import SAMPLE_RATE
from aura.errors import AudioError
from aura.inference.stream import PARTIAL_TOKENS, Listener, StreamSession

TURN_BLOCKS = (
    4  # blocks in one pass at most, where a session is behind: a pass of four costs far less than four. Our choice
)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Work of one session.

    Args:
        steps: each `next` is one turn.
        ended: called once, with the error if there was one; also where the job was dropped.
        is_last: the session is over behind it.
    """

    steps: Iterator[Any]
    ended: Callable[[Exception | None], None]
    is_last: bool = False


class PooledSession:
    """A `StreamSession` whose work the pool does; one thread at a time may call it, and any thread `cancel`.

    As a context manager it cancels itself, so that a speaker who hangs up leaves nothing behind.

    Args:
        engine: model and processor.
        changed: the pool's: guards jobs and counts, and tells the pool of them.
        queue_seconds: audio that may wait.
    """

    def __init__(self, engine: Listener, changed: Condition, queue_seconds: float) -> None:
        self._engine, self._changed, self._queue_seconds = engine, changed, queue_seconds
        self.over = False
        self._session: StreamSession | None = None
        self._jobs: deque[_Job] = deque()
        self._error: Exception | None = None
        self._accepted = 0  # samples that `feed` took
        self._waiting = 0  # of them, not through the LLM yet
        self._chunks: deque[np.ndarray] = deque()  # of them, not heard yet
        self._hearing = False  # a job for them is under way
        self._finishing = False
        self._cancelled = False

    # --- the caller's side ------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Fed so far, heard or waiting."""
        return self._accepted / SAMPLE_RATE

    @property
    def waiting_seconds(self) -> float:
        """Fed and not heard yet: how far the machine is behind this speaker."""
        return self._waiting / SAMPLE_RATE

    @property
    def first_token_seconds(self) -> float | None:
        """From the call of `finish` to the first token, the turns of other sessions included."""
        return self._inner.first_token_seconds

    @property
    def token_ids(self) -> tuple[int, ...]:
        """See `StreamSession`."""
        return self._inner.token_ids

    @property
    def text(self) -> str:
        """See `StreamSession`."""
        return self._inner.text

    @property
    def finished(self) -> bool:
        """The model ended its turn by itself."""
        return self._inner.finished

    def open(self, options: dict[str, Any]) -> None:
        """Called by `StreamPool.open`."""
        opened: Future[None] = Future()
        self._submit(_Job(steps=self._make(options), ended=lambda error: _settle(opened, None, error)))
        opened.result()
        self._require_open()

    def feed(self, samples: np.ndarray, *, timeout: float | None = None) -> None:
        """Queue more of the speech.

        Args:
            samples: as for `StreamSession.feed`.
            timeout: seconds to wait for room in the queue, 0 for not at all; None waits as long as it takes.

        Raises:
            AudioError: as `StreamSession.feed`, or the queue stayed full; nothing of `samples` was taken.
            PromptError: as `StreamSession.feed`.
        """
        self._require_open()
        samples = self._inner.check(samples, heard=self._accepted)
        # A chunk longer than the queue waits until it is empty.
        limit = max(round(self._queue_seconds * SAMPLE_RATE), len(samples))
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._waiting + len(samples) <= limit or self.over or self._cancelled, timeout
            ):
                raise AudioError(
                    f"{self.waiting_seconds:.2f} s of audio wait in this session's queue and {len(samples) / SAMPLE_RATE:.2f} s "
                    f"more were fed; expected at most {self._queue_seconds:g} s. Feed more slowly, or serve fewer speakers"
                )
            self._require_open()
            self._accepted += len(samples)
            self._waiting += len(samples)
            self._chunks.append(samples.copy())  # the caller may use its buffer again
            if not self._hearing:
                self._hearing = True
                self._submit(_Job(steps=self._hear(), ended=lambda error: None))

    def partial(self, *, prompt: str | None = None, max_new_tokens: int = PARTIAL_TOKENS) -> str:
        """See `StreamSession.partial`; of all that was fed before this call."""
        self._require_open()
        text, done = [""], Future[str]()
        steps = self._collect(text, prompt, max_new_tokens)
        self._submit(_Job(steps=steps, ended=lambda error: _settle(done, text[-1], error)))
        return done.result()

    def finish(self) -> Iterator[str]:
        """See `StreamSession.finish`; the work goes on whether the pieces are taken or not."""
        called_at = time.perf_counter()
        self._require_open()
        pieces: queue.SimpleQueue[str | Exception | None] = queue.SimpleQueue()
        self._finishing = True
        self._submit(_Job(steps=self._answer(pieces, called_at), ended=pieces.put, is_last=True))
        return _until_none(pieces)

    def cancel(self) -> None:
        """See `StreamSession.cancel`; audio that still waits is dropped."""
        with self._changed:
            self._cancelled = True
            if self._session is not None:
                self._session.cancel()
            self._changed.notify_all()

    def __enter__(self) -> PooledSession:
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    @property
    def _inner(self) -> StreamSession:
        assert self._session is not None, "`open` made it"
        return self._session

    def _submit(self, job: _Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def _require_open(self) -> None:
        if self._error is not None:
            raise self._error
        if self._cancelled:
            raise AudioError("the session was cancelled; open a new one")
        if self._finishing or self.over:
            raise AudioError("the session has ended its listening with finish(); open a new one")

    # --- the worker's side ------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return bool(self._jobs) or (self._cancelled and not self.over)

    @property
    def is_urgent(self) -> bool:
        return self._finishing and self._session is not None and self._session.first_token_seconds is None

    def take_turn(self) -> None:
        """One step of the first job."""
        job, error, done = (self._jobs[0] if self._jobs else None), None, False
        if job is not None and not self._cancelled:
            try:
                next(job.steps)
            except StopIteration:
                done = True
            except Exception as raised:  # it belongs to this session's caller; the pool serves the others
                # A cancel in the middle of a turn surfaces as the session's own refusal: that is no failure.
                error, done = (None if self._cancelled else raised), True
        dropped: list[_Job] = []
        with self._changed:
            if job is not None and done:
                self._jobs.popleft()
            self._error = self._error or error
            if self._error is not None or self._cancelled or (job is not None and done and job.is_last):
                self.over = True
                dropped = list(self._jobs)
                self._jobs.clear()
                self._chunks.clear()
                self._waiting = 0
        if job is not None and done:
            job.ended(error)
        for left in dropped:
            getattr(left.steps, "close", lambda: None)()
            left.ended(self._error)

    def _make(self, options: dict[str, Any]) -> Iterator[None]:
        self._session = StreamSession(self._engine, **options)
        yield

    def _hear(self) -> Iterator[None]:
        while len(samples := self._take()):
            self._inner.hear(samples)
            is_turn = self._inner.push(TURN_BLOCKS)
            with self._changed:
                self._waiting -= len(samples)
            if is_turn:
                yield

    def _take(self) -> np.ndarray:
        """What waits, up to the speech of one turn."""
        room = round(TURN_BLOCKS * self._inner.block_seconds * SAMPLE_RATE)
        taken: list[np.ndarray] = [np.zeros(0, np.float32)]
        with self._changed:
            while self._chunks and room:
                chunk = self._chunks.popleft()
                if len(chunk) > room:
                    self._chunks.appendleft(chunk[room:])
                taken.append(chunk[:room])
                room -= len(taken[-1])
            self._hearing = len(taken) > 1
        return np.concatenate(taken)

    def _collect(self, text: list[str], prompt: str | None, max_new_tokens: int) -> Iterator[None]:
        for whole in self._inner.partial_steps(prompt=prompt, max_new_tokens=max_new_tokens):
            text.append(whole)
            yield

    def _answer(self, pieces: queue.SimpleQueue[str | Exception | None], called_at: float) -> Iterator[None]:
        for piece in self._inner.finish_steps(called_at=called_at):
            if piece:
                pieces.put(piece)
            yield


def _settle(future: Future[Any], result: Any, error: Exception | None) -> None:
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _until_none(pieces: queue.SimpleQueue[str | Exception | None]) -> Iterator[str]:
    while (piece := pieces.get()) is not None:
        if isinstance(piece, Exception):
            raise piece
        yield piece
