"""Clips -> hidden states of every model, in a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from aura.batch.collate import Batch, Example, collate
from aura.errors import AudioError
from aura.inference.engine import Engine
from aura.inspection.ctc import CtcReader
from aura.inspection.items import Clip
from aura.inspection.options import InspectOptions, Progress
from aura.inspection.ridge import rms_norm
from aura.inspection.states import TEACHER, Hearers, TeacherHearer
from aura.inspection.store import Shape, StateStore


def listen(
    engine: Engine,
    hearers: Hearers,
    listener: TeacherHearer,
    clips: Sequence[Clip],
    room: Path,
    options: InspectOptions,
    reader: CtcReader | None,
    progress: Progress,
) -> tuple[StateStore, dict[int, np.ndarray]]:
    """Every clip through every model, batch by batch.

    Args:
        room: folder for the states.
        reader: labels single patches; None without a CTC teacher.

    Returns:
        the states, and the labels of each clip's patches.

    Raises:
        AudioError: a clip cannot be decoded.
        AuraError: the disk is too small for the states.
    """
    grid = engine.processor.feature_extractor.grid
    estimate = [grid.count_seconds(clip.utterance.seconds) for clip in clips]
    shapes = {
        name: Shape(layers=hearers.layers + 1, width=hearers.width, mean_width=hearers.width) for name in hearers.names
    }
    shapes[TEACHER] = Shape(layers=listener.layers, width=listener.width, mean_width=listener.teacher.spec.width)
    capacity = min(options.positions, sum(estimate) + len(clips))
    store = StateStore(room, shapes, positions=capacity, clips=len(clips), seed=options.seed)
    labels: dict[int, np.ndarray] = {}
    for members in _batches(estimate, options.batch_tokens):
        examples = [_decoded(clips[i]) for i in members]
        batch = collate(engine.processor, examples, answer=False, padding_side="right", keep_waveforms=True)
        counts = [grid.count(len(example.waveforms[0])) for example in examples]
        _hear(store, hearers, listener, batch.to(engine.model.device), np.array(members), np.array(counts))
        if reader is not None:
            read = reader(batch.waveforms, listener.per_patch)
            labels.update(zip(members, np.split(read, np.cumsum(counts)[:-1]), strict=True))
        progress("listening", len(clips), len(members), batch.audio_seconds)
    store.finish()
    return store, labels


def _decoded(clip: Clip) -> Example:
    try:
        return clip.example()
    except AudioError as error:
        raise AudioError(f"{error} (find all such rows with: aura data check)") from error


def _batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Clips of similar length together, the longest first: what does not fit into memory shows at once."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _hear(
    store: StateStore, hearers: Hearers, listener: TeacherHearer, batch: Batch, members: np.ndarray, counts: np.ndarray
) -> None:
    """One batch into the store: sampled positions, and the mean over each clip."""
    owner = np.repeat(members, counts)
    places = np.concatenate([np.arange(count) for count in counts])
    rows, which = store.place(owner, places)
    taught = listener(batch)
    store.write(TEACHER, taught.patches_LPK, rows, which)
    store.write_means(TEACHER, _clip_means(taught.pooled_LPE, counts), members)
    for name, states in hearers(batch).items():
        store.write(name, states, rows, which)
        # A mean of bare states would be that of the few positions with the largest norm.
        store.write_means(name, _clip_means(rms_norm(states), counts), members)


def _clip_means(states_LPD: torch.Tensor, counts: np.ndarray) -> torch.Tensor:
    return torch.stack([part.mean(1) for part in states_LPD.split(counts.tolist(), dim=1)], dim=1)
