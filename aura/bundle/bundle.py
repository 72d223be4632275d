"""Recipe -> bundle: a folder that can be carried to a machine without network.

DIR/
  bundle.tar.000, .001 ...    the contents, see `aura.bundle.contents`
  bundle.json                 what is in them, every file and archive with its sha256
  aura_lora-0.1.0.tar.gz      the code
  README.md                   what to type there
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aura import __version__
from aura.bundle.archive import MEGABYTE, Index, pack
from aura.bundle.contents import Contents, collect_contents
from aura.bundle.source import source_digest, source_name, source_tar
from aura.config import Recipe
from aura.errors import DataError
from aura.progress import audio_progress
from aura.student.files import whole_folder

NAME = "bundle"

README = """\
# {name}: a bundle for offline training

{rows} rows, {hours:.2f} hours of audio, {megabytes:.0f} MB in {archives} archives; aura {version}.

On a machine with Python, PyTorch and aura's dependencies (no network needed), with all archives in one folder:

```
tar xzf {source} && export PYTHONPATH=$PWD/{folder}
python -m aura train --bundle . --minutes 60
```

Every byte is verified first. The training runs on the GPU if there is one, in bfloat16, and leaves `run/` (to be resumed
with `--resume`) and `adapter/`: the adapter in archives of the same size. Back home:

```
aura unbundle adapter --out my-adapter
```
"""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle that was written: its folder, index, rows and seconds of audio."""

    folder: Path
    index: Index
    rows: int
    seconds: float

    @property
    def bytes(self) -> int:
        """Of all archives."""
        return sum(entry.bytes for entry in self.index.archives)


def make_bundle(
    stages: Sequence[tuple[str, Recipe]],
    out: str | os.PathLike[str],
    *,
    archive_mb: float,
    opus: bool = False,
    compact: bool = False,
    show_progress: bool = False,
) -> Bundle:
    """Pack a recipe with all it needs.

    Args:
        stages: from `aura.stages.read_stages`, of a recipe with stages or without.
        out: folder to make; must not hold anything.
        archive_mb: size of an archive, millions of bytes.
        opus, compact: see `collect_contents`.
        show_progress: bars on a terminal, one for each source of recordings and one for the archives.

    Raises:
        AuraError: something the recipe names cannot be read, or the folder cannot be written; nothing is left then.
    """
    target = Path(out)
    if target.is_dir() and any(target.iterdir()):
        raise DataError(f"{target} holds files already; expected a new folder. Choose another --out")
    with tempfile.TemporaryDirectory() as work:
        recipe = stages[0][1]
        contents = collect_contents(stages, Path(work), opus=opus, compact=compact, show_progress=show_progress)
        with whole_folder(target) as folder:
            code = source_tar()
            (folder / source_name()).write_bytes(code)
            facts = {
                "name": recipe.run.name,
                "aura": __version__,
                "code": source_name(),
                "code_sha256": hashlib.sha256(code).hexdigest(),
                "source_digest": source_digest(),
                "archive_mb": archive_mb,
                "rows": contents.rows,
                "hours": round(contents.seconds / 3600, 4),
                "models": [asdict(model) for model in contents.models],
                "originals": dict(contents.originals),
            }
            with audio_progress("packing", len(contents.files), show=show_progress, unit="MB") as advance:
                index = pack(contents.files, folder, name=NAME, archive_mb=archive_mb, facts=facts, advance=advance)
            (folder / "README.md").write_text(_readme(recipe, contents, index), encoding="utf-8")
    return Bundle(folder=target, index=index, rows=contents.rows, seconds=contents.seconds)


def _readme(recipe: Recipe, contents: Contents, index: Index) -> str:
    return README.format(
        name=recipe.run.name,
        rows=contents.rows,
        hours=contents.seconds / 3600,
        megabytes=sum(entry.bytes for entry in index.archives) / MEGABYTE,
        archives=len(index.archives),
        version=__version__,
        source=source_name(),
        folder=source_name().removesuffix(".tar.gz"),
    )
