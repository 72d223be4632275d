"""A recipe's stages, one run after the other: each starts from what the one before delivered.

runs/hear/
  recipe.yaml                resolved recipe with its stages
  1-hear/, 2-understand/     a run folder each
  checkpoint/                what the last stage delivered, with the recipes of all
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aura.config import Recipe
from aura.data.manifest import is_manifest
from aura.errors import RecipeError, TrainingError
from aura.stages import root_of, write_stages
from aura.student.checkpoint import CARD, RECIPE
from aura.student.files import whole_folder
from aura.training.run_folder import changed_fields, clear, make_folder, open_run, step_folders, tidy
from aura.training.state import Progress, read_progress

if TYPE_CHECKING:
    from aura.training.loop import RunResult


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """One of the runs, and where it stands.

    Args:
        progress: at its newest checkpoint; None without one.
        is_finished: it has delivered, and its recipe asks for no step more.
    """

    name: str
    recipe: Recipe
    progress: Progress | None = None
    is_finished: bool = False

    @property
    def run(self) -> Path:
        return Path(self.recipe.run.out)


def train_all(stages: Sequence[tuple[str, Recipe]], *, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Train what `read_stages` gave: stages, or the one run that a recipe without stages is; see `train_stages`."""
    if stages[0][0]:
        return train_stages(stages, resume=resume, overwrite=overwrite)
    from aura.training.loop import train

    return train(stages[0][1], resume=resume, overwrite=overwrite)


def train_stages(stages: Sequence[tuple[str, Recipe]], *, resume: bool = False, overwrite: bool = False) -> RunResult:
    """Train all stages, and deliver the last one's checkpoint in the folder around them.

    Args:
        stages: from `aura.stages.read_stages`.
        resume: leave out stages that are finished, go on with the one that is not.
        overwrite: start all of them anew.

    Returns:
        how the last stage that ran ended; `run` and `checkpoint` are those of the whole once that is delivered.

    Raises:
        AuraError: as `aura.training.loop.train`; or a stage would learn on although a later one started from it.
    """
    root = root_of(stages)
    _refuse_missing_data(stages)
    is_main = int(os.environ.get("RANK", "0")) == 0
    known = [_look(name, recipe) if resume else _Stage(name=name, recipe=recipe) for name, recipe in stages]
    going_on = any(stage.progress is not None or stage.is_finished for stage in known)
    if going_on:
        notes = _check_order(known)
    else:
        for folder in (*(stage.run for stage in known), root):
            open_run(folder, resume=False, overwrite=overwrite)
        notes = []
    if is_main:
        make_folder(root)
        tidy(root)
        if not going_on:
            for folder in (root, *(stage.run for stage in known)):  # or a later one would be taken for this recipe's
                clear(folder)
        write_stages(stages, root / RECIPE)
    result = _run_all(known, notes, is_main=is_main)
    if result is not None and result.signal is not None:
        return result
    if is_main:
        _deliver(root, stages)
    from aura.training.loop import RunResult

    progress = result.progress if result is not None else (known[-1].progress or Progress())
    return RunResult(run=root, checkpoint=root / "checkpoint", progress=progress, finished=True)


def _run_all(stages: Sequence[_Stage], notes: Sequence[str], *, is_main: bool) -> RunResult | None:
    """The stages that are not finished; how the last of them ended, None where there was none."""
    from aura.training.loop import train

    def say(text: str) -> None:
        if is_main:
            print(text, file=sys.stderr)

    for note in notes:
        say(note)
    result = None
    for number, stage in enumerate(stages, start=1):
        title = f"stage {number} of {len(stages)}, {stage.name}"
        if stage.is_finished:
            say(f"{title}: finished before, in {stage.run}")
            continue
        say(f"{title}: {stage.recipe.run.steps} steps in {stage.run}")
        result = train(stage.recipe, resume=True, more_follow=number < len(stages))
        if result.signal is not None:
            break
    return result


