"""Which utterances go together: token-budget batches bucketed by length, in an order that a seed fixes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from aura.audio.patches import PatchGrid
from aura.batch.prompt import build_prompt, user_message
from aura.data.utterance import Utterance, message_text
from aura.student.processor import AuraProcessor

LENGTH_JITTER = 0.1  # relative noise on lengths before sorting, so that batches differ between epochs (our choice)
CHARACTERS_PER_TOKEN = 3.5  # of English text (UTF-8 bytes of any other); only steers batch sizes


@dataclass(frozen=True, kw_only=True)
class PlannedItem:
    """One utterance at its place in the data order.

    Args:
        utterance: what to load.
        epoch: pass over the data, from 0.
        index: number within the epoch; with `epoch` and the seed it fixes the augmentation.
    """

    utterance: Utterance
    epoch: int
    index: int


class LengthEstimate:
    """Positions an utterance takes: patches (to one per further audio part), text by its length in bytes.

    Tokenising a million answers before the first step would cost minutes; the budget does not need them exactly.
    """

    def __init__(self, processor: AuraProcessor) -> None:
        self.grid: PatchGrid = processor.feature_extractor.grid
        empty = build_prompt(processor, [user_message(None), {"role": "assistant", "content": ""}], [1], answer=True)
        self.overhead = len(empty.input_ids)

    def __call__(self, utterance: Utterance) -> int:
        # Bytes, not characters: a Chinese character is about one token.
        characters = sum(len(message_text(message).encode()) for message in utterance.messages)
        turns = max(1, len(utterance.messages) // 2)
        return (
            turns * self.overhead + self.grid.count_seconds(utterance.seconds) + int(characters / CHARACTERS_PER_TOKEN)
        )


def pack(lengths: Sequence[int], *, tokens: int, max_items: int, rng: np.random.Generator) -> list[list[int]]:
    """Indices -> batches whose padded size stays within the budget, in random order.

    Args:
        lengths: positions per item; one longer than the budget gets a batch of its own.
        tokens: budget of padded positions.
    """
    noisy = np.asarray(lengths) * rng.uniform(1 - LENGTH_JITTER, 1 + LENGTH_JITTER, len(lengths))
    batches: list[list[int]] = []
    current: list[int] = []
    longest = 0
    for index in np.argsort(noisy, kind="stable").tolist():
        longest_with = max(longest, lengths[index])
        if current and (longest_with * (len(current) + 1) > tokens or len(current) == max_items):
            batches.append(current)
            current, longest_with = [], lengths[index]
        current.append(index)
        longest = longest_with
    if current:
        batches.append(current)
    order = rng.permutation(len(batches))
    return [batches[position] for position in order]


def plan_batches(
    source: Iterable[Utterance],
    length_of: LengthEstimate,
    *,
    tokens: int,
    max_items: int,
    seed: int,
    buffer: int | None = None,
    skip: int = 0,
) -> Iterator[list[PlannedItem]]:
    """Micro-batches without end, epoch after epoch; the same for the same arguments, wherever it is entered.

    Args:
        source: utterances; iterated anew for each epoch.
        buffer: utterances bucketed together; the whole epoch when None.
        skip: micro-batches already consumed by an earlier part of the run.

    Raises:
        ValueError: the source is empty.
    """
    epoch = 0
    while True:
        index = 0
        for number, utterances in enumerate(_buffers(source, buffer)):
            rng = np.random.default_rng([seed, epoch, number])
            lengths = [length_of(utterance) for utterance in utterances]
            for batch in pack(lengths, tokens=tokens, max_items=max_items, rng=rng):
                if skip:
                    skip -= 1
                    continue
                yield [PlannedItem(utterance=utterances[i], epoch=epoch, index=index + i) for i in batch]
            index += len(utterances)
        if not index:
            raise ValueError("no utterances to plan batches from")
        epoch += 1


def _buffers(source: Iterable[Utterance], size: int | None) -> Iterator[Sequence[Utterance]]:
    if size is None and isinstance(source, Sequence):
        yield source
        return
    iterator = iter(source)
    while chunk := list(islice(iterator, size)):
        yield chunk
