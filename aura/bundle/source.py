"""aura's own source as a tar file: the code a bundle was made with."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

from aura import __version__

PACKAGE = Path(__file__).parents[1]
BESIDE = ("pyproject.toml", "README.md", "LICENSE")


def source_files() -> list[tuple[str, Path]]:
    """Name in the tar file and path of each file; of an installed package without a project, the package alone."""
    found = [path for path in sorted(PACKAGE.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    files = [(path.relative_to(PACKAGE.parent).as_posix(), path) for path in found]
    if (PACKAGE.parent / "pyproject.toml").is_file():
        files += [(name, PACKAGE.parent / name) for name in BESIDE if (PACKAGE.parent / name).is_file()]
    return files


def source_digest() -> str:
    """Of the package's own files, without what lies beside it."""
    digest = hashlib.sha256()
    for name, path in source_files():
        if name.startswith(f"{PACKAGE.name}/"):
            digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def source_name() -> str:
    """Of the tar file, as source distributions are called."""
    return f"aura_lora-{__version__}.tar.gz"


def source_tar() -> bytes:
    """The tar file; `pip install` takes it where the project's pyproject.toml was at hand."""
    packed = io.BytesIO()
    # Neither file names nor times of this machine: equal sources give equal bytes.
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in source_files():
            data = path.read_bytes()
            info = tarfile.TarInfo(f"aura_lora-{__version__}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()
