"""Numbers about answers: word error rate, exact and numeric match, choices, intents and slots, silence.

Two rules hold for every metric here:

- **A failed item is no answer.** Its hypothesis is None, never `""`. It is left out of every rate and counted
  in `failed`, and a score always carries `items` (given), `scored` and `failed` together. `items = scored +
  failed`.
- **A rate over nothing is None**, not 0 and not 1: the word error rate of clips that hold no speech at all,
  the F1 of commands without slots, any rate where every item failed. JSON writes it as `null`.

Intervals are 95 % bootstrap intervals over items (`bootstrap_interval`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aura.errors import require
from aura.evaluation.answers import AnswerScore, answers
from aura.evaluation.choices import ChoiceScore, choices
from aura.evaluation.intents import IntentScore, intents
from aura.evaluation.normalise import characters, normalise
from aura.evaluation.scores import Interval, Languages, Score, aligned, bootstrap_interval, ratio
from aura.evaluation.silence import SilenceScore, silence

__all__ = [
    "AnswerScore",
    "ChoiceScore",
    "IntentScore",
    "Score",
    "SilenceScore",
    "TranscriptionScore",
    "answers",
    "bootstrap_interval",
    "choices",
    "intents",
    "silence",
    "transcription",
]


@dataclass(frozen=True, kw_only=True)
class TranscriptionItem:
    """One clip: normalised texts, counts of words and characters. A failed clip has no hits and no errors."""

    failed: bool
    reference: str
    hypothesis: str | None
    words: int
    hits: int
    word_errors: int  # substitutions + deletions + insertions
    substitutions: int
    deletions: int
    insertions: int
    characters: int
    character_errors: int
    exact: bool | None  # None for a failed clip


@dataclass(frozen=True, kw_only=True)
class TranscriptionScore(Score):
    """Corpus-level error rates: sum of errors / sum of reference words (or characters) of the scored clips.

    **Silence.** A clip whose normalised reference is empty adds no words to the denominator, and every word
    heard in it is an insertion in the numerator, as in jiwer. `silent_items`, `false_transcripts` (silent
    clips that got words) and `false_words` show that share by itself. When all scored clips are silent, `wer`
    and `cer` are None (jiwer gives the number of insertions there, which is no rate).
    """

    wer: float | None
    wer_interval: Interval | None
    cer: float | None
    exact_match: float | None  # normalised texts are equal; a silent clip left silent is a match
    hits: int
    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    character_errors: int
    reference_characters: int
    silent_items: int
    false_transcripts: int
    false_words: int


def transcription(
    references: Sequence[str], hypotheses: Sequence[str | None], *, lang: Languages = "en"
) -> TranscriptionScore:
    """Word and character error rates after Whisper's normalisation.

    Args:
        references: true transcripts; `""` for a clip without speech.
        hypotheses: the model's texts, None for an item that failed.
        lang: language code of all items, or one per item; decides the normaliser (see `normalise`). Languages
            written without spaces are scored by grapheme, so their `wer` is close to their `cer`.

    Raises:
        DataError: lengths differ, or a reference is missing.
    """
    langs = aligned(references, hypotheses, lang)
    pairs = [
        (normalise(reference, code), None if hypothesis is None else normalise(hypothesis, code))
        for reference, hypothesis, code in zip(references, hypotheses, langs, strict=True)
    ]
    heard = [(reference, hypothesis or "") for reference, hypothesis in pairs]
    words = _edit_counts([(ref.split(), hyp.split()) for ref, hyp in heard])
    letters = _edit_counts(
        [
            (list(characters(ref, code)), list(characters(hyp, code)))
            for (ref, hyp), code in zip(heard, langs, strict=True)
        ]
    )
    rows = []
    for (reference, hypothesis), by_word, by_letter in zip(pairs, words, letters, strict=True):
        failed = hypothesis is None
        hits, substitutions, deletions, insertions = (0, 0, 0, 0) if failed else by_word
        rows.append(
            TranscriptionItem(
                failed=failed,
                reference=reference,
                hypothesis=hypothesis,
                words=sum(by_word[:3]),
                hits=hits,
                word_errors=substitutions + deletions + insertions,
                substitutions=substitutions,
                deletions=deletions,
                insertions=insertions,
                characters=sum(by_letter[:3]),
                character_errors=0 if failed else sum(by_letter[1:]),
                exact=None if failed else reference == hypothesis,
            )
        )
    return _transcription_score(rows)


def _transcription_score(rows: Sequence[TranscriptionItem]) -> TranscriptionScore:
    scored = [row for row in rows if not row.failed]
    silent = [row for row in scored if row.words == 0]
    errors, words = [row.word_errors for row in scored], [row.words for row in scored]
    character_errors = sum(row.character_errors for row in scored)
    reference_characters = sum(row.characters for row in scored)
    return TranscriptionScore(
        items=len(rows),
        scored=len(scored),
        failed=len(rows) - len(scored),
        rows=tuple(rows),
        wer=ratio(sum(errors), sum(words)),
        wer_interval=bootstrap_interval(errors, words) if sum(words) else None,
        cer=ratio(character_errors, reference_characters),
        exact_match=ratio(sum(bool(row.exact) for row in scored), len(scored)),
        hits=sum(row.hits for row in scored),
        substitutions=sum(row.substitutions for row in scored),
        deletions=sum(row.deletions for row in scored),
        insertions=sum(row.insertions for row in scored),
        reference_words=sum(words),
        character_errors=character_errors,
        reference_characters=reference_characters,
        silent_items=len(silent),
        false_transcripts=sum(row.insertions > 0 for row in silent),
        false_words=sum(row.insertions for row in silent),
    )


def _edit_counts(pairs: Sequence[tuple[list[str], list[str]]]) -> list[tuple[int, int, int, int]]:
    """(hits, substitutions, deletions, insertions) per pair of token lists, aligned by jiwer."""
    return list(_counted(pairs)) if pairs else []


def _counted(pairs: Sequence[tuple[list[str], list[str]]]) -> Iterator[tuple[int, int, int, int]]:
    jiwer = require("jiwer", extra="eval", purpose="Scoring a transcript")
    references, hypotheses = map(list, zip(*pairs, strict=True))
    # The texts come split: jiwer's own transforms would split and strip a second time.
    output = jiwer.process_words(references, hypotheses, lambda lists: lists, lambda lists: lists)
    for chunks in output.alignments:
        counts = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
        for chunk in chunks:
            length = (
                chunk.hyp_end_idx - chunk.hyp_start_idx
                if chunk.type == "insert"
                else chunk.ref_end_idx - chunk.ref_start_idx
            )
            counts[chunk.type] += length
        yield counts["equal"], counts["substitute"], counts["delete"], counts["insert"]
