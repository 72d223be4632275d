"""The folder of a run: free to start in or to resume from, cleared, and the checkpoint it delivers.

runs/x/
  recipe.yaml                 resolved recipe
  log.jsonl                   one row per logged step and evaluation
  checkpoints/step-000200/    student checkpoint + training.safetensors + training.json
  best/                       student checkpoint with the best validation score
  checkpoint/                 what the run delivers: the best, or the last without validation
  loss.png, layers.png, tensorboard/
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from aura.config import Recipe
from aura.errors import CheckpointError, TrainingError
from aura.student.checkpoint import RECIPE
from aura.typed_tree import as_tree

STEP_FOLDER = re.compile(r"step-(\d+)$")
LEFT_OVER = re.compile(r"\.(?P<name>.+)\.\d+\.(?P<kind>tmp|old)$")  # of `whole_folder`, after a kill

# What the saved weights mean; any other field may change between the parts of a run.
FIXED = (
    *("run.route", "bridge.", "audio.", "lora."),
    *("distill.student_layers", "distill.layer_map", "distill.frame_map", "distill.targets"),
)
FREE = ("audio.max_seconds", "lora.dropout")


def step_folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; a torn one never gets its name."""
    return sorted((p for p in (run / "checkpoints").glob("step-*") if STEP_FOLDER.search(p.name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder is named after."""
    return int(STEP_FOLDER.search(folder.name).group(1))  # type: ignore[union-attr]


def open_run(run: Path, *, resume: bool, overwrite: bool) -> Path | None:
    """The checkpoint to go on from; None to start. Nothing is written.

    Raises:
        TrainingError: the folder holds a run and neither flag was given.
    """
    folders = step_folders(run)
    if folders and resume:
        return folders[-1]
    weights = [p for p in (*folders[-1:], run / "best", run / "checkpoint") if p.is_dir()]
    if weights and not overwrite and not resume:
        raise TrainingError(
            f"{run} holds a run ({weights[0].relative_to(run)}); go on with --resume, start anew with --overwrite, "
            "or choose another folder with --run.out"
        )
    return None


def make_folder(run: Path) -> None:
    """Raises `TrainingError` where the folder cannot be made or written to."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        probe = run / f".{os.getpid()}.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise TrainingError(
            f"the run folder {run} cannot be written: {error}. Choose another with --run.out"
        ) from error


def clear(run: Path) -> None:
    """Remove an earlier run's weights and curves, so that none of them is taken for this run's."""
    for name in ("checkpoints", "best", "checkpoint", "tensorboard"):
        shutil.rmtree(run / name, ignore_errors=True)
    for name in ("log.jsonl", "loss.png", "layers.png"):
        (run / name).unlink(missing_ok=True)


def tidy(run: Path) -> None:
    """Remove what a killed process left half-written; put back what it had set aside."""
    for folder in (run, run / "checkpoints"):
        for path in folder.glob(".*"):
            found = LEFT_OVER.match(path.name)
            if not found:
                continue
            target = folder / found["name"]
            if found["kind"] == "old" and not target.exists():
                os.replace(path, target)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def changed_fields(checkpoint: Path, recipe: Recipe) -> list[str]:
    """What differs from the recipe of a checkpoint, one line each.

    Raises:
        CheckpointError: a field that gives the saved weights their meaning.
    """
    try:
        saved = yaml.safe_load((checkpoint / RECIPE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{checkpoint / RECIPE} cannot be read: {' '.join(str(error).split())[:200]}") from error
    before, now = _flat(saved), _flat(as_tree(recipe))
    changed = {
        name: f"{name} {before[name]} -> {now[name]}" for name in now if name in before and before[name] != now[name]
    }
    fixed = [text for name, text in changed.items() if name.startswith(FIXED) and name not in FREE]
    if fixed:
        raise CheckpointError(
            f"{checkpoint} belongs to another recipe: {'; '.join(fixed)}. Resume with {checkpoint / RECIPE}, or start anew "
            "with --overwrite"
        )
    return list(changed.values())


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {name: value for key, child in tree.items() for name, value in _flat(child, f"{prefix}{key}.").items()}
