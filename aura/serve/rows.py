"""Tokens of one row of a batch -> pieces of text, as they come."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

import torch

from aura.serve.failures import timed_out
from aura.serve.jobs import Completion, Failure, Job, Piece

COLDEST = 1e-4  # temperature; below it scores divided by it overflow, and the likeliest token would win anyway
UNFINISHED = "�"  # what a tokenizer writes for the first bytes of a character


class Row:
    """A job's answer while it grows.

    Args:
        job: whose answer it is.
        tokenizer: of its model.
        ends: tokens that end an answer.
        room: tokens that the context still holds.
    """

    def __init__(self, job: Job, tokenizer: Any, ends: Collection[int], room: int) -> None:
        self.job = job
        self.tokenizer = tokenizer
        self.ends = ends
        self.limit = min(job.max_new_tokens, room)
        self.token_ids: list[int] = []
        self.sent = ""
        self.first_token: float | None = None
        self.generator: torch.Generator | None = None
        if job.sampling.temperature >= COLDEST:
            self.generator = torch.Generator()
            seed = job.sampling.seed
            self.generator.seed() if seed is None else self.generator.manual_seed(seed % (1 << 63))

    @property
    def over(self) -> bool:
        return self.job.over

    def take(self, token: int) -> bool:
        """One more token; True once the answer is over."""
        if self.over:
            return True
        if self.job.cancelled is not None:
            self.job.end(Failure(error=self.job.cancelled))
        elif self.job.expired:
            self.job.end(Failure(error=timed_out(self.job.timeout)))
        else:
            self._write(token)
        return self.over

    def _write(self, token: int) -> None:
        if self.first_token is None:
            self.first_token = time.monotonic() - self.job.arrived
        if token in self.ends:
            return self._complete(self._text(), finished=True)
        self.token_ids.append(token)
        text = self._text()
        if (cut := first_of(text, self.job.stop)) is not None:
            return self._complete(text[:cut].rstrip(), finished=True)
        if len(self.token_ids) >= self.limit:
            return self._complete(text, finished=False)
        self._send(text[: len(text) - held_back(text, self.job.stop)])

    def _text(self) -> str:
        # Stripped as a whole, as `generate_texts` does: blanks at the end wait for what follows them.
        return str(self.tokenizer.decode(self.token_ids, skip_special_tokens=True)).strip()

    def _send(self, text: str) -> None:
        new = text[len(self.sent) :]
        if new and text.startswith(self.sent):
            self.sent = text
            self.job.heard_of = True
            self.job.emit(Piece(text=new))

    def _complete(self, text: str, *, finished: bool) -> None:
        self._send(text)
        job = self.job
        job.end(
            Completion(
                text=text,
                finished=finished,
                prompt_tokens=job.prompt_tokens,
                audio_tokens=job.audio_tokens,
                completion_tokens=len(self.token_ids),
                token_ids=tuple(self.token_ids),
                waited=(job.started or job.arrived) - job.arrived,
                first_token=self.first_token,
                seconds=time.monotonic() - job.arrived,
            )
        )

    def choose(self, scores_V: torch.Tensor) -> int:
        """A token drawn with the job's temperature and top_p."""
        assert self.generator is not None
        sampling = self.job.sampling
        scores_V = scores_V.float().cpu()
        probabilities_V = torch.softmax(scores_V / sampling.temperature, dim=-1)
        if not torch.isfinite(probabilities_V).all():
            return int(scores_V.nan_to_num(nan=float("-inf")).argmax())
        ordered_V, order_V = probabilities_V.sort(descending=True, stable=True)
        before_V = ordered_V.cumsum(dim=-1) - ordered_V
        left_out_V = before_V >= sampling.top_p
        left_out_V[0] = False  # the likeliest one always stays, even where top_p rounds to 0
        ordered_V = ordered_V.masked_fill(left_out_V, 0.0)
        return int(order_V[torch.multinomial(ordered_V, 1, generator=self.generator)])


def first_of(text: str, stops: Sequence[str]) -> int | None:
    """Where the first of the stop texts begins."""
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def held_back(text: str, stops: Sequence[str]) -> int:
    """Characters at the end that may yet change: half a character, or the beginning of a stop text."""
    bytes_left = len(text) - len(text.rstrip(UNFINISHED))
    begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    return max([bytes_left, *begun])
