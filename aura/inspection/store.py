"""Hidden states on disk: a fixed-seed sample of positions per layer, and the mean over each clip.

Memory is bounded by one layer's sample, whatever the number of clips and layers; the files live in the output folder
while the inspection runs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aura.errors import AuraError


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is kept of one model.

    Args:
        layers: states per position; the first of an LLM is the audio embedding's output.
        width: channels of a position.
        mean_width: channels of a clip's mean.
    """

    layers: int
    width: int
    mean_width: int


class StateStore:
    """Collects states batch by batch, gives them back layer by layer.

    The sample holds the `positions` positions with the smallest random keys; a key depends on the seed, the clip and the
    place in it only, so the sample does not depend on how clips are batched.

    Args:
        folder: an existing one, with room.
        shapes: of each model, by name.
        positions: N, kept at most.
        clips: how many there will be.

    Raises:
        AuraError: the states do not fit on the disk.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, Shape], *, positions: int, clips: int, seed: int) -> None:
        self.shapes = dict(shapes)
        self.seed = seed
        self.keys = np.full(positions, np.inf)
        self.clip_of = np.zeros(positions, dtype=np.int64)
        self.place_of = np.zeros(positions, dtype=np.int64)
        self.seen = 0
        needed = sum(s.layers * (positions * s.width + clips * s.mean_width) for s in shapes.values()) * 4
        free = shutil.disk_usage(folder).free
        if needed > free * 0.95:  # a memory map on a full disk would end the process without a word
            raise AuraError(
                f"the hidden states of {positions} positions take {needed / 1e9:.1f} GB in {folder.parent}, where "
                f"{free / 1e9:.1f} GB are free. Use fewer with --positions, or another --out"
            )
        self._rows: dict[str, np.ndarray] = {}
        self._means: dict[str, np.ndarray] = {}
        for name, shape in shapes.items():
            kept = ((self._rows, "rows", positions, shape.width), (self._means, "means", clips, shape.mean_width))
            for target, kind, count, width in kept:
                path, size = folder / f"{name}-{kind}.f32", (shape.layers, count, width)
                target[name] = np.memmap(path, dtype=np.float32, mode="w+", shape=size)

    def place(self, clips_P: np.ndarray, places_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of a batch -> (rows to write, which of them belong there).

        Args:
            clips_P, places_P: clip number and place in the clip of each position.
        """
        self.seen += len(clips_P)
        keys = np.empty(len(clips_P))
        for clip in np.unique(clips_P):
            mine = clips_P == clip
            drawn = np.random.default_rng([self.seed, int(clip)]).random(int(places_P[mine].max()) + 1)
            keys[mine] = drawn[places_P[mine]]
        capacity = len(self.keys)
        kept = np.argpartition(np.concatenate([self.keys, keys]), capacity - 1)[:capacity]
        which = np.sort(kept[kept >= capacity] - capacity)
        rows = np.setdiff1d(np.arange(capacity), kept)
        self.keys[rows], self.clip_of[rows], self.place_of[rows] = keys[which], clips_P[which], places_P[which]
        return rows, which

    def write(self, name: str, states_LPD: torch.Tensor, rows: np.ndarray, which: np.ndarray) -> None:
        """The sampled positions of a batch."""
        self._rows[name][:, rows] = states_LPD[:, torch.from_numpy(which)].numpy(force=True)

    def write_means(self, name: str, means_LBD: torch.Tensor, clips: np.ndarray) -> None:
        """The mean over each clip of a batch."""
        self._means[name][:, clips] = means_LBD.numpy(force=True)

    def finish(self) -> None:
        """After the last batch: put the sample into the order of clips and places."""
        filled = np.flatnonzero(np.isfinite(self.keys))
        self.order = filled[np.lexsort((self.place_of[filled], self.clip_of[filled]))]
        self.clips = self.clip_of[self.order]
        self.places = self.place_of[self.order]

    def __len__(self) -> int:
        """Positions in the sample."""
        return len(self.order)

    def positions(self, name: str, layer: int, which: np.ndarray | None = None) -> torch.Tensor:
        """(n, D) one layer's states at the sampled positions (or at some of them), in order of clips and places."""
        rows = self.order if which is None else self.order[which]
        return torch.from_numpy(self._rows[name][layer][rows])

    def means(self, name: str, layer: int) -> torch.Tensor:
        """(clips, D)."""
        return torch.from_numpy(np.array(self._means[name][layer]))
