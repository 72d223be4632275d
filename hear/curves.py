"""Learning curves of runs with and without distillation, on one page: plot and table.

    python hear/curves.py --on RUN [RUN ...] --off RUN [RUN ...] [--stages N] [--out docs/distillation]

A RUN is a run folder, or one with stages (their curves follow each other). Runs of one side are shown as a line each, one
seed a line. Writes OUT.png and prints the table of held-out figures, by step, for the page.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from aura.errors import AuraError
from aura.pictures import pyplot, save_figure
from aura.training.state import read_log

COLOURS = {"with distillation": "#1b6ca8", "without": "#d1495b"}
SMOOTH = 3  # logged points averaged, as each is one batch's
METRICS = ("slot_f1", "accuracy", "wer")  # the first that a stage has: an order is rarely right before its slots are


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", type=Path, nargs="+", required=True)
    parser.add_argument("--off", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/distillation"))
    parser.add_argument("--stages", type=int, default=None, help="the first so many; all when left out")
    options = parser.parse_args()
    sides = {"with distillation": options.on, "without": options.off}
    try:
        runs = {side: [read_run(folder, options.stages) for folder in folders] for side, folders in sides.items()}
        draw(runs, options.out.with_suffix(".png"))
    except (AuraError, OSError, ValueError) as error:
        print(f"hear/curves.py: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(runs)))
    return 0


def read_run(folder: Path, stages: int | None = None) -> list[dict[str, Any]]:
    """Rows of the first stages' logs in order; `at` counts steps from the first stage on.

    Raises:
        ValueError: no log there.
    """
    logs = [folder / "log.jsonl"] if (folder / "log.jsonl").is_file() else sorted(folder.glob("[0-9]*-*/log.jsonl"))
    if not logs:
        raise ValueError(f"{folder} holds no log.jsonl; expected a run folder of aura train")
    rows: list[dict[str, Any]] = []
    before = 0
    for log in logs[:stages]:
        own = [row | {"at": before + row["step"], "stage": log.parent.name} for row in read_log(log) if "step" in row]
        if not own:
            break  # a stage that has just begun
        rows += own
        before = rows[-1]["at"]
    return rows


def metric_of(row: dict[str, Any]) -> tuple[str, float] | None:
    """What a validation row measures, besides the loss."""
    return next(((name, row[name]) for name in METRICS if row.get(name) is not None), None)


def draw(runs: dict[str, list[list[dict[str, Any]]]], path: Path) -> None:
    plt = pyplot("plotting learning curves")

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.4))
    for side, each in runs.items():
        for number, rows in enumerate(each):
            style: dict[str, Any] = {"color": COLOURS[side], "alpha": 1.0 if number == 0 else 0.5}
            label = f"{side}, seed {number}"
            train = [row for row in rows if row["kind"] == "train"]
            losses = [row["loss"] for row in train]
            smooth = [mean(losses[max(0, at - SMOOTH + 1) : at + 1]) for at in range(len(losses))]
            left.plot([row["at"] for row in train], smooth, label=label, **style)
            valid = [row for row in rows if row["kind"] == "valid"]
            for _stage, part in itertools.groupby(valid, key=lambda row: row["stage"]):  # figures of different things
                found = [(row["at"], metric_of(row)) for row in part]
                right.plot([at for at, m in found if m], [m[1] for _, m in found if m], "o-", **style)
    stages = [row for row in runs["with distillation"][0] if row["kind"] == "train"]
    for row, following in itertools.pairwise(stages):
        if row["stage"] != following["stage"]:
            for panel in (left, right):
                panel.axvline(row["at"], color="grey", linewidth=0.7, linestyle=":")
    left.set(xlabel="step", ylabel="nats a token", ylim=(0, 3), title="Training loss of the answer")
    right.set(xlabel="step", ylim=(0, None), title="Held-out figure of the stage")
    left.legend(frameon=False)
    save_figure(figure, path)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def table(runs: dict[str, list[list[dict[str, Any]]]]) -> list[str]:
    """Held-out loss and figure of every run at every step where one was taken."""
    names = [f"{side}, seed {number}" for side, each in runs.items() for number in range(len(each))]
    columns = [{row["at"]: row for row in rows if row["kind"] == "valid"} for each in runs.values() for rows in each]
    lines = ["| step | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for at in sorted({at for column in columns for at in column}):
        lines.append(f"| {at} | " + " | ".join(cell(column.get(at)) for column in columns) + " |")
    return lines


def cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    metric = metric_of(row)
    shown = f"{metric[0]} {metric[1]:.3f}, " if metric else ""
    return f"{shown}loss {row['loss']:.3f}"


if __name__ == "__main__":
    sys.exit(main())
