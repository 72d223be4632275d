"""One batch of jobs through the model, every row streamed, cut and cancelled on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from aura.batch.collate import collate
from aura.inference.engine import Engine
from aura.inference.generate import end_tokens, greedy_config
from aura.serve.jobs import Job
from aura.serve.rows import Row


@torch.no_grad()
def decode_batch(engine: Engine, jobs: Sequence[Job], *, between: Callable[[], None] = lambda: None) -> None:
    """Answer jobs of one model together; each gets what `generate_texts` would give it alone.

    Args:
        between: called after each token of the batch, on this thread.
    """
    model, processor = engine.model, engine.processor
    tokenizer = processor.tokenizer
    ends = end_tokens(model, tokenizer)
    context = model.config.context_length
    rows = [Row(job, tokenizer, frozenset(ends), context - job.prompt_tokens) for job in jobs]
    inputs = collate(processor, [job.example for job in jobs], answer=False).to(model.device).model_inputs()
    longest = max(row.limit for row in rows)
    if engine.decoder is not None and not any(row.generator for row in rows):
        engine.decoder.generate(
            inputs, max_new_tokens=longest, ends=ends, take=lambda row, token: rows[row].take(token), between=between
        )
        return
    # Sampled rows choose in `_Draw`, each with its own seed.
    config = greedy_config(longest, ends=ends, pad=tokenizer.pad_token_id)
    prompt = inputs["input_ids"].shape[1]
    generate: Any = model.generate  # its type hides behind a decorator
    generate(
        **inputs,
        generation_config=config,
        logits_processor=LogitsProcessorList([_Draw(rows)] if any(row.generator for row in rows) else []),
        stopping_criteria=StoppingCriteriaList([_Watch(rows, prompt, between)]),
    )


class _Watch(StoppingCriteria):
    """Hands each row its token and says which rows are over."""

    def __init__(self, rows: Sequence[Row], prompt: int, between: Callable[[], None]) -> None:
        self.rows = rows
        self.seen = prompt
        self.between = between

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        tokens = input_ids[:, self.seen :].tolist()
        self.seen = input_ids.shape[1]
        for row, new in zip(self.rows, tokens, strict=True):
            for token in new:
                row.take(token)
        self.between()
        return torch.tensor([row.over for row in self.rows], device=input_ids.device)


class _Draw(LogitsProcessor):
    """Leaves one token possible in each row that samples: greedy rows beside it stay greedy."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for index, row in enumerate(self.rows):
            if row.generator is not None and not row.over:
                token = row.choose(scores[index])
                scores[index] = float("-inf")
                scores[index, token] = 0.0
        return scores
