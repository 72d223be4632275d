"""A recipe -> the files it needs: manifests, audio, noise, LLM and teacher, and the recipe that names them there.

recipe.yaml          paths relative to the bundle
data/train-0.jsonl   one manifest for each different source, messages written out
data/audio/          recordings by the hash of their bytes, each once
data/noise/          augment.noise_files
models/llm/          Hugging Face folders (or models/llm.gguf, unpacked where the bundle is opened)
models/teacher/
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from aura.audio.waveform import SAMPLE_RATE, load_waveform
from aura.config import DataConfig, Recipe
from aura.data.converters import extract_part
from aura.data.manifest import row_from_utterance
from aura.data.utterance import AudioRef, Utterance
from aura.errors import ModelError, RecipeError
from aura.progress import Advance, audio_progress
from aura.references import resolve
from aura.references.packages import file_sha256, join_parts, normalize_name, split_model
from aura.stages import root_of, stages_tree
from aura.training.data import read_source
from aura.typed_tree import as_tree

RECIPE = "recipe.yaml"
# Forms of the same weights that are left behind where safetensors are there, and what belongs to this machine's cache
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".h5", ".msgpack", ".gguf", ".onnx", ".ot")
LEFT_BEHIND = ("source.json", ".gitattributes")
NAME_DIGITS = 24  # hexadecimal, of the hash of a recording's bytes


@dataclass(frozen=True, kw_only=True)
class Model:
    """Weights of a recipe: what the recipe calls them, their folder in the bundle, and their GGUF file if they are one."""

    reference: str
    folder: str
    gguf: str | None = None


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What goes into a bundle.

    Args:
        files: name inside and file or bytes, in a fixed order.
        models: of them.
        originals: path inside -> what the recipe called it before.
        rows, seconds: of all manifests.
    """

    files: tuple[tuple[str, Path | bytes], ...]
    models: tuple[Model, ...]
    originals: Mapping[str, str]
    rows: int
    seconds: float


def collect_contents(
    stages: Sequence[tuple[str, Recipe]],
    work: Path,
    *,
    opus: bool = False,
    compact: bool = False,
    show_progress: bool = False,
) -> Contents:
    """Read everything a recipe names.

    Args:
        stages: from `aura.stages.read_stages`.
        work: folder for audio that has to be written anew; must live until the files are packed.
        opus: encode lossless recordings as Ogg Opus, 16 kHz mono.
        compact: pack an LLM that comes as a GGUF package in that form, a fifth of the size; opening the bundle unpacks it
            and needs the package `gguf`.
        show_progress: a bar for each source of recordings, on a terminal.

    Raises:
        RecipeError: the recipe names no training data.
        DataError: data that cannot be read.
        ModelError: weights that are not at hand.
    """
    first = stages[0][1]
    if any(not recipe.data.train for _, recipe in stages):
        raise RecipeError("data.train is empty; a bundle without data trains nothing")
    if first.run.init_from is not None:
        raise RecipeError(
            f"run.init_from is {first.run.init_from}, which a bundle does not pack; expected null. Copy that checkpoint yourself "
            "and name it there: aura train --bundle DIR --run.init_from CHECKPOINT"
        )
    data = _Data(_Audio(work, opus=opus), show_progress)
    noises: dict[str, str] = {}  # file -> name inside
    trees = []
    for name, recipe in stages:
        tree = as_tree(recipe)
        for part in ("train", "valid"):
            tree["data"][part] = [data.add(part, recipe.data, source) for source in getattr(recipe.data, part)]
        # What these fields say is done, and written out in the manifests
        tree["data"] |= {"root": None, "columns": {}, "split": None, "limit": None}
        for path in recipe.augment.noise_files:
            noises.setdefault(path, f"data/noise/{len(noises)}{Path(path).suffix}")
        tree["augment"]["noise_files"] = [noises[path] for path in recipe.augment.noise_files]
        trees.append((name, tree))
    originals = {**data.originals, **{inside: path for path, inside in noises.items()}}
    models, weights = _models([recipe for _, recipe in stages], work, compact=compact)
    text = yaml.safe_dump(stages_tree(trees, root_of(stages)), sort_keys=False, allow_unicode=True)
    files: list[tuple[str, Path | bytes]] = [(RECIPE, text.encode()), *data.manifests.items()]
    files += [*sorted(data.audio.files.items()), *((inside, Path(path)) for path, inside in noises.items()), *weights]
    return Contents(files=tuple(files), models=models, originals=originals, rows=data.rows, seconds=data.seconds)


class _Data:
    """The manifests of all stages, each source once for every way it is read."""

    def __init__(self, audio: _Audio, show_progress: bool) -> None:
        self.audio, self.show_progress = audio, show_progress
        self.manifests: dict[str, bytes] = {}
        self.originals: dict[str, str] = {}
        self.rows, self.seconds = 0, 0.0
        self._names: dict[str, dict[str, str]] = {"train": {}, "valid": {}}

    def add(self, part: str, data: DataConfig, source: str) -> str:
        """Name inside of a source's manifest."""
        names = self._names[part]
        key = repr((source, data.root, data.prompt, data.columns, data.split, data.limit, data.skip_bad))
        if key not in names:
            inside = names[key] = f"data/{part}-{len(names)}.jsonl"
            found = read_source(data, source)
            with audio_progress(f"reading {source}", len(found), show=self.show_progress) as advance:
                self.manifests[inside] = _manifest(found, self.audio, advance)
            self.originals[inside] = source
            self.rows += len(found)
            self.seconds += sum(utterance.seconds for utterance in found)
        return names[key]


