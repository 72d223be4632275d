"""Planned utterances -> decoded, augmented, padded batches, ahead of the training step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch

from aura.audio.logmel import log_mel
from aura.batch.collate import Batch, Example, collate
from aura.batch.plan import PlannedItem
from aura.batch.prompt import IGNORE
from aura.data.augment import Augment
from aura.data.utterance import Utterance
from aura.errors import AudioError
from aura.student.processor import AuraProcessor

AHEAD = 2  # batches per worker held ready


def load_example(
    utterance: Utterance, *, augment: Augment | None = None, rng: np.random.Generator | None = None
) -> Example:
    """Decode an utterance, and augment it where an augmentation is given.

    Raises:
        AudioError: a part cannot be decoded.
    """
    waveforms = [part.load() for part in utterance.audio]
    if augment is not None and rng is not None:
        waveforms = [augment(waveform, rng) for waveform in waveforms]
    # One transcript stands for one audio part; rows of several parts have none for the text teacher.
    transcripts = [utterance.transcript] if utterance.transcript is not None and len(waveforms) == 1 else None
    return Example(id=utterance.id, messages=utterance.messages, waveforms=waveforms, transcripts=transcripts)


class BatchLoader:
    """Turns planned micro-batches into `Batch`es in worker threads, in order.

    The augmentation of an item depends on the seed, its epoch and its index only: neither on threads nor on where a
    resumed run starts.

    Args:
        augment: augmentation of waveforms and log-mel; None for evaluation.
        skip_bad: leave unreadable items out (counted in `skipped`) instead of raising. A micro-batch of which nothing
            is left comes as one without answers: left out, it would move all batches after it to other steps.
        keep_waveforms: for the teacher.
        text_teacher: for the response KL.
        spell: for CTC.
    """

    def __init__(
        self,
        processor: AuraProcessor,
        *,
        augment: Augment | None,
        seed: int,
        workers: int = 1,
        skip_bad: bool = False,
        keep_waveforms: bool = True,
        text_teacher: bool = False,
        spell: bool = False,
    ) -> None:
        self.processor = processor
        self.augment = augment
        self.seed = seed
        self.workers = workers
        self.skip_bad = skip_bad
        self.keep_waveforms = keep_waveforms
        self.text_teacher = text_teacher
        self.spell = spell
        self.skipped: list[str] = []

    def __call__(self, plan: Iterable[list[PlannedItem]]) -> Generator[Batch, None, None]:
        """Batches in the order of the plan."""
        items = iter(plan)
        pool = ThreadPoolExecutor(max_workers=self.workers, thread_name_prefix="aura-loader")
        waiting: deque[Future[Batch]] = deque()
        try:
            waiting.extend(pool.submit(self.load, batch) for batch in islice(items, AHEAD * self.workers))
            while waiting:
                batch = waiting.popleft().result()
                waiting.extend(pool.submit(self.load, batch_items) for batch_items in islice(items, 1))
                yield batch
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def load(self, planned: list[PlannedItem]) -> Batch:
        """One micro-batch.

        Raises:
            AudioError: an item that cannot be decoded, unless `skip_bad`.
        """
        examples: list[Example] = []
        features: list[torch.Tensor] = []
        for item in planned:
            rng = np.random.default_rng([self.seed, item.epoch, item.index])
            try:
                example = load_example(item.utterance, augment=self.augment, rng=rng)
            except AudioError as error:
                if not self.skip_bad:
                    raise
                self.skipped.append(f"{item.utterance.id}: {error}")
                continue
            examples.append(example)
            features += [self._features(waveform, rng) for waveform in example.waveforms]
        if not examples:
            return self._nothing()
        return collate(
            self.processor,
            examples,
            answer=True,
            keep_waveforms=self.keep_waveforms,
            features=features or None,
            text_teacher=self.text_teacher,
            spell=self.spell,
        )

    def _nothing(self) -> Batch:
        """One padding token without a label."""
        token = torch.full((1, 1), int(self.processor.tokenizer.pad_token_id))
        return Batch(ids=(), input_ids=token, attention_mask=torch.ones_like(token), labels=torch.full((1, 1), IGNORE))

    def _features(self, waveform: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        extractor = self.processor.feature_extractor
        padded = torch.from_numpy(extractor.grid.pad(waveform))
        mel = log_mel(padded, n_mels=extractor.feature_size, floor=extractor.floor)
        mask: Callable[..., torch.Tensor] | None = getattr(self.augment, "spec_augment", None)
        return mask(mel, rng) if mask is not None else mel
