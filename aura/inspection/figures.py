"""What was found -> the numbers that reports and plots show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from aura.inspection import resample
from aura.inspection.inspect import Inspection
from aura.inspection.items import Clip
from aura.inspection.labels import LeftOut
from aura.inspection.probes import best_layer
from aura.inspection.states import STOCK, STUDENT


def figures(found: Inspection, *, seed: int) -> dict[str, Any]:
    """Every number of an inspection, in JSON's types but for arrays."""
    return {
        "clips": _clip_counts(found.clips),
        "positions": {"sampled": found.positions, "heard": found.seen},
        "layers": {"llm": found.layers, "teacher": found.teacher_layers},
        "cosine": _cosine(found, seed),
        "probes": {
            (probe.name if isinstance(probe, LeftOut) else probe.task.name): (
                {"left_out": probe.reason} if isinstance(probe, LeftOut) else probe.as_dict()
            )
            for probe in found.probes
        },
        "cka": dict(found.cka),
        "seconds": {name: round(value, 2) for name, value in found.seconds.items()},
    }


def _clip_counts(clips: Sequence[Clip]) -> dict[str, Any]:
    known = [clip for clip in clips if clip.trained_on is not None]
    return {
        "used": len(clips),
        "seconds": round(sum(clip.utterance.seconds for clip in clips), 1),
        "speakers": len({clip.utterance.speaker for clip in clips} - {None}),
        "trained_on": sum(clip.trained_on is True for clip in clips) if known else None,
    }


def _cosine(found: Inspection, seed: int) -> dict[str, Any]:
    """Matrices (LLM layer 0..N x teacher layer 1..L) with intervals, best layers, and the pairs of the training."""
    split, measured = found.split, found.split.measure
    clips = found.cosines[STUDENT].clips
    groups = found.groups[clips]
    speakers = split.unit == "speaker" and len(set(groups.tolist())) >= resample.FEWEST_SPEAKERS
    draws = resample.draws(groups if speakers else clips, seed=seed)
    drawn = {name: _drawn(draws, cosines) for name, cosines in found.cosines.items()}
    result: dict[str, Any] = {
        "split": {
            "kept_apart": f"{split.unit}s",
            "note": split.note,
            "fit_clips": len(split.fit),
            "measured_clips": len(measured),
            "measured_trained_on": sum(found.clips[int(i)].trained_on is True for i in measured),
            "bootstrap_over": "speakers" if speakers else "clips",
        }
    }
    for name, cosines in found.cosines.items():
        mean = cosines.mean
        low, high = _ends(drawn[name], mean.shape)
        best = best_layers(mean)
        result[name] = {"matrix": mean, "low": low, "high": high, "best": best, "penalties": cosines.penalties}
    shape = found.cosines[STUDENT].mean.shape
    for other in (name for name in found.names if name != STUDENT):
        low, high = _ends(drawn[STUDENT] - drawn[other], shape)
        mean = found.cosines[STUDENT].mean - found.cosines[other].mean
        result[f"student_minus_{other}"] = {"matrix": mean, "low": low, "high": high}
    result["trained_pairs"] = [
        {"teacher": pair.teacher, "student_layer": pair.student}
        | {name: result[name]["matrix"][pair.student, pair.teacher - 1] for name in found.names}
        for pair in found.pairs
    ]
    return result


def _drawn(draws: np.ndarray, cosines: Any) -> np.ndarray:
    sums = cosines.sums.reshape(-1, cosines.sums.shape[2])
    return resample.ratios(draws, sums, cosines.counts[None])


def _ends(drawn: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    low, high = resample.interval(drawn)
    return low.reshape(shape), high.reshape(shape)


def best_layers(matrix: np.ndarray) -> list[dict[str, Any]]:
    """For each teacher layer (1-based) the LLM layer (0 is the audio embedding) that comes nearest."""
    return [
        {"teacher": number, "layer": best_layer(column), "value": float(column[best_layer(column)])}
        for number, column in enumerate(matrix.T, start=1)
        if not np.isnan(column).all()
    ]


def headline(numbers: dict[str, Any], names: Sequence[str]) -> list[str]:
    """A few lines for the terminal."""
    lines = []
    width = max(len(name) for name in (*names, STOCK))
    for name in names:
        best = numbers["cosine"][name]["best"]
        row = "  ".join(f"{b['value']:.3f} @{b['layer']}" for b in best)
        lines.append(f"cosine to teacher layer 1..{len(best)}, best layer   {name:<{width}}  {row}")
    for title, probe in numbers["probes"].items():
        if "left_out" in probe:
            lines.append(f"probe {title}: left out, {probe['left_out']}")
            continue
        parts = [
            f"{name} {max(curve['score']):.3f} @{best_layer(curve['score']) + (name == 'teacher')}"
            for name, curve in probe["curves"].items()
        ]
        lines.append(f"probe {title} ({probe['metric']}, chance {probe['chance']:.3f}): {', '.join(parts)}")
    return lines
