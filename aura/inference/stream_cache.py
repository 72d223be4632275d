"""The KV cache of a session: it grows by blocks, and can be put back to where it was."""

from __future__ import annotations

import copy
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

Memory = list[Any]


class StreamCache(DynamicCache):
    """`DynamicCache` that remembers a state without copying it.

    Its layers never write into their tensors, they put longer ones in their place; so the old tensors are the old state.
    Cropping would not do: a sliding-window layer has dropped what lies before its window.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self._config = config

    @property
    def length(self) -> int:
        """Positions seen."""
        return int(self.get_seq_length())

    def remember(self) -> Memory:
        """The state now, for `restore`."""
        return [
            dict(vars(layer)) if type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) else copy.deepcopy(layer)
            for layer in self.layers
        ]

    def restore(self, memory: Memory) -> None:
        """Back to a state that `remember` returned; once."""
        for index, state in enumerate(memory):
            if isinstance(state, dict):
                vars(self.layers[index]).clear()
                vars(self.layers[index]).update(state)
            else:
                self.layers[index] = state

    def clear(self) -> None:
        """Let go of the memory."""
        self.layers = DynamicCache(config=self._config).layers
