"""The keys and values of a text that many prompts begin with, computed once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from aura.inference.stream_cache import StreamCache
from aura.student.cache_key import CACHE_KEY

MIN_PREFIX = 16  # tokens; below, the second pass of a split prefill costs what it saves. Our choice
KEPT = 4  # prefixes at most; our choice


class PrefixStore:
    """Finds what a prompt shares with the ones before it, and keeps its keys and values.

    A text in front of the first audio position is seen by nothing behind it, so its keys and values are the same in
    every prompt that begins with it, whichever the gate. The first prompt is remembered, the second shows what it shares
    with the first, and from then on the shared part is not computed again.

    Args:
        model: whose adapter and weights stay as they are.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._caches: OrderedDict[tuple[int, ...], StreamCache] = OrderedDict()
        self._seen: tuple[int, ...] = ()
        self.reused = 0  # positions that were not computed again, in all

    def start(self, ids: Sequence[int]) -> tuple[StreamCache, int]:
        """A cache that holds the first positions of a prompt, and how many.

        Args:
            ids: token ids of one prompt; audio placeholders end what can be shared.
        """
        text = self._text(ids)
        known = max((k for k in self._caches if text[: len(k)] == k), key=len, default=())
        shared = _common(text, self._seen)
        if shared > len(known) and shared >= MIN_PREFIX:
            known = text[:shared]
            self._caches[known] = self._prefill(known)
            while len(self._caches) > KEPT:
                self._caches.popitem(last=False)
        elif known:
            self._caches.move_to_end(known)
            self.reused += len(known)
        self._seen = text
        cache = StreamCache(self._model.language_model.config)
        if known:
            cache.restore(self._caches[known].remember())  # its tensors are never written to
        return cache, len(known)

    def _text(self, ids: Sequence[int]) -> tuple[int, ...]:
        audio = self._model.config.audio_token_id
        end = next((index for index, token in enumerate(ids) if token == audio), len(ids))
        return tuple(ids[: min(end, len(ids) - 2)])  # something must remain to be computed

    @torch.no_grad()
    def _prefill(self, ids: tuple[int, ...]) -> StreamCache:
        cache = StreamCache(self._model.language_model.config)
        self._model(input_ids=torch.tensor([ids]), use_cache=True, logits_to_keep=1, **{CACHE_KEY: cache})
        return cache


def _common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
