"""Clips of people who speak another language, and of recorded music -> OUT/audio/ and OUT/manifest.jsonl.

    python hear/recorded.py PACKAGES --split test --out runs/hear/data/no_speech_people
    python hear/recorded.py --packages          the Debian packages that are heard, a line each

PACKAGES holds the packages' files, each in a folder of its package's name (hear/README.md: how they are fetched, and their
licences). Train, valid and test have speakers, languages and albums of their own; `-words`, `-names` and `-voices` are more of the
same part, as short as single words; `--telephone` takes the same clips as a telephone carries them. Which recordings are taken
depends on the seed and their names alone; a clip that is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aura.audio.resample import telephone_band
from aura.audio.waveform import SAMPLE_RATE, load_waveform, probe_seconds
from aura.data.audiofolder import AUDIO_SUFFIXES
from aura.errors import AudioError, AuraError, DataError
from aura.evaluation.json_text import replace_text
from aura.progress import audio_progress
from aura.synthesis.no_speech import SECONDS, Kind, clip_id, clip_row
from aura.synthesis.render import write_audio

SPOKEN_SECONDS = (0.7, SECONDS[1])  # a shorter one may be a letter or a cry
PHRASE_SECONDS = (1.5, 4.0)  # of a few words
WORD_SECONDS = (0.5, 1.5)  # of single words: a telephone's numerals, things in a picture
NAME_SECONDS = (0.4, 2.0)  # of what a picture is called
SHOUT_SECONDS = (0.4, 2.6)
SYLLABLE_SECONDS = (0.25, 2.6)  # some are recorded with a second of silence
CRIES = ("tux-huh.", "tux-wow.")  # of ktuberling-data: no word of any language decides what a bound is
GRUNTS = ("/Firepunch", "/Jump", "/Laugh", "/Nooo", "/Oo", "/Ow", "/Poison", "/Uh-oh", "/Kamikaze")  # of hedgewars-data
SUFFIXES = (*AUDIO_SUFFIXES, ".gsm")  # as telephones keep them
# Of telephone prompts: tones, animals, and the letters and code words of the alphabet, which English has too
NO_WORDS = ("/silence/", "/letters/", "/phonetic/", "/beep", "/ascending-", "/descending-", "/tt-")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Recordings of one kind in one package.

    Args:
        sound: the language's code, or the album.
        clips: taken of it.
        below: part of the path that all of them share.
        seconds: the shortest and the longest that are taken, of whole recordings and of pieces.
        without: parts of names that none of them has.
        pieces: stretches from one quiet moment to another, out of longer recordings, instead of whole ones.
        behind: how many of them come before, in another part; none is taken again then, under whatever name.
        at_least: seconds; shorter ones are not taken, but counted among those that come before.
    """

    package: str
    kind: Kind
    sound: str
    speaker: str | None = None
    clips: int
    below: str = "/"
    seconds: tuple[float, float] = SPOKEN_SECONDS
    without: tuple[str, ...] = ()
    pieces: bool = False
    behind: int = 0
    at_least: float = 0.0


def people(
    package: str,
    language: str,
    clips: int,
    below: str,
    *,
    speaker: str | None = None,
    seconds: tuple[float, float] = SPOKEN_SECONDS,
    without: tuple[str, ...] = (),
    pieces: bool = False,
) -> Source:
    """Who speaks another language in a package."""
    return Source(
        package=package,
        kind="language",
        sound=language,
        speaker=speaker,
        clips=clips,
        below=below,
        seconds=seconds,
        without=without,
        pieces=pieces,
    )


def prompts(
    package: str, language: str, speaker: str, clips: int, seconds: tuple[float, float] = SPOKEN_SECONDS
) -> Source:
    return people(package, language, clips, "/sounds/", speaker=speaker, seconds=seconds)


def picture_words(
    language: str, clips: int, seconds: tuple[float, float] = SPOKEN_SECONDS, without: tuple[str, ...] = ()
) -> Source:
    """The names of what a children's game shows."""
    below, speaker = f"/sounds/{language}/", f"ktuberling {language}"
    return people("ktuberling-data", language, clips, below, speaker=speaker, seconds=seconds, without=without)


def stamps(language: str, clips: int) -> Source:
    """What the pictures of a painting program are called, numerals among them."""
    package, speaker, without = "tuxpaint-stamps-default", f"tuxpaint {language}", ("/alphabets/",)
    return people(
        package, language, clips, f"_desc_{language}.", speaker=speaker, seconds=NAME_SECONDS, without=without
    )


def syllables(language: str, clips: int) -> Source:
    """Of a program that teaches letters."""
    below, speaker = f"/klettres/{language}/syllab/", f"klettres {language}"
    return people("klettres-data", language, clips, below, speaker=speaker, seconds=SYLLABLE_SECONDS)


