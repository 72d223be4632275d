"""Answers of a realtime session: one at a time, from the live turn where that fits, and what was heard behind it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio.to_thread

from aura.audio.waveform import SAMPLE_RATE
from aura.errors import AuraError
from aura.inference.transcribe import Transcript, transcribe_each
from aura.serve.conversation import Conversation
from aura.serve.failures import ApiError, model_failed, of_aura_error
from aura.serve.jobs import Completion, Job, Piece
from aura.serve.listener import WINDOW_TOKENS, Listener
from aura.serve.realtime_events import ResponseFields, new_id
from aura.serve.reply import Reply
from aura.serve.service import Answer
from aura.serve.turn import Turn

logger = logging.getLogger(__name__)


class Answers:
    """Writes a session's answers.

    Args:
        session: its conversation, settings and socket.
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        self.id: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._following: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def busy(self) -> bool:
        return self._task is not None and not self._task.done()

    def begin(self, fields: ResponseFields, turn: Turn | None, max_tokens: int) -> None:
        """Start an answer.

        Args:
            turn: the live turn that was committed last, if none has answered it.

        Raises:
            ApiError: another one is being written.
        """
        if self.busy:
            raise ApiError(
                400, "an answer is being written; wait for response.done, or cancel it", code="response_active"
            )
        self.id = new_id("resp")
        self._task = asyncio.create_task(self._answer(self.id, fields, turn, max_tokens))

    def stop(self) -> None:
        """End the answer before its next token."""
        if self._task is not None:
            self._task.cancel()

    async def wait(self) -> None:
        """Until the answer has ended, however it does."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def close(self) -> None:
        """Stop everything."""
        self._closed = True
        tasks = [task for task in (self._task, *self._following) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, id: str, fields: ResponseFields, turn: Turn | None, max_tokens: int) -> None:
        reply = Reply(self.session, id=id, keep=fields.conversation != "none", metadata=fields.metadata)
        await reply.begin()
        try:
            async for event in self._events(fields, turn, max_tokens):
                await reply.take(event)
            await reply.end("completed" if reply.finished else "incomplete")
        except asyncio.CancelledError:
            await asyncio.shield(reply.end("cancelled"))
        except ApiError as error:
            await reply.end("failed", error)
        except AuraError as error:
            await reply.end("failed", of_aura_error(error))
        except Exception:
            logger.exception("a realtime answer failed")
            await reply.end("failed", ApiError(500, "the model failed on this answer", code="internal_error"))
        finally:
            if turn is not None:
                turn.cancel()
        if turn is not None and self.session.transcribes and not self._closed:
            self._follow(turn)

    async def _events(
        self, fields: ResponseFields, turn: Turn | None, max_tokens: int
    ) -> AsyncIterator[Piece | Completion]:
        """Pieces and the completion: from the live turn where it fits the question, else from the whole conversation."""
        instructions = self.session.instructions if fields.instructions is None else fields.instructions
        example = self.session.conversation.example(instructions, self.session.prompt)
        answer = Answer()
        job: Job = await asyncio.to_thread(
            lambda: self.session.service.job(self.session.served, example, max_new_tokens=max_tokens, emit=answer.emit)
        )
        answer.job = job
        # The last item is the turn itself: the work done while it was spoken holds if nothing else has changed.
        before = Conversation(self.session.conversation.entries[:-1]).key(instructions)
        live = turn is not None and turn.stream is not None and turn.key == before
        if turn is None or not live or self.session.conversation.last_id != turn.item_id:
            self.session.service.scheduler.submit(job)
            async for event in answer.events():
                yield event
            return
        stream = turn.stream
        sent = ""
        async for piece in turn.answer():
            if piece:
                sent += piece
                yield Piece(text=piece)
            if len(stream.token_ids) >= max_tokens or job.expired:
                break
        if rest := stream.text.removeprefix(sent):  # half a character that the limit left
            yield Piece(text=rest)
        yield Completion(
            text=stream.text,
            finished=stream.finished,
            prompt_tokens=job.prompt_tokens,
            audio_tokens=job.audio_tokens,
            completion_tokens=len(stream.token_ids),
            token_ids=tuple(stream.token_ids),
            waited=0.0,
            first_token=stream.first_token_seconds,
            seconds=0.0,
        )

    def _follow(self, turn: Turn) -> None:
        """Write down what was heard, behind the answer, for the client's history."""
        task = asyncio.create_task(self._write_down(turn))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _write_down(self, turn: Turn) -> None:
        named = {"item_id": turn.item_id, "content_index": 0}
        try:
            text = await self._heard(turn)
        except Exception as failure:
            if not isinstance(failure, ApiError):
                logger.exception("the transcript of a turn failed")
            error = failure if isinstance(failure, ApiError) else model_failed(failure)
            kind = "conversation.item.input_audio_transcription.failed"
            return await self.session.send(kind, **named, error=error.body())
        await self.session.send(
            "conversation.item.input_audio_transcription.completed",
            **named,
            transcript=text,
            usage={"type": "duration", "seconds": round(turn.seconds, 3)},
        )

    async def _heard(self, turn: Turn) -> str:
        """A turn's words, by the same rules as those of a file: empty where nothing is said, or the model is unsure.

        Raises:
            ApiError: the server stops, the time is up, or the model failed.
            AuraError: the turn cannot be transcribed.
        """
        service = self.session.service
        listener = Listener(service, self.session.served)
        source = {"array": turn.wave_N, "sampling_rate": SAMPLE_RATE}

        def work() -> Transcript | AuraError:
            [(_, found)] = transcribe_each(listener, [source], max_new_tokens=WINDOW_TOKENS)
            return found

        try:
            heard = await anyio.to_thread.run_sync(work, limiter=service.threads, abandon_on_cancel=True)
        finally:
            listener.leave()  # or a thread would wait for who has gone
        if isinstance(heard, AuraError):
            raise heard
        return heard.text
