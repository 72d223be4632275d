"""Texts and voices -> jobs: who says what and how, the same on every machine, whatever was done before."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aura.data.augment import AugmentConfig
from aura.errors import DataError, RecipeError
from aura.references.packages import file_sha256
from aura.synthesis.engine import Engine, Prosody, Voice
from aura.synthesis.rooms import Room, draw_room
from aura.synthesis.texts import Line

ID_DIGITS = 20  # hexadecimal: two different rows of a billion share an id with probability below 1e-6
FORMATS = ("opus", "flac")


@dataclass(frozen=True, kw_only=True)
class Style:
    """How rows are varied. Ranges are `(lowest, highest)`, drawn evenly for each row; all defaults are our choice.

    Args:
        rate: tempo, 1 is the voice's own.
        pitch: factor on pitch and formants (the tempo stays): other throats from the same voice.
        liveliness: see `Prosody`.
        silence: seconds before and after the speech.
        room_probability: share of the rows that are spoken in a synthetic room.
        noise_probability, snr_db, white_noise, noise_files: as in `AugmentConfig`.
        level_db: RMS level, dB below full scale.
        format: opus (Ogg Opus, small) or flac (lossless).
    """

    rate: tuple[float, float] = (0.85, 1.2)
    pitch: tuple[float, float] = (0.94, 1.06)
    liveliness: tuple[float, float] = (0.7, 1.2)
    silence: tuple[float, float] = (0.05, 0.3)
    room_probability: float = 0.3
    noise_probability: float = 0.3
    snr_db: tuple[float, float] = (10.0, 30.0)
    white_noise: float = 0.3
    noise_files: tuple[str, ...] = ()
    level_db: tuple[float, float] = (-32.0, -16.0)
    format: str = "opus"

    def __post_init__(self) -> None:
        problems = []
        for name, low, high in (("rate", 0.4, 2.5), ("pitch", 0.6, 1.7), ("liveliness", 0.0, 3.0), ("silence", 0, 10)):
            pair = getattr(self, name)
            if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
                problems.append(f"{name} is {pair!r}; expected (lowest, highest) from {low} to {high}")
        if not 0 <= self.room_probability <= 1:
            problems.append(f"room_probability is {self.room_probability}; expected 0 to 1")
        if self.format not in FORMATS:
            problems.append(f"format is {self.format!r}; expected {' or '.join(FORMATS)}")
        if problems:
            raise RecipeError("synthesis: " + "; ".join(problems))
        self.noise()  # checks its own numbers

    @classmethod
    def plain(cls, **changes: Any) -> Style:
        """The voices as they are: no variation, room or noise."""
        even: dict[str, Any] = dict.fromkeys(("rate", "pitch", "liveliness"), (1.0, 1.0))
        return cls(**even | {"room_probability": 0.0, "noise_probability": 0.0, "level_db": (-20.0, -20.0)} | changes)

    def noise(self) -> AugmentConfig:
        """Noise and level, as the training's augmentation does them."""
        return AugmentConfig(
            noise_probability=self.noise_probability,
            snr_db=self.snr_db,
            white_noise=self.white_noise,
            noise_files=self.noise_files,
            level_db=self.level_db,
        )


@dataclass(frozen=True, kw_only=True)
class Job:
    """One row to make.

    Args:
        id: hash of the text, what it teaches, the engine, the voice, the style and the seed.
        line: the text and the row's fields.
        engine, voice: who speaks.
        lang, licence: of the voice.
    """

    id: str
    line: Line
    engine: str
    voice: str
    lang: str = "en"
    licence: str = ""

    @property
    def file(self) -> str:
        """Name of the audio file without its ending; no folder holds too many."""
        return f"audio/{self.id[:2]}/{self.id}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was drawn for one row, from its id alone."""

    prosody: Prosody
    pitch: float
    before: float
    after: float
    room: Room | None
    noise_seed: int


def draw_settings(job: Job, style: Style) -> Settings:
    """How a job is spoken: always the same for the same id."""
    rng = np.random.default_rng(int(job.id, 16))
    rate, pitch, liveliness = (float(rng.uniform(*pair)) for pair in (style.rate, style.pitch, style.liveliness))
    before, after = (float(rng.uniform(*style.silence)) for _ in range(2))
    speech_seed, noise_seed, room_seed = (int(n) for n in rng.integers(2**31, size=3))
    in_room = rng.random() < style.room_probability
    return Settings(
        prosody=Prosody(rate=rate, liveliness=liveliness, seed=speech_seed),
        pitch=pitch,
        before=before,
        after=after,
        room=draw_room(np.random.default_rng(room_seed)) if in_room else None,
        noise_seed=noise_seed,
    )