def bopomofo(speaker: str, file: str, clips: int) -> Source:
    """Syllables of Mandarin, of an input method that says what is typed."""
    return people("gcin-voice", "zh", clips, f"/{file}", speaker=speaker, seconds=SYLLABLE_SECONDS)


def spelt(language: str, clips: int) -> Source:
    """Words of a program that teaches the alphabet, some of them probably spoken by machines."""
    below, speaker = f"/abcs/{language}/sounds/words/", f"qabcs {language}"
    return people("qabcs-data", language, clips, below, speaker=speaker, seconds=NAME_SECONDS)


def tiles(voice: str, clips: int) -> Source:
    """What a German player of mah-jongg calls: tiles by their numbers, too."""
    speaker = f"kajongg {voice}"
    return people("kajongg", "de", clips, f"/voices/de/{voice}/", speaker=speaker, seconds=NAME_SECONDS)


def hedgehogs(language: str, clips: int) -> Source:
    """What they shout at each other in a game, cries left out."""
    below, speaker = f"/voices/Default_{language}/", f"hedgewars {language}"
    return people("hedgewars-data", language, clips, below, speaker=speaker, seconds=SHOUT_SECONDS, without=GRUNTS)


def builders(language: str, clips: int) -> Source:
    """What the little people of a game answer."""
    below, speaker = f"/sound/{language}/", f"planetblupi {language}"
    return people("planetblupi-common", language, clips, below, speaker=speaker, seconds=SHOUT_SECONDS)


def actors(language: str, clips: int, pieces: bool = False) -> Source:
    """What fish say to each other in a game, or pieces of it as short as words."""
    seconds = WORD_SECONDS if pieces else SPOKEN_SECONDS
    return people(f"fillets-ng-data-{language}", language, clips, f"/{language}/", seconds=seconds, pieces=pieces)


def played(package: str, clips: int, below: str = "/") -> Source:
    return Source(package=package, kind="music", sound=package, clips=clips, below=below)


SOURCES: dict[str, tuple[Source, ...]] = {
    "test": (
        prompts("asterisk-core-sounds-es-wav", "es", "Allison (Mexico)", 45),
        prompts("asterisk-core-sounds-it-wav", "it", "Carlo", 45),
        prompts("asterisk-prompt-it-menardi-wav", "it", "Paola", 45),
        prompts("asterisk-core-sounds-ru-wav", "ru", "Ivrvoice", 45),
        played("warzone2100-music", 60),
    ),
    # Harder: the same people and one more, single words alone. Some are in the part above as well.
    "test-words": (
        prompts("asterisk-core-sounds-es-wav", "es", "Allison (Mexico)", 60, WORD_SECONDS),
        prompts("asterisk-prompt-es-co", "es", "July (Colombia)", 60, WORD_SECONDS),
        prompts("asterisk-core-sounds-it-wav", "it", "Carlo", 60, WORD_SECONDS),
        prompts("asterisk-prompt-it-menardi-wav", "it", "Paola", 60, WORD_SECONDS),
        prompts("asterisk-core-sounds-ru-wav", "ru", "Ivrvoice", 60, WORD_SECONDS),
    ),
    # What a bound is found on: other people, languages and music than those of the test
    "valid": (
        actors("nl", 90),
        played("singularity-music", 30),
    ),
    "valid-words": (
        actors("nl", 60, pieces=True),
        *(picture_words(language, 90, WORD_SECONDS, without=CRIES) for language in ("nn", "uk")),
    ),
    "train": (
        actors("cs", 300),
        prompts("asterisk-core-sounds-fr-wav", "fr", "June (Canada)", 200),
        *(picture_words(language, 20) for language in ("ca", "da", "de", "el", "gl", "lt", "sl", "wa")),
        played("hyperrogue-music", 60, "/hr3-"),
        played("asc-music", 20),
        played("fillets-ng-data", 40, "/music/"),
    ),
    "train-words": (
        actors("cs", 300, pieces=True),
        prompts("asterisk-core-sounds-fr-wav", "fr", "June (Canada)", 190, WORD_SECONDS),
        prompts("asterisk-prompt-fr-armelle", "fr", "Armelle (France)", 110, WORD_SECONDS),
        *(
            picture_words(language, clips, WORD_SECONDS)
            for language, clips in (
                *(("ca", 100), ("da", 60), ("de", 50), ("el", 60), ("fr", 120), ("gl", 50), ("lt", 60), ("sl", 50)),
                *(("wa", 60), ("fi", 9), ("ga", 10), ("nds", 9), ("pt", 10), ("ro", 10), ("sr", 10), ("sv", 10)),
            )
        ),
    ),
    "train-names": (
        *(
            stamps(language, clips)
            for language, clips in (
                *(("be", 600), ("bg", 640), ("ca", 710), ("da", 280)),
                *(("el", 410), ("fr", 640), ("ro", 540)),
            )
        ),
        *(
            syllables(language, clips)
            for language, clips in (
                *(("cs", 15), ("da", 27), ("de", 33), ("fr", 27), ("he", 24), ("hu", 37)),
                *(("lt", 68), ("ml", 200), ("nds", 46), ("pt_BR", 74), ("tn", 35)),
            )
        ),
        bopomofo("Edward Liu", "3.ogg", 120),
        bopomofo("Chu Lo", "5.ogg", 80),
    ),
    # Not looked at before the twelfth stage's adapter was chosen
    "test-names": (stamps("es", 150), stamps("ru", 150)),
    "train-voices": (
        *(tiles(speaker, 39) for speaker in ("female1", "female2", "male1", "male2")),
        spelt("de", 140),
        spelt("fr", 125),
        *(builders(language, 28) for language in ("de", "fr", "he")),
    ),
    "valid-voices": (spelt("pl", 150), spelt("uk", 135), hedgehogs("pl", 24)),
    # Not looked at before the thirteenth stage's adapter was chosen
    "test-voices": (spelt("ru", 145), hedgehogs("es", 22), hedgehogs("ru", 24), builders("it", 30)),
    # Not looked at before it was decided how often short audio is heard
    "test-pieces": (
        people("festvox-ru", "ru", 220, "/wav/", speaker="festvox NSH", seconds=WORD_SECONDS, pieces=True),
    ),
}


