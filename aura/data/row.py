"""One row (a mapping, from JSON or from a dataset) -> one `Utterance`, or a line that says what is wrong."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from aura.data.utterance import AudioRef, Message, Utterance, build_messages, count_audio_parts, message_text
from aura.errors import DataError

FIELDS = (
    "id",
    "audio",
    "start",
    "end",
    "seconds",
    "messages",
    "task",
    "transcript",
    "speaker",
    "lang",
    "label",
)
ROLES = ("system", "user", "assistant", "tool")
AUDIO_FORM = "a path, a list of paths, or a list of {'audio', 'start', 'end'}"

Locate = Callable[[Any], Any]


def check_columns(columns: Mapping[str, str] | None) -> dict[str, str]:
    """The column mapping (our field -> their column). Raises `DataError` on a field we do not have."""
    unknown = sorted(set(columns or {}) - set(FIELDS))
    if unknown:
        raise DataError(f"columns names {', '.join(unknown)}; expected fields among {', '.join(FIELDS)}.")
    return dict(columns or {})


def locator(root: str | os.PathLike | None) -> Locate:
    """A function that puts relative audio paths under `root`."""

    def locate(source: Any) -> Any:
        if isinstance(source, str):
            return source if root is None else os.path.join(root, source)
        if isinstance(source, Mapping) and source.get("bytes") is None and isinstance(source.get("path"), str):
            return locate(source["path"])
        return source

    return locate


def utterance_from_row(
    row: Mapping[str, Any], *, locate: Locate, prompt: str | None = None, fallback_id: str | None = None
) -> Utterance:
    """Build the utterance of one row, with our field names.

    Raises:
        DataError: what is missing or malformed, without the line number, which the reader knows.
    """
    audio = _audio_refs(row, locate)
    transcript = _text(row, "transcript")
    label, task = row.get("label"), _text(row, "task")
    if row.get("messages"):
        messages = _messages(row["messages"])
        parts = count_audio_parts(messages)
        if parts != len(audio):
            raise DataError(
                f"'messages' hold {parts} {{'type': 'audio'}} parts, but 'audio' names {len(audio)} "
                "recordings; "
                "expected as many of one as of the other"
            )
    else:
        messages = build_messages(transcript=transcript, label=label, task=task, audio_parts=len(audio), prompt=prompt)
    return Utterance(
        id=_text(row, "id") or fallback_id or "+".join(_row_name(row, part) for part in audio),
        audio=audio,
        messages=messages,
        task=task or _guess_task(row, messages, transcript),
        transcript=transcript,
        speaker=_text(row, "speaker"),
        lang=_text(row, "lang"),
        label=label,
    )


def _guess_task(row: Mapping[str, Any], messages: tuple[Message, ...], transcript: str | None) -> str:
    if row.get("messages"):
        return "transcribe" if message_text(messages[-1]) == transcript else "answer"
    if isinstance(label := row.get("label"), Mapping) and "intent" not in label:
        return "choice" if "options" in label else "answer"
    return "intent" if label is not None else "transcribe"


def _row_name(row: Mapping[str, Any], part: AudioRef) -> str:
    # The path as the row has it, not where it lies on this machine: ids must be the same everywhere.
    given = row["audio"] if isinstance(row["audio"], str) else part.source
    return AudioRef(source=given, start=part.start, end=part.end).name


def _text(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and key in ("id", "speaker"):  # many corpora number both
        return str(value)
    raise DataError(f"'{key}' is {value!r}; expected text")


def _audio_refs(row: Mapping[str, Any], locate: Locate) -> tuple[AudioRef, ...]:
    given = row.get("audio")
    if given is None or given == "" or given == []:
        raise DataError(f"no 'audio'; expected {AUDIO_FORM}")
    if not isinstance(given, (list, tuple)):
        return (_audio_ref({**row, "audio": given}, locate),)
    own = [key for key in ("start", "end") if row.get(key) is not None]
    if own and len(given) > 1:
        raise DataError(f"'{own[0]}' beside {len(given)} recordings; expected it inside each of them")
    outer = {key: row.get(key) for key in ("start", "end", "seconds")} if len(given) == 1 else {}
    return tuple(
        _audio_ref({**outer, **part} if _is_slice(part) else {**outer, "audio": part}, locate) for part in given
    )


def _is_slice(part: Any) -> bool:
    return isinstance(part, Mapping) and "audio" in part


def _audio_ref(part: Mapping[str, Any], locate: Locate) -> AudioRef:
    source = part.get("audio")
    if not isinstance(source, (str, bytes, Mapping)) or not source:
        raise DataError(f"'audio' is {source!r}; expected {AUDIO_FORM}")
    start, end, seconds = (_seconds(part, key) for key in ("start", "end", "seconds"))
    if end is not None and end <= (start or 0.0):
        raise DataError(f"start={start or 0.0} is not before end={end}; expected seconds with start < end")
    return AudioRef(source=locate(source), start=start, end=end, seconds=seconds)


def _seconds(part: Mapping[str, Any], key: str) -> float | None:
    value = part.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise DataError(f"'{key}' is {value!r}; expected seconds >= 0")
    return float(value)


def _messages(given: Any) -> tuple[Message, ...]:
    if not isinstance(given, (list, tuple)):
        raise DataError(f"'messages' is {type(given).__name__}; expected a list of {{'role', 'content'}}")
    return tuple(_message(number, message) for number, message in enumerate(given, start=1))


def _message(number: int, message: Any) -> Message:
    if not isinstance(message, Mapping) or "content" not in message:
        raise DataError(f"message {number} is {message!r}; expected {{'role', 'content'}}")
    if message.get("role") not in ROLES:
        raise DataError(f"message {number} has the role {message.get('role')!r}; expected one of {', '.join(ROLES)}")
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": content}
    if not isinstance(content, (list, tuple)):
        raise DataError(f"message {number} has {type(content).__name__} as content; expected text or a list of parts")
    return {"role": message["role"], "content": [_part(number, part) for part in content]}


def _part(number: int, part: Any) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "audio":
        return {"type": "audio"}
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise DataError(
        f"message {number} has the part {part!r}; expected {{'type': 'text', 'text': ...}} or {{'type': 'audio'}}"
    )
