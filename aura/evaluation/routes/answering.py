"""Questions through one model: answers, the first token, and how likely each of several answers is."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from aura.audio.patches import SAMPLE_RATE
from aura.batch.collate import Example, collate
from aura.batch.prompt import IGNORE, build_prompt
from aura.errors import AudioError, AuraError, PromptError
from aura.evaluation.routes.route import Progress, Reply
from aura.inference.bound import Held
from aura.inference.confidence import confidence
from aura.inference.generate import Generation, end_tokens, generate_texts, plan_batches, prompt_length
from aura.student.cache_key import CACHE_KEY
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor

BATCH_TOKENS = 2048  # positions of one batch (prompt, answer, padding); our choice, as in generate_texts
ERROR_LENGTH = 400  # characters of an error kept in a reply


class Answerer:
    """A model and its processor, asked many questions.

    Args:
        model: in eval mode, on its device.
        processor: of the same LLM.
        batch_tokens: bounds a batch, see `generate_texts`. It decides no answer in float32; in 16 bits two nearly
            equal candidates may change places when the batch does.
        held: an answer that it leaves out says nothing; by default every answer counts, which saves a pass.
    """

    def __init__(
        self,
        model: AuraForConditionalGeneration,
        processor: AuraProcessor,
        *,
        batch_tokens: int = BATCH_TOKENS,
        held: Held = Held(),  # noqa: B008  # frozen
    ) -> None:
        self.model = model
        self.processor = processor
        self.batch_tokens = batch_tokens
        self.held = held

    def answer(
        self,
        questions: Sequence[Example | AuraError],
        *,
        max_new_tokens: int,
        progress: Progress | None = None,
    ) -> list[Reply]:
        """Replies in order; an error in place of a question is passed on as a failed reply."""
        replies: dict[int, Reply] = {}
        lengths: dict[int, int] = {}
        measured: dict[int, float] = {}  # seconds
        for index, question in enumerate(questions):
            start = time.perf_counter()
            try:
                lengths[index] = self._length(question)
            except AuraError as error:
                replies[index] = failed(error)
                if progress is not None:
                    progress(1)
            measured[index] = time.perf_counter() - start
        for batch in self._batches(lengths, max_new_tokens):
            start = time.perf_counter()
            outcomes = self._generate([questions[index] for index in batch], max_new_tokens)  # type: ignore[misc]
            share = (time.perf_counter() - start) / len(batch)
            for index, outcome in zip(batch, outcomes, strict=True):
                replies[index] = reply(outcome, seconds=share + measured[index])
            if progress is not None:
                progress(len(batch))
        return [replies[index] for index in range(len(questions))]

    def first_token(self, question: Example) -> float:
        """Seconds for log-mel, prompt, prefill and the choice of one token, this question alone.

        Raises:
            AuraError: it cannot be answered.
        """
        start = time.perf_counter()
        self._length(question)
        generate_texts(self.model, self.processor, [question], max_new_tokens=1)  # ends on the host: nothing is pending
        return time.perf_counter() - start

    @torch.no_grad()
    def score(self, question: Example, options: Sequence[str]) -> list[float]:
        """Summed log-likelihood (nats) of each option as the whole answer, its end of turn left out.

        The prompt is read once; each option goes through alone behind it, so that none depends on the others.

        Raises:
            PromptError: an empty option, or a prompt that does not fit.
        """
        length = self._length(question)
        answers = [self._answer_ids(question, option, length) for option in options]
        inputs = collate(self.processor, [question], answer=False).to(self.model.device)
        prompt = self.model(**inputs.model_inputs(), use_cache=True, logits_to_keep=1)
        first_V = prompt.logits[0, -1].float().log_softmax(-1)
        scores = []
        for ids in answers:
            ids_S = torch.tensor(ids, device=self.model.device)
            score = float(first_V[ids_S[0]])
            if len(ids) > 1:
                behind = self.model(
                    input_ids=ids_S[None, :-1],
                    attention_mask=inputs.attention_mask.new_ones(1, length + len(ids) - 1),
                    use_cache=True,
                    **{CACHE_KEY: copy.deepcopy(prompt[CACHE_KEY])},  # the pass writes into it
                )
                logs_SV = behind.logits[0].float().log_softmax(-1)
                score += float(logs_SV.gather(1, ids_S[1:, None]).double().sum())
            scores.append(score)
        return scores

    def _length(self, question: Example | AuraError) -> int:
        """Positions of the prompt.

        Raises:
            AuraError: the question is an error, is none, cannot be rendered, is too long, or its audio is.
        """
        if isinstance(question, AuraError):
            raise question
        role = question.messages[-1].get("role") if question.messages else None
        if role != "user":
            given = "no messages" if role is None else f"a last message of the {role}"
            raise PromptError(f"{question.id} has {given}; expected a question, whose last message is the user's")
        for waveform in question.waveforms:
            if (seconds := len(waveform) / SAMPLE_RATE) > self.model.config.max_seconds:
                raise AudioError(
                    f"{question.id} holds {seconds:.1f} s of audio; expected at most "
                    f"{self.model.config.max_seconds:g} s at once. Cut it"
                )
        return prompt_length(self.model, self.processor, question)

    def _answer_ids(self, question: Example, option: str, length: int) -> list[int]:
        """Tokens of an option behind a prompt of `length` positions, as training would have shown it."""
        answered = [*question.messages, {"role": "assistant", "content": option}]
        grid = self.processor.feature_extractor.grid
        patches = [grid.count(len(waveform)) for waveform in question.waveforms]
        prompt = build_prompt(self.processor, answered, patches, answer=True)
        ids = [label for label in prompt.labels[length:] if label != IGNORE]
        ends = end_tokens(self.model, self.processor.tokenizer)
        while ids and ids[-1] in ends:
            ids.pop()
        if not option.strip() or not ids:
            raise PromptError(f"{question.id} has the empty option {option!r}; expected text that could be an answer")
        return ids

    def _batches(self, lengths: Mapping[int, int], max_new_tokens: int) -> Iterator[list[int]]:
        """Indices that are answered together."""
        context = self.model.config.context_length
        # Where the context cuts the answer, it must be cut by this prompt's length, not by a neighbour's.
        tight = [index for index, length in lengths.items() if length + max_new_tokens > context]
        yield from ([index] for index in tight)
        roomy = [index for index in lengths if index not in set(tight)]
        planned = plan_batches(
            [lengths[index] for index in roomy], max_new_tokens=max_new_tokens, batch_tokens=self.batch_tokens
        )
        for batch in planned:
            yield [roomy[place] for place in batch]

    def _generate(self, batch: Sequence[Example], max_new_tokens: int) -> list[Generation | Exception]:
        """An outcome for each; what breaks a batch is tried alone, so that it fails alone."""
        try:
            found = generate_texts(
                self.model,
                self.processor,
                batch,
                max_new_tokens=max_new_tokens,
                batch_tokens=self.batch_tokens,
            )
            return list(self._sure_enough(batch, found))
        except (AuraError, RuntimeError) as error:  # torch raises RuntimeError when memory runs out
            if len(batch) == 1:
                return [error]
        return [outcome for question in batch for outcome in self._generate([question], max_new_tokens)]

    def _sure_enough(self, batch: Sequence[Example], found: Sequence[Generation]) -> Iterator[Generation]:
        sure: Sequence[float | None] = [None] * len(batch)
        if self.held.needs_scores:
            sure = confidence(self.model, self.processor, batch, found, batch_tokens=self.batch_tokens)
        for generation, average in zip(found, sure, strict=True):
            yield replace(generation, text="") if self.held.leaves_out(generation.text, average) else generation


def reply(outcome: Generation | Exception, *, seconds: float) -> Reply:
    """What a model generated, or what went wrong, as a reply."""
    if isinstance(outcome, Exception):
        return failed(outcome, seconds=seconds)
    return Reply(
        text=outcome.text,
        finished=outcome.finished,
        new_tokens=len(outcome.token_ids),
        wall_seconds=seconds,
    )


def failed(error: Exception, *, seconds: float = 0.0) -> Reply:
    """A question without an answer."""
    line = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, AuraError):
        line = f"{type(error).__name__}: {line}"
    return Reply(text=None, finished=False, new_tokens=0, wall_seconds=seconds, error=line[:ERROR_LENGTH])