# 1400 more, by those who speak in two tests above: nearly all that is left
SOURCES["test-rest"] = tuple(
    replace(source, clips=clips, behind=source.clips)
    for source, clips in zip(
        (*SOURCES["test-words"], *SOURCES["test-names"]), (110, 90, 180, 125, 140, 365, 390), strict=True
    )
)


# More than a word: the prompts that `test` has left, and sentences of one more person, whole and in pieces. Not looked at before
# lone words were left out of what is written down.
SOURCES["test-phrases"] = (
    *(
        replace(source, clips=clips, behind=source.clips, at_least=PHRASE_SECONDS[0])
        for source, clips in zip(SOURCES["test"][:4], (145, 125, 105, 145), strict=True)
    ),
    replace(SOURCES["test-words"][1], clips=105, seconds=(PHRASE_SECONDS[0], SPOKEN_SECONDS[1])),
    people("festvox-ru", "ru", 190, "/wav/", speaker="festvox NSH"),
    people("festvox-ru", "ru", 185, "/wav/", speaker="festvox NSH", seconds=PHRASE_SECONDS, pieces=True),
)

# Stretches of that person's longest sentences. Not looked at before longer audio was heard twice.
SOURCES["test-stretches"] = (
    people("festvox-ru", "ru", 110, "/wav/", speaker="festvox NSH", seconds=(4.0, 6.0), pieces=True),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="with a folder for each package")
    parser.add_argument("--packages", action="store_true", help="name the packages and end")
    parser.add_argument("--split", choices=SOURCES, default="test")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--telephone", action="store_true", help="nothing above 4 kHz is heard")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.packages:
        print("\n".join(dict.fromkeys(source.package for sources in SOURCES.values() for source in sources)))
        return 0
    if options.folder is None or options.out is None:
        parser.error("expected PACKAGES and --out FOLDER")
    try:
        rows = collect(options.folder, SOURCES[options.split], options.out, options.seed, telephone=options.telephone)
    except (AuraError, OSError) as error:
        print(f"hear/recorded.py: {error}", file=sys.stderr)
        return 2
    print(
        f"{options.out / 'manifest.jsonl'}: {len(rows)} clips, {sum(row['seconds'] for row in rows) / 60:.0f} minutes"
    )
    return 0


def collect(
    packages: Path, sources: tuple[Source, ...], out: Path, seed: int, *, telephone: bool = False
) -> list[dict[str, Any]]:
    """All clips of a split; the rows of its manifest.

    Args:
        telephone: sampled at 8 kHz in between, as the digits are: else the band alone tells a foreign word from a digit.

    Raises:
        DataError: a package is missing or holds too few recordings.
    """
    rows = []
    with audio_progress("recordings", sum(source.clips for source in sources)) as advance:
        for source in sources:
            for row in _clips(packages, source, out, seed, telephone):
                rows.append(row)
                advance(1, row["seconds"])
    write_manifest(out, rows)
    return rows


