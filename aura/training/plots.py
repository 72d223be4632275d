"""Pictures of a run, from its log alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aura.pictures import pyplot, save_figure
from aura.training.state import read_log

COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8d6a9f")


def plot_run(run: Path) -> list[Path]:
    """`loss.png` and, with distillation, `layers.png` (cosine per layer pair); returns what was drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = pyplot("plotting a run")
    rows = read_log(run / "log.jsonl")
    train = [row for row in rows if row["kind"] == "train"]
    valid = [row for row in rows if row["kind"] == "valid"]
    if not train:
        return []
    drawn = [save_figure(_losses(plt, train, valid), run / "loss.png")]
    if train[-1].get("cosines"):
        drawn.append(save_figure(_layers(plt, train, valid), run / "layers.png"))
    return drawn


def _losses(plt: Any, train: list[dict[str, Any]], valid: list[dict[str, Any]]) -> Any:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    steps = [row["step"] for row in train]
    left.plot(steps, [row["loss"] for row in train], color=COLOURS[0], label="cross entropy, training")
    if any(row.get("distance") is not None for row in train):
        left.plot(steps, [row.get("distance") for row in train], color=COLOURS[1], label="1 - cosine, training")
    if valid:
        left.plot(
            [r["step"] for r in valid],
            [r["loss"] for r in valid],
            "o--",
            color=COLOURS[0],
            label="cross entropy, held out",
        )
    left.set(xlabel="optimiser step", ylabel="nats per answer token, 1 - cosine", title="Loss", ylim=(0, None))
    left.legend(frameon=False)
    for colour, name, label in zip(
        COLOURS[1:], ("accuracy", "wer", "cosine"), ("exact match", "word error rate", "cosine to teacher"), strict=True
    ):
        points = [(r["step"], r[name]) for r in valid if r.get(name) is not None]
        if points:
            right.plot(*zip(*points, strict=True), "o-", color=colour, label=label)
    right.set(xlabel="optimiser step", title="Held-out speech", ylim=(0, 1.05))
    if right.lines:
        right.legend(frameon=False)
    return figure


def _layers(plt: Any, train: list[dict[str, Any]], valid: list[dict[str, Any]]) -> Any:
    figure, axis = plt.subplots(figsize=(7, 4.2))
    names = train[-1]["pairs"]
    shades = plt.get_cmap("viridis")
    for index, (teacher, student) in enumerate(names):
        colour = shades(index / max(1, len(names) - 1) * 0.9)
        axis.plot(
            [row["step"] for row in train], [row["cosines"][index] for row in train],
            color=colour, label=f"teacher {teacher} → student {student}",
        )  # fmt: skip
        if valid and valid[-1].get("cosines"):
            axis.plot([r["step"] for r in valid], [r["cosines"][index] for r in valid], "o", color=colour, ms=4)
    axis.set(xlabel="optimiser step", ylabel="cosine", title="Distillation per layer (dots: held out)", ylim=(None, 1))
    axis.legend(frameon=False, fontsize=8)
    return figure
