"""Which transcripts and answers are good enough to learn from, and why the others are not."""

from __future__ import annotations

from dataclasses import dataclass

from aura.errors import RecipeError
from aura.labelling.hear import Hearing


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Bounds; None switches one off. A figure that an ASR does not give is not judged.

    Args:
        min_avg_logprob: nats a token. Our choice: Whisper's own decoder repeats below -1.0, a label should be better.
        max_no_speech: probability that nobody speaks; Whisper's own bound is 0.6.
        max_compression: Whisper's own bound is 2.4.
        max_words_per_second: faster speech is the ASR's invention. Our choice: quick readers reach 5.
        max_wer: word error rate against a transcript that the row has already, where both are compared. Our choice.
        language: what must have been detected; None for any.
    """

    min_avg_logprob: float | None = -0.7
    max_no_speech: float | None = 0.6
    max_compression: float | None = 2.4
    max_words_per_second: float | None = 7.0
    max_wer: float | None = 0.1
    language: str | None = None

    def __post_init__(self) -> None:
        if self.min_avg_logprob is not None and self.min_avg_logprob > 0:
            raise RecipeError(f"min_avg_logprob is {self.min_avg_logprob}; a log-probability is at most 0, e.g. -0.7")

    def why_not(self, hearing: Hearing, *, seconds: float, wer: float | None = None) -> str | None:
        """Why a transcript is dropped, the same words for the same cause; None when it is kept.

        Args:
            seconds: of the audio.
            wer: against the row's own transcript; None where they were not compared.
        """
        words = len(hearing.text.split())
        if not words:
            return "nothing was heard"
        if self.language is not None and hearing.language not in (None, self.language):
            return f"the language is not {self.language}"
        if _above(hearing.no_speech_prob, self.max_no_speech):
            return f"nobody seems to speak (no_speech_prob above {self.max_no_speech:g})"
        if _above(self.min_avg_logprob, hearing.avg_logprob):
            return f"the ASR is unsure (avg_logprob below {self.min_avg_logprob:g})"
        if _above(hearing.compression_ratio, self.max_compression):
            return f"the text repeats itself (compression_ratio above {self.max_compression:g})"
        if _above(words / max(seconds, 1e-6), self.max_words_per_second):
            return f"more than {self.max_words_per_second:g} words a second"
        if _above(wer, self.max_wer):
            return f"the ASR heard something else than the row says (wer above {self.max_wer:g})"
        return None


def _above(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value > bound
