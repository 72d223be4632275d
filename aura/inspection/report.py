"""An inspection on disk: `inspect.json` with every number, `inspect.md` to read, and the pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aura.evaluation.json_text import plain, replace_text
from aura.evaluation.report import machine, versions
from aura.inspection.figures import best_layers, figures
from aura.inspection.inspect import Inspection
from aura.inspection.plots import LABELS, draw
from aura.inspection.probes import best_layer

READING = """\
## How to read it

- Layer 0 of the LLM is the audio embedding's output; layer n is the raw output of its n-th decoder layer at audio positions.
- *stock* is the LLM with LoRA off behind the trained audio embedding; *untrained* has a fresh audio embedding as well.
- Cosine: the heads of training are not in a checkpoint, so every layer of every model gets a ridge head to the teacher's
  standardised states, fitted on one half of the clips and measured on the other. A linear head on the stock LLM already reads a
  good part of the audio embedding: the difference to it is what the adapter has internalised.
- Probes are ridge classifiers on the mean over a clip's positions, cross-validated; chance and the most common class beside them.
  A layer from which something can be read out need not use it.
- CKA is debiased, on standardised channels, and needs no fit; it may fall below 0.
- Brackets are 95 % bootstrap intervals. "Best" is the best of all layers on the same clips, a little high for every model alike.
"""


@dataclass(frozen=True, kw_only=True)
class Written:
    """Files of an inspection, and its numbers."""

    report: Path
    files: tuple[Path, ...]
    numbers: dict[str, Any]


def write_inspection(
    folder: Path,
    found: Inspection,
    *,
    settings: Mapping[str, Any],
    command: str,
    left_out: Mapping[str, int],
    seed: int,
) -> Written:
    """Write report, text and pictures, each whole or not at all; the JSON last.

    Args:
        settings: everything that decides the numbers.
        left_out: rows that were not inspected, by reason.

    Raises:
        AuraError: the folder cannot be written to.
        MissingExtraError: matplotlib is not installed.
    """
    numbers = plain(figures(found, seed=seed))
    numbers["clips"]["left_out"] = dict(left_out)
    pictures = draw(numbers, found.names, folder)
    report = {
        **numbers,
        "settings": settings,
        "command": command,
        "versions": versions(),
        "machine": machine(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    replace_text(folder / "inspect.md", as_markdown(report, found.names))
    path = folder / "inspect.json"
    replace_text(path, json.dumps(plain(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return Written(report=path, files=(path, folder / "inspect.md", *pictures), numbers=numbers)


def as_markdown(report: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The report in a page."""
    clips, positions, split = report["clips"], report["positions"], report["cosine"]["split"]
    settings = report["settings"]
    note = f" ({split['note']})" if split["note"] else ""
    trained = "not known" if clips["trained_on"] is None else f"{clips['trained_on']} of them"
    lines = [
        f"# Internalisation of {settings['checkpoint']}",
        "",
        f"Teacher {settings['teacher']}; {clips['used']} clips, {clips['seconds']:g} s, {clips['speakers']} named speakers; "
        f"{positions['sampled']} of {positions['heard']} audio positions sampled. Clips that the student was trained on: "
        f"{trained}.",
        "",
        f"Heads were fitted on {split['fit_clips']} clips and measured on {split['measured_clips']} others, no "
        f"{split['kept_apart'].rstrip('s')} in both{note}; "
        f"{split['measured_trained_on']} of the measured clips are known from the student's training.",
        "",
        *_cosine_table(report["cosine"], names),
        *_probe_tables(report["probes"], split),
        *_cka_table(report["cka"], names),
        READING,
        "![cosine](cosine.png)\n\n![cosine matrix](cosine_matrix.png)\n\n![CKA](cka.png)",
    ]
    if any("left_out" not in probe for probe in report["probes"].values()):
        lines.append("\n![probes](probes.png)")
    return "\n".join([*lines, "", f"`{report['command']}`", ""])


def _cosine_table(cosine: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    lines = ["## Cosine to the teacher", "", *_head(["teacher layer", *(f"{LABELS[n]}, best layer" for n in names)])]
    for row in zip(*(cosine[name]["best"] for name in names), strict=True):
        cells = [
            f"{best['value']:.3f} [{_interval(cosine[name], best['layer'], best['teacher'] - 1)}] at {best['layer']}"
            for name, best in zip(names, row, strict=True)
        ]
        lines.append(_row([str(row[0]["teacher"]), *cells]))
    if pairs := cosine["trained_pairs"]:
        lines += ["", "The pairs that training pulled together:", ""]
        lines += _head(["teacher → LLM layer", *(LABELS[n] for n in names), "student - stock"])
        for pair in pairs:
            gap = cosine["student_minus_stock"]
            cell = (pair["student_layer"], pair["teacher"] - 1)
            difference = f"{gap['matrix'][cell[0]][cell[1]]:+.3f} [{_interval(gap, *cell)}]"
            values = [f"{cosine[name]['matrix'][cell[0]][cell[1]]:.3f}" for name in names]
            lines.append(_row([f"{pair['teacher']} → {pair['student_layer']}", *values, difference]))
    return [*lines, ""]


def _interval(found: Mapping[str, Any], layer: int, teacher: int) -> str:
    return f"{found['low'][layer][teacher]:.3f}, {found['high'][layer][teacher]:.3f}"


def _probe_tables(probes: Mapping[str, Any], split: Mapping[str, Any]) -> list[str]:
    lines = ["## Linear probes", ""]
    for title, probe in probes.items():
        if "left_out" in probe:
            lines += [f"**{title}**: left out. {probe['left_out']}.", ""]
            continue
        lines += [
            f"**{title}**: {probe['question']}; {probe['labelled']} labelled {probe['level']}s, {probe['folds']} folds that keep "
            f"{probe['kept_apart']} apart. {probe['metric']}, chance {probe['chance']:.3f}, most common class "
            f"{probe['majority']:.3f}.",
            "",
        ]
        unseen = any(curve["unseen"] for curve in probe["curves"].values())
        extra = [f"on the {probe['unseen']} not trained on"] if unseen else []
        lines += _head(["model", "best layer", "score", *extra, "first", "last"])
        for name, curve in probe["curves"].items():
            top = best_layer(curve["score"])
            score = f"{curve['score'][top]:.3f} [{curve['low'][top]:.3f}, {curve['high'][top]:.3f}]"
            more = [f"{curve['unseen'][top]:.3f}"] if unseen else []
            ends = [f"{curve['score'][0]:.3f}", f"{curve['score'][-1]:.3f}"]
            lines.append(_row([LABELS[name], str(top + (name == "teacher")), score, *more, *ends]))
        lines.append("")
    return lines


def _cka_table(cka: Mapping[str, Any], names: tuple[str, ...]) -> list[str]:
    import numpy as np

    lines = ["## CKA", "", *_head(["teacher layer", *(f"{LABELS[n]}, best layer" for n in names)])]
    best = {name: {b["teacher"]: b for b in best_layers(np.array(cka[name], dtype=float))} for name in names}
    for number in range(1, len(cka[names[0]][0]) + 1):
        found = [best[name].get(number) for name in names]
        lines.append(_row([str(number), *(f"{b['value']:.3f} at {b['layer']}" if b else "-" for b in found)]))
    return [*lines, ""]


def _head(cells: list[str]) -> list[str]:
    return [_row(cells), "|" + "---|" * len(cells)]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
