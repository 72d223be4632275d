"""One question on its way through the model, and what comes back from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aura.batch.collate import Example
from aura.serve.failures import ApiError, left


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: 0 takes the likeliest token.
        top_p: sample among the likeliest tokens that together have this probability.
        seed: equal seeds give equal answers, whatever else is in the batch.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some more text of an answer."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A whole answer.

    Args:
        text: all of it.
        finished: the model ended its turn (or a stop text came); False where the limit cut it.
        prompt_tokens: positions read, those of audio included.
        audio_tokens: positions of audio.
        completion_tokens: tokens written, without the end of the turn.
        token_ids: those tokens.
        waited: seconds in the queue.
        first_token: seconds from the arrival to the first token.
        seconds: from the arrival to the end.
    """

    text: str
    finished: bool
    prompt_tokens: int
    audio_tokens: int
    completion_tokens: int
    token_ids: tuple[int, ...]
    waited: float
    first_token: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there is no answer."""

    error: ApiError


Event = Piece | Completion | Failure


class Job:
    """A conversation to be answered; exactly one `Completion` or `Failure` ends its events.

    Args:
        model: name of the adapter.
        example: the conversation with its audio decoded.
        prompt_tokens, audio_tokens: positions of its prompt, and those of them that are audio.
        max_new_tokens: upper bound of the answer.
        emit: called with each event, on the model's thread: must return at once.
        sampling: see `Sampling`.
        stop: texts that end the answer and are left out of it.
        timeout: seconds from now.
    """

    def __init__(
        self,
        *,
        model: str,
        example: Example,
        prompt_tokens: int,
        audio_tokens: int,
        max_new_tokens: int,
        emit: Callable[[Event], None],
        sampling: Sampling = Sampling(),  # frozen
        stop: tuple[str, ...] = (),
        timeout: float = 300.0,
    ) -> None:
        self.model = model
        self.example = example
        self.prompt_tokens = prompt_tokens
        self.audio_tokens = audio_tokens
        self.max_new_tokens = max_new_tokens
        self.emit = emit
        self.sampling = sampling
        self.stop = stop
        self.timeout = timeout
        self.arrived = time.monotonic()
        self.started: float | None = None
        self.cancelled: ApiError | None = None
        self.heard_of = False  # a piece has been sent: the answer cannot begin again
        self.over = False

    @property
    def expired(self) -> bool:
        return time.monotonic() > self.arrived + self.timeout

    def cancel(self, error: ApiError | None = None) -> None:
        """Nobody waits any more, or `error` forbids to go on; from any thread. It ends before its next token."""
        if self.cancelled is None:
            self.cancelled = error or left()

    def end(self, event: Completion | Failure) -> None:
        """Emit the last event, once."""
        if not self.over:
            self.over = True
            self.emit(event)


def counts(processor: Any, example: Example) -> int:
    """Positions of an example's audio."""
    grid = processor.feature_extractor.grid
    return sum(grid.count(len(wave)) for wave in example.waveforms)
