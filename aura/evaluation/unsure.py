"""Of which tasks an answer that the model is not sure enough of counts as nothing said."""

from __future__ import annotations

from aura.errors import RecipeError
from aura.inference.bound import EVERYTHING, Bound

UNSURE_IS_SILENT = ("transcribe", "silence")


def bound_for(task: str, min_avg_logprob: float | None, lone_words: bool | None = None) -> Bound:
    """What answers of a task must show: what is given, and else what the checkpoint asks; nothing where every answer counts.

    Raises:
        RecipeError: an impossible bound, or one for a task that has none.
    """
    if task in UNSURE_IS_SILENT:
        return Bound(min_avg_logprob=min_avg_logprob, lone_words=lone_words)
    given = {"min_avg_logprob": min_avg_logprob, "lone_words": lone_words}
    if named := [name for name, value in given.items() if value is not None]:
        raise RecipeError(
            f"{' and '.join(named)} given with the task {task}; expected one of {', '.join(UNSURE_IS_SILENT)} with it. Leave it "
            "out: answers to questions always count"
        )
    return EVERYTHING
