"""Figures of the steps since the last log row; they survive a resume, so that the loss curve does too."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from aura.distill.layer_map import LayerPair


class Window:
    """Sums since the last log row.

    Args:
        pairs: layer pairs of the distillation; none without.
        state: what `state` gave before a resume; empty starts anew.
    """

    def __init__(self, pairs: Sequence[LayerPair], state: dict[str, Any] | None = None) -> None:
        self.pairs = [[pair.teacher, pair.student] for pair in pairs]
        state = state or {}
        self.started = time.monotonic() - state.get("seconds", 0.0)
        self.sums: list[float] = state.get("sums") or [0.0] * (2 + len(self.pairs))
        self.counts: list[float] = state.get("counts") or [0.0] * 4
        self.norms: list[float] = state.get("norms") or []

    def state(self) -> dict[str, Any]:
        """As JSON holds it, every digit kept."""
        return {"sums": self.sums, "counts": self.counts, "norms": self.norms, "seconds": self.seconds}

    def add(self, sums: Sequence[float], counts: Sequence[float], norm: float) -> None:
        """One good step.

        Args:
            sums: cross entropy, KL, then the distance of each layer pair.
            counts: answer tokens, patches, audio seconds, positions.
            norm: of the gradient before clipping.
        """
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)]
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
        self.norms.append(norm)

    @property
    def is_empty(self) -> bool:
        """No good step yet: nothing to average."""
        return not self.norms

    @property
    def seconds(self) -> float:
        return max(1e-9, time.monotonic() - self.started)

    def figures(self) -> str:
        """Loss, mean distance and rate, for the bar."""
        tokens, patches, audio, _ = self.counts
        if not tokens:
            return ""
        text = f"loss {self.sums[0] / tokens:.3f}"
        if self.pairs and patches:
            text += f"  1-cos {sum(self.sums[2:]) / len(self.pairs) / patches:.3f}"
        return f"{text}  {audio / self.seconds:.1f} audio-s/s"

    def row(self) -> dict[str, Any]:
        """Means per answer token and per patch."""
        tokens, patches, audio, positions = (max(1e-9, count) for count in self.counts)
        row: dict[str, Any] = {
            "loss": self.sums[0] / tokens,
            "kl": self.sums[1] / tokens,
            "gradient_norm": sum(self.norms) / max(1, len(self.norms)),
            "audio_seconds_per_second": audio / self.seconds,
            "positions_per_second": positions / self.seconds,
        }
        if self.pairs:
            distances = [value / patches for value in self.sums[2:]]
            row |= {
                "distance": sum(distances) / len(distances),
                "cosines": [1 - d for d in distances],
                "pairs": self.pairs,
            }
        return row
