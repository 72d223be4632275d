"""One turn of a speaker: audio goes through the LLM while it arrives, and the answer starts when it ends."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np

from aura.audio.waveform import SAMPLE_RATE
from aura.errors import AuraError, ModelError
from aura.serve.models import Served
from aura.serve.service import Service

logger = logging.getLogger(__name__)

PARTIAL_EVERY = 1.0  # s of new speech between two partial transcripts
PARTIAL_TOKENS = 48
AHEAD = 10.0  # s of audio that may wait for the model before the socket is read on

_END = object()


class Turn:
    """Live audio of one turn.

    The model may be unable to stream (attention over the whole recording): then the audio is only kept, and
    `stream` stays None.

    Args:
        messages: conversation for `Engine.stream`, its last turn holding the live audio.
        key: what the conversation was built from; an answer to another one cannot use this turn's work.
        on_partial: called with the text heard so far, now and then; None for no partial transcripts.
    """

    def __init__(
        self,
        service: Service,
        served: Served,
        *,
        item_id: str,
        messages: list[dict[str, Any]],
        key: Any,
        on_partial: Callable[[str], Awaitable[None]] | None,
    ) -> None:
        self.service = service
        self.served = served
        self.item_id = item_id
        self.key = key
        self.stream: Any = None
        self.error: AuraError | None = None
        self.full = False  # the client has been told that the rest is left out
        self._messages = messages
        self._on_partial = on_partial
        self._parts: list[np.ndarray] = []
        self._inbox: list[np.ndarray] = []
        self._ended = False
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._task = asyncio.create_task(self._work())
        self._task.add_done_callback(lambda task: self._room.set())  # who waits for room must not wait for the dead

    @property
    def seconds(self) -> float:
        return sum(len(part) for part in self._parts) / SAMPLE_RATE

    @property
    def wave_N(self) -> np.ndarray:
        """All of it, float32 at 16 kHz."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.float32)

    async def hear(self, samples_N: np.ndarray) -> None:
        """Take more speech; waits where the model falls behind."""
        if len(samples_N):
            self._parts.append(samples_N)
            self._inbox.append(samples_N)
            self._wake.set()
            while not self._task.done() and sum(map(len, self._inbox)) > AHEAD * SAMPLE_RATE:
                self._room.clear()
                await self._room.wait()

    async def end(self) -> None:
        """No more speech: returns when the model has taken all of it."""
        self._ended = True
        self._wake.set()
        await self._task

    def cancel(self) -> None:
        """Forget it; an answer that is being written stops before its next token."""
        self._task.cancel()
        if self.stream is not None:
            self.stream.cancel()

    async def call(self, function: Callable[[], Any]) -> Any:
        """Run on the model's thread."""
        return await asyncio.wrap_future(self.service.scheduler.call(self.served.name, function))

    async def answer(self) -> AsyncIterator[str]:
        """The answer, a piece (perhaps empty) for each token; `stream` tells the rest."""
        called_at = time.perf_counter()
        steps = await self.call(lambda: self.stream.finish_steps(called_at=called_at))
        try:
            while (piece := await self.call(lambda: next(steps, _END))) is not _END:
                yield piece
        finally:
            self.stream.cancel()

    async def _work(self) -> None:
        try:
            self.stream = await self.call(self._open)
        except ModelError:
            pass  # it cannot stream; the answer will be computed from the whole recording
        except AuraError as error:
            self.error = error
        except Exception:  # the answer will be computed from the whole recording
            logger.exception("a live turn could not be opened")
        heard = asked = 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._inbox:
                samples_N = np.concatenate(self._inbox)
                self._inbox.clear()
                self._room.set()
                heard += len(samples_N)
                await self._feed(samples_N)
            if self._ended:
                return
            if self._on_partial and self.stream is not None and heard - asked >= PARTIAL_EVERY * SAMPLE_RATE:
                asked = heard
                try:
                    await self._partial()
                except Exception:
                    logger.exception("a partial transcript failed")
                    self._drop_stream()
                self._wake.set()

    def _open(self) -> Any:
        return self.served.engine.stream(messages=self._messages, max_new_tokens=self.service.options.max_new_tokens)

    async def _feed(self, samples_N: np.ndarray) -> None:
        if self.stream is None:
            return
        try:
            await self.call(lambda: self.stream.feed(samples_N))
        except AuraError as error:  # too long for the context or the checkpoint: what was heard before stands
            self.error = self.error or error
            self._drop_stream()
        except Exception:
            logger.exception("a live turn failed")
            self._drop_stream()

    async def _partial(self) -> None:
        """Write down what was heard so far, unless the end of the turn comes first: the answer is worth more."""
        assert self._on_partial is not None
        steps = self.stream.partial_steps(max_new_tokens=PARTIAL_TOKENS)
        text = ""
        try:
            while not self._ended:
                step = await self.call(lambda: next(steps, _END))
                if step is _END:
                    break
                text = step
        finally:
            await asyncio.shield(self.call(steps.close))
        if text and not self._ended:
            await self._on_partial(text)

    def _drop_stream(self) -> None:
        self.stream.cancel()
        self.stream = None
