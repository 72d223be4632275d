"""The data card of a synthesized corpus."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from aura.synthesis.plan import Cast, Style


def data_card(
    rows: Sequence[Mapping[str, Any]],
    cast: Cast,
    style: Style,
    *,
    source: str,
    command: str,
    seed: int,
    failed: int,
) -> str:
    """Markdown: what was said, by which voices, how much, under which licences, and by which command.

    Args:
        rows: of the manifest.
        failed: texts that could not be spoken.
    """
    seconds = sum(row["seconds"] for row in rows)
    texts = len({row["transcript"] for row in rows})
    lines = [
        "# Synthesized speech",
        "",
        f"{len(rows)} clips, {seconds / 3600:.2f} hours, {texts} different texts, {len(_voices(rows))} voices. "
        "No human speaks here: every clip was made by text-to-speech.",
        "",
        f"Texts: {source or 'given by the caller'}. Seed {seed}. {failed} texts could not be spoken.",
        "",
        "```",
        command,
        "```",
        "",
        "## Engines",
        "",
        "| engine | version | licence | clips | hours |",
        "|---|---|---|---|---|",
    ]
    for name, engine in cast.engines.items():
        mine = [row for row in rows if row["engine"] == name]
        if mine:
            hours = sum(row["seconds"] for row in mine) / 3600
            lines.append(f"| {name} | {engine.version} | {engine.licence} | {len(mine)} | {hours:.2f} |")
    lines += ["", "## Voices", "", "| voice | licence | clips | minutes |", "|---|---|---|---|"]
    licences = {f"{engine}:{voice.name}": voice.licence for engine, voice in cast.voices}
    for speaker, (count, total) in _voices(rows).items():
        lines.append(f"| {speaker} | {licences.get(speaker, '')} | {count} | {total / 60:.1f} |")
    intents = collections.Counter(
        row["label"]["intent"]
        for row in rows
        if isinstance(row.get("label"), Mapping) and isinstance(row["label"].get("intent"), str)
    )
    if intents:
        lines += ["", "## Intents", "", "| intent | clips |", "|---|---|"]
        lines += [f"| {intent} | {count} |" for intent, count in intents.most_common()]
    lines += ["", "## How clips vary", "", *_variation(style), ""]
    return "\n".join(lines)


def _voices(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = {}
    for row in rows:
        count, seconds = found.get(row["speaker"], (0, 0.0))
        found[row["speaker"]] = (count + 1, seconds + row["seconds"])
    return dict(sorted(found.items()))


def _variation(style: Style) -> list[str]:
    def span(pair: tuple[float, float]) -> str:
        return f"{pair[0]:g} to {pair[1]:g}"

    noise = f"{len(style.noise_files)} recording(s) and white noise" if style.noise_files else "white noise"
    return [
        f"- tempo {span(style.rate)} times the voice's own, pitch and formants {span(style.pitch)} times",
        f"- {span(style.silence)} s of silence before and after",
        f"- {100 * style.room_probability:g} % in synthetic rooms (image sources)",
        f"- {100 * style.noise_probability:g} % with {noise} at {span(style.snr_db)} dB",
        f"- level {span(style.level_db)} dB RMS below full scale; 16 kHz mono, {style.format}",
    ]
