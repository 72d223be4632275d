"""aura as a model of lmms-eval.

    python -m lmms_eval --model aura --model_args checkpoint=DIR --tasks librispeech_test_clean

lmms-eval imports this module when that model is asked for; see `aura.plugins.lmms_eval_manifest`.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms

from aura.batch.collate import Example
from aura.batch.prompt import IGNORE, build_prompt, user_message
from aura.errors import AuraError, ModelError, PromptError, RecipeError
from aura.evaluation.routes.answering import BATCH_TOKENS, Answerer
from aura.inference.engine import load
from aura.inference.generate import end_tokens
from aura.plugins.audio import load_handed
from aura.plugins.settings import Settings, read_settings
from aura.progress import audio_progress

HELD = 256  # questions whose audio is in memory at once; our choice, about 250 MB at 15 s each
MAX_ROUNDS = 64  # of one conversation; our choice, far above any task's, against one that never ends
FAILED = "[LMMS_EVAL_REQUEST_FAILED]"  # how lmms-eval's own models begin the text of an item that failed


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One question on its way; an error where it could not be put together."""

    place: str
    question: Example | AuraError
    settings: Settings


@dataclass(kw_only=True)
class Talk:
    """A conversation of several rounds, which the task's own `doc_to_text` leads."""

    request: Any
    doc: Any
    context: str
    visuals: Any
    outputs: list[str] = field(default_factory=list)
    round: int = 0
    info: Any = None
    over: bool = False

    def hear(self, answer: str) -> None:
        """Take the model's answer, and what the task asks next."""
        self.outputs.append(answer)
        self.round += 1
        place = place_of(*self.request.args[-3:])
        if self.round > MAX_ROUNDS:
            raise PromptError(f"{place} goes on after {MAX_ROUNDS} rounds; expected its doc_to_text to end it")
        step = self.request.args[3](
            self.doc, previous_output=list(self.outputs), round_idx=self.round, previous_round_info=self.info
        )
        if not isinstance(step, (tuple, list)) or len(step) != 5:
            raise PromptError(
                f"{place}: its doc_to_text gave {type(step).__name__} for round {self.round}; expected "
                "(visuals, context, is the end, outputs, info)"
            )
        self.visuals, self.context, self.over, outputs, self.info = step
        self.outputs = self.outputs if outputs is None else list(outputs)


