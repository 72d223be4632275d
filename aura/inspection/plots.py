"""Pictures of an inspection, from its numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aura.pictures import pyplot, save_figure

COLOURS = {"student": "#1b6ca8", "stock": "#d1495b", "untrained": "#9a9a9a", "teacher": "#2e933c"}
LABELS = {
    "student": "student",
    "stock": "stock LLM, same audio embedding",
    "untrained": "untrained student",
    "teacher": "teacher",
}


def draw(numbers: dict[str, Any], names: tuple[str, ...], folder: Path) -> list[Path]:
    """`cosine.png`, `cosine_matrix.png`, `probes.png` (where any ran) and `cka.png`; returns what was drawn.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = pyplot("plotting an inspection")
    matrices = {name: np.asarray(numbers["cosine"][name]["matrix"], float) for name in names}
    aligned = {name: np.asarray(numbers["cka"][name], float) for name in names}
    drawn = [
        save_figure(_cosine(plt, numbers, names), folder / "cosine.png"),
        save_figure(_heat_maps(plt, matrices, "cosine of fitted heads, held-out half"), folder / "cosine_matrix.png"),
        save_figure(_heat_maps(plt, aligned, "debiased linear CKA"), folder / "cka.png"),
    ]
    ran = {title: probe for title, probe in numbers["probes"].items() if "left_out" not in probe}
    if ran:
        drawn.append(save_figure(_probes(plt, ran), folder / "probes.png"))
    return drawn


def _cosine(plt: Any, numbers: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Left: each LLM layer's nearest teacher layer. Right: the last teacher layer alone."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for name in names:
        found = {key: np.asarray(numbers["cosine"][name][key], float) for key in ("matrix", "low", "high")}
        nearest = found["matrix"].argmax(1)
        layers = np.arange(len(nearest))
        for axis, column in zip(axes, (nearest, np.full(len(nearest), found["matrix"].shape[1] - 1)), strict=True):
            axis.plot(layers, found["matrix"][layers, column], "o-", ms=3, color=COLOURS[name], label=LABELS[name])
            axis.fill_between(
                layers, found["low"][layers, column], found["high"][layers, column], color=COLOURS[name], alpha=0.15
            )
    axes[0].set(title="To the nearest teacher layer", ylabel="cosine, held-out half")
    axes[1].set(title=f"To the teacher's last layer ({numbers['layers']['teacher']})")
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(xlabel="LLM layer (0: audio embedding)", ylim=(min(0.0, axis.get_ylim()[0]), 1.0))
    axes[0].legend(frameon=False)
    return figure


def _heat_maps(plt: Any, matrices: dict[str, np.ndarray], title: str) -> Any:
    top = max(0.1, *(float(np.nanmax(matrix)) if not np.isnan(matrix).all() else 0.0 for matrix in matrices.values()))
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(3.6 * len(matrices) + 1, 4.6), sharey=True, squeeze=False, layout="constrained"
    )
    image: Any = None
    for axis, (name, matrix) in zip(axes[0], matrices.items(), strict=True):
        image = axis.imshow(matrix, origin="lower", aspect="auto", vmin=0, vmax=top, cmap="viridis")
        ticks = np.arange(0, matrix.shape[1], max(1, matrix.shape[1] // 8))
        axis.set(title=LABELS[name], xlabel="teacher layer", xticks=ticks, xticklabels=(ticks + 1).tolist())
        axis.title.set_size(10)
        axis.yaxis.get_major_locator().set_params(integer=True)
    axes[0][0].set(ylabel="LLM layer (0: audio embedding)")
    figure.colorbar(image, ax=axes[0].tolist(), label=title, fraction=0.05)
    return figure


def _probes(plt: Any, probes: dict[str, Any]) -> Any:
    columns = min(2, len(probes))
    rows = -(-len(probes) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5.6 * columns, 4.0 * rows), squeeze=False)
    for axis in axes.flat[len(probes) :]:
        axis.set_axis_off()
    for axis, (title, probe) in zip(axes.flat, probes.items(), strict=False):  # an odd number leaves one empty
        for name, curve in probe["curves"].items():
            # An LLM's layer 0 is its input; a teacher's first point is the output of its first layer.
            first = 1 if name == "teacher" else 0
            depth = np.arange(first, len(curve["score"]) + first) / (len(curve["score"]) - 1 + first or 1)
            low, high = (np.asarray(curve[end], float) for end in ("low", "high"))
            axis.plot(depth, curve["score"], "o-", ms=3, color=COLOURS[name], label=LABELS[name])
            axis.fill_between(depth, low, high, color=COLOURS[name], alpha=0.12)
        axis.axhline(probe["chance"], color="black", lw=0.8, ls=":", label="chance")
        if probe["metric"] == "accuracy":
            axis.axhline(probe["majority"], color="black", lw=0.8, ls="--", label="most common class")
        axis.set(title=f"{title}: {probe['question']}", xlabel="depth (share of the layers)", ylabel=probe["metric"])
        axis.title.set_size(9)
        axis.set_ylim(min(0.0 if probe["metric"] == "accuracy" else 0.4, axis.get_ylim()[0]), 1.02)
    axes[0][0].legend(frameon=False, fontsize=8)
    return figure
