"""Clips -> hidden states -> cosines, probes, CKA: the whole inspection of one checkpoint."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aura.distill.layer_map import LayerPair, layer_pairs
from aura.errors import RecipeError
from aura.inference.engine import Engine
from aura.inspection.ctc import CtcReader
from aura.inspection.heads import Cosines
from aura.inspection.items import Clip, Origin
from aura.inspection.labels import LeftOut
from aura.inspection.listen import listen
from aura.inspection.options import InspectOptions, Progress
from aura.inspection.probes import Probe
from aura.inspection.splits import Split
from aura.inspection.states import Hearers, TeacherHearer, untrained_embedding
from aura.inspection.study import Study
from aura.teacher.encoder import Teacher


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What was found.

    Args:
        names: models that hear like the student: student, stock, untrained.
        layers: LLM layers; every curve of these models starts with the audio embedding's output as layer 0.
        teacher_layers: of the teacher.
        split: halves of the cosine.
        cosines: by model.
        groups: (clips,) what the halves keep apart.
        pairs: layer pairs of the training, where the recipe tells.
        probes: run or left out.
        cka: (layers + 1, teacher layers) by model.
        positions: in the sample; seen: of all clips.
        seconds: by stage.
    """

    names: tuple[str, ...]
    layers: int
    teacher_layers: int
    clips: Sequence[Clip]
    split: Split
    groups: np.ndarray
    cosines: dict[str, Cosines]
    pairs: tuple[LayerPair, ...]
    probes: tuple[Probe | LeftOut, ...]
    cka: dict[str, np.ndarray]
    positions: int
    seen: int
    seconds: dict[str, float]


def inspect_clips(
    engine: Engine,
    teacher: Teacher,
    clips: Sequence[Clip],
    *,
    folder: Path,
    options: InspectOptions,
    origin: Origin,
    reader: CtcReader | None = None,
    progress: Progress = lambda stage, total, done, seconds: None,
) -> Inspection:
    """Hear the clips once, then compare layers.

    Args:
        folder: exists; holds the hidden states while this runs.
        origin: what the checkpoint says about its training.
        reader: labels single patches; None without a CTC teacher.

    Raises:
        AudioError: a clip cannot be decoded.
        AuraError: the disk is too small for the hidden states.
    """
    model = engine.model
    fresh = untrained_embedding(model, teacher, seed=options.seed) if options.untrained else None
    hearers = Hearers(model, fresh)
    listener = TeacherHearer(teacher, engine.processor.feature_extractor.grid, options.frames)
    room = Path(tempfile.mkdtemp(prefix=".states-", dir=folder))
    try:
        started = time.perf_counter()
        store, labels = listen(engine, hearers, listener, clips, room, options, reader, progress)
        heard = time.perf_counter()
        study = Study(store, clips, hearers, options, model.device, progress)
        cosines = study.cosines()
        fitted = time.perf_counter()
        cka = study.cka()
        aligned = time.perf_counter()
        probes = study.probes(study.tasks(labels, reader))
        done = time.perf_counter()
    finally:
        shutil.rmtree(room, ignore_errors=True)
    return Inspection(
        names=hearers.names,
        layers=hearers.layers,
        teacher_layers=listener.layers,
        clips=clips,
        split=study.split,
        groups=study.groups,
        cosines=cosines,
        pairs=trained_pairs(origin, listener.layers, hearers.layers),
        probes=probes,
        cka=cka,
        positions=len(store),
        seen=store.seen,
        seconds={
            "listening": heard - started, "cosine": fitted - heard, "cka": aligned - fitted, "probes": done - aligned
        },
    )  # fmt: skip


def trained_pairs(origin: Origin, teacher_layers: int, layers: int) -> tuple[LayerPair, ...]:
    """The layer pairs of the training; none where its recipe is unknown or had another teacher's layers."""
    distill = origin.section("distill")
    if not distill or not (distill.get("weight") or distill.get("final_weight")):
        return ()
    try:
        return layer_pairs(
            teacher_layers=teacher_layers,
            llm_layers=layers,
            student_layers=distill.get("student_layers"),
            explicit=distill.get("layer_map"),
        )
    except (RecipeError, TypeError, ValueError):
        return ()
