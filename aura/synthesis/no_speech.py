"""Clips on which nothing is said in English: silence, noise, music, and other languages -> an output folder.

The folder is that of `aura.synthesis.synthesize`: audio/, rows.jsonl (the memory of an interrupted run), manifest.jsonl
and a data card. A clip is a function of its kind, its number and the settings alone, so more clips, other kinds and a kill
leave the others what they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from aura.audio.waveform import SAMPLE_RATE
from aura.data.augment import load_noise, noise_stretch
from aura.data.one_writer import one_writer
from aura.errors import AuraError, MissingExtraError, RecipeError
from aura.evaluation.item_log import ItemLog
from aura.evaluation.json_text import replace_text
from aura.references.packages import file_sha256
from aura.synthesis.commands import EspeakEngine
from aura.synthesis.engine import Engine, EngineOptions
from aura.synthesis.engines import ENGINES, open_engine
from aura.synthesis.foreign import THROATS, accented_voice, espeak_voice, espeak_voices, line_of
from aura.synthesis.music import TUNES
from aura.synthesis.no_speech_card import no_speech_card
from aura.synthesis.noises import NOISES, SILENCES, Sound
from aura.synthesis.plan import FORMATS, ID_DIGITS, Job, Style
from aura.synthesis.render import PEAK, render, write_audio
from aura.synthesis.rooms import draw_room, place_in_room
from aura.synthesis.synthesize import CARD, LOG, MANIFEST, remove_leftovers
from aura.synthesis.texts import Line

Split = Literal["train", "valid", "test"]
Kind = Literal["silence", "noise", "music", "language"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Of the sounds; raise it when one of them changes, so that no folder mixes old and new
VERSION = {"train": 2, "valid": 2, "test": 1}
SOUNDS_OF = {
    "train": "train",
    "valid": "train",
    "test": "test",
}  # valid has languages and throats of its own, no sounds
ESPEAK = "espeak-ng"
SPEAKERS = tuple(name for name in ENGINES if name != "flite")  # flite's phonemes are those of English alone
SECONDS = (0.5, 8.0)  # our choice
LEVEL_DB = (-60.0, -12.0)  # RMS below full scale; our choice
SILENCE_DB = (-60.0, -35.0)  # hum and room tone are heard at night
FLOOR_DB = (-90.0, -60.0)  # the noise of a converter
ROOM_PROBABILITY = {"noise": 0.2, "music": 0.4}  # our choice
RECORDED = "recorded"


@dataclass(frozen=True, kw_only=True)
class NoSpeechOptions:
    """What decides the clips.

    Args:
        clips: in all, the kinds in turn.
        seed: of everything drawn.
        split: other languages, throats, timbres, scales, sounds and halves of the recordings in `test` than in `train`. What
            decides something before the test (a bound, say) hears `valid`: languages and throats of neither, sounds of `train`
            drawn anew.
        kinds: None takes all that can be made here.
        engines: who speaks the other languages, drawn for each clip. Voices of Piper and Kokoro, made for English, speak them
            with its accent: what they say is no English either, and only that tells them from the same voices in English.
        noise_files: recordings of noise; `train` hears their first halves, `test` the second.
        format: opus or flac.
    """

    clips: int
    seed: int = 0
    split: Split = "train"
    kinds: tuple[Kind, ...] | None = None
    engines: tuple[str, ...] = (ESPEAK,)
    noise_files: tuple[str, ...] = ()
    format: str = "opus"

    def __post_init__(self) -> None:
        problems = []
        if self.clips < 1:
            problems.append(f"clips is {self.clips}; expected at least 1")
        if self.split not in get_args(Split):
            problems.append(f"split is {self.split!r}; expected train, valid or test")
        if self.kinds is not None and (not self.kinds or set(self.kinds) - set(KINDS)):
            problems.append(f"kinds is {', '.join(self.kinds) or 'empty'}; expected some of {', '.join(KINDS)}")
        if not self.engines or set(self.engines) - set(SPEAKERS):
            problems.append(f"engines is {', '.join(self.engines) or 'empty'}; expected some of {', '.join(SPEAKERS)}")
        if self.format not in FORMATS:
            problems.append(f"format is {self.format!r}; expected {' or '.join(FORMATS)}")
        if problems:
            raise RecipeError("no-speech: " + "; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class NoSpeech:
    """What a run made.

    Args:
        manifest: the file; None when every clip failed.
        rows: of the manifest; made: of them, by this run.
        kinds: clips of each kind.
        failed: reasons; missing: why a kind was left out; seconds: of audio.
    """

    manifest: Path | None
    rows: int
    made: int
    kinds: Mapping[str, int]
    failed: tuple[str, ...]
    missing: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """One clip to make: the `number`-th of its kind."""

    id: str
    kind: Kind
    number: int

    @property
    def file(self) -> str:
        return f"audio/{self.id[:2]}/{self.id}"


def no_speech(
    out: str | os.PathLike[str],
    options: NoSpeechOptions,
    *,
    command: str | None = None,
    engine_options: EngineOptions | None = None,
    on_start: Callable[[int], None] | None = None,
    on_row: Callable[[Mapping[str, Any]], None] | None = None,
) -> NoSpeech:
    """Make the clips that are not there yet, and the manifest.

    Args:
        out: folder; clips that are there already (same kind, number and settings) are kept.
        command: for the data card.
        engine_options: where Kokoro's and Piper's voices are; what the environment names by default.
        on_start: called with the number of clips still to be made; on_row with each row as it is done.

    Raises:
        MissingExtraError: `language` or an engine besides espeak-ng was asked for by name and is not installed.
        AuraError: the folder cannot be written or is in use, or a noise file or an engine's voices cannot be read.
    """
    folder = Path(out)
    engines, missing = _open_engines(options, engine_options or EngineOptions.from_environment())
    for path in options.noise_files:
        load_noise(path)  # one that cannot be read is said before anything is made
    clips = plan_clips(options, versions=[engine.version for engine in engines])
    with one_writer(folder), ItemLog(folder / LOG) as log:
        remove_leftovers(folder)
        known = {row["id"]: row for row in log.rows()}
        waiting = [clip for clip in clips if not _is_done(known.get(clip.id), folder)]
        if on_start is not None:
            on_start(len(waiting))
        for clip in waiting:
            row = _make_row(clip, options, engines, folder)
            log.append(row)
            if on_row is not None:
                on_row(row)
        known = {row["id"]: row for row in log.rows()}
    found = [known[clip.id] for clip in clips]
    good = [row for row in found if not row.get("failed")]
    manifest = folder / MANIFEST if good else None
    if manifest is not None:
        replace_text(manifest, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in good))
        card = no_speech_card(
            good, split=options.split, seed=options.seed, command=command or shlex.join(["aura", *sys.argv[1:]])
        )
        replace_text(folder / CARD, card)
    return NoSpeech(
        manifest=manifest,
        rows=len(good),
        made=sum(not known[clip.id].get("failed") for clip in waiting),
        kinds={kind: sum(row["label"]["no_speech"] == kind for row in good) for kind in dict.fromkeys(c.kind for c in clips)},
        failed=tuple(row["error"] for row in found if row.get("failed")),
        missing=missing,
        seconds=sum(row["seconds"] for row in good),
    )  # fmt: skip


def plan_clips(options: NoSpeechOptions, *, versions: Sequence[str]) -> list[_Clip]:
    """The clips, kinds in turn; without `language` where no engine is there.

    Args:
        versions: of the engines.
    """
    kinds = [kind for kind in options.kinds or KINDS if kind != "language" or versions]
    recordings = [file_sha256(Path(path)) for path in options.noise_files]
    spoken_by = versions[0] if options.engines == (ESPEAK,) and versions else versions
    decides = {"noise": recordings, "language": spoken_by}  # elsewhere they decide nothing
    clips = []
    for index in range(options.clips):
        number, place = divmod(index, len(kinds))
        kind = kinds[place]
        key: list[Any] = [
            VERSION[options.split],
            kind,
            number,
            options.split,
            options.seed,
            options.format,
            decides.get(kind),
        ]
        clips.append(_Clip(id=clip_id(*key), kind=kind, number=number))
    return clips


def clip_id(*key: object) -> str:
    """What a clip is called: the same for the same things that decide it."""
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:ID_DIGITS]


def _open_engines(options: NoSpeechOptions, settings: EngineOptions) -> tuple[list[Engine], dict[str, str]]:
    """The engines where `language` is wanted; where the usual one is missing and nothing asked for it by name, the reason."""
    if options.kinds is not None and "language" not in options.kinds:
        return [], {}
    try:
        return [
            EspeakEngine(espeak_voices(options.split)) if name == ESPEAK else open_engine(name, settings)
            for name in options.engines
        ], {}
    except MissingExtraError as error:
        if options.kinds is not None or options.engines != (ESPEAK,):
            raise
        return [], {"language": str(error)}


def _is_done(row: Mapping[str, Any] | None, folder: Path) -> bool:
    return row is not None and not row.get("failed") and (folder / row["audio"]).is_file()


def _make_row(clip: _Clip, options: NoSpeechOptions, engines: Sequence[Engine], folder: Path) -> dict[str, Any]:
    """Make a clip, write its audio, and return its row of the log."""
    try:
        wave_N, sound, fields = render_clip(clip, options, engines)
    except AuraError as error:
        return {"id": clip.id, "failed": True, "error": str(error)}
    file = write_audio(wave_N, folder / clip.file, options.format)
    return clip_row(clip.id, wave_N, file.relative_to(folder), clip.kind, sound, fields)


def clip_row(
    id: str, wave_N: np.ndarray, audio: Path, kind: Kind, sound: str, fields: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest's row of a clip without English.

    Args:
        wave_N: float32, 16 kHz.
        audio: its file, relative to the manifest.
        sound: what is heard: a language's code, a timbre, an album.
        fields: what else the row says.
    """
    return {
        "id": id,
        "audio": audio.as_posix(),
        "seconds": round(len(wave_N) / SAMPLE_RATE, 4),
        "task": "transcribe",
        "transcript": "",
        # What it teaches follows from the label (NO_SPEECH_ANSWER), behind whatever prompt the recipe asks
        "label": {"no_speech": kind, "sound": sound},
        **fields,
        "level_db": level_db(wave_N),
    }


