"""Clips without speech: how often a model hears words in them, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aura.evaluation.scores import Interval, Score, aligned, ratio, share_interval


@dataclass(frozen=True, kw_only=True)
class SilenceItem:
    """One clip; `words` and `characters` of what was invented, 0 where nothing was. A failed clip is neither."""

    failed: bool
    hypothesis: str | None
    invented: bool | None
    quiet: bool | None
    words: int
    characters: int


@dataclass(frozen=True, kw_only=True)
class SilenceScore(Score):
    """`false_transcript_rate` is the share of the scored clips that got words; the means are over those clips."""

    quiet: float | None  # one minus that
    false_transcripts: int
    false_transcript_rate: float | None
    false_transcript_interval: Interval | None
    mean_words: float | None
    mean_characters: float | None


def silence(hypotheses: Sequence[str | None]) -> SilenceScore:
    """False transcripts: a reply with any letter or digit in it counts, so "..." does not and "[music]" does.

    Args:
        hypotheses: the model's texts on clips without speech, None for an item that failed.

    Raises:
        DataError: a single text instead of a list.
    """
    aligned([""] * len(hypotheses) if not isinstance(hypotheses, str) else "", hypotheses, None)
    rows = [_silence_item(text) for text in hypotheses]
    scored = [row for row in rows if not row.failed]
    false = [row for row in scored if row.invented]
    return SilenceScore(
        items=len(rows),
        scored=len(scored),
        failed=len(rows) - len(scored),
        rows=tuple(rows),
        quiet=ratio(len(scored) - len(false), len(scored)),
        false_transcripts=len(false),
        false_transcript_rate=ratio(len(false), len(scored)),
        false_transcript_interval=share_interval([int(bool(row.quiet)) for row in scored]),
        mean_words=ratio(sum(row.words for row in false), len(false)),
        mean_characters=ratio(sum(row.characters for row in false), len(false)),
    )


def _silence_item(text: str | None) -> SilenceItem:
    if text is None:
        return SilenceItem(failed=True, hypothesis=None, invented=None, quiet=None, words=0, characters=0)
    words = text.split() if any(char.isalnum() for char in text) else []
    return SilenceItem(
        failed=False,
        hypothesis=text,
        invented=bool(words),
        quiet=not words,
        words=len(words),
        characters=len(" ".join(words)),
    )
