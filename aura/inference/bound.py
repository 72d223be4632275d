"""What words must show to be written down: how sure the model is of them, and that they are more than one word."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from aura.errors import RecipeError
from aura.inference.confidence import HEARD_AGAIN, HEARD_TWICE, HEARINGS, LONE_WORD, is_lone_word, sureness
from aura.student.model import AuraForConditionalGeneration


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What is asked of a checkpoint's transcripts; `of` fills in what the checkpoint says itself.

    Args:
        min_avg_logprob: what the mean log-probability of a text's tokens must reach, see `sureness`; `-inf` for none, None for
            the checkpoint's own.
        lone_words: whether a text that is one word can count; None for what the checkpoint says, and True where nothing has
            to be sure.

    Raises:
        RecipeError: no log-probability.
    """

    min_avg_logprob: float | None = None
    lone_words: bool | None = None

    def __post_init__(self) -> None:
        least = self.min_avg_logprob
        if least is not None and not least <= 0:
            raise RecipeError(
                f"min_avg_logprob is {least:g}; a log-probability is at most 0, e.g. -0.3 (-inf keeps everything)"
            )

    def of(self, model: AuraForConditionalGeneration, prompt: str | None) -> Held:
        """What holds for a checkpoint that is asked `prompt`; its own bound was found for its own prompt, which is None."""
        own = model.config if prompt is None else None
        least, lone_words = self.min_avg_logprob, self.lone_words
        if least is None:
            least = own.min_avg_logprob if own and own.min_avg_logprob is not None else -math.inf
        if lone_words is None:
            lone_words = own.lone_words if own and least > -math.inf else True
        return Held(least=least, lone_words=lone_words)


EVERYTHING = Bound(min_avg_logprob=-math.inf, lone_words=True)


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a text must show.

    Args:
        least: its `sureness`; `-inf` for nothing.
        lone_words: whether one word can be all of it.
    """

    least: float = -math.inf
    lone_words: bool = True

    @property
    def needs_scores(self) -> bool:
        """Whether it matters how sure the model is, which takes another pass."""
        return self.least > -math.inf

    def is_unsure(self, text: str, avg_logprob: float | None) -> bool:
        """Whether the model is not sure enough of a text; never where nobody asked how sure it is."""
        return avg_logprob is not None and sureness(text, avg_logprob) < self.least

    def is_alone(self, text: str) -> bool:
        """Whether a text is one word, and has to be more."""
        return not self.lone_words and is_lone_word(text)

    def leaves_out(self, text: str, avg_logprob: float | None) -> bool:
        """Whether a text that is all that was heard counts as nothing said."""
        return self.is_alone(text) or self.is_unsure(text, avg_logprob)

    def settings(self) -> dict[str, Any]:
        """What a report says of it: nothing where nothing is left out."""
        found: dict[str, Any] = {}
        if self.needs_scores:
            found |= {"min_avg_logprob": self.least, "heard_again_below": HEARD_AGAIN, "heard_again": list(HEARINGS)}
            found["heard_twice"] = list(HEARD_TWICE)
        if not self.lone_words:
            found["lone_words"] = False
        elif self.needs_scores:
            found["doubt_in_a_lone_word"] = LONE_WORD
        return found
