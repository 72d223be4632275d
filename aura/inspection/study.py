"""Hidden states -> cosines, probes and CKA."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from aura.errors import AuraError
from aura.inspection import heads
from aura.inspection.cka import FEWEST, cka_matrix
from aura.inspection.ctc import CtcReader, patch_task
from aura.inspection.items import Clip
from aura.inspection.labels import LeftOut, Task, clip_tasks
from aura.inspection.options import InspectOptions, Progress
from aura.inspection.probes import Probe, run_probe
from aura.inspection.ridge import Standardiser, rms_norm
from aura.inspection.splits import halves, speaker_groups
from aura.inspection.states import TEACHER, Hearers
from aura.inspection.store import StateStore


class Study:
    """What is done with the states once all clips have been heard."""

    def __init__(
        self,
        store: StateStore,
        clips: Sequence[Clip],
        hearers: Hearers,
        options: InspectOptions,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.store, self.clips, self.options, self.device, self.progress = store, clips, options, device, progress
        self.names = hearers.names
        self.layers = {TEACHER: store.shapes[TEACHER].layers} | dict.fromkeys(hearers.names, hearers.layers + 1)
        self.split = halves(clips, seed=options.seed)
        speakers, _ = speaker_groups(clips)
        by_speaker = self.split.unit == "speaker" and speakers is not None
        self.groups = speakers if by_speaker and speakers is not None else np.arange(len(clips))
        self.owners = speakers if speakers is not None else np.arange(len(clips))

    def cosines(self) -> dict[str, heads.Cosines]:
        total = sum(self.layers[name] for name in self.names)
        return heads.fit_and_measure(
            self.store,
            self.split,
            self.groups,
            self.names,
            seed=self.options.seed,
            device=self.device,
            progress=lambda: self.progress("fitting heads", total, 1, 0.0),
        )

    def cka(self) -> dict[str, np.ndarray]:
        if len(self.store) < FEWEST:
            raise AuraError(f"{len(self.store)} audio positions in all; expected at least {FEWEST}. Name longer clips")
        teacher = [self._standardised(TEACHER, layer) for layer in range(self.layers[TEACHER])]
        found = {}
        for name in self.names:
            ours = [self._standardised(name, layer) for layer in range(self.layers[name])]
            found[name] = cka_matrix(ours, teacher, len(self.store), seed=self.options.seed)
            self.progress("aligning layers", len(self.names), 1, 0.0)
        return found

    def _standardised(self, name: str, layer: int) -> Callable[[np.ndarray], torch.Tensor]:
        """Reads one layer with every channel at zero mean and unit variance, as heads and targets have it."""
        scale = Standardiser(self._positions(name, layer))
        return lambda rows: scale(self._positions(name, layer, rows))

    def _positions(self, name: str, layer: int, rows: np.ndarray | None = None) -> torch.Tensor:
        states = self.store.positions(name, layer, rows).to(self.device)
        return states if name == TEACHER else rms_norm(states)

    def tasks(self, labels: dict[int, np.ndarray], reader: CtcReader | None) -> list[Task | LeftOut]:
        """What is probed, or why not."""
        found = clip_tasks(self.clips, seed=self.options.seed)
        if reader is not None:
            read = np.array(
                [labels[int(clip)][place] for clip, place in zip(self.store.clips, self.store.places, strict=True)]
            )
            split, seed = f"{self.split.unit}s", self.options.seed
            found.append(patch_task(read, self.store.clips, self.groups, reader.characters, split=split, seed=seed))
        return found

    def probes(self, tasks: Sequence[Task | LeftOut]) -> tuple[Probe | LeftOut, ...]:
        total = sum(self.layers.values()) * sum(isinstance(task, Task) for task in tasks)
        return tuple(self._probe(task, total) if isinstance(task, Task) else task for task in tasks)

    def _probe(self, task: Task, total: int) -> Probe:
        clips = task.members if task.level == "clip" else self.store.clips[task.members]
        known = [self.clips[int(i)].trained_on for i in clips]
        return run_probe(
            task,
            self.store.means if task.level == "clip" else self._positions,
            self.layers,
            unseen=None if None in known else np.array([seen is False for seen in known]),
            owners=self.owners[clips],
            clips=clips,
            seed=self.options.seed,
            device=self.device,
            progress=lambda: self.progress("probing", total, 1, 0.0),
        )
