"""Bodies of requests. What OpenAI's API has and this server cannot do is refused by name, never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_MESSAGES = 512
MOST_PARTS = 64


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")  # vendors add cache hints and the like


class TextPart(_Part):
    """Words."""

    type: Literal["text"]
    text: str


class InputAudio(_Part):
    """A recording, as the bytes of a file."""

    data: Annotated[str, Field(min_length=1, description="base64 of a wav, mp3, flac, ogg, opus, m4a or webm file")]
    format: Annotated[str, Field(max_length=32, description="a hint; the bytes themselves decide")] = "wav"


class AudioPart(_Part):
    """Sound."""

    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | AudioPart, Field(discriminator="type")]


class Message(BaseModel):
    """One turn; further fields, such as an earlier answer's `refusal`, are left unread."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(min_length=1, max_length=MOST_PARTS)]


class StreamOptions(_Part):
    """What a stream holds besides text."""

    include_usage: bool = False


class ResponseFormat(_Part):
    """Only text can be promised."""

    type: Literal["text"]


class ChatRequest(BaseModel):
    """Body of /v1/chat/completions."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"title": "ChatRequest"})

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: (
        Annotated[
            float, Field(ge=0, le=2, allow_inf_nan=False, description="0, the default here, takes the likeliest token")
        ]
        | None
    ) = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: (
        Annotated[str, Field(max_length=256)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=4)]
        | None
    ) = None
    n: Literal[1] | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0, description="not supported: only 0")] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0, description="not supported: only 0")] | None = None
    logprobs: Literal[False] | None = None
    # For the operator of a service, without an effect on the answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)


class TranscriptionForm(BaseModel):
    """Fields of /v1/audio/transcriptions and /translations, besides the file."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    model: Annotated[str, Field(min_length=1, max_length=256)]
    language: Annotated[str, Field(max_length=32)] | None = None
    prompt: Annotated[str, Field(max_length=4096)] | None = None
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: Annotated[float, Field(ge=0, le=0, description="not supported: only 0")] | None = None
    timestamp_granularities: list[Literal["segment"]] | None = Field(default=None, alias="timestamp_granularities[]")
    stream: Literal["false", "False", "0"] | None = None


def one_of(*values: int | None) -> int | None:
    """The first that was given."""
    return next((value for value in values if value is not None), None)
