"""Which student layer learns from which teacher layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aura.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class LayerPair:
    """1-based layers, paired by what each of them outputs."""

    teacher: int
    student: int


def spread_layers(teacher_layers: int, student_layers: int) -> tuple[LayerPair, ...]:
    """Teacher layers 1..L spread evenly over student layers 1..N, the last on the last (our choice).

    With fewer student layers than teacher layers, teacher layers are thinned out; the last one always stays.
    """
    pairs = min(teacher_layers, student_layers)
    return tuple(
        LayerPair(
            teacher=round((index + 1) * teacher_layers / pairs),
            student=round((index + 1) * student_layers / pairs),
        )
        for index in range(pairs)
    )


def layer_pairs(
    *,
    teacher_layers: int,
    llm_layers: int,
    student_layers: int | None = None,
    explicit: Sequence[tuple[int, int]] | None = None,
) -> tuple[LayerPair, ...]:
    """The pairs a recipe asks for.

    Args:
        student_layers: N; two thirds of the LLM when None (the prototype's 12 of 18, VoRA's 24 of 28 is 0.86).
        explicit: (teacher, student) pairs instead.

    Raises:
        RecipeError: no pair, a layer beyond either model, or one student layer twice.
    """
    if explicit is None:
        wanted = student_layers if student_layers is not None else max(1, round(llm_layers * 2 / 3))
        if not 1 <= wanted <= llm_layers:
            raise RecipeError(f"distill.student_layers is {wanted}; expected 1 to {llm_layers}, the layers of the LLM")
        return spread_layers(teacher_layers, wanted)
    if not explicit:
        raise RecipeError("distill.layer_map is empty; expected pairs such as [[6, 12]], or null to spread the layers")
    pairs = tuple(LayerPair(teacher=t, student=s) for t, s in explicit)
    for pair in pairs:
        if not (1 <= pair.teacher <= teacher_layers and 1 <= pair.student <= llm_layers):
            raise RecipeError(
                f"distill.layer_map pairs teacher layer {pair.teacher} with student layer {pair.student}; expected 1 to "
                f"{teacher_layers} and 1 to {llm_layers}"
            )
    if len({pair.student for pair in pairs}) != len(pairs):
        raise RecipeError("distill.layer_map names a student layer twice; each may learn from one teacher layer")
    return pairs
