"""Evaluation during training, on held-out utterances only: losses, scores and texts to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aura.batch.loader import BatchLoader, load_example
from aura.batch.plan import LengthEstimate, PlannedItem, pack
from aura.config import Recipe
from aura.data.utterance import Utterance
from aura.evaluation.metrics import answers, intents, transcription
from aura.inference.generate import generate_texts
from aura.training.objective import Losses, Objective, Weights
from aura.training.targets import TargetMaker

SHOWN = 4  # texts printed per evaluation


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One evaluation.

    Args:
        scores: `loss` (nats per answer token), `wer`, `accuracy`, `cosine`, `ctc` (nats per token of the transcript) and what
            else the task gives; None where nothing could be scored.
        cosines: per layer pair.
        samples: (truth, heard) for a few utterances.
    """

    scores: dict[str, float | None]
    cosines: list[float]
    samples: list[tuple[str, str]]


def pick(utterances: Sequence[Utterance], count: int | None) -> list[Utterance]:
    """`count` utterances spread evenly over the list; all when None."""
    if count is None or count >= len(utterances):
        return list(utterances)
    return [utterances[int(i)] for i in np.linspace(0, len(utterances) - 1, count)]


@torch.no_grad()
def validate(
    objective: Objective, processor: Any, targets: TargetMaker | None, utterances: Sequence[Utterance], recipe: Recipe
) -> Validation:
    """Losses and generated answers on held-out utterances; the student is left in training mode."""
    objective.eval()
    try:
        loss, ctc, cosines = _losses(objective, processor, targets, utterances, recipe)
        examples = [load_example(u) for u in utterances]
        prompts = [_question(example) for example in examples]
        texts = [
            g.text
            for g in generate_texts(
                objective.student,
                processor,
                prompts,
                max_new_tokens=recipe.run.max_new_tokens,
                batch_tokens=recipe.batch.tokens * 2,
            )
        ]
    finally:
        objective.train()
    scores: dict[str, float | None] = {"loss": loss, **score(recipe.run.eval_task, utterances, texts)}
    if ctc is not None:
        scores["ctc"] = ctc
    if cosines:
        scores["cosine"] = float(np.mean(cosines))
    samples = [
        (u.answer, text) for u, text in list(zip(utterances, texts, strict=True))[:: max(1, len(texts) // SHOWN)]
    ]
    return Validation(scores=scores, cosines=cosines, samples=samples[:SHOWN])


def score(task: str, utterances: Sequence[Utterance], texts: Sequence[str]) -> dict[str, float | None]:
    """The figures of a task; `accuracy` is the share of answers right as a whole."""
    truth = [u.answer for u in utterances]
    if task == "intent":
        intent = intents([u.label for u in utterances], texts).as_dict()
        return {"accuracy": intent["command_accuracy"], "slot_f1": intent["slot_f1"]}
    exact = answers(truth, texts).as_dict()
    if task == "answer":
        return {"accuracy": exact["exact_match"]}
    spoken = transcription(truth, texts, lang=[u.lang or "en" for u in utterances]).as_dict()
    return {"accuracy": exact["exact_match"], "wer": spoken["wer"], "cer": spoken["cer"]}


def _question(example: Any) -> Any:
    """The same conversation without its last answer."""
    from dataclasses import replace

    return replace(example, messages=example.messages[:-1])


def _losses(
    objective: Objective, processor: Any, targets: TargetMaker | None, utterances: Sequence[Utterance], recipe: Recipe
) -> tuple[float, float | None, list[float]]:
    loader = BatchLoader(
        processor, augment=None, seed=0, keep_waveforms=targets is not None, spell=recipe.distill.ctc > 0
    )
    estimate = LengthEstimate(processor)
    batches = pack(
        [estimate(u) for u in utterances],
        tokens=recipe.batch.tokens,
        max_items=recipe.batch.max_items,
        rng=np.random.default_rng(0),
    )
    cross_entropy, tokens, patches = 0.0, 0, 0
    ctc, spelled = 0.0, 0
    distances: torch.Tensor | None = None
    for members in batches:
        # unreadable rows raise here: validation must not shrink in silence
        batch = loader.load([PlannedItem(utterance=utterances[i], epoch=0, index=i) for i in members])
        batch = batch.to(objective.student.device)
        made = (
            targets(batch.waveforms, objective.heads) if targets is not None and objective.heads is not None else None
        )
        weights = Weights(distill=1.0, kl=0.0, answer_tokens=1, patches=1, ctc=recipe.distill.ctc)
        losses: Losses = objective(batch, made, weights)
        cross_entropy += float(losses.cross_entropy)
        tokens += batch.answer_tokens
        ctc, spelled = ctc + float(losses.ctc), spelled + losses.spelled
        if made is not None:
            patches += made.shape[1]
            distances = losses.distances if distances is None else distances + losses.distances
    cosines = [] if distances is None else (1 - distances / patches).tolist()
    return cross_entropy / tokens, ctc / spelled if spelled else None, cosines
