"""Spoken commands: a command counts only if its intent and every slot are right.

The rule of the Picovoice speech-to-intent benchmark (full-command accuracy), with intent accuracy and micro
slot F1 beside it, since a model that misses one slot of six is not as wrong as one that hears nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aura.data.utterance import label_text, parse_label
from aura.errors import DataError
from aura.evaluation.scores import Interval, Score, aligned, ratio, share_interval


@dataclass(frozen=True, kw_only=True)
class IntentItem:
    """One command. `parsed` is False where the text is no label throughout: wrong, but not failed."""

    failed: bool
    reference: str
    hypothesis: str | None
    parsed: bool | None
    command: bool | None  # intent and all slots right, none too many
    intent: bool | None
    slots_right: int
    slots_wrong: int  # predicted, but another value or not in the reference
    slots_missed: int  # in the reference, but another value or not predicted


@dataclass(frozen=True, kw_only=True)
class IntentScore(Score):
    """Shares of the scored commands; slots are pooled over all of them (micro), right intent or not."""

    command_accuracy: float | None
    command_accuracy_interval: Interval | None
    intent_accuracy: float | None
    slot_precision: float | None  # right / predicted
    slot_recall: float | None  # right / in the reference
    slot_f1: float | None
    unparsed: int  # texts that are no label throughout; the slots that could be read still count


def intents(reference_labels: Sequence[Mapping[str, Any] | str], hypothesis_texts: Sequence[str | None]) -> IntentScore:
    """Full-command accuracy, intent accuracy, slot precision, recall and F1.

    A slot is right when its name and its value are; one with another value is wrong *and* missed. Case and
    the number of spaces do not count; everything else does.

    Args:
        reference_labels: `{"intent": str, "slots": {name: value}}` per item, or the name of a class without
            slots.
        hypothesis_texts: the model's texts in the form of `label_text`, None for an item that failed.

    Raises:
        DataError: lengths differ, or a label is missing or malformed.
    """
    aligned(reference_labels, hypothesis_texts, None)
    rows = [_intent_item(label, text) for label, text in zip(reference_labels, hypothesis_texts, strict=True)]
    scored = [row for row in rows if not row.failed]
    right = sum(row.slots_right for row in scored)
    predicted = right + sum(row.slots_wrong for row in scored)
    expected = right + sum(row.slots_missed for row in scored)
    return IntentScore(
        items=len(rows),
        scored=len(scored),
        failed=len(rows) - len(scored),
        rows=tuple(rows),
        command_accuracy=ratio(sum(bool(row.command) for row in scored), len(scored)),
        command_accuracy_interval=share_interval([int(not row.command) for row in scored]),
        intent_accuracy=ratio(sum(bool(row.intent) for row in scored), len(scored)),
        slot_precision=ratio(right, predicted),
        slot_recall=ratio(right, expected),
        slot_f1=ratio(2 * right, predicted + expected),
        unparsed=sum(not row.parsed for row in scored),
    )


def _intent_item(label: Mapping[str, Any] | str, text: str | None) -> IntentItem:
    reference = label_text(label)
    intent, slots, _ = _read(reference, plain_class=isinstance(label, str))
    if text is None:
        return IntentItem(
            failed=True,
            reference=reference,
            hypothesis=None,
            parsed=None,
            command=None,
            intent=None,
            slots_right=0,
            slots_wrong=0,
            slots_missed=0,
        )
    given_intent, given_slots, parsed = _read(text, plain_class=isinstance(label, str))
    return IntentItem(
        failed=False,
        reference=reference,
        hypothesis=text,
        parsed=parsed,
        command=parsed and given_intent == intent and given_slots == slots,
        intent=given_intent == intent,
        slots_right=len(slots & given_slots),
        slots_wrong=len(given_slots - slots),
        slots_missed=len(slots - given_slots),
    )


def _read(text: str, *, plain_class: bool) -> tuple[str, set[tuple[str, str]], bool]:
    """Intent, slots, and whether all of `text` was read.

    `parse_label` drops what it cannot read, and for a class name of several words that would be all but the
    first.
    """
    if plain_class:
        return _folded(text), set(), bool(text.strip())
    label = parse_label(text)
    try:
        label_text(label)  # a name with a space in it is prose around an "="
        parts = [part for part in text.strip().partition(" ")[2].split(";") if part.strip()]
        parsed = len(parts) == len(label["slots"])  # fewer slots: a part without "=", or a name given twice
    except DataError:
        parsed = False
    slots = {(_folded(name), _folded(value)) for name, value in label["slots"].items()}
    return _folded(label["intent"]), slots, parsed


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
