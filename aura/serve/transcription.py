"""/v1/audio/transcriptions and /translations: a recording of any length in, its words out, in five forms."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from aura.errors import AuraError
from aura.inference.transcribe import Transcript, to_srt, transcribe_each
from aura.serve.failures import ApiError, of_aura_error, of_validation
from aura.serve.listen import checked_source
from aura.serve.listener import WINDOW_TOKENS, Listener
from aura.serve.schemas import TranscriptionForm
from aura.serve.service import Service, unless_client_leaves

router = APIRouter()

TRANSLATE = "Translate the speech into English."  # our choice; an adapter must have learnt such an instruction
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