def _look(name: str, recipe: Recipe) -> _Stage:
    run = Path(recipe.run.out)
    folders = step_folders(run)
    progress = read_progress(folders[-1]) if folders else None
    has_delivered = (run / "checkpoint").is_dir()
    limit = recipe.run.max_minutes
    # Checkpoints are large: who removes them behind a finished stage does not want it to start anew.
    is_over = progress is None or progress.step >= recipe.run.steps or (limit is not None and progress.minutes >= limit)
    return _Stage(name=name, recipe=recipe, progress=progress, is_finished=has_delivered and is_over)


def _check_order(stages: Sequence[_Stage]) -> list[str]:
    """What changed in finished stages, as lines to say.

    Raises:
        TrainingError: a stage would learn on although a later one has started from it.
        CheckpointError: a stage's recipe is another's, see `changed_fields`.
    """
    notes = []
    for number, stage in enumerate(stages):
        folders = step_folders(stage.run)
        changes = changed_fields(folders[-1], stage.recipe) if folders else []
        if stage.is_finished:
            notes += [f"stage {stage.name} is finished; changed since then, to no effect: {text}" for text in changes]
            continue
        begun = [later for later in stages[number + 1 :] if later.progress is not None or later.is_finished]
        if begun:
            raise TrainingError(
                f"stage {stage.name} is not finished by this recipe{_asked(stage)}, but {begun[0].name} has started from it "
                f"already. Give {stage.name} the length it had, for example with --stages.{stage.name}.run.steps, or start anew "
                "with --overwrite"
            )
    return notes


def _asked(stage: _Stage) -> str:
    return f" ({stage.progress.step} of {stage.recipe.run.steps} steps)" if stage.progress is not None else ""


def _refuse_missing_data(stages: Sequence[tuple[str, Recipe]]) -> None:
    """What a later stage lacks shows before the first one has trained for hours.

    Raises:
        RecipeError: naming every stage without training data, and every manifest that is not there.
    """
    problems = [f"stage {name} has no data.train" for name, recipe in stages if not recipe.data.train]
    for name, recipe in stages:
        sources = dict.fromkeys((*recipe.data.train, *recipe.data.valid))
        problems += [
            f"stage {name}: {source} does not exist"
            for source in sources
            if is_manifest(source) and not Path(source).is_file()
        ]
    if problems:
        raise RecipeError(f"{'; '.join(problems)}. Expected manifests or datasets to learn from in every stage")


def _deliver(root: Path, stages: Sequence[tuple[str, Recipe]]) -> None:
    """The last stage's checkpoint, with what the stages before it learnt from."""
    runs = [Path(recipe.run.out) for _, recipe in stages]
    with whole_folder(root / "checkpoint") as folder:
        shutil.copytree(runs[-1] / "checkpoint", folder, dirs_exist_ok=True)
        for run in runs[:-1]:
            shutil.copy(run / RECIPE, folder / f"recipe-{run.name}.yaml")
        card = (folder / CARD).read_text(encoding="utf-8")
        (folder / CARD).write_text(f"{card}\n{_table(stages)}", encoding="utf-8")


def _table(stages: Sequence[tuple[str, Recipe]]) -> str:
    """The stages' part of the model card; the part above it is the last stage's."""
    lines = ["## Stages", "", "| stage | steps | audio heard | wall time | training data |", "|---|---|---|---|---|"]
    for number, (name, recipe) in enumerate(stages, start=1):
        folders = step_folders(Path(recipe.run.out))
        figures = ["", "", ""]
        if folders:
            progress = read_progress(folders[-1])
            figures = [str(progress.step), f"{progress.audio_seconds / 3600:.2f} h", f"{progress.minutes:.1f} min"]
        data = ", ".join(f"`{source}`" for source in dict.fromkeys(recipe.data.train))
        lines.append(f"| {' | '.join([f'{number} {name}', *figures, data])} |")
    return "\n".join([*lines, ""])
