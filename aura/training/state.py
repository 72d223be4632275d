"""A run on disk: checkpoints that resume exactly, without pickle.

    runs/x/
      recipe.yaml                 resolved recipe
      log.jsonl                   one row per logged step and evaluation
      checkpoints/step-000200/    student checkpoint + training.safetensors + training.json
      best/                       student checkpoint with the best validation score
      checkpoint/                 what the run delivers: the best, or the last without validation
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from aura.errors import CheckpointError
from aura.student.checkpoint import RECIPE
from aura.student.files import whole_folder
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor
from aura.training.objective import Objective

TENSORS = "training.safetensors"
PROGRESS = "training.json"
STEP_FOLDER = re.compile(r"step-(\d+)$")


@dataclass(kw_only=True)
class Progress:
    """Where a run stands.

    Args:
        step: optimiser steps done, skipped ones included.
        micro_batches: consumed from the data plan, over all processes.
        bad_steps: skipped for a non-finite loss or gradient, in all; bad_in_a_row: of late.
        audio_seconds, minutes: heard and spent so far.
        best: best validation score so far, in the direction of `run.best_metric`.
    """

    step: int = 0
    micro_batches: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    audio_seconds: float = 0.0
    minutes: float = 0.0
    best: float | None = None
    best_step: int | None = None


def step_folders(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first; a torn one never gets its name."""
    found = [p for p in (run / "checkpoints").glob("step-*") if STEP_FOLDER.search(p.name)]
    return sorted(found, key=lambda p: int(STEP_FOLDER.search(p.name).group(1)))  # type: ignore[union-attr]


def save_state(
    run: Path,
    objective: Objective,
    processor: AuraProcessor,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    *,
    extra: dict[str, str],
    keep_last: int,
) -> Path:
    """Everything needed to go on, as one folder, whole or not at all; old ones beyond `keep_last` are removed.

    Raises:
        ModelError: the disk is full; the checkpoints before are untouched.
    """
    target = run / "checkpoints" / f"step-{progress.step:06d}"
    with whole_folder(target) as folder:
        write_student(folder, objective.student, processor, extra)
        save_file(_tensors(objective, optimizer), folder / TENSORS)
        (folder / PROGRESS).write_text(json.dumps(dataclasses.asdict(progress), indent=1))
    for old in step_folders(run)[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def write_student(
    folder: Path, student: AuraForConditionalGeneration, processor: AuraProcessor, extra: dict[str, str]
) -> None:
    """The student's part of a checkpoint with its recipe and card."""
    student.write_files(folder)
    processor.save_pretrained(folder)
    for name, text in extra.items():
        (folder / name).write_text(text, encoding="utf-8")


def load_state(folder: Path, objective: Objective, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a saved state back: weights, heads, optimiser, random generator.

    Raises:
        CheckpointError: torn files, or a state of another recipe.
    """
    try:
        tensors = load_file(folder / TENSORS)
        progress = Progress(**json.loads((folder / PROGRESS).read_text()))
    except Exception as error:  # safetensors, json and the file system each raise their own types
        raise CheckpointError(f"{folder} cannot be resumed from: {' '.join(str(error).split())[:200]}") from error
    names = objective.trainable()
    wanted = {f"weight/{name}" for name in names} | {f"buffer/{name}" for name, _ in objective.named_buffers() if "heads" in name}
    missing = wanted - tensors.keys()
    wrong = [n for n in names if f"weight/{n}" in tensors and tensors[f"weight/{n}"].shape != names[n].shape]
    if missing or wrong:
        raise CheckpointError(
            f"{folder} belongs to another recipe: {len(missing)} weights missing, {len(wrong)} of another shape "
            f"(e.g. {[*sorted(missing), *wrong][0]}). Resume with the recipe saved in the run folder"
        )
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(tensors[f"weight/{name}"])
        for name, buffer in objective.named_buffers():
            if f"buffer/{name}" in tensors:
                buffer.copy_(tensors[f"buffer/{name}"])
    for name, parameter in names.items():
        moments = {key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in tensors}
        if moments:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
            }
    torch.set_rng_state(tensors["rng/torch"])
    return progress


def _tensors(objective: Objective, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {"rng/torch": torch.get_rng_state()}
    for name, parameter in objective.trainable().items():
        tensors[f"weight/{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    for name, buffer in objective.named_buffers():
        if "heads" in name:
            tensors[f"buffer/{name}"] = buffer.detach().cpu().contiguous()
    return tensors


class RunLog:
    """`log.jsonl`: appended row by row, cut back to the resumed step on resume."""

    def __init__(self, run: Path, *, from_step: int) -> None:
        self.path = run / "log.jsonl"
        rows = [row for row in read_log(self.path) if row["step"] <= from_step]
        temporary = self.path.with_name(f".log.{os.getpid()}.tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, self.path)

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Complete rows of a log; a line torn by a kill is left out."""
    rows = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def recipe_text(run: Path) -> str:
    return (run / RECIPE).read_text()
