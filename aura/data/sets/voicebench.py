"""VoiceBench (Chen et al. 2024): rows of `audio`, `prompt` and `reference` or `output` -> utterances.

The subsets differ in what they can be scored on. `openbookqa` and `mmsu` are multiple choice, their `reference` the
letter; `sd-qa` and `bbh` have a short `reference`; `alpacaeval`, `alpacaeval_full` and `wildvoice` an `output`, one
good answer among many; `commoneval`, `ifeval` and `advbench` none: their published scores need a judge or a checker
of their own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aura.data.collect import NumberedRow, Utterances, collect, convert_rows
from aura.data.columns import SYNONYMS
from aura.data.converters import from_hf, with_seconds
from aura.data.manifest import is_manifest, read_rows
from aura.data.row import locator
from aura.data.utterance import Utterance, build_messages
from aura.errors import DataError

LETTERS = ("A", "B", "C", "D")
ANSWERS = ("reference", "output", "answer")  # columns of the answer, the first that is there; open subsets have none
QUESTIONS = ("prompt", "audio_content")  # what is said
CHOICE_SUBSETS = ("openbookqa", "mmsu")


def from_voicebench(
    source: str,
    audio_dir: str | os.PathLike[str],
    *,
    subset: str | None = None,
    split: str | None = None,
    choice: bool | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    on_row: Callable[[int], None] | None = None,
) -> Utterances:
    """A subset of VoiceBench, its audio written as files.

    Rows get what is said as transcript and the answer as label: `{"options": [...], "answer": "B"}` (task `choice`) or
    `{"answers": ["..."]}` (task `answer`).

    Args:
        source: `hf:hlt-lab/voicebench`, its parquet files or a folder of them, or JSON Lines with the same fields
            and paths as `audio` (relative to the file), which then stay where they are.
        audio_dir: where to write the audio of a dataset.
        subset: name of the configuration, such as `openbookqa`; for `hf:` it is needed.
        split: `test` in most subsets; in `sd-qa` the region, such as `usa`.
        choice: whether the answers are letters of options; by default where the subset says so, or where every
            answer is a single letter.
        limit: first N rows.
        skip_bad: drop bad rows instead of raising.
        on_row: called with the number of rows done.

    Raises:
        DataError: no such source, subset or split, or rows of another shape.
        AudioError: audio that cannot be read.
    """
    rows: Sequence[Utterance]
    if is_manifest(source):
        rows = _from_lines(source, limit, skip_bad)
    else:
        rows = _from_dataset(source, audio_dir, subset, split, limit, skip_bad, on_row)
    answers = [row.label for row in rows if row.label is not None]
    if choice is None:
        letters = bool(answers) and all(answer.strip() in LETTERS for answer in answers)
        choice = letters and (subset is None or subset in CHOICE_SUBSETS)
    return Utterances((_labelled(row, choice) for row in rows), getattr(rows, "skipped", ()))


def options_in(prompt: str) -> tuple[str, ...]:
    """The letters of the options in a question such as "... A. ice B. steam C. fog D. dew"; A to D where it names none."""
    found: list[str] = []
    for letter in re.findall(r"(?<![\w'])([A-Z])(?=[.):,]\s)", prompt):
        if letter == chr(ord("A") + len(found)):  # in their order, so that initials are not taken for options
            found.append(letter)
    return tuple(found) if len(found) > 1 else LETTERS


def _labelled(utterance: Utterance, choice: bool) -> Utterance:
    if utterance.label is None:
        label: Any = None
    elif choice:
        letter = utterance.label.strip()
        options = options_in(utterance.transcript or "")
        label = {"options": list(options if letter in options else LETTERS), "answer": letter}
        if letter not in label["options"]:
            raise DataError(f"{utterance.id}: the answer is {letter!r}; expected one of {', '.join(options)}")
    else:
        label = {"answers": [utterance.label]}
    messages = build_messages(transcript=None, label=label, task=None)
    return replace(utterance, label=label, messages=messages, task="choice" if choice else "answer", lang="en")


def _from_dataset(
    source: str,
    audio_dir: str | os.PathLike[str],
    subset: str | None,
    split: str | None,
    limit: int | None,
    skip_bad: bool,
    on_row: Callable[[int], None] | None,
) -> Sequence[Utterance]:
    from aura.data.hf_datasets import dataset_columns

    name = subset if source.startswith("hf:") else None
    present = dataset_columns(source, split=split, name=name)
    columns = {"transcript": _column(source, QUESTIONS, present)}
    if (answer := next((column for column in ANSWERS if column in present), None)) is not None:
        columns["label"] = answer
    return from_hf(
        source,
        audio_dir,
        split=split,
        name=name,
        columns=columns,
        limit=limit,
        skip_bad=skip_bad,
        on_row=on_row,
    )


def _from_lines(source: str, limit: int | None, skip_bad: bool) -> Utterances:
    results = convert_rows(_line_rows(source), locate=locator(None), prompt=None, limit=limit)
    return collect(results, source, skip_bad)


def _line_rows(source: str) -> Iterator[NumberedRow]:
    root = Path(source).parent
    for number, given in read_rows(source, {}):
        place = f"line {number}"
        try:
            if isinstance(given, DataError):
                raise given
            audio = given[_column(source, SYNONYMS["audio"], given)]
            if not isinstance(audio, str):
                raise DataError(f"'audio' is {type(audio).__name__}; expected a path")
            answer = next((given[column] for column in ANSWERS if given.get(column) is not None), None)
            row: Mapping[str, Any] = {
                "audio": str(root / audio),
                "transcript": given[_column(source, QUESTIONS, given)],
                "label": None if answer is None else str(answer),
            }
            yield place, with_seconds(row), audio
        except DataError as error:
            yield place, error, None


def _column(source: str, names: Sequence[str], present: Sequence[str] | Mapping[str, Any]) -> str:
    found = next((name for name in names if name in present), None)
    if found is None:
        raise DataError(
            f"{source}: no column {' or '.join(map(repr, names[:2]))}; it has {', '.join(present) or 'none'}. "
            "Expected VoiceBench's audio, prompt and reference or output"
        )
    return found
