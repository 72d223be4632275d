"""Archives -> files again: a bundle that is opened for training, an adapter that came home."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from aura.bundle.archive import Index, read_index, unpack
from aura.bundle.bundle import NAME
from aura.bundle.contents import RECIPE, Model, originals_of
from aura.bundle.source import source_digest
from aura.config import STAGES
from aura.errors import DataError
from aura.student.files import whole_folder

ADAPTER = "adapter"


@dataclass(frozen=True, kw_only=True)
class OpenBundle:
    """A bundle, verified and unpacked.

    Args:
        folder: where its files lie now.
        index: of its archives.
        models: reference -> folder here.
        originals: path here -> what the recipe called it at home.
        same_code: whether this aura is the one it was made with.
    """

    folder: Path
    index: Index
    models: Mapping[str, str]
    originals: Mapping[str, str]
    same_code: bool

    @property
    def recipe(self) -> Path:
        return self.folder / RECIPE

    @property
    def run_at_home(self) -> str:
        """The run folder that the recipe names."""
        return str(self._tree()["run"]["out"])

    def paths(self, *, without: Collection[str] = ()) -> dict[str, list[str]]:
        """The recipe's fields that name files, with their places here; those of a stage as `read_stages` takes them.

        Args:
            without: fields to leave out, of all stages.
        """
        tree = self._tree()
        stages = {f"{STAGES}.{stage['name']}.": stage for stage in tree.get(STAGES, ())} or {"": tree}
        return {
            f"{prefix}{section}.{name}": [str(self.folder / path) for path in stage[section][name]]
            for prefix, stage in stages.items()
            for section, name in (("data", "train"), ("data", "valid"), ("augment", "noise_files"))
            if f"{section}.{name}" not in without
        }

    def _tree(self) -> dict[str, Any]:
        return yaml.safe_load(self.recipe.read_text(encoding="utf-8"))


def open_bundle(folder: str | os.PathLike[str]) -> OpenBundle:
    """Verify and unpack a bundle beside its archives, once; several processes may call it at the same time.

    Raises:
        DataError: no bundle, or one that lost or changed bytes on its way.
        ModelError: the disk is full.
    """
    home = Path(folder).absolute()
    index = read_index(home, NAME)
    target = home / f"opened-{index.digest[:12]}"
    models = [Model(**model) for model in index.facts["models"]]
    with FileLock(home / ".opened.lock"):
        if not target.is_dir():
            with whole_folder(target) as partial:
                unpack(home, index, partial)
                for model in models:
                    _convert(model, partial)
    return OpenBundle(
        folder=target,
        index=index,
        models={model.reference: str(target / model.folder) for model in models},
        originals={str(target / inside): name for inside, name in originals_of(index.facts["originals"]).items()},
        same_code=index.facts["source_digest"] == source_digest(),
    )


def unbundle(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> Index:
    """Verify and unpack the archives of a folder, a bundle's or an adapter's, into a new folder.

    Raises:
        DataError: no archives, damaged ones, or `out` holds files already.
    """
    home, target = Path(folder), Path(out)
    if target.is_dir() and any(target.iterdir()):
        raise DataError(f"{target} holds files already; expected a new folder. Choose another --out")
    name = next((name for name in (ADAPTER, NAME) if (home / f"{name}.json").is_file()), None)
    if name is None:
        raise DataError(f"{home} holds no bundle; expected {ADAPTER}.json or {NAME}.json with its archives beside it")
    index = read_index(home, name)
    with whole_folder(target) as partial:
        unpack(home, index, partial)
    return index


def _convert(model: Model, folder: Path) -> None:
    """A model that travelled as GGUF -> its Hugging Face folder."""
    if model.gguf is None:
        return
    from aura.references.gguf import write_huggingface_folder

    packed, target = folder / model.gguf, folder / model.folder
    target.mkdir(parents=True)
    # In the model's own folder, as `pip:` references are converted: transformers looks for the file there.
    inside = target / "joined.gguf"
    os.replace(packed, inside)
    write_huggingface_folder(inside, target)
    inside.unlink()
