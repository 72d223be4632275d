"""Numerals and words of other languages by machines, every other one as a telephone carries it -> OUT/audio/, OUT/manifest.jsonl.

    python hear/numerals.py --out runs/hear/data/no_speech_numerals --clips 1650
    python hear/numerals.py --out runs/hear/data/no_speech_kokoro --clips 800 --words 0.6 --kokoro-voices FOLDER --mixes 60

For training alone: digits are what a foreign word is mistaken for. The languages are those that training hears already
(`aura.synthesis.foreign`) and more that no test hears, so neither Spanish, Italian nor Russian. espeak-ng speaks, or voices of
Kokoro from its phonemes: the same that say English digits, so that a voice does not tell which of both it is. A clip that is
there already is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from recorded import clip_file, kept_clip, write_manifest  # beside this file

from aura.audio.resample import telephone_band
from aura.audio.waveform import load_waveform
from aura.errors import AuraError
from aura.progress import audio_progress
from aura.synthesis.commands import EspeakEngine
from aura.synthesis.engine import Engine, EngineOptions
from aura.synthesis.engines import open_engine
from aura.synthesis.foreign import SENTENCES, THROATS, accented_voice, espeak_voice
from aura.synthesis.no_speech import LEVEL_DB, clip_id
from aura.synthesis.plan import Cast, Job, Style
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
# Languages of the training's sentences whose words are said singly: a space is between them, and no person of a test speaks them
WORD_LANGUAGES = (
    *("de", "fr", "tr", "hi", "ro", "bg", "hr", "da", "ar", "fa", "ta", "sw", "is", "lt", "eo", "la", "eu", "ka"),
)
SHORTEST_WORD = 3  # letters
# What is said as in English: no digit or coffee is to be unlearnt
AS_IN_ENGLISH = ("nein", "caf", "kaf", "kof", "lat", "mok", "milk", "kapu", "espres")
# Tens of Luxembourgish that its espeak-ng has no phonemes for
KOKORO_SILENT = frozenset(("lb", str(tens)) for tens in range(40, 100, 10))
VERSION = 1
STYLE = Style(pitch=(0.85, 1.15), level_db=LEVEL_DB, format="flac")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=1600)
    parser.add_argument("--words", type=float, default=0.0, help="share of words; the others are numerals")
    parser.add_argument("--kokoro-voices", help="folder with its .bin files: Kokoro speaks instead of espeak-ng")
    parser.add_argument("--mixes", type=int, default=0, help="so many voices more, each the mean of two of Kokoro's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.clips < 1:
        parser.error(f"--clips is {options.clips}; expected at least 1")
    if not 0 <= options.words <= 1:
        parser.error(f"--words is {options.words}; expected a share from 0 to 1")
    try:
        speakers = kokoro(options.kokoro_voices, options.mixes) if options.kokoro_voices else espeak()
        rows = speak(options.out, options.clips, options.seed, speakers, words=options.words)
    except (AuraError, OSError) as error:
        print(f"hear/numerals.py: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.out / 'manifest.jsonl'}: {len(rows)} clips, {sum(row['seconds'] for row in rows) / 60:.0f} minutes"
    )
    return 0


@dataclass(frozen=True, kw_only=True)
class Speakers:
    """An engine and who speaks with it, of any language.

    Args:
        silent: (language, numeral) that the engine says nothing for.
    """

    engine: Engine
    names: Sequence[str]
    silent: Collection[tuple[str, str]] = ()

    def voice(self, name: str, language: str) -> str:
        """The name for the engine, of one of them who speaks that language."""
        return espeak_voice(language, name) if self.engine.name == EspeakEngine.name else accented_voice(name, language)


def espeak() -> Speakers:
    """The throats of the training.

    Raises:
        AuraError: espeak-ng is missing.
    """
    languages = dict.fromkeys((*LANGUAGES, *WORD_LANGUAGES))
    voices = [espeak_voice(language, throat) for language in languages for throat in THROATS["train"]]
    return Speakers(engine=EspeakEngine(voices), names=THROATS["train"])


def kokoro(voices: str, mixes: int) -> Speakers:
    """Its English voices and means of two of them, as `aura data synthesize --mixes` has them.

    Raises:
        AuraError: what Kokoro needs is not there, or it has fewer pairs of voices.
    """
    engine = open_engine("kokoro", EngineOptions(kokoro_voices=voices))
    cast = Cast(engines={engine.name: engine}, mixes=mixes)
    return Speakers(engine=engine, names=[voice.name for _, voice in cast.voices], silent=KOKORO_SILENT)


def speak(
    out: Path, clips: int, seed: int, speakers: Speakers | None = None, *, words: float = 0.0
) -> list[dict[str, Any]]:
    """All clips, the languages in turn; the rows of the manifest.

    Args:
        speakers: `espeak()` by default.
        words: share of words, the others are numerals.

    Raises:
        AuraError: the engine is missing, or said nothing.
    """
    speakers = speakers or espeak()
    rows = []
    with audio_progress("numerals", clips) as advance:
        for number in range(clips):
            rows.append(_clip(speakers, out, (seed, number), words))
            advance(1, rows[-1]["seconds"])
    write_manifest(out, rows)
    return rows


def single_words(language: str) -> list[str]:
    """Of the training's sentences, each once, without marks."""
    said = (
        word.strip(".,;:!?¿¡«»„“”\"'()،؟।").lower() for text in SENTENCES["train"][language] for word in text.split()
    )
    return list(
        dict.fromkeys(word for word in said if len(word) >= SHORTEST_WORD and not word.startswith(AS_IN_ENGLISH))
    )


def _numeral(rng: np.random.Generator) -> str:
    return str(int(rng.integers(11)) if rng.random() < SMALL else int(rng.integers(11, LARGEST + 1)))


def _clip(speakers: Speakers, out: Path, key: tuple[int, int], words: float) -> dict[str, Any]:
    """The id decides what is said, by whom, how fast and how loud."""
    # Words and numerals are counted each by themselves, so that the languages of both come in turn.
    number = key[1]
    before = int(number * words)
    is_word = int((number + 1) * words) > before
    languages, place = (WORD_LANGUAGES, before) if is_word else (LANGUAGES, number - before)
    turn, place = divmod(place, len(languages))
    language, telephone = languages[place], (turn + place) % 2 == 1
    id = clip_id("numerals", VERSION, *key, language, telephone, speakers.engine.version)
    rng = np.random.default_rng(int(id, 16))
    text = _numeral(rng) if not is_word else str(rng.choice(single_words(language)))
    while (language, text) in speakers.silent:
        text = _numeral(rng)
    voice = speakers.voice(str(rng.choice(speakers.names)), language)
    kept = clip_file(out, id)
    if kept.is_file():
        wave_N = load_waveform(kept)
    else:
        job = Job(id=id, line=Line(text=text), engine=speakers.engine.name, voice=voice, lang=language)
        wave_N, _ = render(job, speakers.engine, STYLE)
        wave_N = telephone_band(wave_N) if telephone else wave_N
    fields = {"source": text, "lang": language, "speaker": f"{speakers.engine.name}:{voice}"}
    return kept_clip(out, id, wave_N, "language", language, fields)


if __name__ == "__main__":
    sys.exit(main())
