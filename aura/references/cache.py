"""The cache of converted models: each folder is written once, whole or not at all.

<aura_home>/models/<distribution>-<hash>/          a finished model, with its `source.json`
<aura_home>/models/<distribution>-<hash>.lock      held while one process converts
<aura_home>/models/.tmp-<distribution>-<hash>-*    being written; a leftover of a killed process is removed
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from aura.errors import ModelError

# Part of every folder's hash: raise it when a converter writes something else from the same source.
CONVERTER_VERSION = 1
SOURCE_FILE = "source.json"


def aura_home() -> Path:
    """Where aura keeps converted models: `$AURA_HOME`, or `aura` in the platform's user cache folder."""
    chosen = os.environ.get("AURA_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "aura"


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a cached folder was made from; written into it as `source.json` and compared on later calls."""

    distribution: str
    version: str
    sha256: str  # of the source file, parts joined
    layout: str = "huggingface"  # or "ctranslate2"
    converter: int = CONVERTER_VERSION

    @property
    def folder(self) -> Path:
        key = hashlib.sha256(f"{self.layout}:{self.converter}:{self.sha256}".encode()).hexdigest()[:12]
        suffix = "" if self.layout == "huggingface" else f"-{self.layout}"
        return aura_home() / "models" / f"{self.distribution}{suffix}-{key}"


def find_converted(source: Source) -> Path | None:
    """The finished folder of `source`, or None where there is none or it was damaged since."""
    try:
        record = json.loads((source.folder / SOURCE_FILE).read_text(encoding="utf-8"))
        sizes = record.pop("files")
        if record != asdict(source):
            return None
        if any((source.folder / name).stat().st_size != size for name, size in sizes.items()):
            return None
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return source.folder


def convert_once(source: Source, write: Callable[[Path], None], *, bytes_needed: int) -> Path:
    """Return the cached folder of `source`, calling `write(empty_folder)` first if nobody has yet.

    Safe against other processes (a lock file) and against being killed (a temporary folder beside the
    target, renamed when it is complete).

    Args:
        source: what is converted; decides the folder.
        write: fills the folder it is given; may leave nothing else behind.
        bytes_needed: disk space the conversion takes at its largest, for the check before it starts.

    Raises:
        ModelError: the disk is full or not writable; nothing half-written is kept.
    """
    found = find_converted(source)
    if found is not None:
        return found
    target = source.folder
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target):
            found = find_converted(source)  # another process may have written it while we waited
            return found if found is not None else _convert(source, write, bytes_needed)
    except (OSError, SafetensorError) as error:
        # safetensors reports a full disk as an error of its own, not as an OSError
        raise ModelError(
            f"Could not convert '{source.distribution}' into {target}: {_explained(error, bytes_needed)}"
        ) from error


def _convert(source: Source, write: Callable[[Path], None], bytes_needed: int) -> Path:
    """Write, complete and rename the folder; the caller holds its lock."""
    target = source.folder
    _remove_leftovers(target)  # of processes that died: with the lock held, nobody else writes here
    free = shutil.disk_usage(target.parent).free
    if free < bytes_needed:
        raise OSError(errno.ENOSPC, f"only {megabytes(free)} are free")
    say(f"Converting '{source.distribution}' into {target} (once; needs about {megabytes(bytes_needed)}) ...")
    started = time.monotonic()
    folder = target.parent / f".tmp-{target.name}-{os.getpid()}"
    try:
        folder.mkdir()
        write(folder)
        _write_record(source, folder)
        if target.exists():  # damaged since, or find_converted would have returned it
            target.rename(folder.with_name(folder.name + "-replaced"))
        os.replace(folder, target)
    finally:
        _remove_leftovers(target)
    say(f"Converted '{source.distribution}' in {time.monotonic() - started:.0f} s.")
    return target


def _write_record(source: Source, folder: Path) -> None:
    """Write `source.json`, and give every file its permissions: safetensors makes its files private."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    record = folder / SOURCE_FILE
    record.write_text(json.dumps({**asdict(source), "files": sizes}, indent=2) + "\n", encoding="utf-8")
    for path in files:
        path.chmod(record.stat().st_mode)


def _remove_leftovers(target: Path) -> None:
    for leftover in target.parent.glob(f".tmp-{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold `<target>.lock`; say so where another process holds it, since a conversion takes a while."""
    lock = FileLock(f"{target}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"Waiting for another process that is converting {target.name} ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _explained(error: Exception, bytes_needed: int) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or "no space left" in reason.lower():
        return (
            f"the disk is full ({reason}); about {megabytes(bytes_needed)} are needed. "
            "Free some space, or set AURA_HOME to a folder on another disk."
        )
    if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)):
        return f"{reason}. Set AURA_HOME to a folder that you can write (about {megabytes(bytes_needed)})."
    return f"{reason}. Nothing half-written was kept."


def megabytes(count: int) -> str:
    """A number of bytes for a message."""
    return f"{count / 1e6:,.0f} MB"


def say(message: str) -> None:
    """One line on stderr, where it does not mix with a command's output."""
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(message, style="dim", markup=False)
