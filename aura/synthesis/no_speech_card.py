"""The data card of a set of clips without speech."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from aura.data.utterance import NO_SPEECH_ANSWER


def no_speech_card(rows: Sequence[Mapping[str, Any]], *, split: str, seed: int, command: str) -> str:
    """Markdown: what is heard, how much of it, and by which command it was made."""
    seconds = sum(row["seconds"] for row in rows)
    spoken_by = ", ".join(sorted({row["speaker"].partition(":")[0] for row in rows if "speaker" in row})) or "nobody"
    lines = [
        "# Clips without English speech",
        "",
        f"{len(rows)} clips, {seconds / 60:.1f} minutes, part `{split}`, seed {seed}. The true transcript is empty; the answer "
        f"to learn is `{NO_SPEECH_ANSWER}`. All of it was made by program, but the stretches of the recordings of noise "
        f"that the command names, which keep their own licence. Sentences are our own, spoken by {spoken_by} (no "
        "recordings of people).",
        "",
        "The parts `train` and `test` share no sound, timbre, scale, language, sentence or throat, and hear other halves of each "
        "recording; digital zero is in both. `valid` has languages, sentences and throats of neither, and the sounds of `train`.",
        "",
        "```",
        command,
        "```",
        "",
        "| kind | sound | clips | seconds |",
        "|---|---|---|---|",
    ]
    found: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
    for row in rows:
        found[row["label"]["no_speech"], row["label"]["sound"]].append(row["seconds"])
    lines += [f"| {kind} | {sound} | {len(s)} | {sum(s):.1f} |" for (kind, sound), s in found.items()]
    return "\n".join([*lines, ""])
