"""The stock LLM, reading a transcript where the student will hear the speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aura.batch.collate import Example
from aura.batch.prompt import Message, replace_audio, user_message
from aura.errors import RecipeError
from aura.evaluation.routes.llm import LlmShelf, llm_digest, text_reader
from aura.inference.generate import generate_texts

TRANSCRIPT = "{transcript}"


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Who answers, and what it is told.

    Args:
        llm: reference of the LLM; the one that will learn to hear, for answers of its own kind.
        instruction: written text behind the speech, in the rows and for the LLM; None for the speech alone.
        template: what the LLM reads instead of transcript and instruction, with `{transcript}` in it, such as examples for
            an LLM that was never tuned for chat. Rows hold the speech (and the instruction) all the same.
        first_line: keep an answer's first line, for LLMs that go on and on.
        max_new_tokens: of an answer; one that does not end within them is dropped.
    """

    llm: str
    instruction: str | None = None
    template: str | None = None
    first_line: bool = False
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if self.template is not None and TRANSCRIPT not in self.template:
            raise RecipeError(f"the template {self.template!r:.80} lacks {TRANSCRIPT}, where the transcript goes")
        if self.max_new_tokens < 1:
            raise RecipeError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the LLM said, and whether it came to an end."""

    text: str
    finished: bool


class Answerer:
    """The LLM in memory. Raises `ModelReferenceError` where it cannot be loaded."""

    def __init__(self, options: AnswerOptions, *, device: str = "auto", dtype: str = "float32") -> None:
        self.options = options
        shelf = LlmShelf(device=device, dtype=dtype)
        self.model, self.processor = text_reader(shelf.take(options.llm), shelf.tokenizer(options.llm))
        self.settings: dict[str, Any] = {
            **asdict(options),
            "dtype": dtype,
            "llm_digest": llm_digest(self.model.language_model),
        }

    def answer(self, ids: Sequence[str], transcripts: Sequence[str]) -> list[Answer]:
        """Greedy answers, each as if it were alone. Raises `PromptError` where a prompt does not fit."""
        examples = [
            Example(id=id, messages=self._read(transcript), waveforms=[])
            for id, transcript in zip(ids, transcripts, strict=True)
        ]
        found = generate_texts(
            self.model, self.processor, examples, max_new_tokens=self.options.max_new_tokens, batch_tokens=4096
        )
        return [self._answer(generation.text, generation.finished) for generation in found]

    def _read(self, transcript: str) -> list[Message]:
        if self.options.template is not None:
            return [{"role": "user", "content": self.options.template.replace(TRANSCRIPT, transcript)}]
        return list(replace_audio([user_message(self.options.instruction)], [transcript]))

    def _answer(self, text: str, finished: bool) -> Answer:
        first, line_end, _ = text.partition("\n")
        if self.options.first_line:
            return Answer(text=first.strip(), finished=finished or bool(line_end))
        return Answer(text=text.strip(), finished=finished)