def write_manifest(out: Path, rows: list[dict[str, Any]]) -> None:
    replace_text(out / "manifest.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def clip_file(out: Path, id: str) -> Path:
    return out / "audio" / f"{id}.flac"


def kept_clip(out: Path, id: str, wave_N: np.ndarray, kind: Kind, sound: str, fields: dict[str, str]) -> dict[str, Any]:
    """A clip's row; its audio is written where it is not there yet."""
    audio = clip_file(out, id)
    if not audio.is_file():
        write_audio(wave_N, audio.with_suffix(""), "flac")
    return clip_row(id, wave_N, audio.relative_to(out), kind, sound, fields)


def _clips(packages: Path, source: Source, out: Path, seed: int, telephone: bool) -> Iterator[dict[str, Any]]:
    folder = packages / source.package
    if not folder.is_dir():
        raise DataError(f"{folder} is missing; unpack the Debian package {source.package} there (hear/README.md)")
    left, before = source.clips, source.behind
    heard: set[bytes] = set()  # by then: some lie there under two names
    stretches = _tracks if source.kind == "music" else _pieces if source.pieces else _spoken
    for file, start, seconds in stretches(folder, source, seed):
        if not left:
            return
        line = ("telephone",) if telephone else ()
        id = clip_id(seed, source.package, file.relative_to(folder).as_posix(), f"{start:.2f}", *line)
        try:
            wave_N = load_waveform(file, start=start, end=start + seconds)
        except AudioError:
            continue  # one of a thousand that is cut short
        if not np.any(wave_N):
            continue
        is_known = wave_N.tobytes() in heard
        if source.behind:
            heard.add(wave_N.tobytes())
        if before:
            before -= 1
            continue
        if is_known or len(wave_N) < source.at_least * SAMPLE_RATE:
            continue
        wave_N = telephone_band(wave_N) if telephone else wave_N
        fields = {"source": f"{source.package}/{file.name}"}
        if source.kind == "language":
            fields |= {"lang": source.sound, "speaker": source.speaker or source.package}
        yield kept_clip(out, id, wave_N, source.kind, source.sound, fields)
        left -= 1
    if left:
        raise DataError(f"{folder} holds {left} recordings too few below '{source.below}'; expected {source.clips}")


Stretch = tuple[Path, float, float]  # a file, the first second heard of it, how many


def _spoken(folder: Path, source: Source, seed: int) -> Iterator[Stretch]:
    """Whole files in which words are said, in drawn order."""
    shortest, longest = source.seconds
    for file in _drawn(folder, source, seed):
        seconds = _seconds(file)
        if shortest <= seconds <= longest:
            yield file, 0.0, seconds


def _pieces(folder: Path, source: Source, seed: int) -> Iterator[Stretch]:
    """One piece of each recording that is twice as long, from one of its quieter moments to another."""
    shortest, longest = source.seconds
    rng = np.random.default_rng(seed)
    for file in _drawn(folder, source, seed):
        whole = _seconds(file)
        start, length = rng.uniform(0.0, max(0.0, whole - longest)), rng.uniform(shortest, longest)
        if whole < 2 * longest:
            continue
        try:
            wave_N = load_waveform(file)
        except AudioError:
            continue
        first, last = (_quietest(wave_N, moment) for moment in (start, start + length))
        if shortest <= last - first <= longest:
            yield file, first, last - first


def _quietest(wave_N: np.ndarray, second: float, around: float = 0.2, step: float = 0.02) -> float:
    """The second with the least energy near another one."""
    moments = np.arange(max(0.0, second - around), min(len(wave_N) / SAMPLE_RATE - step, second + around), step)
    energies = [
        float(np.mean(wave_N[round(moment * SAMPLE_RATE) : round((moment + step) * SAMPLE_RATE)] ** 2))
        for moment in moments
    ]
    return float(moments[np.argmin(energies)] + step / 2) if energies else second


def _drawn(folder: Path, source: Source, seed: int) -> list[Path]:
    """The source's recordings in which something is said, in drawn order."""
    unheard = (*NO_WORDS, *source.without)
    names = [name for name in _names(folder, source) if not any(part in f"/{name}" for part in unheard)]
    return [folder / name for name in sorted(names, key=lambda name: clip_id(seed, source.package, name))]


def _tracks(folder: Path, source: Source, seed: int) -> Iterator[Stretch]:
    """Stretches of the tracks in turn, twice as many as are wanted: some may be silent."""
    tracks = [(folder / name, _seconds(folder / name)) for name in sorted(_names(folder, source))]
    tracks = [(file, seconds) for file, seconds in tracks if seconds > 2 * SECONDS[1]]  # others are jingles
    rng = np.random.default_rng(seed)
    for number in range(2 * source.clips if tracks else 0):
        file, whole = tracks[number % len(tracks)]
        length = rng.uniform(*SECONDS)
        yield file, float(rng.uniform(0.0, whole - length)), float(length)


def _names(folder: Path, source: Source) -> list[str]:
    """The package's recordings, relative to it."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in SUFFIXES]
    return [name for name in names if source.below in f"/{name}"]


def _seconds(file: Path) -> float:
    try:
        return probe_seconds(file)
    except AudioError:
        return 0.0


if __name__ == "__main__":
    sys.exit(main())
