"""The `audiofolder` layout, read directly: `datasets` needs torchcodec even to list it.

A folder of audio with `metadata.jsonl` or `metadata.csv` (`file_name` and any columns), whole or by split:
`train/metadata.jsonl`, `train/a.flac`. Without metadata the parent folder of a clip is its label.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aura.errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv")
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".webm", ".aac", ".mp4")


def is_audiofolder(source: str) -> bool:
    """Whether the path is a folder with metadata or audio in it, and no dataset of another kind."""
    root = Path(source)
    if source.startswith("hf:") or not root.is_dir() or (root / "dataset_dict.json").exists():
        return False
    if (root / "state.json").exists() or next(root.rglob("*.parquet"), None) is not None:
        return False
    return bool(_metadata_files(root)) or next(_audio_files(root), None) is not None


def read_rows(source: str, split: str | None) -> Iterator[dict[str, Any]]:
    """One row for each clip, with `audio` as an absolute path and an `id` that is relative to the folder.

    Raises:
        DataError: the split has no folder, several splits and none named, or broken metadata.
    """
    root = _split_root(Path(source), split)
    metadata = _metadata_files(root)
    if not metadata:
        for file in sorted(_audio_files(root)):
            label = {} if file.parent == root else {"label": file.parent.name}
            yield {"id": file.relative_to(source).as_posix(), "audio": str(file), **label}
        return
    for path in metadata:
        for row in _jsonl(path) if path.suffix == ".jsonl" else _csv(path):
            yield _row(path, row, Path(source))


def _split_root(root: Path, split: str | None) -> Path:
    folders = sorted({file.parent.name for file in _metadata_files(root) if file.parent != root})
    if split is not None:
        if not (root / split).is_dir():
            there = ", ".join(folders) or "no split folders"
            raise DataError(f"{root}: no split folder {split!r}; it has {there}.")
        return root / split
    if len(folders) > 1:
        raise DataError(f"{root}: no split was named; it has {', '.join(folders)}. Name one with split: {folders[0]}.")
    return root


def _row(metadata: Path, row: dict[str, Any], root: Path) -> dict[str, Any]:
    name = row.pop("file_name", None)
    if not name:
        raise DataError(f"{metadata}: a row without 'file_name': {row!r}; expected it beside the other columns.")
    audio = metadata.parent / name
    return {**row, "audio": str(audio), "id": row.get("id") or os.path.relpath(audio, root)}


def _jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield dict(json.loads(line))
                except (ValueError, TypeError) as error:
                    raise DataError(f"{path}: line {number} is not a JSON object; expected one a line.") from error


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as lines:
        for row in csv.DictReader(lines):
            yield {key: value for key, value in row.items() if value not in ("", None)}


def _metadata_files(root: Path) -> list[Path]:
    return sorted(file for name in METADATA for file in root.rglob(name))


def _audio_files(root: Path) -> Iterator[Path]:
    return (file for file in root.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)
