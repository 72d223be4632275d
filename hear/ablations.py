"""What each choice of the recipe is worth: runs of its first stage that differ in one field, beside each other.

    python hear/ablations.py [--out runs/ablations] [--only base off raw ...] [--seeds 0 1] [--picture docs/ablations]

A run is OUT/NAME-SEED. One that was interrupted goes on, a finished one stays; the table and the picture hold every finished
run there is, whichever `--only` and `--seeds` asked for. `--only` without a name trains nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aura.errors import AuraError, DataError
from aura.stages import read_stages
from aura.typed_tree import as_tree, write_yaml

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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/hear-270m.yaml"))
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--only", nargs="*", choices=list(VARIATIONS), default=list(VARIATIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--picture", type=Path, default=Path("docs/ablations"))
    options = parser.parse_args()
    try:
        steps = train_missing(options)
        found = finished(options.out, steps)
        if BASE not in found:
            raise DataError(
                f"{options.out} holds no finished run of {BASE}; expected one to compare with: --only {BASE}"
            )
        draw(found, options.picture.with_suffix(".png"))
        print("\n".join(table(found)))
    except (AuraError, OSError) as error:
        print(f"hear/ablations.py: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:  # aura train has said why
        return error.returncode
    return 0


def train_missing(options: argparse.Namespace) -> int:
    """Every asked-for run that is not finished, one after the other; the steps of each.

    Raises:
        AuraError: no such recipe.
        CalledProcessError: `aura train` stopped.
    """
    [(_, first), *_] = read_stages(options.recipe)
    options.out.mkdir(parents=True, exist_ok=True)
    recipe = options.out / "recipe.yaml"
    write_yaml(as_tree(first), recipe)
    for seed in options.seeds:
        for name in options.only:
            run = options.out / f"{name}-{seed}"
            if last_step(read_log(run)) >= first.run.steps:
                continue
            print(f"{run}: {VARIATIONS[name][0]}, seed {seed}", file=sys.stderr)
            words = ["--run.seed", str(seed), "--run.out", str(run), "--resume", *VARIATIONS[name][1]]
            subprocess.run([sys.executable, "-m", "aura", "train", "--recipe", str(recipe), *words], check=True)
    return first.run.steps


def read_log(run: Path) -> Rows:
    log = run / "log.jsonl"
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []


def last_step(rows: Rows) -> int:
    """Of the last look at held-out speech, which comes behind the last step."""
    return max((row["step"] for row in rows if row.get("kind") == "valid"), default=0)


def finished(out: Path, steps: int) -> dict[str, list[Rows]]:
    """The logs of each variation's runs, in the order of `VARIATIONS`, then of seeds."""
    logs = {name: [read_log(run) for run in sorted(out.glob(f"{name}-[0-9]*"))] for name in VARIATIONS}
    done = {name: [rows for rows in each if last_step(rows) >= steps] for name, each in logs.items()}
    return {name: each for name, each in done.items() if each}


def held_out(rows: Rows, field: str) -> tuple[list[int], list[float]]:
    """Steps and figures of the looks at held-out speech."""
    valid = [row for row in rows if row.get("kind") == "valid"]
    return [row["step"] for row in valid], [row[field] for row in valid]


def draw(found: Mapping[str, Sequence[Rows]], path: Path) -> None:
    """Held-out loss by step, a panel for each variation, the base's grey in all of them."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in found if name != BASE] or [BASE]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.1 * columns, 2.4 * lines), sharex=True, sharey=True, squeeze=False
    )
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for name, ax in zip(names, axes.flat, strict=False):
        for rows in found[BASE]:
            ax.plot(*held_out(rows, "loss"), color="#9a9a9a", linewidth=2.5)
        for rows in found[name]:
            ax.plot(*held_out(rows, "loss"), color="#d1495b", marker=".")
        ax.set_title(VARIATIONS[name][0], fontsize=10)
        ax.grid(alpha=0.3)
    figure.supxlabel("step")
    figure.supylabel("held-out loss, nats a token")
    figure.suptitle("grey: the recipe, a line a seed; red: with one change", fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def table(found: Mapping[str, Sequence[Rows]]) -> list[str]:
    """Markdown: the last figures of each, one a seed."""
    lines = ["| | held-out loss | exact match | minutes |", "|---|---|---|---|"]
    for name, runs in found.items():
        loss, right = (
            ", ".join(f"{held_out(rows, field)[1][-1]:.2f}" for rows in runs) for field in ("loss", "accuracy")
        )
        minutes = ", ".join(f"{max(row.get('minutes', 0.0) for row in rows):.0f}" for rows in runs)
        lines.append(f"| {VARIATIONS[name][0]} | {loss} | {right} | {minutes} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
