"""One utterance: audio, the conversation around it, and what is known about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from aura.audio.waveform import load_waveform, name_of, probe_seconds
from aura.errors import DataError

Message = dict[str, Any]

NO_SPEECH_ANSWER = "..."
"""What a clip teaches in which nothing is said. An empty answer cannot be learnt beside texts that are never empty (rows
without one are dropped), and this one holds no letter and no digit, so no metric takes it for a word. Our choice."""


@dataclass(frozen=True, kw_only=True)
class AudioRef:
    """One recording, or a slice of one, not decoded yet.

    source: path, bytes, or a Hugging Face audio dict; start, end: seconds in it; seconds: length where it is
    known.
    """

    source: Any
    start: float | None = None
    end: float | None = None
    seconds: float | None = None

    def load(self) -> np.ndarray:
        """wave_N, mono float32 at 16 kHz. Raises `AudioError`."""
        return load_waveform(self.source, start=self.start, end=self.end)

    def measure(self) -> float:
        """Length in seconds, read from the file's header where the row does not say. Raises `AudioError`."""
        if self.seconds is not None:
            return self.seconds
        end = self.end if self.end is not None else probe_seconds(self.source)
        return max(0.0, end - (self.start or 0.0))

    @property
    def name(self) -> str:
        """For messages and ids: the path, with `#start-end` where it is a slice."""
        if self.start is None and self.end is None:
            return name_of(self.source)
        return f"{name_of(self.source)}#{self.start or 0:g}-{'' if self.end is None else f'{self.end:g}'}"


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One row of data: some audio parts and the turns of a conversation that refers to them.

    id: stable name (the row's id, else the audio's path); audio: one entry for each `{"type": "audio"}` part
    of `messages`, in their order; messages: chat messages, the answer to learn last; task: `transcribe`,
    `answer`, `intent` or a name of your own; label: an intent with slots, accepted answers or options, see
    `label_answer`.
    """

    id: str
    audio: tuple[AudioRef, ...]
    messages: tuple[Message, ...]
    task: str = "transcribe"
    transcript: str | None = None
    speaker: str | None = None
    lang: str | None = None
    label: Any = None

    @cached_property
    def seconds(self) -> float:
        """Summed length of the audio parts; read from the headers where the row does not say."""
        return sum(part.measure() for part in self.audio)

    @property
    def answer(self) -> str:
        """Text of the last assistant message, `""` where there is none."""
        for message in reversed(self.messages):
            if message["role"] == "assistant":
                return message_text(message)
        return ""


def message_text(message: Mapping[str, Any]) -> str:
    """The text parts of one message, joined."""
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def count_audio_parts(messages: tuple[Message, ...]) -> int:
    """How many `{"type": "audio"}` parts the messages hold."""
    contents = [message["content"] for message in messages]
    return sum(part["type"] == "audio" for parts in contents if not isinstance(parts, str) for part in parts)


def build_messages(
    *, transcript: str | None, label: Any, task: str | None, audio_parts: int = 1, prompt: str | None = None
) -> tuple[Message, ...]:
    """The conversation of a row that has none: audio (and `prompt` after it) in, transcript or label out.

    A label wins over a transcript, since a row that carries one is about it, unless the task is `transcribe`.
    With neither, there is no assistant turn and the row serves for inference only. A clip without speech, whose label says
    so, teaches `NO_SPEECH_ANSWER` in every task; an empty transcript alone may mean that nobody wrote it down.
    """
    content: list[dict[str, str]] = [{"type": "audio"} for _ in range(audio_parts)]
    if prompt:
        content = [*content, {"type": "text", "text": prompt}]
    user = {"role": "user", "content": content}
    spoken = transcript is not None and (label is None or task == "transcribe") and no_speech_kind(label) is None
    answer = transcript if spoken or label is None else label_answer(label)
    return (user,) if answer is None else (user, {"role": "assistant", "content": answer})


def label_answer(label: Any) -> str:
    """What a label wants to hear.

    Four kinds: an intent, with slots or not, gives its `label_text`; `{"answers": ["Paris", "the city of Paris"]}`
    the first of the accepted answers; `{"options": ["A", "B"], "answer": "B"}` the right option; `{"no_speech": "music"}`
    gives `NO_SPEECH_ANSWER`.

    Raises:
        DataError: a label of none of these kinds.
    """
    if no_speech_kind(label) is not None:
        return NO_SPEECH_ANSWER
    if isinstance(label, Mapping) and "intent" not in label:
        answers, options = label.get("answers"), label.get("options")
        if isinstance(answers, (list, tuple)) and answers and all(isinstance(text, str) for text in answers):
            return answers[0]
        if isinstance(options, (list, tuple)) and isinstance(label.get("answer"), str) and label["answer"] in options:
            return label["answer"]
    return label_text(label)


def no_speech_kind(label: Any) -> str | None:
    """What is heard instead of speech, from `{"no_speech": "music"}`; None for a label about speech."""
    kind = label.get("no_speech") if isinstance(label, Mapping) else None
    return kind if isinstance(kind, str) else None


def label_text(label: Any) -> str:
    """An intent as one canonical line: `orderDrink coffeeDrink=mocha; size=small`.

    Slots are sorted by name and spaces are normalised, so two equal labels give equal text and exact match
    means what it says. A string (a class name) is returned with its spaces normalised.

    Raises:
        DataError: no intent, or a name or value that the line could not give back.
    """
    if isinstance(label, str):
        return _squeeze(label)
    if not isinstance(label, Mapping) or not isinstance(label.get("intent"), str):
        raise DataError(
            f"label {label!r:.200}: expected a string or {{'intent': 'name', 'slots': {{'name': 'value'}}}}; a question "
            "has {'answers': ['text', ...]} or {'options': ['A', 'B'], 'answer': 'B'}."
        )
    intent = _squeeze(label["intent"])
    given = {name: value for name, value in (label.get("slots") or {}).items() if value is not None}
    slots = {_squeeze(str(name)): _squeeze(str(value)) for name, value in given.items()}
    for name in (intent, *slots):
        if not name or re.search(r"[\s=;]", name):
            raise DataError(f"label {label!r}: the name {name!r} holds a space, '=' or ';', or is empty. Rename it.")
    for value in slots.values():
        if ";" in value:
            raise DataError(f"label {label!r}: the value {value!r} holds ';', which separates slots. Remove it.")
    return " ".join([intent, "; ".join(f"{name}={slots[name]}" for name in sorted(slots))]).strip()


def parse_label(text: str) -> dict[str, Any]:
    """`label_text` back to `{"intent": ..., "slots": {...}}`; lenient, since models write these lines.

    Parts without `=` are dropped; the text of a plain class comes back as the intent.
    """
    head, _, rest = _squeeze(text).partition(" ")
    slots = {}
    for part in rest.split(";"):
        name, equals, value = part.partition("=")
        if equals and name.strip():
            slots[name.strip()] = value.strip()
    return {"intent": head, "slots": slots}


def _squeeze(text: str) -> str:
    return " ".join(text.split())
