"""A bundle -> a trained adapter, packed for the way home."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aura.bundle.archive import Index, pack
from aura.bundle.unbundle import ADAPTER, OpenBundle, open_bundle
from aura.references.resolve import standing_in
from aura.stages import read_stages
from aura.student.files import whole_folder

TEXTS = (".yaml", ".md")  # of a checkpoint: they name the data


def train_bundle(
    folder: str | os.PathLike[str],
    *,
    minutes: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> Any:
    """Open a bundle, train as its recipe says, and pack the adapter.

    The run lies in `<folder>/run` and the packed adapter in `<folder>/adapter`, in archives of the bundle's own size. A
    checkpoint names the LLM as the recipe at home did, not a folder of this machine.

    Args:
        minutes: wall time after which the run ends, all parts of a resumed run counted; the recipe's own when None. Stages
            share it in proportion to their steps.
        overrides: dotted fields of the recipe.
        resume, overwrite: as in `aura.training.stages.train_all`.

    Returns:
        the `RunResult`.

    Raises:
        AuraError: the bundle cannot be used, or the run cannot go on.
    """
    bundle = open_bundle(folder)
    is_main = int(os.environ.get("RANK", "0")) == 0
    if not bundle.same_code and is_main:
        print(
            f"aura: this aura is not the one the bundle was made with ({bundle.index.facts['aura']}, "
            f"{bundle.index.facts['code']}); its figures may differ",
            file=sys.stderr,
        )
    chosen = dict(overrides or {})
    fields = {**bundle.paths(without=chosen), "run.out": str(Path(folder).absolute() / "run"), **chosen}
    with standing_in(bundle.models):
        stages = read_stages(bundle.recipe, fields, minutes=None if minutes is None else float(minutes))
        from aura.training.stages import train_all

        result = train_all(stages, resume=resume, overwrite=overwrite)
    if result.checkpoint is not None and is_main:
        pack_adapter(result.checkpoint, Path(folder) / ADAPTER, bundle)
    return result


def pack_adapter(checkpoint: Path, target: Path, bundle: OpenBundle) -> Index:
    """Pack a checkpoint; the data has the names it had at home. An adapter packed before is replaced.

    Raises:
        ModelError: the disk is full; the adapter packed before is untouched.
    """
    files: list[tuple[str, Path | bytes]] = []
    names = {**bundle.originals, str(checkpoint.parent): bundle.run_at_home}
    for path in sorted(checkpoint.iterdir()):
        if path.suffix in TEXTS:
            text = path.read_text(encoding="utf-8")
            for here, name in names.items():
                text = text.replace(here, name)
            files.append((path.name, text.encode()))
        elif path.is_file():
            files.append((path.name, path))
    facts = {"bundle": bundle.index.digest, "name": bundle.index.facts["name"]}
    with whole_folder(target) as folder:
        return pack(files, folder, name=ADAPTER, archive_mb=bundle.index.facts["archive_mb"], facts=facts)
