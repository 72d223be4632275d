"""Files -> numbered archives of a given size and back, every byte under a checksum.

The archives are one tar file, cut: `cat name.tar.* | tar x` unpacks them too.

    name.tar.000, name.tar.001 ...   N MB each, the last one less
    name.json                        every file and every archive with its size and sha256
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from aura.errors import DataError
from aura.evaluation.json_text import replace_text
from aura.progress import Advance

FORMAT = 1
MEGABYTE = 1_000_000  # bytes
BLOCK = 1 << 20  # bytes read at a time


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file, packed or an archive itself: its name, size in bytes, and sha256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Index:
    """What a set of archives holds.

    Args:
        archives: in order; files: in the order they were packed.
        facts: whatever the packer wants to remember.
    """

    archives: tuple[Entry, ...]
    files: tuple[Entry, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of everything that is packed: the same for the same files."""
        text = json.dumps([asdict(entry) for entry in self.files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def pack(
    files: Iterable[tuple[str, Path | bytes]],
    folder: Path,
    *,
    name: str,
    archive_mb: float,
    facts: Mapping[str, Any],
    advance: Advance | None = None,
) -> Index:
    """Write archives and their index into a folder.

    Args:
        files: name inside the archives, and the file or its bytes; read one after the other.
        archive_mb: size of an archive, millions of bytes.
        advance: told of every file packed, and its millions of bytes.

    Raises:
        DataError: an archive size that makes no sense, or a file that cannot be read.
    """
    if archive_mb < 0.01:
        raise DataError(f"archives of {archive_mb} MB were asked for; expected at least 0.01, e.g. 100")
    entries: list[Entry] = []
    with _Cut(folder, name, int(archive_mb * MEGABYTE)) as cut:
        with tarfile.open(fileobj=cut, mode="w|", bufsize=BLOCK, format=tarfile.PAX_FORMAT) as tar:
            for inside, source in files:
                entries.append(_add(tar, inside, source))
                if advance is not None:
                    advance(1, entries[-1].bytes / MEGABYTE)
        archives = cut.finish()
    index = Index(archives=archives, files=tuple(entries), facts=dict(facts))
    tree = {"format": FORMAT, **facts, "archives": [asdict(e) for e in archives], "files": [asdict(e) for e in entries]}
    replace_text(folder / f"{name}.json", json.dumps(tree, indent=1, ensure_ascii=False) + "\n")
    return index


def read_index(folder: Path, name: str) -> Index:
    """The index of a folder's archives.

    Raises:
        DataError: there is none, or one of a format we do not know.
    """
    path = folder / f"{name}.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree.pop("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        archives, files = (tuple(Entry(**entry) for entry in tree.pop(key)) for key in ("archives", "files"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DataError(f"{path} is no index of archives ({reason}); expected what aura bundle has written") from error
    return Index(archives=archives, files=files, facts=tree)


def unpack(folder: Path, index: Index, target: Path) -> None:
    """Verify the archives and write their files into an empty folder.

    Raises:
        DataError: an archive is missing, cut short or damaged (which one), or a file is not what was packed.
    """
    expected = {entry.name: entry for entry in index.files}
    _require_archives(folder, index.archives)
    source = io.BufferedReader(_Joined(folder, index.archives), BLOCK)
    try:
        with tarfile.open(fileobj=source, mode="r|", bufsize=BLOCK) as tar:
            for member in tar:
                entry = expected.pop(member.name, None)
                if entry is None or not member.isfile():
                    raise DataError(f"{folder} holds {member.name!r}, which its index does not name; copy it again")
                reader = tar.extractfile(member)
                assert reader is not None  # it is a file
                _write(reader, target / _safe(entry.name), entry)
        while source.read(BLOCK):  # what tar leaves unread: the last archive is compared too
            pass
    except tarfile.TarError as error:
        raise DataError(f"the archives in {folder} cannot be read ({error}); copy them again") from error
    if expected:
        raise DataError(f"{folder} lacks {len(expected)} packed files, e.g. {next(iter(expected))}; copy it again")


def _add(tar: tarfile.TarFile, inside: str, source: Path | bytes) -> Entry:
    info = tarfile.TarInfo(inside)  # no owner, mode or time of this machine: equal files give equal archives
    digest = hashlib.sha256()
    if isinstance(source, bytes):
        info.size = len(source)
        digest.update(source)
        tar.addfile(info, io.BytesIO(source))
        return Entry(name=inside, bytes=info.size, sha256=digest.hexdigest())
    try:
        info.size = source.stat().st_size
        with source.open("rb") as file:
            tar.addfile(info, _Hashed(file, digest))
    except OSError as error:
        raise DataError(f"{source} cannot be packed: {error.strerror or error}") from error
    return Entry(name=inside, bytes=info.size, sha256=digest.hexdigest())


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, file: Any, digest: Any) -> None:
        self.file, self.digest = file, digest

    def read(self, size: int = -1) -> bytes:  # type: ignore[override]
        data = self.file.read(size)
        self.digest.update(data)
        return data


class _Cut(io.RawIOBase):
    """Bytes in, archives of one size out."""

    def __init__(self, folder: Path, name: str, size: int) -> None:
        self.folder, self.name, self.size = folder, name, size
        self.archives: list[Entry] = []
        self.file: Any = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        while view:
            if self.file is None:
                self.path = self.folder / f"{self.name}.tar.{len(self.archives):03d}"
                self.file, self.digest, self.written = self.path.open("wb"), hashlib.sha256(), 0
            part = view[: self.size - self.written]
            self.file.write(part)
            self.digest.update(part)
            self.written += len(part)
            view = view[len(part) :]
            if self.written == self.size:
                self._end()
        return len(memoryview(data))

    def finish(self) -> tuple[Entry, ...]:
        self._end()
        return tuple(self.archives)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        super().close()

    def _end(self) -> None:
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self.archives.append(Entry(name=self.path.name, bytes=self.written, sha256=self.digest.hexdigest()))
            self.file = None


class _Joined(io.RawIOBase):
    """Archives in, their bytes out; each archive's checksum is compared when its end is reached."""

    def __init__(self, folder: Path, archives: Sequence[Entry]) -> None:
        self.blocks = self._read_all(folder, archives)
        self.rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self.rest:
            self.rest = memoryview(next(self.blocks, b""))
        count = min(len(buffer), len(self.rest))
        buffer[:count] = self.rest[:count]
        self.rest = self.rest[count:]
        return count

    def _read_all(self, folder: Path, archives: Sequence[Entry]) -> Iterator[bytes]:
        for entry in archives:
            digest = hashlib.sha256()
            with (folder / _safe(entry.name)).open("rb") as file:
                while block := file.read(BLOCK):
                    digest.update(block)
                    yield block
            if digest.hexdigest() != entry.sha256:
                raise DataError(f"{folder / entry.name} is damaged: its sha256 differs. Copy this archive again")


def _require_archives(folder: Path, archives: Sequence[Entry]) -> None:
    for entry in archives:
        path = folder / _safe(entry.name)
        found = path.stat().st_size if path.is_file() else None
        if found != entry.bytes:
            what = "is missing" if found is None else f"has {found} bytes, expected {entry.bytes}"
            raise DataError(f"{path} {what}. Copy this archive again")


def _write(reader: Any, path: Path, entry: Entry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        while block := reader.read(BLOCK):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != entry.sha256:
        raise DataError(f"the packed file {entry.name} is damaged; copy the archives again")


def _safe(name: str) -> str:
    """A name that stays inside its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
        raise DataError(f"the archives name {name!r}, a path outside their folder; they are not from aura bundle")
    return name
