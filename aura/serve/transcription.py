"""/v1/audio/transcriptions and /translations: a recording of any length in, its words out, in five forms."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError  # Python's own only from 3.11 on
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from aura.batch.collate import Example
from aura.errors import AuraError
from aura.inference.generate import Generation
from aura.inference.transcribe import Transcript, to_srt, transcribe_each
from aura.serve.failures import ApiError, left, model_failed, of_aura_error, of_validation, timed_out
from aura.serve.jobs import Completion, Event, Failure, Job, Piece
from aura.serve.listen import checked_source
from aura.serve.models import Served
from aura.serve.schemas import TranscriptionForm
from aura.serve.service import Service, unless_client_leaves

logger = logging.getLogger(__name__)
router = APIRouter()

TRANSLATE = "Translate the speech into English."  # our choice; an adapter must have learnt such an instruction
WINDOW_TOKENS = 256  # per window of 30 s, as `aura transcribe`
AHEAD = 8  # windows of one recording in the queue at once: a long one must not keep the others waiting
MOST_FIELDS = 16
FORM_SCHEMA: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "model"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "model": {"type": "string", "minLength": 1, "maxLength": 256},
                        "language": {"type": "string", "maxLength": 32},
                        "prompt": {"type": "string", "maxLength": 4096},
                        "response_format": {"enum": ["json", "text", "srt", "vtt", "verbose_json"]},
                        "temperature": {"type": "number", "minimum": 0, "maximum": 0},
                        "timestamp_granularities[]": {"type": "array", "items": {"enum": ["segment"]}},
                        "stream": {"enum": ["false"]},
                    },
                }
            }
        },
    }
}


@router.post("/v1/audio/transcriptions", openapi_extra=FORM_SCHEMA)
async def transcriptions(request: Request) -> Response:
    """What is said, in its own language."""
    return await _answer(request, task="transcribe", default_prompt=None)


@router.post("/v1/audio/translations", openapi_extra=FORM_SCHEMA)
async def translations(request: Request) -> Response:
    """What is said, in English, as far as the adapter has learnt to."""
    return await _answer(request, task="translate", default_prompt=TRANSLATE)


async def _answer(request: Request, *, task: str, default_prompt: str | None) -> Response:
    service: Service = request.app.state.service
    data, form = await _read(request)
    served = service.model(form.model)
    request.scope["aura_note"] |= {"model": served.name, "bytes": len(data)}
    prompt = default_prompt if form.prompt is None else form.prompt
    listener = Listener(service, served)

    def work() -> Transcript:
        limit = service.options.max_recording_seconds
        source = service.decode(lambda: checked_source(data, max_seconds=limit, param="file"))
        try:
            scores = form.response_format == "verbose_json"
            [(_, result)] = transcribe_each(
                listener, [source], prompt=prompt, max_new_tokens=WINDOW_TOKENS, scores=scores
            )
        except AuraError as error:
            raise of_aura_error(error, param="prompt") from error
        if isinstance(result, AuraError):
            raise of_aura_error(result, param="file")
        return result

    try:
        thread = anyio.to_thread.run_sync(work, limiter=service.threads)
        transcript = await unless_client_leaves(request, thread, on_leave=listener.leave)
    finally:
        listener.leave()
    request.scope["aura_note"] |= {"audio_seconds": round(transcript.seconds, 3)}
    if service.options.log_text:
        request.scope["aura_note"] |= {"answer": transcript.text}
    return render(transcript, form, task)


async def _read(request: Request) -> tuple[bytes, TranscriptionForm]:
    """The file and the checked fields.

    Raises:
        ApiError: no multipart form, no file, or fields that are not understood.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ApiError(
            415 if kind else 400,
            f"the body is {kind[:80] or 'of no type'}; expected multipart/form-data with the fields file and model",
            code="invalid_content_type",
        )
    limit = request.app.state.service.options.max_bytes
    async with request.form(max_files=1, max_fields=MOST_FIELDS, max_part_size=1 << 16) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile) or len(form.getlist("file")) != 1:
            raise ApiError(400, "file is missing; expected one recording", code="missing_file", param="file")
        fields: dict[str, Any] = {}
        for name in form:
            if name != "file":
                values = form.getlist(name)
                fields[name] = values if name.endswith("[]") else values[0]
                if len(values) > 1 and not name.endswith("[]"):
                    raise ApiError(400, f"{name[:80]} is given {len(values)} times; expected once", param=name[:80])
        try:
            checked = TranscriptionForm.model_validate(fields)
        except ValidationError as error:
            raise of_validation(error.errors(include_input=False, include_url=False)) from error
        return await file.read(limit + 1), checked


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
            found += [_generation(future.result()) for future in futures]
        return found

    def average_log_probs(
        self, examples: Sequence[Example], generations: Sequence[Generation], *, batch_tokens: int
    ) -> list[float]:
        """One window at a time on the model's thread, so that nobody's next token waits for all of them.

        Raises:
            ApiError: the client left, the time is up, the model failed, or the server stops.
        """
        engine, found = self.served.engine, []
        for example, generation in zip(examples, generations, strict=True):
            run = partial(engine.average_log_probs, [example], [generation], batch_tokens=batch_tokens)
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
        self.service.scheduler.submit(job)
        return future


def _generation(completion: Completion) -> Generation:
    return Generation(text=completion.text, token_ids=completion.token_ids, finished=completion.finished)


def render(transcript: Transcript, form: TranscriptionForm, task: str) -> Response:
    """A transcript in the form that was asked for."""
    if form.response_format == "json":
        usage = {"type": "duration", "seconds": transcript.seconds}
        return JSONResponse({"text": transcript.text, "usage": usage})
    if form.response_format == "verbose_json":
        return JSONResponse(
            {
                "task": task,
                # Said by the client or by nobody: the model is not asked which language it hears.
                "language": "english" if task == "translate" else form.language or "unknown",
                "duration": transcript.seconds,
                "text": transcript.text,
                "segments": [
                    {"id": number, "seek": round(s.start * 100), **s.as_dict()}
                    for number, s in enumerate(transcript.segments)
                ],
                "usage": {"type": "duration", "seconds": transcript.seconds},
            }
        )
    text = {"text": lambda t: t.text + "\n", "srt": to_srt, "vtt": to_vtt}[form.response_format](transcript)
    kind = "text/vtt" if form.response_format == "vtt" else "text/plain"
    return PlainTextResponse(text, media_type=kind)


def to_vtt(transcript: Transcript) -> str:
    """WebVTT, one cue a segment; `&`, `<` and `-->` would be markup in it."""
    cues = [
        f"{_vtt_time(s.start)} --> {_vtt_time(s.end)}\n{s.text.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')}\n"
        for s in transcript.segments
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _vtt_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"
