"""What a checkpoint did to its LLM's text: perplexity and multiple choice of text-only prompts, against the stock LLM.

The stock LLM is the same weights with the adapters switched off through PEFT, called by itself: neither the position
gate nor our forward takes part. With gate `audio` every logit must be the same to the last bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from aura.batch.prompt import IGNORE, build_prompt
from aura.errors import DataError
from aura.evaluation.scores import Score
from aura.inference.engine import Engine
from aura.inference.generate import end_tokens

WINDOW = 256  # tokens scored at once; the logits of a 262k vocabulary are 270 MB then, twice


@dataclass(frozen=True, kw_only=True)
class TextChoice:
    """A written question: its options, and which of them is right (by index)."""

    question: str
    options: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.options) < 2 or not all(self.options) or not 0 <= self.answer < len(self.options):
            raise DataError(
                f"question {self.question!r:.60} has the options {self.options!r:.120} and the answer {self.answer}; "
                "expected two options or more and the index of the right one"
            )


@dataclass(frozen=True, kw_only=True)
class RetentionItem:
    """One text or question. Log-likelihoods in nats: of the text, or of each option."""

    failed: bool  # never; rows of all scores have it
    kind: str  # "text" or "choice"
    checkpoint: tuple[float, ...]
    stock: tuple[float, ...]
    tokens: int
    max_difference: float
    correct: bool | None  # of a choice, by the checkpoint
    stock_correct: bool | None


@dataclass(frozen=True, kw_only=True)
class RetentionScore(Score):
    """The checkpoint beside the stock LLM; differences are checkpoint minus stock."""

    gate: str
    tokens: int  # predicted, of the texts
    perplexity: float | None  # of the texts' tokens, all together
    stock_perplexity: float | None
    questions: int
    choice_accuracy: float | None
    stock_choice_accuracy: float | None
    same_choices: float | None  # share of questions on which both choose alike
    max_difference: float  # of any logit, absolute; 0.0 exactly where the text weights are the stock ones
    mean_kl: float | None  # nats per token, KL(stock || checkpoint), texts and options


def text_retention(
    engine: Engine,
    texts: Sequence[str] = (),
    choices: Sequence[TextChoice] = (),
    *,
    window: int = WINDOW,
    progress: Callable[[int], None] | None = None,
) -> RetentionScore:
    """Score text-only prompts under a checkpoint and under its stock LLM.

    Args:
        engine: the checkpoint; its adapters are put back as they were.
        texts: prose, cut into windows of `window` tokens that are scored by themselves.
        choices: questions, asked in the checkpoint's chat template; the option of the highest summed log-likelihood
            is the choice.
        progress: called with 1 after each text and question.

    Raises:
        DataError: neither texts nor choices, a text of a single token, or an empty window.
    """
    if not texts and not choices:
        raise DataError(
            "text_retention got no texts and no choices; expected some, see aura.evaluation.retention_texts"
        )
    if window < 2:
        raise DataError(f"window is {window}; expected at least 2 tokens")
    pair = _Pair(engine)
    rows = []
    for text in texts:
        rows.append(_text_item(pair, text, window))
        if progress is not None:
            progress(1)
    for choice in choices:
        rows.append(_choice_item(pair, choice))
        if progress is not None:
            progress(1)
    written = [row for row in rows if row.kind == "text"]
    asked = [row for row in rows if row.kind == "choice"]
    tokens = sum(row.tokens for row in written)
    return RetentionScore(
        items=len(rows),
        scored=len(rows),
        failed=0,
        rows=tuple(rows),
        gate=engine.model.config.gate,
        tokens=tokens,
        perplexity=_perplexity([row.checkpoint[0] for row in written], tokens),
        stock_perplexity=_perplexity([row.stock[0] for row in written], tokens),
        questions=len(asked),
        choice_accuracy=_share([bool(row.correct) for row in asked]),
        stock_choice_accuracy=_share([bool(row.stock_correct) for row in asked]),
        same_choices=_share([_best(row.checkpoint) == _best(row.stock) for row in asked]),
        max_difference=max(row.max_difference for row in rows),
        mean_kl=pair.kl / pair.predicted if pair.predicted else None,
    )


def read_retention(path: Path | str) -> tuple[list[str], list[TextChoice]]:
    """Texts and questions of a JSON Lines file: `{"text": ...}`, or `{"question", "options", "answer"}`.

    `answer` is the index of the right option, or the option itself.

    Raises:
        DataError: no such file, or a line that is neither, by number.
    """
    texts: list[str] = []
    choices: list[TextChoice] = []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; expected JSON Lines of texts and questions") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "text" in row:
                texts.append(str(row["text"]))
                continue
            options, answer = tuple(map(str, row["options"])), row["answer"]
            index = answer if isinstance(answer, int) else options.index(str(answer))
            choices.append(TextChoice(question=str(row["question"]), options=options, answer=index))
        except (ValueError, KeyError, TypeError, DataError) as error:
            raise DataError(
                f"{path}, line {number}: {error}; expected {{'text': ...}} or {{'question', 'options', 'answer'}}"
            ) from None
    return texts, choices


class _Pair:
    """One prompt through the checkpoint and through the stock LLM; keeps count of how far they are apart."""

    def __init__(self, engine: Engine) -> None:
        self.model = engine.model
        self.processor = engine.processor
        self.kl = 0.0
        self.predicted = 0

    @torch.no_grad()
    def score(self, ids: Sequence[int], counted: Sequence[bool]) -> tuple[float, float, float]:
        """Summed log-likelihood of the counted tokens: checkpoint, stock; and the largest difference of a logit."""
        ids_BS = torch.tensor([list(ids)], device=self.model.device)
        inputs = {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}
        ours_SV = self.model(**inputs, use_cache=False).logits[0, :-1].float()
        with stock_weights(self.model):
            stock_SV = self.model.language_model(**inputs, use_cache=False).logits[0, :-1].float()
        difference = float((ours_SV - stock_SV).abs().max())
        where = torch.tensor(list(counted)[1:], device=ids_BS.device)
        targets = ids_BS[0, 1:][where][:, None]
        ours_SV, stock_SV = ours_SV[where].log_softmax(-1), stock_SV[where].log_softmax(-1)
        self.kl += float((stock_SV.exp() * (stock_SV - ours_SV)).sum(-1).double().sum())
        self.predicted += len(targets)
        first, second = (float(logs.gather(1, targets).double().sum()) for logs in (ours_SV, stock_SV))
        return first, second, difference


@contextmanager
def stock_weights(model: torch.nn.Module) -> Iterator[None]:
    """Every adapter of PEFT's switched off, and put back as it was."""
    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    off = [layer.disable_adapters for layer in layers]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer, was_off in zip(layers, off, strict=True):
            layer.enable_adapters(not was_off)
        for parameter, grad in trained:  # PEFT switches gradients along with adapters
            parameter.requires_grad_(grad)


