"""One score, cut by speaker, by length, by language, by noise, and by what is heard where nobody speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aura.data.utterance import Utterance, no_speech_kind
from aura.errors import AudioError
from aura.evaluation.intents import IntentItem
from aura.evaluation.metrics import TranscriptionItem
from aura.evaluation.noise import snr_of
from aura.evaluation.scores import ratio
from aura.evaluation.silence import SilenceItem
from aura.evaluation.tasks import TaskScore

LENGTHS = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0)  # seconds, upper ends of the buckets; our choice
COUNTS = ("words", "substitutions", "deletions", "insertions", "characters", "character_errors")
UNKNOWN = "unknown"


def tables(
    utterances: Sequence[Utterance], score: TaskScore, *, lengths: Sequence[float] = LENGTHS
) -> dict[str, list[dict[str, Any]]]:
    """A table for each thing the utterances differ in.

    Args:
        utterances: in the order that was scored.
        score: what `Task.score` gave for them.
        lengths: upper ends of the length buckets, seconds, ascending.

    Returns:
        `by_speaker`, `by_length`, `by_lang`, `by_snr`, `by_no_speech` (silence, noise, music ...; None for speech) and
        `by_sound` (the label's `sound`, e.g. `clicks`), `by_category` (the label's `category`, of questions): lists of rows,
        each with the group's name and what `pooled` gives. A table with a single group is left out, except that of the
        lengths.
    """
    cuts: dict[str, tuple[str, Callable[[Utterance], Any]]] = {
        "by_speaker": ("speaker", lambda utterance: utterance.speaker or UNKNOWN),
        "by_length": ("seconds", lambda utterance: _bucket(utterance, lengths)),
        "by_lang": ("lang", lambda utterance: utterance.lang or UNKNOWN),
        "by_snr": ("snr_db", snr_of),
        "by_no_speech": ("no_speech", lambda utterance: no_speech_kind(utterance.label)),
        "by_sound": ("sound", _sound),
        "by_category": ("category", _category),
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, (column, key_of) in cuts.items():
        groups: dict[Any, list[int]] = {}
        for index, utterance in enumerate(utterances):
            groups.setdefault(key_of(utterance), []).append(index)
        if len(groups) > 1 or (name == "by_length" and groups):
            found[name] = [{column: _name(key), **pooled(score, groups[key])} for key in sorted(groups, key=_order)]
    return found


def pooled(score: TaskScore, indices: Sequence[int]) -> dict[str, Any]:
    """Rates of some of the items, their errors summed before they are divided.

    Returns:
        `items`, `failed`, `accuracy`; for transcripts `wer`, `cer` and the counts behind them; for commands
        `intent_accuracy` and `slot_f1`; for silence `false_transcript_rate` and `mean_words`.
    """
    scored = [score.rows[index] for index in indices if not score.rows[index].failed]
    right = [score.correct[index] for index in indices if score.correct[index] is not None]
    found = {
        "items": len(indices),
        "failed": len(indices) - len(scored),
        "accuracy": ratio(sum(map(bool, right)), len(right)),
    }
    kind = type(score.rows[indices[0]])
    return {**found, **(RATES[kind](scored) if kind in RATES else {})}


def _of_transcripts(rows: Sequence[Any]) -> dict[str, Any]:
    counts = {name: sum(getattr(row, name) for row in rows) for name in COUNTS}
    errors = counts["substitutions"] + counts["deletions"] + counts["insertions"]
    wer, cer = ratio(errors, counts["words"]), ratio(counts["character_errors"], counts["characters"])
    return {"wer": wer, "cer": cer, **counts}


def _of_commands(rows: Sequence[Any]) -> dict[str, Any]:
    right, wrong, missed = (sum(getattr(row, f"slots_{end}") for row in rows) for end in ("right", "wrong", "missed"))
    return {
        "intent_accuracy": ratio(sum(bool(row.intent) for row in rows), len(rows)),
        "slot_f1": ratio(2 * right, 2 * right + wrong + missed),
    }


def _of_silence(rows: Sequence[Any]) -> dict[str, Any]:
    false = sum(bool(row.invented) for row in rows)
    return {
        "false_transcript_rate": ratio(false, len(rows)),
        "mean_words": ratio(sum(row.words for row in rows), false),
    }


RATES: dict[type, Callable[[Sequence[Any]], dict[str, Any]]] = {
    TranscriptionItem: _of_transcripts,
    IntentItem: _of_commands,
    SilenceItem: _of_silence,
}
"""By kind of row."""


def _sound(utterance: Utterance) -> str | None:
    kind = no_speech_kind(utterance.label)
    return None if kind is None else f"{kind}: {utterance.label.get('sound', UNKNOWN)}"


def _category(utterance: Utterance) -> str | None:
    category = utterance.label.get("category") if isinstance(utterance.label, Mapping) else None
    return category if isinstance(category, str) else None


def _bucket(utterance: Utterance, lengths: Sequence[float]) -> Any:
    try:
        seconds = utterance.seconds
    except AudioError:
        return UNKNOWN
    low = 0.0
    for high in lengths:
        if seconds < high:
            return low, high
        low = high
    return low, float("inf")


def _name(key: Any) -> Any:
    """A bucket as people read it; everything else as it is, None for clean."""
    if not isinstance(key, tuple):
        return key
    low, high = key
    return f"{low:g} and more" if high == float("inf") else f"{low:g} to {high:g}"


def _order(key: Any) -> tuple[int, Any]:
    """Numbers and buckets in order, clean after all noise; then names, what is unknown last."""
    if key is None:
        return 0, float("inf")
    if key == UNKNOWN:
        return 3, ""
    return (1, str(key)) if isinstance(key, str) else (0, key)
