"""What every route takes and gives: a question, a reply, and the facts that make its answers what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from aura.batch.collate import Example
from aura.errors import ModelError

Question = Example
"""A conversation whose last turn is the user's, its audio decoded, and what each audio part truly says."""

Kind = Literal["aura", "bridge", "cascade", "text", "endpoint"]

Progress = Callable[[int], None]  # called with the number of questions that a batch finished


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a route made of one question.

    Args:
        text: the answer; None when it failed.
        finished: the route ended its answer by itself; False where `max_new_tokens` cut it, or it failed.
        new_tokens: tokens of the answer, the end of turn left out; 0 when it failed, or an endpoint does not say.
        wall_seconds: this question's share of its batch, everything included (ASR, encoder, LLM).
        heard: what a cascade's ASR wrote, audio parts joined by a line break.
        error: one line; set exactly when `text` is None.

    Raises:
        ModelError: both or neither of `text` and `error`.
    """

    text: str | None
    finished: bool
    new_tokens: int
    wall_seconds: float
    heard: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) != (self.error is not None):
            raise ModelError(
                f"a reply holds text {self.text!r:.60} and error {self.error!r:.60}; expected exactly one of them. "
                "A failed question has an error and no text, not an empty one"
            )


@dataclass(frozen=True, kw_only=True)
class RouteFacts:
    """What a route is.

    Args:
        name: unique in a comparison, e.g. `cascade`.
        kind: aura, bridge, cascade, text or endpoint.
        settings: everything that decides an answer, as plain JSON values; goes into the report and into the check
            whether an interrupted evaluation may go on.
        parameters: of all networks at run time; None where nobody can tell.
        bytes_on_disk: of all their files; None where nobody can tell.
    """

    name: str
    kind: Kind
    settings: Mapping[str, Any]
    parameters: int | None
    bytes_on_disk: int | None


class Route(Protocol):
    """A way from speech to an answer."""

    @property
    def facts(self) -> RouteFacts: ...

    def answer(
        self, questions: Sequence[Question], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        """Greedy answers in the order of the questions, each as if it were alone.

        A question that cannot be answered becomes a `Reply` with an error; it never stops the others.
        """
        ...

    def first_token(self, question: Question) -> float:
        """Seconds from the end of the speech to the first token of the answer, for this question alone.

        Raises:
            AuraError: the question cannot be answered.
        """
        ...

    def score(self, question: Question, options: Sequence[str]) -> list[float]:
        """Summed log-likelihood (nats) of each option as the whole answer, its end of turn left out.

        Raises:
            AuraError: the route cannot tell, or the question cannot be answered.
        """
        ...
