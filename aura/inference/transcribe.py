"""Recordings of any length -> transcripts; the windows of all of them go through the model together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aura.batch.collate import Example
from aura.batch.prompt import user_message
from aura.data.utterance import NO_SPEECH_ANSWER
from aura.errors import AuraError
from aura.inference.bound import Bound, Held
from aura.inference.generate import Generation
from aura.inference.messages import rereadable
from aura.inference.stitch import drop_overlap
from aura.inference.windows import OVERLAP, WINDOW, Window, check_window, read_windows
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor

MAX_NEW_TOKENS = 256  # per window: 30 s of fast English are about 200
BATCHES_AHEAD = 8  # batches' worth of windows held in memory, so that like lengths can be batched


class Listener(Protocol):
    """What transcription needs of an engine."""

    model: AuraForConditionalGeneration
    processor: AuraProcessor

    def generate(self, examples: Sequence[Example], *, max_new_tokens: int, batch_tokens: int) -> list[Generation]: ...

    def confidence(
        self, examples: Sequence[Example], generations: Sequence[Generation], *, batch_tokens: int
    ) -> list[float]: ...


def written(avg_logprob: float) -> float | None:
    """As it stands in JSON, which knows no infinity."""
    return round(avg_logprob, 4) if math.isfinite(avg_logprob) else None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """What one window says; seconds in the recording.

    Args:
        avg_logprob: mean log-probability of its tokens, see `confidence`; None where nobody asked.
    """

    start: float
    end: float
    text: str
    avg_logprob: float | None = None

    def as_dict(self) -> dict[str, Any]:
        scored = {} if self.avg_logprob is None else {"avg_logprob": written(self.avg_logprob)}
        return {"start": self.start, "end": self.end, "text": self.text, **scored}


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What a recording says.

    Args:
        text: all of it.
        segments: the stretches it was heard in, in order, those without words left out.
        seconds: length of the recording.
        truncated: an answer hit `max_new_tokens`, so words may be missing (or a model looped).
        unsure: windows whose words were left out, see `min_avg_logprob` and `lone_words`.
    """

    text: str
    segments: tuple[Segment, ...]
    seconds: float
    truncated: bool = False
    unsure: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        segments = [segment.as_dict() for segment in self.segments]
        left_out = {"unsure": self.unsure} if self.unsure else {}
        return {
            "text": self.text,
            "seconds": self.seconds,
            "truncated": self.truncated,
            **left_out,
            "segments": segments,
        }


@dataclass(frozen=True, kw_only=True)
class _Heard:
    """A window's text, without its samples."""

    start: float
    end: float
    overlaps: bool
    text: str
    finished: bool
    avg_logprob: float | None = None
    is_unsure: bool = False
    is_alone: bool = False

    def left_out(self) -> _Heard:
        return replace(self, text="", finished=True, is_unsure=True)


