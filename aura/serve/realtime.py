"""/v1/realtime: audio in while somebody speaks, text out when they stop; OpenAI's event names."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from typing import Any

import numpy as np
from fastapi import APIRouter, WebSocket
from fastapi.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from aura.audio.waveform import MIN_SECONDS, SAMPLE_RATE
from aura.errors import AuraError
from aura.serve.conversation import Conversation, Entry
from aura.serve.failures import ApiError, of_aura_error
from aura.serve.models import Served
from aura.serve.realtime_answers import Answers
from aura.serve.realtime_events import ResponseFields, SessionFields, new_id, parse, pcm16
from aura.serve.service import Service
from aura.serve.turn import Turn

logger = logging.getLogger(__name__)
router = APIRouter()

MOST_ITEMS = 256


@router.websocket("/v1/realtime")
async def realtime(socket: WebSocket) -> None:
    """One session; `?model=` names the adapter (the only one there is by default)."""
    service: Service = socket.app.state.service
    try:
        name = socket.query_params.get("model") or next(iter(service.models))
        served = service.model(name)
        if service.sessions >= service.options.max_sessions:
            raise ApiError(
                429,
                f"{service.sessions} realtime sessions are open, as many as this server takes; try again later",
                code="too_many_sessions",
                headers=service.retry_after(),
            )
    except ApiError as error:
        body = {"error": error.body()}
        return await socket.send_denial_response(JSONResponse(body, error.status, headers=error.headers))
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(subprotocol="realtime" if "realtime" in offered else None)
    socket.scope["aura_note"] |= {"model": served.name}
    service.sessions += 1
    session = Session(socket, service, served)
    try:
        await session.run()
    except WebSocketDisconnect:
        pass
    finally:
        service.sessions -= 1
        await session.close()


class Session:
    """What one socket has said and been told."""

    def __init__(self, socket: WebSocket, service: Service, served: Served) -> None:
        self.socket = socket
        self.service = service
        self.served = served
        self.id = new_id("sess")
        self.conversation = Conversation()
        self.instructions: str | None = None
        self.max_tokens = service.options.default_new_tokens
        self.rate = 24_000
        self.transcribes = False
        self.detection: dict[str, Any] | None = None
        self.ears: Any = None
        self.turn: Turn | None = None
        self.done_turn: Turn | None = None  # committed, not answered
        self.answers = Answers(self)
        self._resampler: Any = None

    # --- the socket -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the client leaves, or says nothing for too long."""
        await self.send("session.created", session=self.as_dict())
        while True:
            try:
                message = await asyncio.wait_for(self.socket.receive(), self.service.options.idle)
            except asyncio.TimeoutError:
                await self.fail(
                    ApiError(408, "nothing was said for too long; connect again", code="session_expired"), None
                )
                return await self.socket.close(1000)
            if message["type"] == "websocket.disconnect":
                return
            await self._take(message)

    async def _take(self, message: Any) -> None:
        event_id = None
        try:
            if message.get("text") is None:
                raise ApiError(
                    400, "the message is binary; expected JSON text, with audio as base64", code="invalid_event"
                )
            event, event_id = parse(message["text"])
            await getattr(self, f"_on_{event.type.replace('.', '_')}")(event)
        except ApiError as error:
            await self.fail(error, event_id)
        except AuraError as error:
            await self.fail(of_aura_error(error), event_id)
        except WebSocketDisconnect:
            raise
        except Exception as error:
            if isinstance(error, RuntimeError) and "websocket" in str(error).lower():
                raise WebSocketDisconnect from error
            logger.exception("an event of a realtime session failed")
            await self.fail(
                ApiError(500, "the server made a mistake; its log says which", code="internal_error"), event_id
            )

    async def send(self, type: str, **fields: Any) -> None:
        """One event; quietly nothing where the client has left in the meantime."""
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            await self.socket.send_text(json.dumps({"type": type, "event_id": new_id("event"), **fields}))

    async def fail(self, error: ApiError, event_id: str | None) -> None:
        await self.send("error", error={**error.body(), "event_id": event_id})

    async def close(self) -> None:
        """Stop everything that runs for this session."""
        for turn in (self.turn, self.done_turn):
            if turn is not None:
                turn.cancel()
        await self.answers.close()

    # --- settings ---------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """The session as the protocol shows it."""
        return {
            "id": self.id,
            "object": "realtime.session",
            "type": "realtime",
            "model": self.served.name,
            "instructions": self.instructions or "",
            "output_modalities": ["text"],
            "max_output_tokens": self.max_tokens,
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": self.rate},
                    "transcription": {"model": self.served.name} if self.transcribes else None,
                    "turn_detection": self.detection,
                }
            },
            "tools": [],
        }

    async def _on_session_update(self, event: Any) -> None:
        fields: SessionFields = event.session
        given = fields.model_fields_set
        if fields.model is not None and fields.model != self.served.name:
            raise ApiError(400, "the model of a session is chosen when it connects: ?model=", param="session.model")
        audio = fields.audio.input if fields.audio else None
        if audio is not None and audio.format is not None and audio.format.rate != self.rate:
            if self.turn is not None:
                raise ApiError(
                    400, "the rate cannot change within a turn; commit or clear it first", code="buffer_busy"
                )
            self.rate = audio.format.rate
        if "instructions" in given:
            self.instructions = fields.instructions
        if "max_output_tokens" in given:
            self.max_tokens = self._tokens(fields.max_output_tokens, "session.max_output_tokens")
        if audio is not None and "transcription" in audio.model_fields_set:
            self.transcribes = audio.transcription is not None
        if audio is not None and "turn_detection" in audio.model_fields_set:
            await self._detect(audio.turn_detection)
        await self.send("session.updated", session=self.as_dict())

    async def _detect(self, settings: Any) -> None:
        from aura.serve.ears import Ears

        self.ears = None if settings is None else await asyncio.to_thread(Ears, settings)
        self.detection = None if settings is None else settings.model_dump(exclude={"idle_timeout_ms"})

    def _tokens(self, asked: Any, param: str) -> int:
        if asked is None:
            return self.service.options.default_new_tokens
        return self.service.options.max_new_tokens if asked == "inf" else self.service.new_tokens(asked, param)

    # --- audio ------------------------------------------------------------------------------------------------

    async def _on_input_audio_buffer_append(self, event: Any) -> None:
        samples_N = self._resampled(pcm16(event.audio))
        if self.ears is None:
            return await self._hear(samples_N)
        for action, part_N in await asyncio.to_thread(self.ears.hear, samples_N):
            try:
                if action == "start":
                    await self._speech_started()
                await self._hear_on(part_N, event.event_id)
                if action == "stop":
                    await self._speech_stopped()
            except ApiError as error:  # the detector has moved on: what follows in the list counts all the same
                await self.fail(error, event.event_id)

    async def _hear_on(self, samples_N: np.ndarray, event_id: str | None) -> None:
        """Speech without a button: nobody can commit it, so what goes beyond the limit is left out, and said once."""
        try:
            await self._hear(samples_N)
        except ApiError as error:
            if self.turn is not None and not self.turn.full:
                self.turn.full = True
                error.message = f"{error.message.partition(';')[0]}; the rest of it is left out"
                await self.fail(error, event_id)

    async def _hear(self, samples_N: np.ndarray) -> None:
        limit = min(self.served.engine.model.config.max_seconds, self.service.options.max_recording_seconds)
        if (self.turn.seconds if self.turn else 0.0) + len(samples_N) / SAMPLE_RATE > limit:
            raise ApiError(400, f"the turn is longer than {limit:g} s; commit or clear it", code="audio_too_long")
        if self.turn is None:
            self.turn = self._new_turn()
        await self.turn.hear(samples_N)

    def _new_turn(self) -> Turn:
        item_id = new_id("item")

        async def partial(text: str) -> None:
            # Ours, not OpenAI's: its deltas only grow, while what was heard may be understood anew.
            await self.send(
                "conversation.item.input_audio_transcription.partial", item_id=item_id, content_index=0, transcript=text
            )

        return Turn(
            self.service,
            self.served,
            item_id=item_id,
            messages=self.conversation.live_messages(self.instructions, self.prompt),
            key=self.conversation.key(self.instructions),
            on_partial=partial if self.transcribes else None,
        )

    @property
    def prompt(self) -> str | None:
        """Text behind a turn of sound alone."""
        return self.served.engine.model.config.prompt

    def _resampled(self, samples_N: np.ndarray) -> np.ndarray:
        import soxr

        if self.rate == SAMPLE_RATE:
            return samples_N
        if self._resampler is None or self._resampler[0] != self.rate:
            self._resampler = (self.rate, soxr.ResampleStream(self.rate, SAMPLE_RATE, 1, dtype="float32"))
        return self._resampler[1].resample_chunk(samples_N)

    def _last_samples(self) -> np.ndarray:
        """What the resampling filter still holds."""
        found, self._resampler = self._resampler, None
        return np.zeros(0, np.float32) if found is None else found[1].resample_chunk(np.zeros(0, np.float32), last=True)

    def _forget_turn(self) -> None:
        if self.turn is not None:
            self.turn.cancel()
        self.turn = None

    async def _on_input_audio_buffer_clear(self, event: Any) -> None:
        self._forget_turn()
        self._resampler = None
        await self.send("input_audio_buffer.cleared")

    async def _on_input_audio_buffer_commit(self, event: Any) -> None:
        if self.turn is not None:
            await self.turn.hear(self._last_samples())
        await self._commit()

    async def _commit(self) -> None:
        turn = self.turn
        if turn is None or turn.seconds < MIN_SECONDS:
            raise ApiError(
                400,
                f"the buffer holds {turn.seconds if turn else 0.0:.2f} s of audio; expected at least {MIN_SECONDS} s",
                code="input_audio_buffer_commit_empty",
            )
        self._require_room(turn.seconds)
        self.turn = None
        await turn.end()
        if self.done_turn is not None:
            self.done_turn.cancel()
        self.done_turn = turn
        previous = self.conversation.last_id
        entry = Entry(id=turn.item_id, role="user", parts=(turn.wave_N,))
        self.conversation.entries.append(entry)
        await self.send("input_audio_buffer.committed", previous_item_id=previous, item_id=entry.id)
        await self._show(entry, previous)

    def _require_room(self, seconds: float) -> None:
        limit = self.service.options.max_recording_seconds
        full = len(self.conversation.entries) >= MOST_ITEMS or self.conversation.seconds + seconds > limit
        if full:
            raise ApiError(
                400,
                f"the session holds {len(self.conversation.entries)} items and {self.conversation.seconds:.0f} s of audio; "
                f"expected at most {MOST_ITEMS} and {limit:g} s. Delete items, or connect again",
                code="session_full",
            )

    async def _show(self, entry: Entry, previous: str | None) -> None:
        for event in ("conversation.item.added", "conversation.item.done"):
            await self.send(event, previous_item_id=previous, item=entry.as_item())

    async def _speech_started(self) -> None:
        if self.detection and self.detection["interrupt_response"]:
            self.answers.stop()
        self._forget_turn()
        self.turn = self._new_turn()
        await self.send(
            "input_audio_buffer.speech_started", audio_start_ms=self.ears.start_ms, item_id=self.turn.item_id
        )

    async def _speech_stopped(self) -> None:
        assert self.turn is not None and self.detection is not None
        await self.send("input_audio_buffer.speech_stopped", audio_end_ms=self.ears.end_ms, item_id=self.turn.item_id)
        try:
            await self._commit()
        except ApiError:
            self._forget_turn()  # nobody would commit it again
            raise
        if self.detection["create_response"]:
            await self.answers.wait()
            await self._respond(ResponseFields())

    # --- items ------------------------------------------------------------------------------------------------

    async def _on_conversation_item_create(self, event: Any) -> None:
        item = event.item
        parts: list[str | np.ndarray] = []
        for place, part in enumerate(item.content):
            param = f"item.content[{place}]"
            if part.type == "input_audio":
                if item.role != "user":
                    raise ApiError(
                        400, f"{param} is audio of the {item.role}; expected it in the user's items", param=param
                    )
                parts.append(await asyncio.to_thread(self._whole, part.audio or "", param))
            elif part.text is None:
                raise ApiError(400, f"{param} holds no text", code="invalid_value", param=param)
            else:
                parts.append(part.text)
        self._require_room(sum(len(p) for p in parts if not isinstance(p, str)) / SAMPLE_RATE)
        entry = Entry(id=item.id or new_id("item"), role=item.role, parts=tuple(parts))
        if any(entry.id == other.id for other in self.conversation.entries):
            raise ApiError(400, f"there is an item {entry.id!r} already", code="item_exists", param="item.id")
        previous = self.conversation.last_id
        self.conversation.entries.append(entry)
        await self._show(entry, previous)

    def _whole(self, data: str, param: str) -> np.ndarray:
        import soxr

        samples_N = pcm16(data, param)
        limit = self.served.engine.model.config.max_seconds
        if not MIN_SECONDS <= len(samples_N) / self.rate <= limit:
            raise ApiError(
                400, f"{param} is {len(samples_N) / self.rate:.2f} s long; expected {MIN_SECONDS} to {limit:g} s"
            )
        return soxr.resample(samples_N, self.rate, SAMPLE_RATE) if self.rate != SAMPLE_RATE else samples_N

    async def _on_conversation_item_delete(self, event: Any) -> None:
        kept = [entry for entry in self.conversation.entries if entry.id != event.item_id]
        if len(kept) == len(self.conversation.entries):
            raise ApiError(404, "there is no such item", code="item_not_found", param="item_id")
        self.conversation.entries = kept
        await self.send("conversation.item.deleted", item_id=event.item_id)

    # --- answers ----------------------------------------------------------------------------------------------

    async def _on_response_create(self, event: Any) -> None:
        await self._respond(event.response or ResponseFields())

    async def _respond(self, fields: ResponseFields) -> None:
        max_tokens = self.max_tokens
        if fields.max_output_tokens is not None:
            max_tokens = self._tokens(fields.max_output_tokens, "response.max_output_tokens")
        if not self.conversation.entries:
            raise ApiError(
                400, "the conversation is empty; commit audio or create an item first", code="empty_conversation"
            )
        self.answers.begin(fields, self.done_turn, max_tokens)
        self.done_turn = None

    async def _on_response_cancel(self, event: Any) -> None:
        if not self.answers.busy or event.response_id not in (None, self.answers.id):
            raise ApiError(400, "no such answer is being written", code="response_cancel_not_active")
        self.answers.stop()
