"""Which question an answer belongs to: an item whose turns, recording or options changed is asked again."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from aura.batch.prompt import user_message
from aura.data.utterance import AudioRef, Utterance


def asked_messages(utterance: Utterance, prompt: str | None) -> list[Any]:
    """The turns up to the answer; a prompt stands for the utterance's own user turns."""
    messages: list[Any] = list(utterance.messages)
    if prompt is not None:
        return [user_message(prompt, len(utterance.audio))]
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


def question_digest(utterance: Utterance, *, prompt: str | None, also: Sequence[Any] = ()) -> str:
    """Names the question.

    Args:
        prompt: asked instead of the utterance's own user turns.
        also: what else makes it another one, e.g. its options.
    """
    audio = [_heard(part) for part in utterance.audio]
    asked = [asked_messages(utterance, prompt), audio, utterance.transcript, *also]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _heard(part: AudioRef) -> dict[str, Any]:
    # All fields but the source, so that noise that is mixed in counts as well.
    own = {field.name: getattr(part, field.name) for field in fields(part) if field.name not in ("source", "seconds")}
    return {"name": part.name, "content": _content(part.source), "noise": _content(getattr(part, "noise", None)), **own}


def _content(source: Any) -> Any:
    """Bytes, arrays and files by their hash; None where there is nothing to look at."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return hashlib.sha256(source).hexdigest()[:16]
    if isinstance(source, Mapping):
        return {key: _content(value) for key, value in source.items()}
    if hasattr(source, "tobytes"):
        return _content(source.tobytes())
    if isinstance(source, (str, os.PathLike)):
        try:
            found = os.stat(source)
        except (OSError, ValueError):  # not there, or no path at all: answering it will say so
            return str(source)
        return _file_hash(os.fspath(source), found.st_size, found.st_mtime_ns)
    return source if isinstance(source, (int, float)) else None


@functools.lru_cache(maxsize=4096)
def _file_hash(path: str, size: int, changed_ns: int) -> str | None:
    """Of a file's content, once per file: many rows may lie in one recording."""
    try:
        with open(path, "rb") as file:
            sha = hashlib.sha256()
            while block := file.read(1 << 20):
                sha.update(block)
            return sha.hexdigest()[:16]
    except OSError:
        return None
