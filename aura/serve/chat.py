"""/v1/chat/completions: text and recordings in, text out, whole or as server-sent events."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from aura.audio.waveform import SAMPLE_RATE
from aura.batch.collate import Example
from aura.serve.failures import ApiError
from aura.serve.jobs import Completion, Piece, Sampling
from aura.serve.listen import audio_of_base64
from aura.serve.models import Served
from aura.serve.schemas import AudioPart, ChatRequest, one_of
from aura.serve.service import Answer, Service, unless_client_leaves

router = APIRouter()


@router.post("/v1/chat/completions")
async def chat(body: ChatRequest, request: Request) -> Response:
    """The assistant's next turn."""
    service: Service = request.app.state.service
    served = service.model(body.model)
    request.scope["aura_note"] |= {"model": served.name, "stream": bool(body.stream)}
    answer = Answer()
    start = time.monotonic()
    example = await run_in_threadpool(example_of, service, served, body)
    name = "max_completion_tokens" if body.max_completion_tokens is not None else "max_tokens"
    answer.job = await run_in_threadpool(
        service.job,
        served,
        example,
        max_new_tokens=service.new_tokens(one_of(body.max_completion_tokens, body.max_tokens), name),
        emit=answer.emit,
        sampling=Sampling(temperature=body.temperature or 0.0, top_p=body.top_p or 1.0, seed=body.seed),
        stop=body.stops,
    )
    answer.job.arrived = start  # decoding counts: the client waits for it too
    service.scheduler.submit(answer.job)
    head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
    if body.stream:
        events = answer.events()
        # An answer that fails before its first word can still have a status of its own.
        first = await unless_client_leaves(request, anext(events))
        usage = bool(body.stream_options and body.stream_options.include_usage)
        stream = _chunks(head, first, events, usage, lambda done: note(request, served, done, body))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    completion = await unless_client_leaves(request, answer.completion())
    note(request, served, completion, body)
    return JSONResponse(
        {
            **head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": completion.text, "refusal": None},
                    "logprobs": None,
                    "finish_reason": reason(completion),
                }
            ],
            "usage": usage_of(completion),
        }
    )


def example_of(service: Service, served: Served, body: ChatRequest) -> Example:
    """Messages with their audio decoded; OpenAI's `developer` is what LLMs call `system`.

    Raises:
        ApiError: audio that cannot be heard, is longer than the checkpoint takes, or is more than a request may hold.
    """
    _check_number(service, body)
    messages: list[dict[str, Any]] = []
    waveforms: list[np.ndarray] = []
    total = 0.0
    for number, message in enumerate(body.messages):
        role = "system" if message.role == "developer" else message.role
        content: Any = message.content
        if isinstance(message.content, list):
            content = []
            for place, part in enumerate(message.content):
                if isinstance(part, AudioPart):
                    param = f"messages[{number}].content[{place}].input_audio.data"
                    wave_N = _heard(service, served, part.input_audio.data, total, param)
                    total += len(wave_N) / SAMPLE_RATE
                    waveforms.append(wave_N)
                    content.append({"type": "audio"})
                else:
                    content.append({"type": "text", "text": part.text})
        messages.append({"role": role, "content": content})
    return Example(id="the conversation", messages=messages, waveforms=waveforms)


def _check_number(service: Service, body: ChatRequest) -> None:
    contents = [message.content for message in body.messages if isinstance(message.content, list)]
    number = sum(isinstance(part, AudioPart) for content in contents for part in content)
    if number > service.options.max_audio_parts:
        raise ApiError(
            400,
            f"the messages hold {number} recordings; expected at most {service.options.max_audio_parts}."
            " Join them, or leave out old ones",
            code="too_many_recordings",
            param="messages",
        )


def _heard(service: Service, served: Served, data: str, total: float, param: str) -> np.ndarray:
    """One recording, behind others of `total` seconds: few bytes may hold hours, so their sum is bounded as well."""
    longest = served.engine.model.config.max_seconds
    left = max(0.0, service.options.max_recording_seconds - total)
    try:
        return service.decode(lambda: audio_of_base64(data, max_seconds=min(longest, left), param=param))
    except ApiError as error:
        if error.code != "audio_too_long" or left >= longest:
            raise
        raise ApiError(
            413,
            f"the recordings are together longer than {service.options.max_recording_seconds:g} s; send fewer of them",
            code="audio_too_long",
            param=param,
        ) from error


async def _chunks(
    head: dict[str, Any], first: Piece | Completion, events: Any, usage: bool, done: Any
) -> AsyncIterator[str]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        extra = {"usage": None} if usage else {}
        return sse({**head, "object": "chat.completion.chunk", "choices": [choice], **extra})

    try:
        yield chunk({"role": "assistant", "content": ""})
        event: Piece | Completion = first
        while isinstance(event, Piece):
            yield chunk({"content": event.text})
            event = await anext(events)
        yield chunk({}, reason(event))
        if usage:
            yield sse({**head, "object": "chat.completion.chunk", "choices": [], "usage": usage_of(event)})
        done(event)
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield sse({"error": error.body()})
    finally:
        await events.aclose()  # cancels the job where the client has left


def sse(value: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(value)}\n\n"


def reason(completion: Completion) -> str:
    return "stop" if completion.finished else "length"


def usage_of(completion: Completion) -> dict[str, Any]:
    """Counts in OpenAI's form; a position of audio is a prompt token."""
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "total_tokens": completion.prompt_tokens + completion.completion_tokens,
        "prompt_tokens_details": {"audio_tokens": completion.audio_tokens, "cached_tokens": 0},
        "completion_tokens_details": {"audio_tokens": 0, "reasoning_tokens": 0},
    }


def note(request: Request, served: Served, completion: Completion, body: ChatRequest) -> None:
    """Figures of an answer, for the log line and the metrics."""
    service: Service = request.app.state.service
    service.metrics.answered(served.name, completion)
    found: dict[str, Any] = {
        "prompt_tokens": completion.prompt_tokens,
        "audio_tokens": completion.audio_tokens,
        "completion_tokens": completion.completion_tokens,
        "waited": round(completion.waited, 3),
        "first_token": None if completion.first_token is None else round(completion.first_token, 3),
    }
    if service.options.log_text:
        found |= {"messages": [_words(message.content) for message in body.messages], "answer": completion.text}
    request.scope["aura_note"] |= found


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join("(audio)" if isinstance(part, AudioPart) else part.text for part in content)