def _text_item(pair: _Pair, text: str, window: int) -> RetentionItem:
    tokenizer = pair.processor.tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if len(start) + len(ids) < 2:
        raise DataError(f"the text {text!r:.60} holds {len(ids)} tokens; expected at least 2")
    step = window - len(start)
    found = []
    for first in range(0, len(ids), step):
        piece = start + ids[first : first + step]
        if len(piece) > 1:  # a single token has nothing before it to be predicted from
            found.append((*pair.score(piece, [True] * len(piece)), len(piece) - 1))
    return RetentionItem(
        failed=False,
        kind="text",
        checkpoint=(sum(one for one, *_ in found),),
        stock=(sum(one for _, one, *_ in found),),
        tokens=sum(tokens for *_, tokens in found),
        max_difference=max(difference for _, _, difference, _ in found),
        correct=None,
        stock_correct=None,
    )


def _choice_item(pair: _Pair, choice: TextChoice) -> RetentionItem:
    ends = set(end_tokens(pair.model, pair.processor.tokenizer))
    found, tokens = [], 0
    for option in choice.options:
        turns = [{"role": "user", "content": choice.question}, {"role": "assistant", "content": option}]
        prompt = build_prompt(pair.processor, turns, answer=True)
        counted = [label != IGNORE and label not in ends for label in prompt.labels]
        tokens += sum(counted)
        found.append(pair.score(prompt.input_ids, counted))
    ours, stock = tuple(one for one, _, _ in found), tuple(one for _, one, _ in found)
    return RetentionItem(
        failed=False,
        kind="choice",
        checkpoint=ours,
        stock=stock,
        tokens=tokens,
        max_difference=max(difference for _, _, difference in found),
        correct=_best(ours) == choice.answer,
        stock_correct=_best(stock) == choice.answer,
    )


def _best(log_likelihoods: Sequence[float]) -> int:
    return max(range(len(log_likelihoods)), key=lambda index: log_likelihoods[index])


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def _perplexity(log_likelihoods: Sequence[float], tokens: int) -> float | None:
    return math.exp(-sum(log_likelihoods) / tokens) if tokens else None
