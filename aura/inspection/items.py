"""Which clips are inspected, and which of them the student has been trained on."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from aura.batch.collate import Example
from aura.data.manifest import is_manifest, read_utterances
from aura.data.utterance import AudioRef, Utterance
from aura.errors import AudioError, AuraError, DataError
from aura.student.files import checkpoint_folder

FEWEST = 8  # clips; with fewer, neither a head nor a probe means anything


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a checkpoint says about its training.

    Args:
        recipe: the tree of its recipe.yaml; empty where it has none.
        heard: recordings (path, start, end) of its training manifests; None where they cannot be read any more.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    heard: frozenset[Any] | None = None

    def section(self, name: str) -> Mapping[str, Any]:
        found = self.recipe.get(name)
        return found if isinstance(found, Mapping) else {}


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One recording to inspect.

    Args:
        utterance: with one audio part.
        trained_on: whether the student's training manifests name this recording; None where that is unknown.
    """

    utterance: Utterance
    trained_on: bool | None

    def example(self) -> Example:
        """The conversation up to the turn with the audio; what follows cannot reach audio positions.

        Raises:
            AudioError: it cannot be decoded.
        """
        [part] = self.utterance.audio
        turns = [list(m["content"]) if not isinstance(m["content"], str) else [] for m in self.utterance.messages]
        heard = next(n for n, parts in enumerate(turns) if any(p["type"] == "audio" for p in parts))
        return Example(id=self.utterance.id, messages=self.utterance.messages[: heard + 1], waveforms=[part.load()])


def read_origin(checkpoint: str | os.PathLike[str]) -> Origin:
    """The recipe in a checkpoint folder and the recordings it was trained on.

    Raises:
        CheckpointError: no checkpoint there.
    """
    path = checkpoint_folder(checkpoint) / "recipe.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return Origin()
    return Origin(recipe=tree, heard=_training_recordings(tree)) if isinstance(tree, Mapping) else Origin()


def _training_recordings(recipe: Mapping[str, Any]) -> frozenset[Any] | None:
    data = recipe.get("data")
    sources = data.get("train") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not sources:
        return None
    heard: set[Any] = set()
    for source in sources:
        # A recipe names its manifests from where the training was started; from elsewhere they may not be there.
        if not is_manifest(str(source)) or not Path(source).is_file():
            return None
        try:
            rows = read_utterances(source, data_root=data.get("root"), columns=data.get("columns"), skip_bad=True)
        except AuraError:
            return None
        heard.update(recording(part) for utterance in rows for part in utterance.audio)
    return frozenset(heard)


def recording(part: AudioRef) -> Any:
    """What tells one recording from another: file and slice; None for audio in memory."""
    if not isinstance(part.source, (str, os.PathLike)):
        return None
    return os.path.realpath(part.source), part.start, part.end


def pick_clips(
    sources: Sequence[Sequence[Utterance]], *, per_source: int | None, max_seconds: float, origin: Origin
) -> tuple[list[Clip], dict[str, int]]:
    """Clips to inspect, and how many rows were left out for which reason.

    Args:
        sources: rows of each manifest.
        per_source: clips of each manifest at most, spread evenly over it; all when None.
        max_seconds: what student and teacher can hear at once.

    Raises:
        DataError: too few are left.
    """
    clips: list[Clip] = []
    left_out: Counter[str] = Counter()
    known: set[Any] = set()
    for rows in sources:
        good: list[Utterance] = []
        for utterance in rows:
            name = recording(utterance.audio[0])
            if len(utterance.audio) != 1:
                left_out["several audio parts"] += 1  # no telling which of them a transcript or a speaker belongs to
            elif name is not None and name in known:
                left_out["the same recording again"] += 1  # would stand on both sides of a split
            else:
                known.add(name)
                good.append(utterance)
        for utterance in _spread(good, per_source):
            reason = _too_long(utterance, max_seconds)
            if reason:
                left_out[reason] += 1
                continue
            name = recording(utterance.audio[0])
            seen = None if origin.heard is None or name is None else name in origin.heard
            clips.append(Clip(utterance=utterance, trained_on=seen))
    if len(clips) < FEWEST:
        reasons = "; ".join(f"{count} left out: {reason}" for reason, count in left_out.items())
        raise DataError(
            f"{len(clips)} clip(s) can be inspected{f' ({reasons})' if reasons else ''}; expected at least {FEWEST}, and "
            "some hundred for figures worth reading. Name a longer --manifest, or several"
        )
    return clips, dict(left_out)


def _spread(rows: Sequence[Utterance], count: int | None) -> list[Utterance]:
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[int(index)] for index in np.linspace(0, len(rows) - 1, count)]


def _too_long(utterance: Utterance, max_seconds: float) -> str | None:
    try:
        seconds = utterance.seconds
    except AudioError as error:
        raise AudioError(
            f"{error} (or leave the row out of the manifest: aura data check finds all such rows)"
        ) from error
    return f"longer than {max_seconds:g} s" if seconds > max_seconds else None
