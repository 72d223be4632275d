"""The messages of a realtime session, with their audio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aura.audio.waveform import SAMPLE_RATE
from aura.batch.collate import Example

LIVE: dict[str, Any] = {"type": "audio"}  # where the audio stands that is being spoken


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One message.

    Args:
        id: of the item.
        role: user, assistant or system.
        parts: texts, and recordings (samples,) at 16 kHz.
    """

    id: str
    role: str
    parts: tuple[str | np.ndarray, ...]

    def as_item(self) -> dict[str, Any]:
        """As the protocol shows it; audio stays here."""
        content: list[dict[str, Any]] = []
        for part in self.parts:
            if not isinstance(part, str):
                content.append({"type": "input_audio", "transcript": None})
            else:
                content.append({"type": "output_text" if self.role == "assistant" else "input_text", "text": part})
        item = {"id": self.id, "object": "realtime.item", "type": "message", "status": "completed"}
        return {**item, "role": self.role, "content": content}


@dataclass
class Conversation:
    """Items in order."""

    entries: list[Entry] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Audio kept."""
        return sum(len(p) for e in self.entries for p in e.parts if not isinstance(p, str)) / SAMPLE_RATE

    @property
    def last_id(self) -> str | None:
        return self.entries[-1].id if self.entries else None

    def key(self, instructions: str | None) -> Any:
        """Changes whenever the messages in front of a live turn do."""
        return (instructions or "", tuple(entry.id for entry in self.entries))

    def live_messages(self, instructions: str | None, prompt: str | None) -> list[dict[str, Any]]:
        """For `Engine.stream`: what was said, then a user turn with the live audio in it."""
        turns = self._turns(instructions)
        waiting = turns.pop()["content"] if turns and turns[-1]["role"] == "user" else []
        turns.append({"role": "user", "content": _asked([*waiting, LIVE], prompt)})
        return [{**turn, "content": [_sounding(part) for part in _ordered(turn)]} for turn in turns]

    def example(self, instructions: str | None, prompt: str | None) -> Example:
        """The same as a decoded conversation, for an answer without streaming."""
        turns = self._turns(instructions)
        if turns and turns[-1]["role"] == "user":
            turns[-1]["content"] = _asked(turns[-1]["content"], prompt)
        waveforms = [part["wave"] for turn in turns for part in _ordered(turn) if part["type"] == "audio"]
        messages = [{**turn, "content": [_bare(part) for part in _ordered(turn)]} for turn in turns]
        return Example(id="the conversation", messages=messages, waveforms=waveforms)

    def _turns(self, instructions: str | None) -> list[dict[str, Any]]:
        """Neighbours of one role are one turn: chat templates want roles to alternate."""
        turns: list[dict[str, Any]] = []
        if instructions:
            turns.append({"role": "system", "content": [{"type": "text", "text": instructions}]})
        for entry in self.entries:
            parts = [
                {"type": "text", "text": p} if isinstance(p, str) else {"type": "audio", "wave": p} for p in entry.parts
            ]
            if turns and turns[-1]["role"] == entry.role:
                turns[-1]["content"] += parts
            else:
                turns.append({"role": entry.role, "content": parts})
        return turns


def _ordered(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """Recordings first, then the text about them, as in training: a question may be typed before it is spoken to."""
    return sorted(turn["content"], key=lambda part: part["type"] != "audio")  # stable


def _asked(parts: Sequence[dict[str, Any]], prompt: str | None) -> list[dict[str, Any]]:
    """A turn of sound alone gets the text that stood behind the audio in training."""
    if prompt and all(part["type"] == "audio" for part in parts):
        return [*parts, {"type": "text", "text": prompt}]
    return list(parts)


def _sounding(part: dict[str, Any]) -> dict[str, Any]:
    if "wave" not in part:
        return part
    return {"type": "audio", "audio": part["wave"], "sampling_rate": SAMPLE_RATE}


def _bare(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "audio"} if part["type"] == "audio" else part
