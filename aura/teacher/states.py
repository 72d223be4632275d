"""What a teacher is and what it returns: `TeacherSpec`, `TeacherStates`, and how items are grouped to run.

Shapes: `L` selected layers, `F` teacher frames of the whole batch (items concatenated), `E` teacher width,
`B` items that run together, `T` frames of the longest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

SAMPLE_RATE = 16_000  # Hz, of every teacher that aura supports

# How many frames may be padding in a group of items, as a share. A CPU gains a tenth from batching an
# encoder (measured: 25.7 ms against 22.4 ms a 100 frames of Whisper base), so more padding than that is a
# loss; an accelerator pays per kernel launch and takes the batch as it comes. Our choice.
CPU_PADDING_SHARE = 0.06
CPU_GROUP_FRAMES = 2048  # keeps the activations of a group in the tens of MB


@dataclass(frozen=True, kw_only=True)
class TeacherSpec:
    """Sizes of a teacher, read from the loaded model.

    Attributes:
        layers: transformer layers of the encoder.
        width: `E`, channels of a hidden state.
        frame_samples: 16 kHz samples per teacher frame, e.g. 320 = 20 ms.
        max_seconds: longest clip the encoder has positions for; None where there is no limit.
    """

    layers: int
    width: int
    frame_samples: int
    max_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class TeacherStates:
    """Hidden states of a batch, without padding.

    Attributes:
        hidden_LFE: (layers asked for, in that order; frames of all items, concatenated; teacher width).
        frames: frames of each item; their sum is `F`.
    """

    hidden_LFE: torch.Tensor
    frames: tuple[int, ...]


class Runner(Protocol):
    """One family of encoders: how it is fed, and where its layers are."""

    encoder: torch.nn.Module
    spec: TeacherSpec
    window: int | None  # frames that are fed whatever the length of the clip; None: its real length
    pads: bool  # whether items of different length may share a padded batch and still equal single items

    def run(self, waveforms: Sequence[np.ndarray], frames: Sequence[int], layers: Sequence[int]) -> list[torch.Tensor]:
        """Return for each of `layers` (1-based) its raw output, (B, at least max(frames), E)."""
        ...

    def front_end(self) -> dict[str, Any] | None:
        """Return the weights that a student's stem can start from, or None where shapes cannot match."""
        ...


def group_by_length(
    frames: Sequence[int], *, padding_share: float = 0.0, max_frames: int | None = None
) -> list[list[int]]:
    """Split item indices into groups that run together, longest first.

    Args:
        frames: length of each item.
        padding_share: largest share of padding that a group may hold; 0 groups equal lengths only.
        max_frames: largest padded size of a group (a single longer item is still its own group).
    """
    groups: list[list[int]] = []
    valid = 0  # frames in the open group that are not padding
    for index in sorted(range(len(frames)), key=lambda i: -frames[i]):
        if groups:
            padded = frames[groups[-1][0]] * (len(groups[-1]) + 1)
            fits = max_frames is None or padded <= max_frames
            if fits and padded - (valid + frames[index]) <= padding_share * padded:
                groups[-1].append(index)
                valid += frames[index]
                continue
        groups.append([index])
        valid = frames[index]
    return groups
