"""Where an answer differs from the truth, word by word, for people to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aura.errors import require
from aura.evaluation.normalise import UNSPACED, language, normalise


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of words.

    Args:
        kind: `same`, `extra` (only in the answer), `missing` (only in the truth) or `wrong` (one for the other).
        answer: the answer's words as they were written; empty where they are missing.
        truth: the truth's words, where they are missing or others.
    """

    kind: Literal["same", "extra", "missing", "wrong"]
    answer: str
    truth: str = ""


def diff_words(truth: str | Sequence[str], answer: str, *, lang: str | None = "en") -> list[Piece]:
    """The answer in pieces, aligned with the nearest of the accepted truths at the least number of edits.

    Words are compared after the normalisation that scores use, each by itself, so case, punctuation and "7" for
    "seven" are no difference; words that normalise to nothing ("uh", a dash) never count.
    """
    truths = [truth] if isinstance(truth, str) else list(truth)
    found = [_diff(one, answer, lang) for one in truths]
    return min(
        found, key=lambda pieces: sum(len(_words(p.truth or p.answer, lang)) for p in pieces if p.kind != "same")
    )


def _diff(truth: str, answer: str, lang: str | None) -> list[Piece]:
    jiwer = require("jiwer", extra="eval", purpose="Marking the errors of an answer")
    joint = "" if language(lang) in UNSPACED else " "
    wanted, given = _words(truth, lang), _words(answer, lang)
    wanted_at, given_at = (_counting(words, lang) for words in (wanted, given))
    keys = [[normalise(words[at], lang) for at in where] for words, where in ((wanted, wanted_at), (given, given_at))]
    [chunks] = jiwer.process_words([keys[0]], [keys[1]], lambda lists: lists, lambda lists: lists).alignments
    pieces: list[Piece] = []
    done = 0  # words of the answer already written, those that do not count included
    for chunk in chunks:
        right = [wanted[at] for at in wanted_at[chunk.ref_start_idx : chunk.ref_end_idx]]
        end = chunk.hyp_end_idx
        upto = given_at[end - 1] + 1 if end > chunk.hyp_start_idx else done
        start = given_at[chunk.hyp_start_idx] if end > chunk.hyp_start_idx else done
        if start > done:
            pieces.append(Piece(kind="same", answer=joint.join(given[done:start])))
        kind = _KINDS[chunk.type]
        pieces.append(
            Piece(kind=kind, answer=joint.join(given[start:upto]), truth="" if kind == "same" else joint.join(right))
        )
        done = upto
    if done < len(given):
        pieces.append(Piece(kind="same", answer=joint.join(given[done:])))
    return pieces


_KINDS: dict[str, Literal["same", "extra", "missing", "wrong"]] = {
    "equal": "same",
    "insert": "extra",
    "delete": "missing",
    "substitute": "wrong",
}


def _words(text: str, lang: str | None) -> list[str]:
    return list("".join(text.split())) if language(lang) in UNSPACED else text.split()


def _counting(words: Sequence[str], lang: str | None) -> list[int]:
    """Places of the words that normalise to something."""
    return [at for at, word in enumerate(words) if normalise(word, lang)]
