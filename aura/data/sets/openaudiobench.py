"""OpenAudioBench (Li et al. 2025, *Baichuan-Audio*): `eval_datas/SUBSET/SUBSET.csv` beside `audios/` -> utterances."""

from __future__ import annotations

import ast
import csv
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aura.data.collect import NumberedRow, Utterances, collect, convert_rows
from aura.data.converters import with_seconds
from aura.data.manifest import read_rows
from aura.data.row import locator
from aura.data.sets.files import existing_folder
from aura.errors import DataError

AUDIO = "audio_filename"


@dataclass(frozen=True, kw_only=True)
class Subset:
    """Columns of one subset.

    question: what is said; answers: columns of accepted answers; separator: what parts several in one cell.
    """

    question: str
    answers: tuple[str, ...]
    separator: str | None = None


SUBSETS = {
    "alpaca_eval": Subset(question="instruction", answers=("output",)),
    "llama_questions": Subset(question="Questions", answers=("Answer",)),
    "reasoning_qa": Subset(question="Prompt", answers=("参考答案",)),
    # The aliases hold no punctuation, so a comma always parts two of them.
    "trivia_qa": Subset(
        question="question", answers=("answer_normalized_value", "answer_normalized_aliases"), separator=","
    ),
    "web_questions": Subset(question="question", answers=("answers",), separator=";"),
}
"""`alpaca_eval` and `reasoning_qa` have long answers that are published as scored by a judge; the others are short."""


def from_openaudiobench(
    folder: str | os.PathLike[str], *, subset: str | None = None, skip_bad: bool = False
) -> Utterances:
    """A subset, one utterance per question, with `{"answers": [...]}` as label.

    Args:
        folder: of the subset, with its `.csv` (or `.jsonl` of the same fields) and `audios/`.
        subset: its name, one of `SUBSETS`; the folder's name by default.
        skip_bad: drop bad rows, such as missing recordings, instead of raising.

    Raises:
        DataError: no such folder or subset, or another table than its.
    """
    path = existing_folder(folder, "a subset of OpenAudioBench, such as eval_datas/web_questions")
    name = subset or path.absolute().name
    if name not in SUBSETS:
        raise DataError(f"{path}: {name!r} is no subset of OpenAudioBench; expected one of {', '.join(SUBSETS)}")
    table = next((path / f"{name}{end}" for end in (".csv", ".jsonl") if (path / f"{name}{end}").is_file()), None)
    if table is None:
        raise DataError(f"{path}: no {name}.csv in it; expected it beside the folder audios")
    rows = _rows(table, SUBSETS[name])
    return collect(convert_rows(rows, locate=locator(None), prompt=None, limit=None), str(table), skip_bad)


def _rows(table: Path, subset: Subset) -> Iterator[NumberedRow]:
    for place, given in _table(table):
        if isinstance(given, DataError):
            yield place, given, None
            continue
        if absent := [column for column in (AUDIO, subset.question, subset.answers[-1]) if column not in given]:
            raise DataError(
                f"{table}: no column {absent[0]!r}; it has {', '.join(map(str, given)) or 'none'}. Expected the table "
                f"that OpenAudioBench publishes as {table.stem}"
            )
        accepted = _accepted(given, subset)
        if not accepted or not given[AUDIO]:
            yield place, DataError(f"no {'answer' if given[AUDIO] else AUDIO}"), None
            continue
        row = {
            "audio": str(table.parent / "audios" / given[AUDIO]),
            "transcript": given[subset.question],
            "lang": "en",
            "label": {"answers": accepted},
            "task": "answer",
        }
        yield place, with_seconds(row), f"{table.stem}/{given[AUDIO]}"


def _table(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
    if path.suffix == ".jsonl":
        yield from ((f"line {number}", row) for number, row in read_rows(str(path), {}))
        return
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a cell of aliases may pass the default of 128 KiB
    with open(path, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        yield from ((f"line {reader.line_num}", row) for row in reader)


def _accepted(row: Mapping[str, Any], subset: Subset) -> list[str]:
    """Every accepted answer once, in order."""
    found: dict[str, None] = {}
    for column in subset.answers:
        for text in _several(row.get(column), subset.separator):
            if text.strip():
                found[text.strip()] = None
    return list(found)


def _several(cell: Any, separator: str | None) -> list[str]:
    """A cell of one text, of several with a separator, or of a list as Python writes it."""
    if isinstance(cell, (list, tuple)):
        return [str(text) for text in cell]
    if not isinstance(cell, str):
        return [] if cell is None else [str(cell)]
    if separator is not None and cell.lstrip().startswith("["):
        try:
            return [str(text) for text in ast.literal_eval(cell.strip())]
        except (ValueError, SyntaxError):  # an answer that starts with a bracket
            pass
    return cell.split(separator) if separator is not None else [cell]