def _manifest(utterances: Sequence[Utterance], audio: _Audio, advance: Advance) -> bytes:
    lines = []
    for utterance in utterances:
        parts = tuple(audio.add(part) for part in utterance.audio)
        row = row_from_utterance(replace(utterance, audio=parts), audio.root)
        # Written out, whatever follows from the other fields: data.prompt is in them already.
        row |= {"id": utterance.id, "messages": list(utterance.messages), "task": utterance.task}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        advance(1, utterance.seconds)
    return "".join(lines).encode()


class _Audio:
    """Recordings by the hash of their bytes, each once."""

    def __init__(self, work: Path, *, opus: bool) -> None:
        self.work, self.opus = work, opus
        self.root = work.absolute() / "data"  # where manifests will lie; nothing is written there
        self.files: dict[str, Path] = {}
        self.known: dict[str, str] = {}
        self.extracted = 0

    def add(self, part: AudioRef) -> AudioRef:
        """The part, with the place its recording will have."""
        if isinstance(part.source, str):
            file = Path(part.source)
        else:  # bytes or an array of a dataset
            self.extracted += 1
            (self.work / "extracted").mkdir(exist_ok=True)
            part = extract_part(part, self.work / "extracted" / f"{self.extracted:07d}", "original")
            file = Path(part.source)
        if str(file) not in self.known:
            self.known[str(file)] = self._place(file)
        return replace(part, source=str(self.root / self.known[str(file)]))

    def _place(self, file: Path) -> str:
        digest = file_sha256(file)[:NAME_DIGITS] if file.is_file() else _missing(file)
        if self.opus and is_lossless(file):
            inside, source = f"audio/{digest}.opus", self._encode(file, digest)
        else:
            inside, source = f"audio/{digest}{file.suffix}", file
        self.files[f"data/{inside}"] = source
        return inside

    def _encode(self, file: Path, digest: str) -> Path:
        import soundfile

        target = self.work / f"{digest}.opus"
        if not target.is_file():
            soundfile.write(target, load_waveform(file), SAMPLE_RATE, format="OGG", subtype="OPUS")
        return target


def is_lossless(file: Path) -> bool:
    """Whether a recording lost nothing yet; one that did would lose more when it is encoded again."""
    import soundfile

    try:
        return soundfile.info(file).subtype.startswith(("PCM", "FLOAT", "DOUBLE", "ALAC", "ULAW", "ALAW"))
    except (soundfile.LibsndfileError, RuntimeError):
        return False


def _missing(file: Path) -> str:
    raise RecipeError(f"the recording {file} does not exist; expected what the manifest names. See: aura data check")


def _models(
    recipes: Sequence[Recipe], work: Path, *, compact: bool
) -> tuple[tuple[Model, ...], list[tuple[str, Path | bytes]]]:
    wanted = {"llm": recipes[0].student.llm}  # of all stages
    for encoder in dict.fromkeys(recipe.teacher.encoder for recipe in recipes):
        if encoder:
            wanted[f"teacher-{len(wanted)}" if "teacher" in wanted else "teacher"] = encoder
    models: list[Model] = []
    files: list[tuple[str, Path | bytes]] = []
    for name, reference in wanted.items():
        packed = _gguf(reference, work / f"{name}.gguf") if compact else None
        if packed is not None:
            models.append(Model(reference=reference, folder=f"models/{name}", gguf=f"models/{name}.gguf"))
            files.append((f"models/{name}.gguf", packed))
            continue
        models.append(Model(reference=reference, folder=f"models/{name}"))
        files += [(f"models/{name}/{path.name}", path) for path in model_files(_folder(reference))]
    return tuple(models), files


def _gguf(reference: str, target: Path) -> Path | None:
    """The GGUF file behind a reference; None where it is none."""
    model = split_model(normalize_name(reference.removeprefix("pip:"))) if reference.startswith("pip:") else None
    if model is None or model.kind != "gguf":
        return None
    with target.open("wb") as out:
        join_parts(model, out)
    return target


def _folder(reference: str) -> Path:
    path = Path(resolve(reference))
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(path)))
    except Exception as error:  # the hub client raises many types: offline, unknown, gated
        raise ModelError(
            f"the weights of {reference} are not here and cannot be fetched ({type(error).__name__}); fetch them first, e.g. "
            f"with: hf download {reference}"
        ) from error


def model_files(folder: Path) -> list[Path]:
    """The files of a model's folder that `from_pretrained` needs, without other forms of the same weights."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in LEFT_BEHIND)
    if any(path.suffix == ".safetensors" for path in files):
        files = [path for path in files if path.suffix not in OTHER_WEIGHTS]
    if not files:
        raise ModelError(f"{folder} holds no files; expected a model")
    return files


def originals_of(tree: Any) -> dict[str, str]:
    """`originals` as read back from an index."""
    return {str(inside): str(name) for inside, name in (tree or {}).items()}
