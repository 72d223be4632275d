"""Music without instruments: chords, arpeggios, melodies and drums from NumPy, in timbres of our own.

A tune is `(rng, samples) -> wave_N`, float64 at 16 kHz. Key, tempo, scale and form are drawn; the timbres and drums of the
training part are not those of the test part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from aura.audio.waveform import SAMPLE_RATE
from aura.synthesis.noises import Sound

SCALES = {
    "train": ((0, 2, 4, 5, 7, 9, 11), (0, 2, 4, 7, 9)),  # major, major pentatonic; semitones
    "test": ((0, 2, 3, 5, 7, 8, 10), (0, 3, 5, 6, 7, 10)),  # minor, blues
}
BEATS_A_MINUTE = (60.0, 180.0)
NOTE_SECONDS = 2.5  # the longest a note rings

Timbre = Callable[[np.random.Generator, float, int], np.ndarray]  # (rng, Hz, samples) -> one note


def _time(samples: int) -> np.ndarray:
    return np.arange(samples) / SAMPLE_RATE


def _envelope(samples: int, attack: float, decay: float) -> np.ndarray:
    """Up in `attack` seconds, then down to 1/e in `decay`, and to 0 at the end."""
    t = _time(samples)
    end = np.minimum(1.0, (samples - np.arange(samples)) / (0.02 * SAMPLE_RATE))
    return np.minimum(1.0, t / attack) * np.exp(-np.maximum(0.0, t - attack) / decay) * end


def _partials(hertz: float, orders: np.ndarray, levels: np.ndarray, phase_N: np.ndarray) -> np.ndarray:
    heard = orders * hertz < 0.45 * SAMPLE_RATE
    return (levels[heard, None] * np.sin(orders[heard, None] * phase_N)).sum(axis=0)


# --- timbres ------------------------------------------------------------------------------------------------------


def organ(rng: np.random.Generator, hertz: float, samples: int) -> np.ndarray:
    """Additive: drawbars, and sometimes a tremolo."""
    orders = np.array([0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0])
    tone = _partials(hertz, orders, rng.uniform(0.0, 1.0, 8), 2 * np.pi * hertz * _time(samples))
    tremolo = 1.0 + rng.choice([0.0, 0.4]) * np.sin(2 * np.pi * rng.uniform(4, 7) * _time(samples))
    return tone * tremolo * _envelope(samples, 0.01, 8.0)


def plucked(rng: np.random.Generator, hertz: float, samples: int) -> np.ndarray:
    """A string after Karplus and Strong (1983): noise that goes round, smoothed each time."""
    period = max(2, round(SAMPLE_RATE / hertz))
    string = rng.uniform(-1.0, 1.0, period)
    string -= string.mean()  # it would go round the loop longer than any tone
    rounds, last = [string], string[-1]
    for _ in range(samples // period):
        # One period at a time: each sample is the mean of two of the period before
        before = np.concatenate([[last], string[:-1]])
        last, string = string[-1], 0.498 * (string + before)
        rounds.append(string)
    return np.concatenate(rounds)[:samples] * _envelope(samples, 0.002, 2.0)


def bell(rng: np.random.Generator, hertz: float, samples: int) -> np.ndarray:
    """FM (Chowning, 1973) at a ratio that is no whole number."""
    t = _time(samples)
    index = rng.uniform(1.0, 5.0) * np.exp(-t / rng.uniform(0.2, 1.0))
    ratio = float(rng.choice([1.4, 2.76, 3.5]))
    return np.sin(2 * np.pi * hertz * t + index * np.sin(2 * np.pi * ratio * hertz * t)) * _envelope(
        samples, 0.003, 0.8
    )


def reed(rng: np.random.Generator, hertz: float, samples: int) -> np.ndarray:
    """Additive, odd harmonics with vibrato: a clarinet from afar."""
    t = _time(samples)
    phase = 2 * np.pi * hertz * t + rng.uniform(0.5, 2.0) * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * t)
    orders = np.arange(1.0, 16.0, 2.0)
    return _partials(hertz, orders, orders ** -rng.uniform(0.8, 1.5), phase) * _envelope(samples, 0.06, 4.0)


def strings(rng: np.random.Generator, hertz: float, samples: int) -> np.ndarray:
    """Detuned saws that swell, as pads are made."""
    orders = np.arange(1.0, 20.0)
    levels = 1.0 / orders**1.3
    waves = [
        _partials(hertz, orders, levels, 2 * np.pi * hertz * d * _time(samples) + p)
        for d, p in zip(1.0 + rng.uniform(-0.006, 0.006, 3), rng.uniform(0, 6.28, 3), strict=True)
    ]
    return np.sum(waves, axis=0) * _envelope(samples, 0.15, 5.0)


def marimba(rng: np.random.Generator, hertz: float, samples: int) -> np.ndarray:
    """Bars of wood: partials of a free bar, the high ones gone at once."""
    t = _time(samples)
    return sum(
        level * np.sin(2 * np.pi * hertz * order * t) * np.exp(-t * order / rng.uniform(0.15, 0.4))
        for order, level in ((1.0, 1.0), (3.93, 0.4), (9.2, 0.15))
        if order * hertz < 0.45 * SAMPLE_RATE
    ) * _envelope(samples, 0.002, 4.0)


# --- drums --------------------------------------------------------------------------------------------------------


def _kick(rng: np.random.Generator) -> np.ndarray:
    t = _time(4000)
    return 1.5 * np.sin(2 * np.pi * (50 * t + 4.0 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.08)


def _snare(rng: np.random.Generator) -> np.ndarray:
    t = _time(3200)
    return (0.6 * rng.standard_normal(3200) + 0.5 * np.sin(2 * np.pi * 190 * t)) * np.exp(-t / 0.05)


def _hat(rng: np.random.Generator) -> np.ndarray:
    return 0.3 * np.diff(rng.standard_normal(1601)) * np.exp(-_time(1600) / 0.02)


def _tom(rng: np.random.Generator) -> np.ndarray:
    t = _time(6400)
    return np.sin(2 * np.pi * rng.choice([90, 120, 160]) * (t + 0.02 * (1 - np.exp(-t / 0.05)))) * np.exp(-t / 0.15)


def _shaker(rng: np.random.Generator) -> np.ndarray:
    return 0.25 * np.diff(rng.standard_normal(2401)) * np.hanning(2400)


def _cymbal(rng: np.random.Generator) -> np.ndarray:
    t = _time(9600)
    ring = sum(np.sin(2 * np.pi * hertz * t) for hertz in rng.uniform(2500, 7500, 12))
    return (0.05 * ring + 0.2 * np.diff(rng.standard_normal(9601))) * np.exp(-t / 0.25)


TIMBRES: Mapping[str, Mapping[str, Timbre]] = {
    "train": {"organ": organ, "plucked": plucked, "bell": bell},
    "test": {"reed": reed, "strings": strings, "marimba": marimba},
}
DRUMS = {"train": (_kick, _snare, _hat), "test": (_tom, _shaker, _cymbal)}


# --- tunes --------------------------------------------------------------------------------------------------------


def _pitches(rng: np.random.Generator, split: str) -> np.ndarray:
    """Three octaves of a scale, Hz."""
    scale = SCALES[split][rng.integers(len(SCALES[split]))]
    lowest = rng.uniform(36, 55)  # MIDI numbers: C2 to G3
    semitones = np.array([12 * octave + step for octave in range(3) for step in scale])
    return 440.0 * 2.0 ** ((lowest + semitones - 69) / 12)


def _notes(rng: np.random.Generator, pitches: np.ndarray, beat: float, seconds: float) -> list[tuple[float, float]]:
    """(start in seconds, Hz): chords on the beats, broken chords, or a melody that steps up and down."""
    form = rng.choice(["chords", "arpeggio", "melody"])
    found: list[tuple[float, float]] = []
    time, place = 0.0, int(rng.integers(len(pitches)))
    while time < seconds:
        if form == "melody":
            place = int(np.clip(place + rng.integers(-3, 4), 0, len(pitches) - 1))
            if rng.random() < 0.9:
                found.append((time, pitches[place]))
            time += beat * float(rng.choice([0.5, 0.5, 1.0, 1.5]))
            continue
        root = int(rng.integers(len(pitches) - 5))
        chord = [pitches[root + step] for step in (0, 2, 4)]
        step = 0.0 if form == "chords" else beat / 3
        found += [(time + step * index, hertz) for index, hertz in enumerate(chord)]
        time += beat * (2.0 if form == "chords" else 1.0)
    return found


def _drums(rng: np.random.Generator, split: str, beat: float, samples: int) -> np.ndarray:
    """A pattern of eight half beats, again and again."""
    wave = np.zeros(samples)
    for drum, often in zip(DRUMS[split], (0.35, 0.25, 0.7), strict=True):
        pattern = rng.random(8) < often
        pattern[rng.integers(8)] = True
        for index in range(int(samples / SAMPLE_RATE / (beat / 2)) + 1):
            if pattern[index % 8]:
                _add(wave, int(index * beat / 2 * SAMPLE_RATE), rng.uniform(0.6, 1.0) * drum(rng))
    return wave


def _add(wave_N: np.ndarray, start: int, sound: np.ndarray) -> None:
    end = min(len(wave_N), start + len(sound))
    if end > start:
        wave_N[start:end] += sound[: end - start]


def tune(split: str, timbre: str) -> Sound:
    """A maker of tunes in a timbre of that part, or of drums alone."""

    def play(rng: np.random.Generator, samples: int) -> np.ndarray:
        beat = 60.0 / rng.uniform(*BEATS_A_MINUTE)
        with_drums = timbre == "drums" or rng.random() < 0.3
        wave = _drums(rng, split, beat, samples) if with_drums else np.zeros(samples)
        if timbre != "drums":
            sound = TIMBRES[split][timbre]
            for start, hertz in _notes(rng, _pitches(rng, split), beat, samples / SAMPLE_RATE):
                first = int(start * SAMPLE_RATE)
                length = min(int(NOTE_SECONDS * SAMPLE_RATE), samples - first)
                if length > SAMPLE_RATE // 50:
                    _add(wave, first, rng.uniform(0.3, 0.6) * sound(rng, hertz, length))
        return wave

    return play


TUNES: Mapping[str, Mapping[str, Sound]] = {
    split: {name: tune(split, name) for name in (*timbres, "drums")} for split, timbres in TIMBRES.items()
}
