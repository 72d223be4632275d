"""Chat messages with audio in them -> messages with placeholders, and the waveforms beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aura.audio.waveform import load_waveform, name_of, probe_seconds
from aura.batch.collate import Example
from aura.batch.prompt import Message
from aura.errors import AudioError, PromptError

AUDIO_KEYS = ("audio", "path", "url", "bytes", "array")
AUDIO_FORM = '{"type": "audio", "audio": <path, bytes or array>} (with "sampling_rate" for an array)'


def example_from_messages(messages: Sequence[Message], *, max_seconds: float, id: str = "the conversation") -> Example:
    """Decode the audio parts of a conversation.

    Args:
        messages: turns; audio parts carry their audio under `audio` or `path`, Hugging Face's forms.
        max_seconds: longest single audio part.

    Raises:
        PromptError: a message or part that is not understood.
        AudioError: audio that cannot be heard, or longer than `max_seconds`.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(f"the conversation is {_short(messages)}; expected a list of messages with role and content")
    waveforms: list[np.ndarray] = []
    plain: list[dict[str, Any]] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping) or "content" not in message:
            raise PromptError(f'message {number} is {_short(message)}; expected {{"role": "user", "content": ...}}')
        content = message["content"]
        if not isinstance(content, str):
            if not isinstance(content, Sequence):
                raise PromptError(
                    f"message {number} has the content {_short(content)}; expected text or a list of parts"
                )
            parts = []
            for part in content:
                if isinstance(part, Mapping) and part.get("type") == "audio":
                    waveforms.append(load_part(part, max_seconds=max_seconds, place=f"message {number}"))
                    part = {"type": "audio"}
                elif not isinstance(part, Mapping):
                    raise PromptError(f'message {number} holds the part {_short(part)}; expected a dict with "type"')
                parts.append(part)
            content = parts
        plain.append({**message, "content": content})
    return Example(id=id, messages=plain, waveforms=waveforms)


def load_part(part: Mapping[str, Any], *, max_seconds: float, place: str) -> np.ndarray:
    """One `{"type": "audio"}` part -> waveform."""
    given = [key for key in AUDIO_KEYS if part.get(key) is not None]
    if len(given) != 1:
        found = " and ".join(given) if given else "none"
        raise PromptError(
            f"{place} has an audio part whose audio cannot be told (found: {found}); expected {AUDIO_FORM}"
        )
    source = part[given[0]]
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise PromptError(
            f"{place} names the audio {source}; expected a local file. Download it first and give its path"
        )
    return load_limited(source, max_seconds=max_seconds, sampling_rate=part.get("sampling_rate"))


def load_limited(source: Any, *, max_seconds: float, sampling_rate: int | None = None) -> np.ndarray:
    """Decode a recording that must be heard at once.

    Raises:
        AudioError: it cannot be decoded, or is longer than `max_seconds` (seen in its header, not decoded).
    """
    if isinstance(source, np.ndarray):
        if sampling_rate is None:
            raise AudioError(
                f'an array of shape {source.shape} was given without its rate; expected one. Add "sampling_rate": 16000'
            )
        source = {"array": source, "sampling_rate": sampling_rate}
    source = rereadable(source)
    seconds = probe_seconds(source)
    if seconds > max_seconds:
        raise AudioError(
            f"{name_of(source)} is {seconds:.1f} s long; expected at most {max_seconds:g} s at once. "
            "Cut out the part in question, or write all of it down with: aura transcribe"
        )
    return load_waveform(source)


def rereadable(source: Any) -> Any:
    """The source itself, or the bytes of a pipe, which could be read only once."""
    if isinstance(source, Mapping) or not hasattr(source, "read"):
        return source
    return source if getattr(source, "seekable", lambda: False)() else source.read()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
