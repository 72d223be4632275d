"""Of which tasks an answer that the model is not sure enough of counts as nothing said."""

from __future__ import annotations

import math

from aura.errors import RecipeError
from aura.inference.transcribe import check_bound

UNSURE_IS_SILENT = ("transcribe", "silence")


def bound_for(task: str, min_avg_logprob: float | None) -> float | None:
    """What answers of a task must reach: the given bound, None for the checkpoint's own, `-inf` where every answer counts.

    Raises:
        RecipeError: an impossible bound, or one for a task that has none.
    """
    if task in UNSURE_IS_SILENT:
        return None if min_avg_logprob is None else check_bound(min_avg_logprob)
    if min_avg_logprob is not None:
        raise RecipeError(
            f"min_avg_logprob is given with the task {task}; expected one of {', '.join(UNSURE_IS_SILENT)} with it. Leave it out: "
            "answers to questions always count"
        )
    return -math.inf
