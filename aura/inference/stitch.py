"""Texts of neighbouring windows -> one text, words heard twice written once."""

from __future__ import annotations

from collections.abc import Sequence

WORDS_PER_SECOND = 6  # fast speech
MIN_RUN = 2  # words; a single common word counts only right at the border


def drop_overlap(before: str, after: str, *, seconds: float) -> tuple[str, str]:
    """Remove what two overlapping windows both heard.

    The longest run of words common to the end of one text and the beginning of the other is where they meet;
    what stands behind it in the first and in front of it in the second was heard at a cut and is dropped.

    Args:
        before, after: texts of two windows in order.
        seconds: how long the windows overlap; bounds how far from the border is looked.

    Returns:
        the two texts, to be joined by a space.
    """
    reach = max(4, round(seconds * WORDS_PER_SECOND))
    left, right = before.split(), after.split()
    offset = max(0, len(left) - reach)
    tail, head = [_bare(word) for word in left[offset:]], [_bare(word) for word in right[:reach]]
    at_tail, at_head, run = _longest_run(tail, head)
    touches = at_tail + run == len(tail) and at_head == 0
    if run < MIN_RUN and not (run and touches):
        return before, after
    return " ".join(left[: offset + at_tail + run]), " ".join(right[at_head + run :])


def _longest_run(tail: Sequence[str], head: Sequence[str]) -> tuple[int, int, int]:
    """Start in `tail`, start in `head`, length of the longest common run; among equals the nearest pair."""
    best = (0, 0, 0)
    for i in range(len(tail)):
        for j in range(len(head)):
            run = 0
            while i + run < len(tail) and j + run < len(head) and tail[i + run] == head[j + run] != "":
                run += 1
            # Nearest the border: few words behind it on the left, few in front of it on the right.
            if run and (run, i - j) > (best[2], best[0] - best[1] if best[2] else -len(head) - 1):
                best = (i, j, run)
    return best


def _bare(word: str) -> str:
    return "".join(character for character in word.casefold() if character.isalnum())
