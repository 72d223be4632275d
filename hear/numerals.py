"""Numerals of other languages, by espeak-ng, every other one as a telephone carries it -> OUT/audio/ and OUT/manifest.jsonl.

    python hear/numerals.py --out runs/hear/data/no_speech_numerals --clips 1600

For training alone: digits are what a foreign word is mistaken for. The languages are those that training hears already
(`aura.synthesis.foreign`) and more that no test hears, so neither Spanish, Italian nor Russian. A clip that is there already
is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from recorded import clip_file, kept_clip, write_manifest  # beside this file

from aura.audio.resample import telephone_band
from aura.audio.waveform import load_waveform
from aura.errors import AuraError
from aura.progress import audio_progress
from aura.synthesis.commands import EspeakEngine
from aura.synthesis.foreign import THROATS, espeak_voice
from aura.synthesis.no_speech import LEVEL_DB, clip_id
from aura.synthesis.plan import Job, Style
from aura.synthesis.render import render
from aura.synthesis.texts import Line

# Without those that espeak-ng counts in English or not at all
LANGUAGES = (
    *("de", "fr", "tr", "hi", "ro", "bg", "hr", "da", "fa", "ta", "sw", "is", "lt", "eo", "la", "eu", "ka"),
    *("nb", "sk", "sl", "sr", "sq", "mk", "et", "ga", "gd", "az", "kk", "hy", "ku", "ky", "lb", "ltg", "mt"),
    *("ms", "or", "pa", "gu", "kn", "ml", "mr", "te", "th", "tt", "ug", "ur", "yue", "haw", "ht", "am", "as"),
    *("om", "tn", "my"),
)
LARGEST = 99
SMALL = 0.7  # share of the numerals that are at most ten: as short as a digit
VERSION = 1
STYLE = Style(pitch=(0.85, 1.15), level_db=LEVEL_DB, format="flac")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.clips < 1:
        parser.error(f"--clips is {options.clips}; expected at least 1")
    try:
        rows = speak(options.out, options.clips, options.seed)
    except (AuraError, OSError) as error:
        print(f"hear/numerals.py: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.out / 'manifest.jsonl'}: {len(rows)} clips, {sum(row['seconds'] for row in rows) / 60:.0f} minutes"
    )
    return 0


def speak(out: Path, clips: int, seed: int) -> list[dict[str, Any]]:
    """All clips, the languages in turn; the rows of the manifest.

    Raises:
        AuraError: espeak-ng is missing, or said nothing.
    """
    engine = EspeakEngine([espeak_voice(language, throat) for language in LANGUAGES for throat in THROATS["train"]])
    rows = []
    with audio_progress("numerals", clips) as advance:
        for number in range(clips):
            turn, place = divmod(number, len(LANGUAGES))
            rows.append(_clip(engine, LANGUAGES[place], out, (seed, number), telephone=(turn + place) % 2 == 1))
            advance(1, rows[-1]["seconds"])
    write_manifest(out, rows)
    return rows


def _clip(engine: EspeakEngine, language: str, out: Path, key: tuple[int, int], *, telephone: bool) -> dict[str, Any]:
    """The id decides what is said, by which throat, how fast and how loud."""
    id = clip_id("numerals", VERSION, *key, language, telephone, engine.version)
    rng = np.random.default_rng(int(id, 16))
    numeral = int(rng.integers(11)) if rng.random() < SMALL else int(rng.integers(11, LARGEST + 1))
    voice = espeak_voice(language, str(rng.choice(THROATS["train"])))
    if (kept := clip_file(out, id)).is_file():
        wave_N = load_waveform(kept)
    else:
        job = Job(id=id, line=Line(text=str(numeral)), engine=engine.name, voice=voice, lang=language)
        wave_N, _ = render(job, engine, STYLE)
        wave_N = telephone_band(wave_N) if telephone else wave_N
    fields = {"source": str(numeral), "lang": language, "speaker": f"{engine.name}:{voice}"}
    return kept_clip(out, id, wave_N, "language", language, fields)


if __name__ == "__main__":
    sys.exit(main())