def transcribe_each(
    engine: Listener,
    sources: Sequence[Any],
    *,
    prompt: str | None = None,
    window: float | None = None,
    overlap: float | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_tokens: int = 2048,
    min_avg_logprob: float | None = None,
    lone_words: bool | None = None,
    scores: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[int, Transcript | AuraError]]:
    """(index, transcript) as recordings are done, and (index, error) for one that cannot be heard.

    Args:
        sources: anything `load_waveform` takes.
        prompt: text behind the audio; None for what training used, `""` for the audio alone.
        window, overlap: see `read_windows`.
        max_new_tokens: per window.
        batch_tokens: see `generate_texts`.
        min_avg_logprob: what a window's text must reach in the mean log-probability of its tokens, or nothing counts as
            said there; None for the checkpoint's own bound, if it has one and the prompt is its own, `-inf` for none.
            A window is heard twice, a short one four times, and the lowest mean counts: see `confidence`. A lone word's
            counts twice: see `sureness`.
        lone_words: False leaves out a word that is all a window says, where no other window of the recording says more; None
            for what the checkpoint says, if a bound holds.
        scores: segments carry that mean, also without a bound.
        progress: called with the seconds of audio that were done.

    Raises:
        RecipeError: an impossible window or bound.
        PromptError: a prompt that cannot be rendered.
    """
    config = engine.model.config
    window = min(WINDOW, config.max_seconds) if window is None else window
    overlap = min(OVERLAP, window / 2) if overlap is None else overlap
    check_window(window, overlap, max_seconds=config.max_seconds)
    held = Bound(min_avg_logprob=min_avg_logprob, lone_words=lone_words).of(engine.model, prompt)
    message = user_message(config.prompt if prompt is None else prompt)
    positions = engine.processor.feature_extractor.grid.count_seconds(window) + max_new_tokens
    ahead = BATCHES_AHEAD * max(1, batch_tokens // positions)
    heard: dict[int, list[_Heard]] = {}
    stream = _windows_of_all(sources, window, overlap)
    while chunk := list(itertools.islice(stream, ahead)):
        spoken = [piece for _, piece in chunk if isinstance(piece, Window) and not piece.is_silent]
        examples = [
            Example(id=f"the window at {w.start:.1f} s", messages=[message], waveforms=[w.wave_N]) for w in spoken
        ]
        generations = engine.generate(examples, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens)
        sure = _scores(engine, examples, generations, batch_tokens) if scores or held.needs_scores else {}
        answers = iter(enumerate(generations))
        for index, piece in chunk:
            if isinstance(piece, Window):
                number, answer = (-1, None) if piece.is_silent else next(answers)
                heard.setdefault(index, []).append(_heard(piece, answer, sure.get(number), held))
                if progress is not None:
                    progress(piece.end - piece.start)
            elif piece is None:
                yield index, _join(heard.pop(index))
            else:
                heard.pop(index, None)
                yield index, piece


def _scores(
    engine: Listener, examples: Sequence[Example], generations: Sequence[Generation], batch_tokens: int
) -> dict[int, float]:
    """How sure the model is by window, of those that say something."""
    said = [i for i, generation in enumerate(generations) if _said(generation)]
    found = engine.confidence([examples[i] for i in said], [generations[i] for i in said], batch_tokens=batch_tokens)
    return dict(zip(said, found, strict=True))


def _said(answer: Generation | None) -> str:
    text = " ".join(answer.text.split()) if answer else ""  # one line: blank ones would end an SRT cue
    return "" if text == NO_SPEECH_ANSWER else text


def _heard(window: Window, answer: Generation | None, avg_logprob: float | None, held: Held) -> _Heard:
    text = _said(answer)
    found = _Heard(
        start=window.start,
        end=window.end,
        overlaps=window.overlaps,
        text=text,
        finished=answer is None or answer.finished,
        avg_logprob=avg_logprob,
        is_alone=held.is_alone(text),
    )
    return found.left_out() if held.is_unsure(text, avg_logprob) else found


def _windows_of_all(
    sources: Sequence[Any], window: float, overlap: float
) -> Iterator[tuple[int, Window | AuraError | None]]:
    """Every source's windows, then None at its end, or the error that ended it."""
    for index, source in enumerate(sources):
        try:
            for piece in read_windows(rereadable(source), window=window, overlap=overlap):
                yield index, piece
            yield index, None
        except AuraError as error:
            yield index, error


def _join(heard: Sequence[_Heard]) -> Transcript:
    if not any(h.text and not h.is_alone for h in heard):  # beside other words, a word is not alone
        heard = [h.left_out() if h.is_alone and h.text else h for h in heard]
    texts = [h.text for h in heard]
    starts, ends = [h.start for h in heard], [h.end for h in heard]
    for i in range(1, len(heard)):
        if heard[i].overlaps:
            shared = ends[i - 1] - starts[i]
            texts[i - 1], texts[i] = drop_overlap(texts[i - 1], texts[i], seconds=shared)
            ends[i - 1] = starts[i] = starts[i] + shared / 2
    segments = [
        Segment(start=round(start, 3), end=round(end, 3), text=text, avg_logprob=h.avg_logprob)
        for start, end, text, h in zip(starts, ends, texts, heard, strict=True)
        if text
    ]
    return Transcript(
        text=" ".join(s.text for s in segments),
        segments=tuple(segments),
        seconds=round(heard[-1].end, 3),
        truncated=not all(h.finished for h in heard),
        unsure=sum(h.is_unsure for h in heard),
    )


def to_srt(transcript: Transcript) -> str:
    """SubRip text, one cue a segment."""
    cues = [
        f"{number}\n{_srt_time(s.start)} --> {_srt_time(s.end)}\n{s.text}\n"
        for number, s in enumerate(transcript.segments, start=1)
    ]
    return "\n".join(cues)


def _srt_time(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d},{rest % 1000:03d}"
