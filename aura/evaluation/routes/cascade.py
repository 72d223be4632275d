"""The cascade route: an ASR writes down what it hears, and the LLM reads that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aura.data.utterance import Utterance
from aura.errors import AuraError, ModelError
from aura.evaluation.routes.answering import BATCH_TOKENS, failed
from aura.evaluation.routes.llm import LlmShelf
from aura.evaluation.routes.recognise import AsrOptions, Recogniser, open_recogniser
from aura.evaluation.routes.route import Progress, Question, Reply, RouteFacts
from aura.evaluation.routes.text import TextReader, open_reader


@dataclass(frozen=True, kw_only=True)
class _Recognised:
    """What the ASR made of one question."""

    texts: tuple[str, ...]
    tokens: int
    seconds: float  # wall
    error: AuraError | None = None

    @property
    def heard(self) -> str:
        return "\n".join(self.texts)


class CascadeRoute:
    """ASR, then the same LLM that the other routes use.

    Args:
        recogniser: the ASR.
        reader: the LLM; None where the ASR's text is the answer (transcription).
        name: in reports.
    """

    def __init__(self, recogniser: Recogniser, reader: TextReader | None, *, name: str = "cascade") -> None:
        self.recogniser = recogniser
        self.reader = reader
        read = reader.settings if reader is not None else {"llm": None}
        self.facts = RouteFacts(
            name=name,
            kind="cascade",
            settings={**recogniser.settings, **read, "asr_only": reader is None},
            parameters=_sum(recogniser.parameters, reader.parameters if reader is not None else 0),
            bytes_on_disk=_sum(recogniser.bytes_on_disk, reader.bytes_on_disk if reader is not None else 0),
        )

    def answer(
        self, questions: Sequence[Question], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        recognised = []
        for question in questions:
            recognised.append(self._hear(question))
            if self.reader is None and progress is not None:
                progress(1)
        if self.reader is None:
            return [_as_answer(found) for found in recognised]
        written = [self._written(question, found) for question, found in zip(questions, recognised, strict=True)]
        replies = self.reader.answerer.answer(written, max_new_tokens=max_new_tokens, progress=progress)
        return [
            replace(
                reply,
                wall_seconds=reply.wall_seconds + found.seconds,
                heard=None if found.error is not None else found.heard,
            )
            for reply, found in zip(replies, recognised, strict=True)
        ]

    def first_token(self, question: Question) -> float:
        """Without an LLM: until the whole text stands there, since a beam search shows nothing earlier."""
        start = time.perf_counter()
        found = self._hear(question)
        if found.error is not None:
            raise found.error
        if self.reader is not None:
            self.reader.answerer.first_token(self.reader.read(question, found.texts))
        return time.perf_counter() - start

    def score(self, question: Question, options: Sequence[str]) -> list[float]:
        if self.reader is None:
            raise ModelError(
                f"the route {self.facts.name} ends with its ASR, which scores no options; open it with an LLM"
            )
        found = self._hear(question)
        if found.error is not None:
            raise found.error
        return self.reader.answerer.score(self.reader.read(question, found.texts), options)

    def _written(self, question: Question, found: _Recognised) -> Question | AuraError:
        if found.error is not None or self.reader is None:
            return found.error or ModelError("no LLM")
        try:
            return self.reader.read(question, found.texts)
        except AuraError as error:
            return error

    def _hear(self, question: Question) -> _Recognised:
        start = time.perf_counter()
        texts: list[str] = []
        tokens = 0
        error: AuraError | None = None
        try:
            for wave_N in question.waveforms:
                heard = self.recogniser.hear(wave_N)
                texts.append(heard.text)
                tokens += heard.tokens
        except AuraError as known:
            error = known
        except (RuntimeError, ValueError) as other:  # what ctranslate2, torch and numpy raise
            error = ModelError(f"the ASR failed on {question.id}: {type(other).__name__}: {other}")
        seconds = time.perf_counter() - start
        return _Recognised(texts=tuple(texts), tokens=tokens, seconds=seconds, error=error)


def open_cascade(
    asr: AsrOptions,
    *,
    llm: str | None,
    shelf: LlmShelf,
    shots: Sequence[Utterance] = (),
    shot_prompt: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    name: str = "cascade",
) -> CascadeRoute:
    """ASR and LLM behind their references.

    Args:
        llm: reference of the LLM; None where the ASR's text is the answer.
        shots: conversations put in front of each question, with what this ASR hears in place of their transcripts:
            the LLM then sees how it writes ("4" for "four"), as whoever builds a cascade would show it.
        shot_prompt: see `shot_messages`.

    Raises:
        AudioError: a shot that cannot be heard.
        AuraError: see `open_recogniser`, `open_reader`.
    """
    recogniser = open_recogniser(asr, device=shelf.device, dtype=shelf.dtype)
    if llm is None:
        return CascadeRoute(recogniser, None, name=name)
    heard = [
        replace(shot, transcript=" ".join(recogniser.hear(part.load()).text for part in shot.audio)) for shot in shots
    ]
    reader = open_reader(
        llm=llm,
        shelf=shelf,
        shots=heard,
        shots_say="what the ASR heard",
        shot_prompt=shot_prompt,
        batch_tokens=batch_tokens,
    )
    return CascadeRoute(recogniser, reader, name=name)


def _as_answer(found: _Recognised) -> Reply:
    if found.error is not None:
        return failed(found.error, seconds=found.seconds)
    return Reply(
        text=found.heard, finished=True, new_tokens=found.tokens, wall_seconds=found.seconds, heard=found.heard
    )


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
