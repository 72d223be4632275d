"""A moving average of what learns: single steps swing on a new voice, their mean does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

WARM_UP = 10  # the decay starts at 1 / WARM_UP and grows with the steps, so that the random start is soon forgotten; our choice


class WeightAverage:
    """Exponential moving average over optimiser steps.

    Args:
        parameters: what learns, by name.
        decay: share of the average that a step keeps; 0 averages nothing.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.tensors = {name: p.detach().clone() for name, p in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take in the weights after a step.

        Args:
            steps: optimiser steps done so far.
        """
        if self.tensors:
            decay = min(self.decay, (1 + steps) / (WARM_UP + steps))
            live = [self.parameters[name].detach() for name in self.tensors]
            get_ema_multi_avg_fn(decay)(list(self.tensors.values()), live, torch.tensor(steps))

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model holds the average inside this block, and its own weights again behind it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self.tensors.items():
            live = self.parameters[name]
            held = live.detach().clone()
            live.copy_(average)
            average.copy_(held)