@dataclass(frozen=True, kw_only=True)
class Cast:
    """Who may speak.

    Args:
        engines: by name.
        only: patterns such as `kokoro:af_*` or `flite:*`; all voices when empty.
        without: patterns of voices that stay unheard, for tests.
        mixes: additional voices of Kokoro, each the mean of two styles of the chosen ones.
        lang: language of the voices.
        seed: of the mixes.
    """

    engines: Mapping[str, Engine]
    only: Sequence[str] = ()
    without: Sequence[str] = ()
    mixes: int = 0
    lang: str = "en"
    seed: int = 0
    voices: tuple[tuple[str, Voice], ...] = field(init=False)

    def __post_init__(self) -> None:
        at_hand = [(name, voice) for name, engine in self.engines.items() for voice in engine.voices()]
        spoken = [(name, voice) for name, voice in at_hand if voice.lang == self.lang]
        chosen = [pair for pair in spoken if self._is_chosen(*pair)]
        if not chosen:
            names = ", ".join(f"{name}:{voice.name}" for name, voice in spoken[:12]) or "none"
            raise DataError(
                f"no voice of the language {self.lang!r} is left of {len(at_hand)}; expected at least one. At hand: {names}"
            )
        object.__setattr__(self, "voices", (*chosen, *self._mixed(chosen)))

    def _is_chosen(self, engine: str, voice: Voice) -> bool:
        name = f"{engine}:{voice.name}"
        wanted = not self.only or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.only)
        return wanted and not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.without)

    def _mixed(self, chosen: Sequence[tuple[str, Voice]]) -> list[tuple[str, Voice]]:
        styles = [voice for engine, voice in chosen if engine == "kokoro"]
        pairs = [(a, b) for i, a in enumerate(styles) for b in styles[i + 1 :]]
        if self.mixes > len(pairs):
            raise DataError(
                f"{self.mixes} mixed voices were asked for; {len(styles)} chosen voices of kokoro give {len(pairs)} pairs"
            )
        order = np.random.default_rng([self.seed, 1]).permutation(len(pairs))[: self.mixes]
        return [
            ("kokoro", Voice(name=f"{a.name}+{b.name}", lang=a.lang, licence=a.licence))
            for a, b in (pairs[int(index)] for index in order)
        ]


def plan_jobs(lines: Sequence[Line], cast: Cast, style: Style, *, takes: int = 1, seed: int = 0) -> list[Job]:
    """One job for each line and take, voices in balance: no two counts differ by more than one.

    Voices go round in blocks, each voice once in a block, in an order drawn anew for each block, so that no voice meets
    the same neighbours; the jobs of the first lines stay what they are when lines are added at the end.

    Args:
        takes: how often each text is spoken, by as many different voices where there are as many.

    Returns:
        jobs, no id twice.
    """
    if takes < 1:
        raise RecipeError(f"takes is {takes}; expected at least 1")
    voices = cast.voices
    style_text = _canonical({**asdict(style), "noise_files": [_content(path) for path in style.noise_files]})
    jobs: dict[str, Job] = {}
    order: list[int] = []
    for index in range(len(lines) * takes):
        block, place = divmod(index, len(voices))
        if place == 0:
            order = [int(i) for i in np.random.default_rng([seed, block]).permutation(len(voices))]
        engine, voice = voices[order[place]]
        line = lines[index // takes]
        key = [line.text, line.fields, engine, cast.engines[engine].version, voice.name, style_text, seed]
        # The take counts only where one voice says a text again
        while (id := _hash(key)) in jobs:
            key.append("again")
        jobs[id] = Job(id=id, line=line, engine=engine, voice=voice.name, lang=voice.lang, licence=voice.licence)
    return list(jobs.values())


def _hash(key: Any) -> str:
    return hashlib.sha256(_canonical(key).encode()).hexdigest()[:ID_DIGITS]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _content(path: str) -> str:
    """A noise file by what is in it: its name may differ elsewhere."""
    try:
        return file_sha256(Path(path))
    except OSError as error:
        raise DataError(f"the noise file {path} cannot be read: {error.strerror or error}") from error