def render_clip(
    clip: _Clip, options: NoSpeechOptions, engines: Sequence[Engine]
) -> tuple[np.ndarray, str, dict[str, Any]]:
    """wave_N (float32, 16 kHz), the name of the sound, and what else the row says. The id decides everything drawn."""
    rng = np.random.default_rng(int(clip.id, 16))
    samples = round(rng.uniform(*SECONDS) * SAMPLE_RATE)
    if clip.kind == "language":
        return _foreign(clip, options, engines, rng)
    sounds = list(_sounds(clip.kind, options))
    name, make = sounds[clip.number % len(sounds)]
    wave_N = make(rng, samples)
    if rng.random() < ROOM_PROBABILITY.get(clip.kind, 0.0):
        wave_N = place_in_room(wave_N.astype(np.float32), draw_room(rng))[:samples]
    level = rng.uniform(*_levels(clip.kind, name))
    return _at_level(wave_N, level), name, {}


def _sounds(kind: Kind, options: NoSpeechOptions) -> Iterator[tuple[str, Sound]]:
    """The sounds of a kind by name, in the order in which clips take them."""
    table = {"silence": SILENCES, "noise": NOISES, "music": TUNES}[kind]
    yield from table[SOUNDS_OF[options.split]].items()
    if kind == "noise" and options.noise_files:
        for _ in range(2):  # real noise is worth more than any of ours
            yield RECORDED, lambda rng, samples: _recorded(options, rng, samples)


