"""What is to be spoken: a list, a grammar, or JSON Lines -> texts with what the model shall answer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aura.data.utterance import label_answer
from aura.errors import DataError
from aura.synthesis.grammar_file import is_grammar, read_grammar

KEYS = ("text", "prompt", "answer", "instruction", "label", "messages", "task", "id")
_ARTICLE = re.compile(r"\b(an?) (?=(\w+))", re.IGNORECASE)
_LIKE_A_CONSONANT = ("one", "uni", "use", "euro")
_LIKE_A_VOWEL = ("hour", "honest", "heir")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One text and what its row shall teach.

    Args:
        text: to be spoken.
        fields: of the manifest's row besides audio and speaker: transcript, and label or messages where there are any.
    """

    text: str
    fields: Mapping[str, Any] = field(default_factory=dict)


def read_lines(source: str | os.PathLike[str], *, count: int | None = None, seed: int = 0) -> list[Line]:
    """Read what is to be spoken.

    Args:
        source: `.yaml` or `.json` is a grammar, `.jsonl` has one object a line, anything else one text a line.
        count: sentences drawn from a grammar (needed there); the first so many lines otherwise.
        seed: of the drawing.

    Returns:
        lines, each pair of text and answer once.

    Raises:
        DataError: nothing there, or lines that cannot be used: the first of them, with its number.
    """
    path = Path(source)
    if is_grammar(path):
        if count is None:
            raise DataError(f"{path} is a grammar, from which sentences are drawn; say how many with --count")
        sentences = read_grammar(path).sample(count, seed=seed)
        found = [_from_grammar(mend_articles(s.text), s.label) for s in sentences]
    else:
        found = list(_read(path))[:count]
    unique = {json.dumps([line.text, line.fields], sort_keys=True): line for line in found}
    if not unique:
        raise DataError(f"{path} holds no text; expected one a line")
    return list(unique.values())


def mend_articles(text: str) -> str:
    """`a iced tea` -> `an iced tea`: people say it right even where a grammar leaves both open."""

    def mended(match: re.Match[str]) -> str:
        word = match[2].lower()
        vowel = word.startswith(_LIKE_A_VOWEL) or (word[0] in "aeiou" and not word.startswith(_LIKE_A_CONSONANT))
        return match[1][0] + ("n " if vowel else " ")

    return _ARTICLE.sub(mended, text)


def _from_grammar(text: str, label: Mapping[str, Any]) -> Line:
    return Line(text=text, fields={"transcript": text, "label": label, "task": "intent"})


def _read(path: Path) -> Iterator[Line]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}; expected UTF-8 text") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.suffix.lower() != ".jsonl":
            text = " ".join(line.split())
            yield Line(text=text, fields={"transcript": text})
            continue
        try:
            yield line_from_row(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: is not JSON ({error.msg}); expected one object a line") from error
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error


def line_from_row(row: Any) -> Line:
    """One object of a JSONL -> `Line`.

    `text` (or `prompt`) is spoken; `answer` is what the assistant says, `instruction` a written text behind the audio,
    `label` an intent as manifests have it, `messages` a whole conversation with one audio part.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"is {type(row).__name__}; expected an object with 'text'")
    given = row.get("text", row.get("prompt"))
    if not isinstance(given, str) or not given.strip():
        raise DataError(f"has the text {given!r}; expected what is to be spoken under 'text' (or 'prompt')")
    text = " ".join(given.split())
    fields: dict[str, Any] = {"transcript": text}
    if row.get("label") is not None:
        label_answer(row["label"])  # raises where nothing could be learnt from it
        fields["label"] = row["label"]
    if row.get("messages"):
        fields["messages"] = row["messages"]
    elif row.get("answer") is not None:
        content: list[dict[str, str]] = [{"type": "audio"}]
        if row.get("instruction"):
            content.append({"type": "text", "text": str(row["instruction"])})
        answer = {"role": "assistant", "content": str(row["answer"])}
        fields["messages"] = [{"role": "user", "content": content}, answer]
    if row.get("task"):
        fields["task"] = str(row["task"])
    return Line(text=text, fields=fields)
