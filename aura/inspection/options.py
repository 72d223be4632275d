"""How a checkpoint is inspected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Progress = Callable[[str, int, int, float], None]
"""(stage, total, done now, seconds of audio in them)"""


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """How a checkpoint is inspected.

    Args:
        positions: sampled for heads, CKA and probes of single patches.
        frames: teacher frames of a patch stacked, as training does by default, or pooled.
        untrained: compare with the untrained student too.
        batch_tokens: positions per batch.
        seed: of the sample, the splits, the untrained embedding and the intervals.
    """

    positions: int = 4096
    frames: Literal["stack", "pool"] = "stack"
    untrained: bool = True
    batch_tokens: int = 1024
    seed: int = 0
