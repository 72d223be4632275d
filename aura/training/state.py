"""Where a run stands, on disk: checkpoints that resume exactly, without pickle; and its log."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from aura.errors import CheckpointError, TrainingError
from aura.student.checkpoint import RECIPE
from aura.student.files import CONFIG, whole_folder
from aura.student.llm import check_fingerprint
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor
from aura.training.average import WeightAverage
from aura.training.objective import Objective
from aura.training.run_folder import step_folders

TENSORS = "training.safetensors"
PROGRESS = "training.json"


@dataclass(kw_only=True)
class Progress:
    """Where a run stands.

    Args:
        step: optimiser steps done, skipped ones included.
        micro_batches: consumed from the data plan, over all processes.
        bad_steps: skipped for a non-finite loss or gradient, in all; bad_in_a_row: of late.
        audio_seconds, minutes: heard and spent so far.
        best: best validation score so far, in the direction of `run.best_metric`; best_step: where it was taken.
        evaluated: step of the last evaluation.
        window: figures since the last log row, see `Window.state`.
    """

    step: int = 0
    micro_batches: int = 0
    bad_steps: int = 0
    bad_in_a_row: int = 0
    audio_seconds: float = 0.0
    minutes: float = 0.0
    best: float | None = None
    best_step: int | None = None
    evaluated: int | None = None
    window: dict[str, Any] = field(default_factory=dict)


def save_state(
    run: Path,
    objective: Objective,
    processor: AuraProcessor,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
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
        with average.applied():
            write_student(folder, objective.student, processor, extra)
        save_file(_tensors(objective, optimizer, average), folder / TENSORS)
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


def load_state(
    folder: Path, objective: Objective, optimizer: torch.optim.Optimizer, average: WeightAverage
) -> Progress:
    """Put a saved state back: weights, heads, optimiser, average. What is random in a step has the step for its seed.

    Raises:
        CheckpointError: torn files, or a state of another recipe or another LLM.
    """
    try:
        tensors = load_file(folder / TENSORS)
        progress = read_progress(folder)
        saved = json.loads((folder / CONFIG).read_text())
        expected = saved["base_fingerprint"]
    except CheckpointError:
        raise
    except Exception as error:  # safetensors, json and the file system each raise their own types
        raise _torn(folder, error) from error
    names = objective.trainable()
    wanted = {f"weight/{name}" for name in names} | {
        f"buffer/{name}" for name, _ in objective.named_buffers() if "heads" in name
    }
    check_fingerprint(
        expected, objective.student.language_model, checkpoint=str(folder), llm=objective.student.config.base_model
    )
    check_speech_encoder(saved, objective.student, folder)
    wanted |= {f"average/{name}" for name in average.tensors}
    missing = wanted ^ {name for name in tensors if name.startswith(("weight/", "buffer/", "average/"))}
    wrong = [n for n in names if f"weight/{n}" in tensors and tensors[f"weight/{n}"].shape != names[n].shape]
    if missing or wrong:
        raise CheckpointError(
            f"{folder} belongs to another recipe: {len(missing)} weights of only one of them, {len(wrong)} of another shape "
            f"(e.g. {[*sorted(missing), *wrong][0]}). Resume with the recipe saved in the run folder"
        )
    with torch.no_grad():
        for name, parameter in names.items():
            parameter.copy_(tensors[f"weight/{name}"])
        for name, mean in average.tensors.items():
            mean.copy_(tensors[f"average/{name}"])
        for name, buffer in objective.named_buffers():
            if f"buffer/{name}" in tensors:
                buffer.copy_(tensors[f"buffer/{name}"])
    for name, parameter in names.items():
        moments = {
            key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}/{name}" in tensors
        }
        if moments:
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
            }
    progress.bad_in_a_row = 0
    return progress


def read_progress(folder: Path) -> Progress:
    """Where the run stood at a checkpoint.

    Raises:
        CheckpointError: a torn file.
    """
    try:
        return Progress(**json.loads((folder / PROGRESS).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _torn(folder, error) from error


def _torn(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder} cannot be resumed from: {' '.join(str(error).split())[:200]}")


def check_speech_encoder(saved: dict[str, Any], student: AuraForConditionalGeneration, folder: Path) -> None:
    """A bridge goes on with the encoder it started with.

    Args:
        saved: `config.json` of the checkpoint in `folder`.

    Raises:
        CheckpointError: it was another one.
    """
    if student.speech_encoder is None:
        return
    from aura.bridge.encoder import check_encoder

    check_encoder(
        saved.get("encoder_fingerprint") or {},
        student.speech_encoder.encoder,
        checkpoint=str(folder),
        reference=student.config.encoder or "",
    )


def _tensors(objective: Objective, optimizer: torch.optim.Optimizer, average: WeightAverage) -> dict[str, torch.Tensor]:
    tensors = {f"average/{name}": mean.cpu().contiguous() for name, mean in average.tensors.items()}
    for name, parameter in objective.trainable().items():
        tensors[f"weight/{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{key}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    for name, buffer in objective.named_buffers():
        if "heads" in name:
            tensors[f"buffer/{name}"] = buffer.detach().cpu().contiguous()
    return tensors


class RunLog:
    """`log.jsonl`: appended row by row; rows after the resumed step are cut off.

    Args:
        step, evaluated: of the state the run goes on from.
    """

    def __init__(self, run: Path, *, step: int = 0, evaluated: int | None = None) -> None:
        self.path = run / "log.jsonl"
        last = {"train": step, "valid": evaluated or 0}
        rows = [row for row in read_log(self.path) if row["step"] <= last[row["kind"]]]
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        with _mendable(self.path):
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.replace(temporary, self.path)

    def add(self, row: dict[str, Any]) -> None:
        """Raises `TrainingError` where the row cannot be written."""
        with _mendable(self.path), self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


@contextlib.contextmanager
def _mendable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{path} cannot be written: {error.strerror or error}. The checkpoints are whole: free some space, then go on with "
            "--resume"
        ) from error


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
