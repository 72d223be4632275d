"""One process writes to a folder at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from aura.errors import DataError


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made if missing; the system lets go of it when a process is killed.

    Raises:
        DataError: another process writes there, or nobody can.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise DataError(
            f"{folder} is being written by another process; wait for it, or choose another --out"
        ) from error
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}; choose another --out") from error
    try:
        yield
    finally:
        lock.release()
