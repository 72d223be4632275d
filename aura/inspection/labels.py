"""What the probes read out of a clip: its words, the characters and words in it, who speaks.

There is no forced aligner at hand, so labels are of whole clips and probes read the mean over a clip's positions, except
for a teacher with a CTC head, whose own reading labels single patches (see `aura.inspection.ctc`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from aura.inspection.items import Clip
from aura.inspection.splits import grouped_folds, speaker_groups, stratified_folds

FOLDS = 5
MOST_TEXTS = 60  # different transcripts at most for "which of them was said"
CLOSED_SHARE = 0.8  # of the clips whose text stands in at least FOLDS clips
RARE, COMMON = 0.1, 0.9  # a character or word in fewer or more of the clips than that is left out
MOST_WORDS = 40
FEWEST_LABELS = 3
FEWEST_EACH = 10  # clips with and clips without a character or word


@dataclass(frozen=True, kw_only=True)
class Task:
    """One thing to read out.

    Args:
        name: of the probe.
        kind: `class`: one of C; `presence`: each of C is there or not.
        question: in words, for the report.
        members: (n,) clip (or position) numbers that have a label.
        targets: (n, C) 0 or 1.
        classes: their C names.
        folds: (n,) each is read by a probe that was trained on the other folds.
        groups: (n,) what folds keep together, for the choice of the penalty.
        split: what folds keep together, in words.
        level: `clip` or `position`.
    """

    name: str
    kind: Literal["class", "presence"]
    question: str
    members: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...]
    folds: np.ndarray
    groups: np.ndarray
    split: str
    level: Literal["clip", "position"] = "clip"


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A probe that could not be run, and why."""

    name: str
    reason: str


def clip_tasks(clips: Sequence[Clip], *, seed: int) -> list[Task | LeftOut]:
    """The probes that these clips allow; each of the others with its reason."""
    texts = [_words(clip.utterance.transcript) for clip in clips]
    return [
        _which_text(clips, texts, seed),
        *(_presence(clips, texts, unit, seed) for unit in ("character", "word")),
        _speaker(clips, seed),
    ]


def _words(transcript: str | None) -> tuple[str, ...] | None:
    return None if transcript is None else tuple(re.findall(r"[^\W_]+(?:['’][^\W_]+)*", transcript.casefold()))


def content_groups(clips: Sequence[Clip], members: np.ndarray) -> tuple[np.ndarray, str]:
    """What a content probe must not share between training and test: speakers where known, else clips."""
    groups, reason = speaker_groups([clips[i] for i in members])
    if groups is None:
        return np.arange(len(members)), f"clips ({reason})"
    return groups, "speakers"


def _which_text(clips: Sequence[Clip], texts: Sequence[tuple[str, ...] | None], seed: int) -> Task | LeftOut:
    name = "text"
    said = [None if words is None else " ".join(words) for words in texts]
    counts = Counter(text for text in said if text)
    classes = sorted(text for text, count in counts.items() if count >= FOLDS)
    members = np.array([i for i, text in enumerate(said) if text in set(classes)], dtype=int)
    if not 2 <= len(classes) <= MOST_TEXTS or len(members) < CLOSED_SHARE * sum(counts.values()):
        return LeftOut(
            name=name,
            reason=f"{len(counts)} different transcripts, {len(classes)} of them in {FOLDS} or more clips: not a closed set "
            f"of 2 to {MOST_TEXTS} that {CLOSED_SHARE:.0%} of the clips are from",
        )
    targets = np.zeros((len(members), len(classes)))
    targets[np.arange(len(members)), [classes.index(str(said[i])) for i in members]] = 1
    groups, split = content_groups(clips, members)
    return Task(
        name=name,
        kind="class",
        question=f"which of {len(classes)} texts is said in the clip",
        members=members,
        targets=targets,
        classes=tuple(classes),
        folds=grouped_folds(groups, folds=FOLDS, seed=seed),
        groups=groups,
        split=split,
    )


def _presence(clips: Sequence[Clip], texts: Sequence[tuple[str, ...] | None], unit: str, seed: int) -> Task | LeftOut:
    name = f"{unit}s"
    members = np.array([i for i, words in enumerate(texts) if words], dtype=int)
    said = [set("".join(texts[i] or ())) - set("'’") if unit == "character" else set(texts[i] or ()) for i in members]
    counts = Counter(item for items in said for item in items)
    enough = max(FEWEST_EACH, RARE * len(members))
    if unit == "word" and members.size and all(len(texts[i] or ()) == 1 for i in members):
        return LeftOut(name=name, reason="every transcript is one word: the same question as the probe for texts")
    usable = [item for item, count in counts.items() if enough <= count <= len(members) - enough]
    usable = sorted(sorted(usable, key=lambda item: -min(counts[item], len(members) - counts[item]))[:MOST_WORDS])
    if len(usable) < FEWEST_LABELS:
        return LeftOut(
            name=name,
            reason=f"{len(usable)} {unit}(s) are in {RARE:.0%} to {COMMON:.0%} of the {len(members)} clips with a transcript "
            f"(and in and out of {FEWEST_EACH}); expected {FEWEST_LABELS}",
        )
    groups, split = content_groups(clips, members)
    return Task(
        name=name,
        kind="presence",
        question=f"which of {len(usable)} {unit}s are in the clip's transcript",
        members=members,
        targets=np.array([[item in items for item in usable] for items in said], dtype=float),
        classes=tuple(usable),
        folds=grouped_folds(groups, folds=FOLDS, seed=seed),
        groups=groups,
        split=split,
    )


def _speaker(clips: Sequence[Clip], seed: int) -> Task | LeftOut:
    counts = Counter(clip.utterance.speaker for clip in clips if clip.utterance.speaker is not None)
    speakers = sorted(speaker for speaker, count in counts.items() if count >= FOLDS)
    if len(speakers) < 2:
        return LeftOut(
            name="speaker",
            reason=f"{len(counts)} speaker(s) named, {len(speakers)} of them with {FOLDS} or more clips; expected 2",
        )
    members = np.array([i for i, clip in enumerate(clips) if clip.utterance.speaker in set(speakers)], dtype=int)
    labels = np.array([speakers.index(str(clips[i].utterance.speaker)) for i in members])
    return Task(
        name="speaker",
        kind="class",
        question=f"which of {len(speakers)} speakers is heard in the clip",
        members=members,
        targets=np.eye(len(speakers))[labels],
        classes=tuple(speakers),
        folds=stratified_folds(labels, folds=FOLDS, seed=seed),
        groups=np.arange(len(members)),
        split="clips (other clips of the same speakers are trained on)",
    )
