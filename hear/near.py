"""What sounds nearly like a word that the adapter knows and is none of them, by Kokoro -> OUT/audio/ and OUT/manifest.jsonl.

    python hear/near.py WORDS.txt [WORDS.txt ...] --out runs/hear/data/no_speech_near --clips 1400 --kokoro-voices FOLDER --mixes 60

For training alone: of a word in another language, `two` was as sure as of the digit where it began and ended otherwise. One or
two phonemes of a word are exchanged for such that no accent makes of them, or put before or behind; the voices that say the words
themselves say these too. Every other clip is as a telephone carries it. A clip that is there already is kept.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from recorded import clip_file, kept_clip, write_manifest  # beside this file

from aura.audio.resample import telephone_band
from aura.audio.waveform import load_waveform
from aura.errors import AuraError, DataError, require
from aura.progress import audio_progress
from aura.synthesis.engine import Engine, EngineOptions
from aura.synthesis.engines import open_engine
from aura.synthesis.no_speech import LEVEL_DB, clip_id
from aura.synthesis.plan import Cast, Job, Style
from aura.synthesis.render import render
from aura.synthesis.texts import Line

# A phoneme is never exchanged for one of its own row: an accent, a telephone or a noise does that.
CONSONANTS = ("p b t d k ɡ", "f v θ ð", "s z", "ʃ ʒ tʃ dʒ", "m n ŋ", "l ɹ w", "j", "h")
VOWELS = ("iː ɪ i eɪ", "ɛ æ a ɜː", "ɑː ɔː ʌ ɔ ɒ oʊ əʊ", "uː ʊ", "aɪ", "aʊ", "ɔɪ")  # those of no colour (ə ɐ ɚ) stay
INITIAL, FINAL = (
    ("s", "ʃ", "k", "t", "j", "n"),
    ("n", "l", "k", "s", "ʃ", "t", "ŋ", "f", "m"),
)  # are put before and behind
SPEAKABLE = {row: row.split() for row in (*CONSONANTS, *VOWELS)}
PHONEMES = re.compile("|".join(sorted((p for row in SPEAKABLE.values() for p in row), key=len, reverse=True)))
LOUD = "ˈˌ"  # stress
TWICE = 0.5  # share with two changes, of words with more than three phonemes
VERSION = 1
STYLE = Style(pitch=(0.85, 1.15), level_db=LEVEL_DB, format="flac")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", type=Path, nargs="+", help="files with a word a line; each file has the same share")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=1400)
    parser.add_argument("--kokoro-voices", required=True, help="folder with its .bin files")
    parser.add_argument("--mixes", type=int, default=0, help="so many voices more, each the mean of two of Kokoro's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.clips < 1:
        parser.error(f"--clips is {options.clips}; expected at least 1")
    try:
        engine = open_engine("kokoro", EngineOptions(kokoro_voices=options.kokoro_voices))
        lists = [read_words(path) for path in options.words]
        rows = speak(engine, lists, options.out, options.clips, mixes=options.mixes, seed=options.seed)
    except (AuraError, OSError) as error:
        print(f"hear/near.py: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.out / 'manifest.jsonl'}: {len(rows)} clips, {sum(row['seconds'] for row in rows) / 60:.0f} minutes"
    )
    return 0


def read_words(path: Path) -> list[str]:
    """Raises:
    DataError: none there.
    """
    words = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not words:
        raise DataError(f"{path} has no words; expected one a line")
    return words


def speak(
    engine: Engine, lists: Sequence[Sequence[str]], out: Path, clips: int, *, mixes: int = 0, seed: int = 0
) -> list[dict[str, Any]]:
    """All clips, the lists and their words in turn; the rows of the manifest.

    Raises:
        AuraError: the engine said nothing, or a word has no phoneme that can be changed.
    """
    tokenizer = require("kokoro_onnx.tokenizer", extra="synth", purpose="hear/near.py").Tokenizer()
    voices = [voice.name for _, voice in Cast(engines={engine.name: engine}, mixes=mixes).voices]
    phonemes = {word: tokenizer.phonemize(word, "en-us") for words in lists for word in words}
    known = {bare(spoken) for spoken in phonemes.values()}
    rows = []
    with audio_progress("near words", clips) as advance:
        for number in range(clips):
            turn, place = divmod(number, len(lists))
            word = lists[place][turn % len(lists[place])]
            id = clip_id("near", VERSION, seed, number, word, engine.version)
            rng = np.random.default_rng(int(id, 16))
            spoken, voice = near(phonemes[word], known, rng), str(rng.choice(voices))
            if (kept := clip_file(out, id)).is_file():
                wave_N = load_waveform(kept)
            else:
                job = Job(id=id, line=Line(text=f"[[{spoken}]]"), engine=engine.name, voice=voice, lang="en")
                wave_N, _ = render(job, engine, STYLE)
                wave_N = telephone_band(wave_N) if (turn + place) % 2 else wave_N
            fields = {"source": f"{word}: {spoken}", "lang": "", "speaker": f"{engine.name}:{voice}"}
            rows.append(kept_clip(out, id, wave_N, "language", "near", fields))
            advance(1, rows[-1]["seconds"])
    write_manifest(out, rows)
    return rows


def near(spoken: str, known: set[str], rng: np.random.Generator) -> str:
    """Phonemes like these that are none of the known words.

    Raises:
        DataError: none of them can be exchanged.
    """
    places = [match.span() for match in PHONEMES.finditer(spoken)]
    if not places:
        raise DataError(f"{spoken!r} has no phoneme that can be changed; expected an English word")
    first, last = (spoken[start:end] for start, end in (places[0], places[-1]))
    changes = 2 if len(places) > 3 and rng.random() < TWICE else 1
    while True:
        # An end of the word is one more place: something is put there. From behind, so that the places before stay where they are.
        chosen = sorted(rng.choice(len(places) + 2, changes, replace=False) - 1, reverse=True)
        changed = spoken
        for place in chosen:
            if place < 0:
                changed = str(rng.choice([each for each in INITIAL if row_of(each) != row_of(first)])) + changed
            elif place == len(places):
                changed = changed + str(rng.choice([each for each in FINAL if row_of(each) != row_of(last)]))
            else:
                start, end = places[place]
                changed = changed[:start] + other(spoken[start:end], rng) + changed[end:]
        if bare(changed) not in known:
            return changed


def row_of(phoneme: str) -> str:
    """Its row of `CONSONANTS` or `VOWELS`."""
    return next(row for row, members in SPEAKABLE.items() if phoneme in members)


def other(phoneme: str, rng: np.random.Generator) -> str:
    """A phoneme of another row, a vowel for a vowel."""
    own = row_of(phoneme)
    rows = CONSONANTS if own in CONSONANTS else VOWELS
    return str(rng.choice([each for row in rows if row != own for each in SPEAKABLE[row]]))


def bare(spoken: str) -> str:
    """Without stress and length: how two words are told apart here."""
    return re.sub(f"[{LOUD}ː]", "", spoken)


if __name__ == "__main__":
    sys.exit(main())
