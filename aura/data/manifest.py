"""A manifest or a dataset -> utterances, through one door; and utterances -> a manifest.

JSONL, one row a turn; the fields are those of `aura.data.row.FIELDS`, all but `audio` optional, others
ignored. Hugging Face datasets come in through `aura.data.hf_datasets`, imported only when one is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from aura.data.collect import Result, collect, convert_rows, good_rows
from aura.data.row import check_columns, locator
from aura.data.utterance import AudioRef, Utterance, build_messages
from aura.errors import DataError


@overload
def read_utterances(
    source: str | os.PathLike,
    *,
    data_root: str | os.PathLike | None = None,
    prompt: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    name: str | None = None,
    streaming: Literal[False] = False,
    limit: int | None = None,
    skip_bad: bool = False,
) -> Sequence[Utterance]: ...


@overload
def read_utterances(
    source: str | os.PathLike,
    *,
    data_root: str | os.PathLike | None = None,
    prompt: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    name: str | None = None,
    streaming: Literal[True],
    limit: int | None = None,
    skip_bad: bool = False,
) -> Iterator[Utterance]: ...


@overload
def read_utterances(
    source: str | os.PathLike,
    *,
    data_root: str | os.PathLike | None = None,
    prompt: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    name: str | None = None,
    streaming: bool,
    limit: int | None = None,
    skip_bad: bool = False,
) -> Sequence[Utterance] | Iterator[Utterance]: ...


def read_utterances(
    source: str | os.PathLike,
    *,
    data_root: str | os.PathLike | None = None,
    prompt: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    name: str | None = None,
    streaming: bool = False,
    limit: int | None = None,
    skip_bad: bool = False,
) -> Sequence[Utterance] | Iterator[Utterance]:
    """Read a manifest or a Hugging Face dataset. Nothing is decoded yet.

    Args:
        source: `.jsonl` manifest; `.parquet` file or a folder of them; a folder that `datasets` saved; an
            audiofolder; or `hf:<hub name>`.
        data_root: folder of relative audio paths; by default the manifest's own.
        prompt: text placed after the audio part of rows that have no messages; None for audio alone.
        columns: our field -> their column, where the names differ.
        split, name: the split and the configuration of a dataset (not of a manifest).
        streaming: return an iterator that holds one row at a time.
        limit: stop after that many rows.
        skip_bad: drop bad rows instead of raising; the result's `skipped` lists them.

    Returns:
        `Utterances` (a list), a lazy sequence for datasets in columns, or an iterator with `streaming`.

    Raises:
        DataError: nothing there, or bad rows: the first five by line number, and how many there are.
    """
    text, mapping = os.fspath(source), check_columns(columns)
    if not is_manifest(text):
        from aura.data.hf_datasets import read_dataset

        return read_dataset(
            text,
            data_root=data_root,
            prompt=prompt,
            columns=mapping,
            split=split,
            name=name,
            streaming=streaming,
            limit=limit,
            skip_bad=skip_bad,
        )
    for key, value in (("split", split), ("name", name)):
        if value is not None:
            raise DataError(f"{text}: {key}={value!r} was given for a manifest, which has none. Leave it out.")
    results = manifest_results(text, data_root=data_root, prompt=prompt, columns=mapping, limit=limit)
    return good_rows(results, text, skip_bad) if streaming else collect(results, text, skip_bad)


def is_manifest(source: str) -> bool:
    """Whether a source is read as JSONL."""
    return not source.startswith("hf:") and source.endswith((".jsonl", ".json"))


def manifest_results(
    path: str,
    *,
    data_root: str | os.PathLike | None = None,
    prompt: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Iterator[Result]:
    """Each row's place with its utterance, or with the reason why it cannot be used.

    Raises:
        DataError: no such file.
    """
    rows = ((f"line {number}", row, None) for number, row in read_rows(path, columns or {}))
    locate = locator(data_root if data_root is not None else os.path.dirname(path))
    return convert_rows(rows, locate=locate, prompt=prompt, limit=limit)


def read_rows(path: str, columns: Mapping[str, str]) -> Iterator[tuple[int, Mapping[str, Any] | DataError]]:
    """Line number and row of each non-empty line, with the columns renamed to our fields."""
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "no such file"
        raise DataError(
            f"{path}: {what}; expected a JSONL manifest. Make one with: aura data from-csv FILE --out {path}"
        )
    return _rows_of(path, columns)


def _rows_of(path: str, columns: Mapping[str, str]) -> Iterator[tuple[int, Mapping[str, Any] | DataError]]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                row = json.loads(text) if text else None
            except UnicodeDecodeError:
                yield number, DataError("is not UTF-8; expected a JSON object")
                continue
            except json.JSONDecodeError as error:
                yield (
                    number,
                    DataError(f"is not JSON ({error.msg} at column {error.colno}); expected one object a line"),
                )
                continue
            if row is not None:
                yield number, rename(row, columns)


def rename(row: Any, columns: Mapping[str, str]) -> Mapping[str, Any] | DataError:
    """The row with our field names."""
    if not isinstance(row, Mapping):
        return DataError(f"is {type(row).__name__}; expected a JSON object with 'audio'")
    absent = [theirs for theirs in columns.values() if theirs not in row]
    if absent:
        return DataError(f"no column {absent[0]!r}; the row has {', '.join(map(repr, row)) or 'none'}")
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items()}}


def write_manifest(utterances: Iterable[Utterance], path: str | os.PathLike) -> int:
    """Write a manifest atomically; returns the number of rows.

    Audio inside the manifest's folder is written relative to it, so that the folder can be moved; other audio
    absolute.

    Raises:
        DataError: an utterance whose audio is not a file (extract it first, see `aura data from-hf`).
    """
    target = Path(path)
    root = target.absolute().parent
    root.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    count = 0
    try:
        with open(partial, "w", encoding="utf-8") as lines:
            for utterance in utterances:
                lines.write(json.dumps(row_from_utterance(utterance, root), ensure_ascii=False) + "\n")
                count += 1
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return count


def row_from_utterance(utterance: Utterance, root: Path) -> dict[str, Any]:
    """The manifest row: fields that are None, and messages that follow from the others, are left out."""
    parts = [_audio_row(part, root) for part in utterance.audio]
    row: dict[str, Any] = parts[0] if len(parts) == 1 else {"audio": parts}
    if utterance.id != "+".join(part.name for part in utterance.audio):
        row = {"id": utterance.id, **row}
    implied = build_messages(
        transcript=utterance.transcript, label=utterance.label, task=utterance.task, audio_parts=len(parts)
    )
    if utterance.messages != implied:
        row["messages"] = list(utterance.messages)
    for key in ("task", "transcript", "speaker", "lang", "label"):
        if getattr(utterance, key) is not None:
            row[key] = getattr(utterance, key)
    return row


def _audio_row(part: AudioRef, root: Path) -> dict[str, Any]:
    if not isinstance(part.source, (str, os.PathLike)):
        raise DataError(f"{part.name}: audio in memory cannot stand in a manifest. Extract it with: aura data from-hf")
    if type(part) is not AudioRef:  # noise mixed in on the fly would silently be lost
        raise DataError(
            f"{part.name}: audio changed on the fly cannot stand in a manifest; expected a recording as it is."
        )
    audio = Path(part.source).absolute()
    row: dict[str, Any] = {"audio": audio.relative_to(root).as_posix() if audio.is_relative_to(root) else str(audio)}
    optional = (("start", part.start), ("end", part.end), ("seconds", part.seconds))
    return {**row, **{key: value for key, value in optional if value is not None}}
