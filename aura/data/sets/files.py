"""Files of a public set, or an error that says which one was expected."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from aura.errors import DataError


def existing_file(given: str | os.PathLike[str], what: str) -> Path:
    """The path, if there is a file. Raises `DataError`."""
    path = Path(given)
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {kind}; expected {what}. docs/benchmarks.md says where to get it.")
    return path


def existing_folder(given: str | os.PathLike[str], what: str = "the folder of the recordings") -> Path:
    """The path, if there is a folder. Raises `DataError`."""
    path = Path(given)
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; expected {what}. docs/benchmarks.md says where to get it.")
    return path


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `DataError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON ({error}). Download it again.") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds a {type(found).__name__}; expected a JSON object")
    return found