class AuraModel(lmms):
    """A checkpoint that lmms-eval can ask.

    Args:
        checkpoint: folder or Hub id; `pretrained` is another name for it, lmms-eval's usual one.
        llm: reference of the LLM instead of the one named in the checkpoint.
        dtype: float32, bfloat16 or float16.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...; under `accelerate launch` each process takes its own GPU.
        batch_tokens: positions of one batch, see `generate_texts`; decides the speed, not the answers.
        prompt: `task` asks what the task asks; `trained` asks what stood behind the audio in training, for tasks of
            the kind that the checkpoint was trained on.
        failures: `raise` stops at a question that cannot be answered; `mark` answers it with a text that begins with
            `FAILED`, which is scored as wrong and found in the samples.
        batch_size, max_batch_size: of lmms-eval's command line; not used, `batch_tokens` decides.

    Raises:
        RecipeError: an argument that is not understood.
        AuraError: the checkpoint cannot be loaded.
    """

    is_simple = True

    def __init__(
        self,
        *,
        checkpoint: str | None = None,
        pretrained: str | None = None,
        llm: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch_tokens: int = BATCH_TOKENS,
        prompt: str = "task",
        failures: str = "raise",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if (checkpoint is None) == (pretrained is None):
            given = "neither" if checkpoint is None else "both"
            raise RecipeError(f"{given} of checkpoint and pretrained was given; expected --model_args checkpoint=DIR")
        for name, value, known in (("prompt", prompt, ("task", "trained")), ("failures", failures, ("raise", "mark"))):
            if value not in known:
                raise RecipeError(f"{name} is {value!r}; expected {name}={known[0]} or {name}={known[1]}")
        self.prompt = prompt
        self.marks_failures = failures == "mark"
        self.engine = load(str(checkpoint or pretrained), llm=llm, dtype=dtype, device=own_device(device))
        self.answerer = Answerer(self.engine.model, self.engine.processor, batch_tokens=int(batch_tokens))

    @property
    def device(self) -> torch.device:
        return self.engine.model.device

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Greedy answers, cut at the task's `until`.

        Raises:
            AuraError: a question that cannot be answered, with `failures=raise`.
        """
        results: list[Any] = []
        with audio_progress("answering", len(requests), show=self.rank == 0) as advance:
            for start in range(0, len(requests), HELD):
                turns = []
                for request in requests[start : start + HELD]:
                    context, settings, doc_to_visual, *where = request.args
                    visuals = doc_to_visual(self._doc(*where))
                    turns.append(self._turn(context, visuals, settings, where, mark=self.marks_failures))
                results += self._answered(turns)
                advance(len(turns), sum(seconds_of(turn.question) for turn in turns))
        return results

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers of each conversation; every round is a question of its own, as the task words it.

        Raises:
            AuraError: a question that cannot be answered: the rounds behind it would have nothing to go on with.
        """
        talks = []
        for request in requests:
            context, _, doc_to_visual, _, *where = request.args
            doc = self._doc(*where)
            talks.append(Talk(request=request, doc=doc, context=context, visuals=doc_to_visual(doc)))
        while live := [talk for talk in talks if not talk.over][:HELD]:
            turns = [self._turn(t.context, t.visuals, t.request.args[1], t.request.args[-3:]) for t in live]
            for talk, result in zip(live, self._answered(turns), strict=True):
                talk.hear(result.text)
        return [talk.outputs for talk in talks]

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """(loss, whether the greedy answer begins with it) of each continuation.

        The loss is the *negated* sum of log-likelihoods in nats: lmms-eval's multiple choice takes the smallest, and
        its own models return losses, whatever the docstring of the base class says.

        Raises:
            AuraError: a question that cannot be answered; no number could stand for it.
        """
        results: list[tuple[float, bool]] = []
        for (context, *where), group in itertools.groupby(requests, key=same_question):
            asked = list(group)
            doc = self._doc(*where)
            options = [args[1] if isinstance(args[1], str) else args[1](doc) for args in (r.args for r in asked)]
            # The template decides what stands between question and answer, not the task's delimiter.
            results += self._losses(self._question(context, asked[0].args[2](doc), where), [o.strip() for o in options])
        # lmms-eval 0.7.3 turns a bare pair into its printed form; what a GenerationResult holds goes through untouched.
        return [GenerationResult(text=pair) for pair in results]

    def clean(self) -> None:
        """Let go of the model, once all answers are in: a task's judge may need the memory."""
        for name in ("engine", "answerer"):
            if hasattr(self, name):
                delattr(self, name)
        super().clean()

    def _doc(self, doc_id: Any, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _turn(self, context: str, visuals: Any, settings: Any, where: Sequence[Any], *, mark: bool = False) -> Turn:
        question: Example | AuraError
        try:
            question = self._question(context, visuals, where)
        except AuraError as error:
            if not mark:
                raise
            question = error
        place = place_of(*where)
        return Turn(place=place, question=question, settings=read_settings(settings, task=where[1]))

    def _question(self, context: str, visuals: Any, where: Sequence[Any]) -> Example:
        place, limit = place_of(*where), self.engine.model.config.max_seconds
        handed = visuals if isinstance(visuals, list) else [] if visuals is None else [visuals]
        waveforms = [load_handed(value, max_seconds=limit, place=place) for value in handed]
        if not waveforms:
            warnings.warn(f"{where[1]}: a question came without audio and is asked as text", stacklevel=2)
        text = self.engine.model.config.prompt if self.prompt == "trained" and waveforms else context
        if not waveforms and not text:
            raise PromptError(f"{place} has neither audio nor text; expected one of them")
        return Example(id=place, messages=[user_message(text, len(waveforms))], waveforms=waveforms)

    def _answered(self, turns: Sequence[Turn]) -> list[Any]:
        """An answer for each; an item that failed is never an empty one."""
        results: dict[int, Any] = {}
        for limit in sorted({turn.settings.max_new_tokens for turn in turns}):
            places = [i for i, turn in enumerate(turns) if turn.settings.max_new_tokens == limit]
            replies = self.answerer.answer([turns[i].question for i in places], max_new_tokens=limit)
            for i, reply in zip(places, replies, strict=True):
                if reply.text is None:
                    results[i] = GenerationResult(text=self._failure(turns[i].place, str(reply.error)))
                    continue
                counts = TokenCounts(output_tokens=reply.new_tokens)
                results[i] = GenerationResult(text=turns[i].settings.cut(reply.text), token_counts=counts)
        return [results[i] for i in range(len(turns))]

    def _failure(self, place: str, error: str) -> str:
        if not self.marks_failures:
            raise ModelError(
                f"{error} ({place} could not be answered). To score such items as wrong and go on, add failures=mark "
                "to --model_args"
            )
        warnings.warn(f"{place} could not be answered and is marked as failed: {error}", stacklevel=2)
        return f"{FAILED} {error}"

    def _losses(self, question: Example, options: Sequence[str]) -> list[tuple[float, bool]]:
        scores = self.answerer.score(question, options)
        ids = [self._answer_ids(question, option) for option in options]
        [greedy] = self.engine.generate([question], max_new_tokens=max(map(len, ids)))
        return [(-score, greedy.token_ids[: len(own)] == own) for score, own in zip(scores, ids, strict=True)]

    def _answer_ids(self, question: Example, option: str) -> tuple[int, ...]:
        """Tokens of an option as the answer, its end of turn left out."""
        processor = self.engine.processor
        patches = [processor.feature_extractor.grid.count(len(waveform)) for waveform in question.waveforms]
        answered = [*question.messages, {"role": "assistant", "content": option}]
        labels = build_prompt(processor, answered, patches, answer=True).labels
        ends = end_tokens(self.engine.model, processor.tokenizer)
        return tuple(label for label in labels if label != IGNORE and label not in ends)


def same_question(request: Any) -> tuple[Any, ...]:
    """(context, doc_id, task, split): continuations of one question are scored behind one pass over its audio.

    Raises:
        PromptError: a continuation without question, as the metric acc_mutual_info asks for.
    """
    if len(request.args) != 6:
        raise PromptError(
            f"a log-likelihood was asked of {request.args!r:.80} alone; expected a question with it. "
            "Leave the metric acc_mutual_info out of the task"
        )
    context, _, _, *where = request.args
    return (context, *where)


def place_of(doc_id: Any, task: str, split: str) -> str:
    """How a message names an item."""
    return f"{task}/{split}/{doc_id}"


def seconds_of(question: Example | AuraError) -> float:
    """Audio in a question."""
    return 0.0 if isinstance(question, AuraError) else sum(map(len, question.waveforms)) / 16_000


def own_device(device: str) -> str:
    """The GPU of this process, where `accelerate launch` started one process for each."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return device
