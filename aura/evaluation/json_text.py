"""Values as JSON, and a text file that is written whole or not at all."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aura.errors import AuraError


def plain(value: Any) -> Any:
    """`value` in JSON's own types: scores, arrays, sets and paths unfolded, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if hasattr(value, "as_dict"):
        return plain(value.as_dict())
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return str(value)


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, through a temporary name beside it.

    Raises:
        AuraError: the folder cannot be written to; what was there before is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private, a report is not
        os.replace(temporary, path)
    except OSError as error:
        raise AuraError(
            f"Could not write {path}: {error.strerror or error}; expected a folder with room in it. "
            "Free some space there, or choose another folder with --out. Items already done are kept."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
