"""The text route: the LLM reads the true transcript. What hearing could reach at most, with this LLM and this prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from aura.batch.prompt import Message, count_audio, replace_audio, user_message
from aura.data.utterance import Utterance
from aura.errors import AuraError, CheckpointError, DataError, PromptError
from aura.evaluation.routes.answering import BATCH_TOKENS, Answerer
from aura.evaluation.routes.llm import (
    LINES_TEMPLATE,
    LlmShelf,
    count_parameters,
    folder_weight_bytes,
    llm_digest,
    template_digest,
    text_reader,
    weight_bytes,
)
from aura.evaluation.routes.route import Progress, Question, Reply, RouteFacts
from aura.inference.engine import Engine
from aura.student.checkpoint import load_checkpoint
from aura.student.files import checkpoint_folder

TRUTH = "what was truly said"


class TextReader:
    """An LLM on text, with earlier conversations in front of each question.

    Args:
        answerer: of the LLM; stock, or with an adapter that works on text.
        llm: reference of the LLM.
        adapter: checkpoint whose adapter works on text; None for the stock LLM.
        shots: turns put in front, see `shot_messages`.
        shots_say: where the words in their audio's place come from, for the report.
    """

    def __init__(
        self,
        answerer: Answerer,
        *,
        llm: str,
        adapter: str | None = None,
        shots: Sequence[Message] = (),
        shots_say: str = TRUTH,
    ) -> None:
        self.answerer = answerer
        self.llm = llm
        self.adapter = adapter
        self.shots = list(shots)
        self.shots_say = shots_say

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the LLM's answers."""
        written = json.dumps(self.shots, ensure_ascii=False, sort_keys=True)
        return {
            "llm": self.llm,
            "llm_digest": llm_digest(self.answerer.model.language_model),
            "adapter": self.adapter,
            "learnt": Engine(self.answerer.model, self.answerer.processor).digest if self.adapter else None,
            "dtype": str(self.answerer.model.language_model.dtype).removeprefix("torch."),
            "decoding": "greedy",
            "answer_ends_with": "line" if self._in_lines else "turn",
            "template_digest": template_digest(self.answerer.processor),
            "shots": sum(message["role"] == "assistant" for message in self.shots),
            "shots_say": self.shots_say if self.shots else None,
            "shots_digest": hashlib.sha256(written.encode()).hexdigest()[:16] if self.shots else None,
        }

    @property
    def _in_lines(self) -> bool:
        return str(self.answerer.processor.chat_template).endswith(LINES_TEMPLATE)

    @property
    def parameters(self) -> int:
        """Of the LLM and its adapter."""
        return count_parameters(self.answerer.model.language_model)

    @property
    def bytes_on_disk(self) -> int | None:
        """Of the LLM's weights and the adapter's."""
        base = weight_bytes(self.llm)
        if self.adapter is None or base is None:
            return base
        return base + (folder_weight_bytes(checkpoint_folder(self.adapter)) or 0)

    def read(self, question: Question, transcripts: Sequence[str] | None) -> Question:
        """The question with each audio part written out, behind the shots.

        Raises:
            PromptError: transcripts are missing.
        """
        parts = count_audio(question.messages)
        if parts and (transcripts is None or len(transcripts) != parts):
            found = "no transcript" if transcripts is None else f"{len(transcripts)} transcript(s)"
            raise PromptError(
                f"{question.id} has {found} for its {parts} audio part(s); the text route reads one for each. "
                "Add 'transcript' to its row, or leave the text route out"
            )
        messages = replace_audio(question.messages, transcripts or [])
        start = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
        return replace(question, messages=[*messages[:start], *self.shots, *messages[start:]], waveforms=[])


class TextRoute:
    """The LLM reading what was truly said.

    Args:
        reader: the LLM.
        name: in reports.
    """

    def __init__(self, reader: TextReader, *, name: str = "text") -> None:
        self.reader = reader
        self.facts = RouteFacts(
            name=name,
            kind="text",
            settings=reader.settings,
            parameters=reader.parameters,
            bytes_on_disk=reader.bytes_on_disk,
        )

    def answer(
        self, questions: Sequence[Question], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        written = [self._written(question) for question in questions]
        return self.reader.answerer.answer(written, max_new_tokens=max_new_tokens, progress=progress)

    def first_token(self, question: Question) -> float:
        return self.reader.answerer.first_token(self.reader.read(question, question.transcripts))

    def score(self, question: Question, options: Sequence[str]) -> list[float]:
        return self.reader.answerer.score(self.reader.read(question, question.transcripts), options)

    def _written(self, question: Question) -> Question | AuraError:
        try:
            return self.reader.read(question, question.transcripts)
        except AuraError as error:
            return error


def open_reader(
    *,
    llm: str,
    shelf: LlmShelf,
    adapter: str | None = None,
    shots: Sequence[Utterance] = (),
    shots_say: str = TRUTH,
    shot_prompt: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> TextReader:
    """The LLM behind a reference, reading text.

    Args:
        adapter: checkpoint trained with gate `all`, whose adapter works on text as well.
        shots: conversations put in front of each question.
        shots_say: see `TextReader`.
        shot_prompt: see `shot_messages`.

    Raises:
        CheckpointError: an adapter that never works on text.
        DataError: a shot without transcript or answer.
    """
    own = shelf.take(llm)
    if adapter is None:
        model, processor = text_reader(own, shelf.tokenizer(llm))
    else:
        model, processor = load_checkpoint(adapter, language_model=own, llm=llm)
        model.to(shelf.device)  # type: ignore[arg-type]  # its decorator hides the signature
        if model.config.gate != "all":
            raise CheckpointError(
                f"{adapter} works at audio positions only (gate {model.config.gate}), so on text it is the stock LLM; "
                "use the route text without a checkpoint, or train one with --lora.gate all"
            )
    answerer = Answerer(model, processor, batch_tokens=batch_tokens)
    return TextReader(
        answerer, llm=llm, adapter=adapter, shots=shot_messages(shots, prompt=shot_prompt), shots_say=shots_say
    )


def shot_messages(shots: Sequence[Utterance], *, prompt: str | None = None) -> list[Message]:
    """Conversations with their audio written out, one behind the other; system turns are left to the question.

    Args:
        shots: each with one audio part, its transcript, and an answer.
        prompt: asked behind the audio instead of what the shots' own user turns say, as in the evaluation.

    Raises:
        DataError: a shot without transcript or answer, or with several audio parts.
    """
    turns: list[Message] = []
    for shot in shots:
        if shot.transcript is None or not shot.answer or len(shot.audio) != 1:
            raise DataError(
                f"the shot {shot.id} has {len(shot.audio)} audio part(s), "
                f"{'no' if shot.transcript is None else 'a'} transcript and {'an' if shot.answer else 'no'} answer; "
                "expected one part, with both. Take shots from rows with 'transcript' and an assistant turn"
            )
        messages: list[Message] = list(shot.messages)
        if prompt is not None:
            messages = [user_message(prompt), {"role": "assistant", "content": shot.answer}]
        written = replace_audio(messages, [shot.transcript])
        turns += [message for message in written if message["role"] != "system"]
    return turns