def _recorded(options: NoSpeechOptions, rng: np.random.Generator, samples: int) -> np.ndarray:
    """A stretch of the half of a recording that belongs to the part."""
    recording_N = load_noise(options.noise_files[rng.integers(len(options.noise_files))])
    middle = len(recording_N) // 2
    half_N = recording_N[:middle] if SOUNDS_OF[options.split] == "train" else recording_N[middle:]
    if len(half_N) > samples:
        start = int(rng.integers(len(half_N) - samples + 1))
        return half_N[start : start + samples].astype(np.float64)
    return noise_stretch(half_N, samples, rng).astype(np.float64)


def _foreign(
    clip: _Clip, options: NoSpeechOptions, engines: Sequence[Engine], rng: np.random.Generator
) -> tuple[np.ndarray, str, dict[str, Any]]:
    """A sentence in another language, varied as synthesized English is, so that nothing but the language tells them apart."""
    language, text = line_of(options.split, clip.number)
    engine = engines[0] if len(engines) == 1 else engines[int(rng.integers(len(engines)))]
    if engine.name == ESPEAK:
        voice = espeak_voice(language, str(rng.choice(THROATS[options.split])))
    else:
        voice = accented_voice(str(rng.choice([voice.name for voice in engine.voices()])), language)
    job = Job(id=clip.id, line=Line(text=text), engine=engine.name, voice=voice, lang=language)
    wave_N, _ = render(job, engine, Style(pitch=(0.85, 1.15), level_db=LEVEL_DB, format=options.format))
    shortest, longest = (round(seconds * SAMPLE_RATE) for seconds in SECONDS)
    wave_N = np.pad(wave_N, (0, max(0, shortest - len(wave_N))))[:longest]
    return wave_N, language, {"speaker": f"{engine.name}:{voice}", "lang": language}


def _levels(kind: Kind, name: str) -> tuple[float, float]:
    if kind != "silence":
        return LEVEL_DB
    return FLOOR_DB if name.endswith("floor") else SILENCE_DB


def _at_level(wave_N: np.ndarray, level: float) -> np.ndarray:
    """At an RMS level, dB below full scale, or as near to it as the peaks allow; digital zero stays."""
    wave_N = wave_N - wave_N.mean()  # FM and strings leave a constant, which no microphone passes on
    power = float(np.mean(np.square(wave_N, dtype=np.float64)))
    if power > 0.0:
        wave_N = wave_N * (10.0 ** (level / 20.0) / np.sqrt(power))
    peak = float(np.abs(wave_N).max())
    return np.asarray(wave_N * (PEAK / peak) if peak > PEAK else wave_N, dtype=np.float32)


def level_db(wave_N: np.ndarray) -> float | None:
    """RMS, dB below full scale; None for digital zero."""
    power = float(np.mean(np.square(wave_N, dtype=np.float64)))
    return round(10.0 * float(np.log10(power)), 1) if power > 0.0 else None
