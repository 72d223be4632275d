"""Data order and loading: the same for the same seed, whatever the threads and wherever a run is entered."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from aura.batch.loader import AHEAD, BatchLoader
from aura.batch.plan import CHARACTERS_PER_TOKEN, LengthEstimate, PlannedItem, plan_batches
from aura.batch.prompt import IGNORE, build_prompt, user_message
from aura.config import AudioConfig
from aura.data.augment import Augment, AugmentConfig
from aura.data.utterance import AudioRef, Utterance
from aura.errors import AudioError
from aura.student.checkpoint import new_processor

TOKENS, MAX_ITEMS = 240, 5
LOUD = AugmentConfig(
    gain_db=(-10.0, 6.0), noise_probability=0.7, speed_probability=0.7, time_masks=2, freq_masks=2, time_mask_share=0.5
)


@pytest.fixture(scope="module")
def processor() -> Any:
    return new_processor(tiny.tiny_tokenizer(), AudioConfig())


@pytest.fixture(scope="module")
def estimate(processor: Any) -> LengthEstimate:
    return LengthEstimate(processor)


def row(number: int, seconds: float, answer: str = "one", source: Any = "nowhere.wav") -> Utterance:
    messages = (user_message(None), {"role": "assistant", "content": answer})
    return Utterance(id=f"row-{number}", audio=(AudioRef(source=source, seconds=seconds),), messages=messages)


def rows(count: int = 23, *, seed: int = 3) -> list[Utterance]:
    rng = np.random.default_rng(seed)
    return [row(n, float(rng.uniform(0.2, 4.0)), "one " * int(rng.integers(1, 6))) for n in range(count)]


def audible(number: int, seconds: float = 0.4) -> Utterance:
    wave = tiny.tiny_speech(seconds, seed=number)
    return row(number, seconds, source={"array": wave, "sampling_rate": 16_000})


def plan(source: Any, estimate: LengthEstimate, **options: Any) -> Iterator[list[PlannedItem]]:
    return plan_batches(source, estimate, **{"tokens": TOKENS, "max_items": MAX_ITEMS, "seed": 0, **options})


def epoch_of(batches: Iterator[list[PlannedItem]], epoch: int) -> list[list[PlannedItem]]:
    """The batches of one epoch."""
    found = []
    for batch in batches:
        if batch[0].epoch > epoch:
            return found
        if batch[0].epoch == epoch:
            found.append(batch)
    raise AssertionError("the plan ended")


def ids(batches: Sequence[list[PlannedItem]]) -> list[list[str]]:
    return [[item.utterance.id for item in batch] for batch in batches]


# --- plan -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [None, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_budget_is_kept(estimate: LengthEstimate, buffer: int | None, seed: int) -> None:
    giant = row(99, 30.0)
    for batch in epoch_of(plan([*rows(), giant], estimate, buffer=buffer, seed=seed), 0):
        lengths = [estimate(item.utterance) for item in batch]
        assert len(batch) <= MAX_ITEMS
        assert max(lengths) * len(batch) <= TOKENS or [item.utterance for item in batch] == [giant]


@pytest.mark.parametrize("buffer", [None, 7, 100])
def test_every_utterance_once_an_epoch(estimate: LengthEstimate, buffer: int | None) -> None:
    source = rows()
    batches = list(islice(plan(source, estimate, buffer=buffer), 200))
    for epoch in range(3):
        items = [item for batch in batches for item in batch if item.epoch == epoch]
        assert sorted(item.utterance.id for item in items) == sorted(u.id for u in source)
        assert sorted(item.index for item in items) == list(range(len(source)))  # the augmentation's seed
        assert all(source[item.index] is item.utterance for item in items)


def test_batches_are_filled(estimate: LengthEstimate) -> None:
    batches = epoch_of(plan(rows(200), estimate, max_items=64), 0)
    padded = [max(estimate(i.utterance) for i in batch) * len(batch) for batch in batches]
    used = sum(estimate(item.utterance) for batch in batches for item in batch)
    assert used / sum(padded) > 0.85  # bucketed by length
    assert sum(padded) / (len(batches) * TOKENS) > 0.75


def test_order_is_the_seeds(estimate: LengthEstimate) -> None:
    first = ids(list(islice(plan(rows(), estimate), 30)))
    assert first == ids(list(islice(plan(rows(), estimate), 30)))
    assert first != ids(list(islice(plan(rows(), estimate, seed=1), 30)))


@pytest.mark.parametrize("buffer", [None, 7])
def test_epochs_differ_in_order_and_in_company(estimate: LengthEstimate, buffer: int | None) -> None:
    batches = list(islice(plan(rows(60), estimate, buffer=buffer), 200))
    first, second = (ids([b for b in batches if b[0].epoch == epoch]) for epoch in (0, 1))
    assert first != second
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}


@pytest.mark.parametrize("buffer", [None, 7])
@pytest.mark.parametrize("skip", [1, 4, 9, 40])
def test_skip_equals_dropping(estimate: LengthEstimate, buffer: int | None, skip: int) -> None:
    assert len(epoch_of(plan(rows(), estimate, buffer=buffer), 0)) < 40  # the last case lies in a later epoch
    whole = list(islice(plan(rows(), estimate, buffer=buffer), skip + 20))
    assert list(islice(plan(rows(), estimate, buffer=buffer, skip=skip), 20)) == whole[skip:]


def test_streaming_reads_no_more_than_its_buffer(estimate: LengthEstimate) -> None:
    read = []

    class Stream:
        def __iter__(self) -> Iterator[Utterance]:
            for utterance in rows():
                read.append(utterance)
                yield utterance

    batches = plan(Stream(), estimate, buffer=6)
    first = next(batches)
    assert len(read) == 6 and all(item.index < 6 for item in first)
    assert sorted(i.utterance.id for b in epoch_of(batches, 1) for i in b) == sorted(u.id for u in rows())


def test_empty_source(estimate: LengthEstimate) -> None:
    with pytest.raises(ValueError, match="no utterances"):
        next(plan([], estimate))


def test_estimate_counts_patches_exactly_and_text_by_its_bytes(processor: Any, estimate: LengthEstimate) -> None:
    short, long = estimate(row(0, 0.75, "")), estimate(row(1, 8.0, ""))
    grid = processor.feature_extractor.grid
    assert long - short == grid.count(8 * 16_000) - grid.count(12_000)
    exact = build_prompt(processor, row(0, 0.75, "").messages, [grid.count(12_000)], answer=True)
    assert 0 <= short - len(exact.input_ids) <= 1
    assert estimate(row(0, 0.75, "言葉" * 21)) - short == int(len("言葉" * 21) * 3 / CHARACTERS_PER_TOKEN)
    turns = Utterance(id="two", audio=row(0, 0.75).audio, messages=row(0, 0.75, "").messages * 2)
    assert estimate(turns) == 2 * short - grid.count(12_000)  # the second turn's markers too


# --- loader -----------------------------------------------------------------------------------------------


def items(numbers: Sequence[int], *, epoch: int = 0) -> list[PlannedItem]:
    return [PlannedItem(utterance=audible(n), epoch=epoch, index=n) for n in numbers]


def load(processor: Any, planned: list[PlannedItem], *, seed: int = 0, config: AugmentConfig = LOUD) -> Any:
    return BatchLoader(processor, augment=Augment(config), seed=seed).load(planned)


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_come_in_order(processor: Any, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = BatchLoader(processor, augment=None, seed=0, workers=workers)
    plain = loader.load
    started: list[str] = []

    def slow_at_first(planned: list[PlannedItem]) -> Any:
        started.append(planned[0].utterance.id)
        time.sleep(0.05 if planned[0].index % 3 == 0 else 0.0)
        return plain(planned)

    monkeypatch.setattr(loader, "load", slow_at_first)
    batches = loader(items([n]) for n in range(9))
    next(batches)
    assert len(started) <= AHEAD * workers + 1  # no more of them in memory
    assert [batch.ids for batch in batches] == [(f"row-{n}",) for n in range(1, 9)]


def test_augmentation_is_fixed_by_seed_epoch_and_index(processor: Any) -> None:
    alone = load(processor, items([5]))
    among = load(processor, items([2, 7, 5]))  # other neighbours, another place in the batch
    frames = int(alone.input_features_mask[0].sum())
    assert torch.equal(among.input_features[2, :, :frames], alone.input_features[0, :, :frames])
    assert np.array_equal(among.waveforms[2], alone.waveforms[0])
    threaded = BatchLoader(processor, augment=Augment(LOUD), seed=0, workers=3)(items([n]) for n in range(6))
    assert np.array_equal(list(threaded)[5].waveforms[0], alone.waveforms[0])

    others = [load(processor, items([5], epoch=1)), load(processor, items([5]), seed=1)]
    others.append(load(processor, [PlannedItem(utterance=audible(5), epoch=0, index=6)]))
    for other in others:
        assert not np.array_equal(other.waveforms[0], alone.waveforms[0])


def test_teacher_hears_the_augmented_waveform_but_no_masks(processor: Any) -> None:
    masks = AugmentConfig(time_masks=2, freq_masks=2, time_mask_share=0.5)
    masked, plain = load(processor, items([5]), config=masks), load(processor, items([5]), config=AugmentConfig())
    assert np.array_equal(masked.waveforms[0], plain.waveforms[0])
    assert not torch.equal(masked.input_features, plain.input_features)
    assert len(masked.waveforms[0]) % processor.feature_extractor.grid.patch_samples == 0


def test_unreadable_row_raises_by_name(processor: Any) -> None:
    planned = [*items([1]), PlannedItem(utterance=row(2, 1.0, source="gone.wav"), epoch=0, index=2)]
    with pytest.raises(AudioError, match=r"gone\.wav"):
        list(BatchLoader(processor, augment=None, seed=0)([planned]))


def test_skip_bad_counts_and_keeps_the_count_of_batches(processor: Any) -> None:
    loader = BatchLoader(processor, augment=None, seed=0, skip_bad=True)
    bad = [PlannedItem(utterance=row(n, 1.0, source=f"gone-{n}.wav"), epoch=0, index=n) for n in (7, 8)]
    batches = list(loader([[*items([1]), bad[0]], [bad[1]], items([2])]))
    # A batch that vanished would move all later ones to other steps, and a resumed run to other data.
    assert [batch.ids for batch in batches] == [("row-1",), (), ("row-2",)]
    assert batches[1].answer_tokens == 0 and batches[1].audio_seconds == 0 and not batches[1].waveforms
    assert int((batches[1].labels != IGNORE).sum()) == 0
    assert [line.split(":")[0] for line in loader.skipped] == ["row-7", "row-8"]


@pytest.mark.parametrize("how", ["closed", "dropped", "failed"])
def test_threads_end_with_the_consumer(processor: Any, how: str) -> None:
    loader = BatchLoader(processor, augment=None, seed=0, workers=2)
    bad = PlannedItem(utterance=row(2, 1.0), epoch=0, index=2)
    batches = loader([bad] if how == "failed" and n == 3 else items([n % 4]) for n in range(10_000))
    next(batches)
    assert loader_threads()
    if how == "closed":
        batches.close()
    elif how == "dropped":
        del batches
    else:
        with pytest.raises(AudioError):
            list(batches)
    deadline = time.monotonic() + 5
    while loader_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not loader_threads()


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("aura-loader")]
