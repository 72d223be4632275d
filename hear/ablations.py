"""What each choice of the recipe is worth: runs of its first stage that differ in one field, beside each other.

    python hear/ablations.py [--out runs/ablations] [--only base off raw ...] [--seeds 0 1] [--picture docs/ablations]

A run is OUT/NAME-SEED. One that was interrupted (Ctrl-C saves) goes on, a finished one stays, one of another recipe is refused; the
table and the picture hold every finished run there is, whichever `--only` and `--seeds` asked for. `--only` without a name
trains nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aura.cli_train import parse_overrides
from aura.config import Recipe
from aura.errors import AuraError, DataError, RecipeError
from aura.pictures import pyplot, save_figure
from aura.stages import read_stages
from aura.training.loop import train
from aura.training.run_folder import changed_fields
from aura.training.state import read_log

BASE = "base"
VARIATIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    BASE: ("the recipe", ()),
    "off": ("no distillation", ("--distill.weight", "0")),
    "raw": ("raw targets", ("--distill.targets", "raw")),
    "decay": ("lambda falls to 0", ("--distill.final_weight", "0")),
    "last2": ("layers 5, 6 alone", ("--distill.layer_map", "[[5, 10], [6, 12]]")),
    "low": ("layer i to layer i", ("--distill.layer_map", "[[1, 1], [2, 2], [3, 3], [4, 4], [5, 5], [6, 6]]")),
    "pool": ("targets averaged", ("--distill.frame_map", "pool")),
    "gate": ("gate audio", ("--lora.gate", "audio")),
    "rank8": ("rank 8", ("--lora.rank", "8")),
    "causal": ("attention causal", ("--audio.attention", "causal")),
    "full": ("attention full", ("--audio.attention", "full")),
    "patch16": ("6.25 patches a second", ("--audio.patch_frames", "16")),
    "linear": ("linear stem", ("--audio.stem", "linear")),
}
Rows = list[dict[str, Any]]
Runs = Mapping[str, Mapping[int, Rows]]  # logs by variation, then by seed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/hear-270m.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--only", nargs="*", choices=list(VARIATIONS), default=list(VARIATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--picture", type=Path, default=Path("docs/ablations"))
    options = parser.parse_args()
    try:
        for seed in options.seeds:
            for name in options.only:
                if (stopped := train_missing(options, name, seed)) is not None:
                    print("hear/ablations.py: stopped; the same command goes on", file=sys.stderr)
                    return 128 + stopped
        found = finished(options)
        if BASE not in found:
            raise DataError(
                f"{options.out} holds no finished run of {BASE}; expected one to compare with: --only {BASE}"
            )
        draw(found, options.picture.with_suffix(".png"))
        print("\n".join(table(found)))
    except (AuraError, OSError) as error:
        print(f"hear/ablations.py: {error}", file=sys.stderr)
        return 2
    return 0


def recipe_of(options: argparse.Namespace, name: str, seed: int) -> Recipe:
    """The first stage, with one choice changed.

    Raises:
        AuraError: no such recipe, or one that never looks at held-out speech.
    """
    chosen = {**parse_overrides(VARIATIONS[name][1]), "run.seed": seed}
    [(_, first), *_] = read_stages(options.recipe, chosen)
    if not first.data.valid:
        raise RecipeError(
            f"{options.recipe}: the first stage has no data.valid; expected held-out speech to compare by"
        )
    return replace(first, run=replace(first.run, out=str(options.out / f"{name}-{seed}")))


def train_missing(options: argparse.Namespace, name: str, seed: int) -> int | None:
    """One run to its end, unless it is there; the signal that stopped it.

    Raises:
        AuraError: no such recipe, a run of another one, or what `train` raises.
    """
    recipe = recipe_of(options, name, seed)
    if finished_log(recipe) is not None:
        return None
    print(f"{recipe.run.out}: {VARIATIONS[name][0]}, seed {seed}", file=sys.stderr)
    return train(recipe, resume=True, more_follow=True).signal


def finished_log(recipe: Recipe) -> Rows | None:
    """The log of a run that has taken its last look at held-out speech, which comes behind the last step.

    Raises:
        DataError: what lies there was trained from another recipe.
    """
    run = Path(recipe.run.out)
    rows = read_log(run / "log.jsonl")
    if rows:
        different = [change for change in changed_fields(run, recipe) if not change.startswith("run.out ")]
        if different:
            raise DataError(
                f"{run} was trained from another recipe: {'; '.join(different)}. Give another --out, or remove that folder"
            )
    last = max((row["step"] for row in rows if row.get("kind") == "valid"), default=0)
    return rows if last >= recipe.run.steps else None


def finished(options: argparse.Namespace) -> Runs:
    """The logs of all finished runs there are, in the order of `VARIATIONS`, then of seeds."""
    found: dict[str, dict[int, Rows]] = {}
    for name in VARIATIONS:
        endings = [run.name.removeprefix(f"{name}-") for run in options.out.glob(f"{name}-*")]
        for seed in sorted(int(ending) for ending in endings if ending.isdecimal()):
            if (rows := finished_log(recipe_of(options, name, seed))) is not None:
                found.setdefault(name, {})[seed] = rows
    return found


def held_out(rows: Rows, field: str) -> tuple[list[int], list[float]]:
    """Steps and figures of the looks at held-out speech."""
    valid = [row for row in rows if row.get("kind") == "valid"]
    return [row["step"] for row in valid], [row[field] for row in valid]


def draw(found: Runs, path: Path) -> None:
    """Held-out loss by step, a panel for each variation, the base's grey in all of them."""
    plt = pyplot("plotting ablations")

    names = [name for name in found if name != BASE] or [BASE]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.1 * columns, 2.2 * lines + 1.4), sharex=True, sharey=True, squeeze=False
    )
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for name, ax in zip(names, axes.flat[: len(names)], strict=True):
        for rows in found[BASE].values():
            ax.plot(*held_out(rows, "loss"), color="#9a9a9a", linewidth=2.5)
        for rows in found[name].values():
            ax.plot(*held_out(rows, "loss"), color="#d1495b", marker=".")
        ax.set_title(VARIATIONS[name][0], fontsize=10)
        ax.grid(alpha=0.3)
    figure.supxlabel("step", fontsize=10)
    figure.supylabel("held-out loss, nats a token", fontsize=10)
    figure.suptitle("grey: the recipe, a line a seed; red: with one change", fontsize=10)
    save_figure(figure, path)


def table(found: Runs) -> list[str]:
    """Markdown: the last figures of each, one a seed."""
    seeds = sorted({seed for runs in found.values() for seed in runs})
    named = f" (seeds {', '.join(map(str, seeds))})" if len(seeds) > 1 else ""
    lines = [f"| | held-out loss{named} | exact match | minutes |", "|---|---|---|---|"]
    for name, runs in found.items():
        cells = [
            [f"{held_out(runs[seed], field)[1][-1]:.2f}" if seed in runs else "-" for seed in seeds]
            for field in ("loss", "accuracy")
        ]
        cells.append([f"{minutes(runs[seed]):.0f}" if seed in runs else "-" for seed in seeds])
        lines.append(f"| {VARIATIONS[name][0]} | {' | '.join(', '.join(cell) for cell in cells)} |")
    return lines


def minutes(rows: Rows) -> float:
    return max((row.get("minutes", 0.0) for row in rows), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
