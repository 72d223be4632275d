"""Recipe -> the utterances of a run: what is left out is counted, and nothing is both learnt from and held out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from aura.config import DataConfig, Recipe
from aura.data.manifest import read_utterances
from aura.data.utterance import Utterance
from aura.errors import AudioError, DataError, RecipeError


@dataclass(frozen=True, kw_only=True)
class Data:
    """Utterances of a run.

    Args:
        train: a list, or a `Stream`.
        valid: held-out utterances; may be empty.
        dropped: why rows were left out, with counts.
    """

    train: Any
    valid: Sequence[Utterance]
    dropped: dict[str, int]


class Stream:
    """A streaming source that can be iterated anew for each epoch."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def __iter__(self) -> Iterator[Utterance]:
        for source in self.config.train:
            for utterance in read_source(self.config, source, streaming=True):
                if _why_not(self.config, utterance) is None:
                    yield utterance


def read_data(recipe: Recipe) -> Data:
    """Train and valid utterances within the recipe's lengths.

    Raises:
        RecipeError: no training data named.
        DataError: nothing left, or bad rows without `data.skip_bad`.
    """
    config = recipe.data
    if not config.train:
        raise RecipeError("data.train is empty; name at least one manifest, e.g. --data.train train.jsonl")
    dropped: dict[str, int] = {}
    valid = [
        u for source in config.valid for u in _kept(config, read_source(config, source), dropped, f"valid {source}")
    ]
    if config.streaming:
        return Data(train=Stream(config), valid=valid, dropped=dropped)
    train = [
        u for source in config.train for u in _kept(config, read_source(config, source), dropped, f"train {source}")
    ]
    if not train:
        raise DataError(
            f"no utterance of {', '.join(config.train)} lies between {config.min_seconds} and {config.max_seconds} s; "
            "change data.min_seconds or data.max_seconds"
        )
    _refuse_overlap(train, valid)
    return Data(train=train, valid=valid, dropped=dropped)


def _refuse_overlap(train: Sequence[Utterance], valid: Sequence[Utterance]) -> None:
    """A figure on recordings that were trained on says nothing.

    Raises:
        DataError: naming one of them and how many there are.
    """
    heard = {_recordings(u) for u in train}
    both = [u for u in valid if _recordings(u) and _recordings(u) in heard]
    if both:
        raise DataError(
            f"{len(both)} recording(s) stand in data.train and in data.valid, e.g. {both[0].id}; expected none. "
            "Take them out of one of the two"
        )


def _recordings(utterance: Utterance) -> tuple[str, ...]:
    """Paths and slices of an utterance; nothing for audio that has no path."""
    parts = utterance.audio
    return (
        tuple(part.name for part in parts) if all(isinstance(part.source, (str, os.PathLike)) for part in parts) else ()
    )


def read_source(config: DataConfig, source: str, *, streaming: bool = False) -> Any:
    """The rows of one of the sources as training reads them."""
    return read_utterances(
        source,
        data_root=config.root,
        prompt=config.prompt,
        columns=config.columns,
        split=config.split,
        streaming=streaming,
        limit=config.limit,
        skip_bad=config.skip_bad,
    )


def _kept(config: DataConfig, utterances: Any, dropped: dict[str, int], name: str) -> Iterator[Utterance]:
    if skipped := len(getattr(utterances, "skipped", ())):
        dropped[f"{name}: unreadable"] = skipped
    for utterance in utterances:
        reason = _why_not(config, utterance)
        if reason is None:
            yield utterance
        else:
            dropped[f"{name}: {reason}"] = dropped.get(f"{name}: {reason}", 0) + 1


def _why_not(config: DataConfig, utterance: Utterance) -> str | None:
    """Why a row cannot be learnt from; None when it can."""
    try:
        seconds = utterance.seconds
    except AudioError:  # its header is the first thing read of it
        if not config.skip_bad:
            raise
        return "unreadable"
    if seconds > config.max_seconds:
        return f"longer than {config.max_seconds:g} s"
    if seconds < config.min_seconds:
        return f"shorter than {config.min_seconds:g} s"
    return None if utterance.answer else "no answer to learn"
