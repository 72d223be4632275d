"""What all routes share: models, scheduler, limits, figures, and the way from a job to its answer."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar

import anyio
from starlette.requests import Request

from aura.batch.collate import Example
from aura.errors import AuraError
from aura.inference.generate import prompt_length
from aura.serve.failures import ApiError, left, of_aura_error, timed_out
from aura.serve.jobs import Completion, Event, Failure, Job, Piece, Sampling, counts
from aura.serve.metrics import Metrics
from aura.serve.models import Served
from aura.serve.options import ServeOptions
from aura.serve.scheduler import MicroBatcher, Scheduler

T = TypeVar("T")
DECODERS = 2  # uploads decoded at once: bounds memory, and leaves the cores to the model


class Service:
    """One server's state.

    Args:
        models: by name.
        options: see `ServeOptions`.
        scheduler: runs the models; a `MicroBatcher` when None.
    """

    def __init__(self, models: Mapping[str, Served], options: ServeOptions, scheduler: Scheduler | None = None) -> None:
        self.models = dict(models)
        self.options = options
        self.metrics = Metrics(self)
        self.scheduler: Scheduler = scheduler or MicroBatcher(
            self.models,
            batch_tokens=options.batch_tokens,
            window=options.batch_window,
            on_batch=self.metrics.batch_rows.observe,
        )
        self.draining = False
        self.in_work = 0
        self.sessions = 0
        self.last_seconds = 1.0  # of recent requests, for Retry-After
        # Transcriptions wait on threads; in the common pool, a crowd of them would keep everybody else out.
        self.threads = anyio.CapacityLimiter(options.max_requests)
        self._decoders = threading.BoundedSemaphore(DECODERS)

    def model(self, name: str) -> Served:
        """The model a client asks for.

        Raises:
            ApiError: 404, naming those there are.
        """
        if name not in self.models:
            there = ", ".join(sorted(self.models))
            raise ApiError(
                404, f"there is no model {name[:80]!r}; expected one of: {there}", code="model_not_found", param="model"
            )
        return self.models[name]

    def new_tokens(self, asked: int | None, param: str) -> int:
        """How long an answer may be.

        Raises:
            ApiError: more than this server allows.
        """
        if asked is None:
            return self.options.default_new_tokens
        if asked > self.options.max_new_tokens:
            raise ApiError(
                400,
                f"{param} is {asked if asked < 1e12 else 'huge'}; this server writes at most {self.options.max_new_tokens}",
                code="invalid_value",
                param=param,
            )
        return asked

    def decode(self, work: Callable[[], T]) -> T:
        """Decode an upload, few at a time; on a thread of the pool."""
        with self._decoders:
            return work()

    def job(
        self,
        served: Served,
        example: Example,
        *,
        max_new_tokens: int,
        emit: Callable[[Event], None],
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        stop: tuple[str, ...] = (),
        timeout: float | None = None,
    ) -> Job:
        """A job that fits.

        Raises:
            ApiError: 400 where the conversation cannot be rendered or is too long.
        """
        try:
            length = prompt_length(served.engine.model, served.engine.processor, example)
        except AuraError as error:
            raise of_aura_error(error, param="messages") from error
        except (ValueError, TypeError) as error:  # a template that trips over odd turns
            raise ApiError(
                400, f"the chat template refuses this conversation: {error}", code="invalid_prompt"
            ) from error
        return Job(
            model=served.name,
            example=example,
            prompt_tokens=length,
            audio_tokens=counts(served.engine.processor, example),
            max_new_tokens=min(max_new_tokens, served.engine.model.config.context_length - length),
            emit=emit,
            sampling=sampling,
            stop=stop,
            timeout=self.options.timeout if timeout is None else timeout,
        )

    def retry_after(self) -> dict[str, str]:
        """Seconds after which a place is likely to be free."""
        return {"Retry-After": str(max(1, min(60, round(self.last_seconds))))}

    def finished(self, seconds: float) -> None:
        """Remember how long a request took: a moving average."""
        self.last_seconds += 0.1 * (seconds - self.last_seconds)


class Answer:
    """A job's events on the event loop; leaving the block cancels the job."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.job: Job | None = None

    def emit(self, event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is going down, and nobody listens
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncIterator[Piece | Completion]:
        """Pieces, then the completion.

        Raises:
            ApiError: the job failed, or took too long.
        """
        assert self.job is not None
        try:
            while True:
                # The scheduler looks at the clock between tokens; a hung model must not hang its clients.
                seconds = max(0.1, self.job.arrived + self.job.timeout + 5.0 - time.monotonic())
                try:
                    event = await asyncio.wait_for(self._events.get(), seconds)
                except asyncio.TimeoutError as error:
                    raise timed_out(self.job.timeout) from error
                if isinstance(event, Failure):
                    raise event.error
                yield event
                if isinstance(event, Completion):
                    return
        finally:
            self.job.cancel()

    async def completion(self) -> Completion:
        """The whole answer."""
        async for event in self.events():
            if isinstance(event, Completion):
                return event
        raise AssertionError("a job ends with a completion or a failure")


async def unless_client_leaves(request: Request, work: Any, *, on_leave: Callable[[], None] = lambda: None) -> Any:
    """Await `work`, but cancel it when the client closes the connection.

    Args:
        on_leave: called first when it does; ends what a thread waits for, since threads cannot be cancelled.

    Raises:
        ApiError: 499, which nobody reads.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        on_leave()
        raise left()
    finally:
        for pending in (task, leaving):
            pending.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
