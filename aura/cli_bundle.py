"""The verbs of offline training: bundle, unbundle; `aura train --bundle` is in `aura.cli_train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def bundle(
    recipe: Path,
    /,
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    out: Path,
    archive_mb: float,
    opus: bool = False,
    compact: bool = False,
) -> None:
    """Pack a recipe with its weights, code and data into archives, for a machine without network.

    There: aura train --bundle DIR --minutes N. Any field of the recipe can be set: --run.steps 500.

    Args:
        recipe: YAML file.
        out: folder to make.
        archive_mb: size of one archive, millions of bytes.
        opus: encode lossless recordings as Ogg Opus (16 kHz mono); others are copied as they are.
        compact: ship an LLM that comes as GGUF in that form, a fifth of the size; it is unpacked there.
    """
    from aura.bundle.archive import MEGABYTE
    from aura.bundle.bundle import make_bundle
    from aura.cli_train import parse_overrides
    from aura.stages import read_stages

    stages = read_stages(recipe, parse_overrides(overrides))
    made = make_bundle(stages, out, archive_mb=archive_mb, opus=opus, compact=compact, show_progress=True)
    print(
        f"{made.rows} rows, {made.seconds / 3600:.2f} hours, {len(made.index.files)} files: {made.bytes / MEGABYTE:.1f} MB in "
        f"{len(made.index.archives)} archives in {made.folder}. Train there with: aura train --bundle {made.folder}"
    )


def unbundle(folder: Path, /, *, out: Path) -> None:
    """Verify and unpack archives: an adapter that a bundle's training left, or a whole bundle.

    Args:
        folder: with adapter.json or bundle.json and the archives beside it.
        out: folder to make.
    """
    from aura.bundle.unbundle import unbundle as run

    index = run(folder, out)
    print(f"{len(index.files)} files verified and written to {out}")
