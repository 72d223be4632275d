"""What a client may say on the realtime socket; OpenAI's names and fields, as far as they make sense for text answers."""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from aura.serve.failures import ApiError, of_validation

MOST_CHARACTERS = 32_768  # of instructions, or of one item's text


class _Event(BaseModel):
    model_config = ConfigDict(extra="forbid")

    event_id: Annotated[str, Field(max_length=512)] | None = None


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PcmFormat(_Settings):
    """16-bit little-endian mono samples."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Annotated[int, Field(ge=8000, le=48_000)] = 24_000


class Transcription(BaseModel):
    """Ask for what was heard as text; the model itself writes it down, so the fields choose nothing."""

    model_config = ConfigDict(extra="ignore")


class TurnDetection(_Settings):
    """The server finds the end of speech (Silero, from the extra `stream`)."""

    type: Literal["server_vad"]
    threshold: Annotated[float, Field(gt=0.15, lt=1, allow_inf_nan=False)] = 0.5
    silence_duration_ms: Annotated[int, Field(ge=32, le=10_000)] = 500
    prefix_padding_ms: Annotated[int, Field(ge=0, le=5000)] = 300
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: None = None


class AudioInput(_Settings):
    """How the audio comes."""

    format: PcmFormat | None = None
    transcription: Transcription | None = None
    turn_detection: TurnDetection | None = None
    noise_reduction: None = None


class AudioSettings(_Settings):
    """`output` is left unread: answers are text."""

    input: AudioInput | None = None
    output: Any = None


class SessionFields(_Settings):
    """Fields of session.update."""

    type: Literal["realtime"] = "realtime"
    model: Annotated[str, Field(max_length=256)] | None = None
    instructions: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = None
    output_modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] | None = None
    audio: AudioSettings | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Any = None
    include: Annotated[list[Any], Field(max_length=0)] | None = None
    tracing: None = None
    truncation: Any = None
    prompt: None = None


class SessionUpdate(_Event):
    """Change settings; what is not named stays."""

    type: Literal["session.update"]
    session: SessionFields


class Append(_Event):
    """More audio, base64."""

    type: Literal["input_audio_buffer.append"]
    audio: str


class Commit(_Event):
    """The turn is over."""

    type: Literal["input_audio_buffer.commit"]


class Clear(_Event):
    """Forget the audio that was not committed."""

    type: Literal["input_audio_buffer.clear"]


class ItemPart(BaseModel):
    """A part of an item; audio as in the session's format."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["input_text", "input_audio", "output_text", "text"]
    text: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = None
    audio: str | None = None


class Item(BaseModel):
    """A message of the conversation."""

    model_config = ConfigDict(extra="ignore")

    id: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    type: Literal["message"]
    role: Literal["user", "system", "assistant"]
    content: Annotated[list[ItemPart], Field(min_length=1, max_length=32)]


class ItemCreate(_Event):
    """Add a message."""

    type: Literal["conversation.item.create"]
    item: Item
    previous_item_id: None = None


class ItemDelete(_Event):
    """Forget a message."""

    type: Literal["conversation.item.delete"]
    item_id: Annotated[str, Field(max_length=512)]


class ResponseFields(_Settings):
    """Settings of one answer."""

    instructions: Annotated[str, Field(max_length=MOST_CHARACTERS)] | None = None
    output_modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | Literal["inf"] | None = None
    conversation: Literal["auto", "none"] | None = None
    metadata: dict[str, str] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Any = None


class ResponseCreate(_Event):
    """Answer now."""

    type: Literal["response.create"]
    response: ResponseFields | None = None


class ResponseCancel(_Event):
    """Stop answering."""

    type: Literal["response.cancel"]
    response_id: Annotated[str, Field(max_length=512)] | None = None


ClientEvent = Annotated[
    SessionUpdate | Append | Commit | Clear | ItemCreate | ItemDelete | ResponseCreate | ResponseCancel,
    Field(discriminator="type"),
]
EVENT: TypeAdapter[Any] = TypeAdapter(ClientEvent)


def parse(text: str) -> tuple[Any, str | None]:
    """JSON -> event, and its id.

    Raises:
        ApiError: not JSON, or no event that is known.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the message is no JSON", code="invalid_json") from error
    if not isinstance(value, dict):
        raise ApiError(400, "the message is no JSON object; expected an event with a type", code="invalid_event")
    try:
        event = EVENT.validate_python(value)
    except ValidationError as error:
        raise of_validation(error.errors(include_input=False, include_url=False, include_context=False)) from error
    return event, event.event_id


def pcm16(data: str, param: str = "audio") -> np.ndarray:
    """Base64 of 16-bit little-endian samples -> float32.

    Raises:
        ApiError: not base64, or half a sample.
    """
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(400, f"{param} is not base64", code="invalid_base64", param=param) from error
    if len(raw) % 2:
        raise ApiError(
            400, f"{param} holds {len(raw)} bytes; expected whole 16-bit samples", code="invalid_audio", param=param
        )
    return np.frombuffer(raw, "<i2").astype(np.float32) / 32768.0


def new_id(kind: str) -> str:
    """Id of a session, item, response or event."""
    return f"{kind}_{uuid.uuid4().hex[:24]}"
