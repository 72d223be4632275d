"""Sounds that are neither speech nor music: silences of rooms and lines, and noises. NumPy only.

Every sound is `(rng, samples) -> wave_N`, float64 at 16 kHz, of any level: whoever asks sets it. No sound stands in both
parts of a kind, `train` and `test`, but digital zero, of which there is only one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from aura.audio.waveform import SAMPLE_RATE

Sound = Callable[[np.random.Generator, int], np.ndarray]

MAINS = {"train": 50.0, "test": 60.0}  # Hz


def coloured(rng: np.random.Generator, samples: int, slope: float) -> np.ndarray:
    """Noise whose power goes with frequency to the `slope`: 0 white, -1 pink, -2 brown, 1 blue."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    shape = np.maximum(hertz, 20.0) ** (slope / 2.0)  # below hearing it would hold most of the power
    shape[0] = 0.0
    return _unit(np.fft.irfft(spectrum * shape, samples))


def band(rng: np.random.Generator, samples: int, low: float, high: float) -> np.ndarray:
    """White noise between two frequencies, Hz, with soft edges."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    edge = 1.0 / (1.0 + (low / np.maximum(hertz, 1e-3)) ** 6) / (1.0 + (hertz / high) ** 6)
    return _unit(np.fft.irfft(spectrum * edge, samples))


def slow(rng: np.random.Generator, samples: int, hertz: float, depth: float) -> np.ndarray:
    """A level that wanders: random values `1 / hertz` seconds apart, joined by lines; from `1 - depth` to 1."""
    knots = int(samples / SAMPLE_RATE * hertz) + 3
    times = np.arange(samples) * hertz / SAMPLE_RATE
    return 1.0 - depth * np.interp(times, np.arange(knots), rng.uniform(0.0, 1.0, knots))


def _unit(wave_N: np.ndarray) -> np.ndarray:
    return wave_N / max(float(np.sqrt(np.mean(np.square(wave_N)))), 1e-12)


def _time(samples: int) -> np.ndarray:
    return np.arange(samples) / SAMPLE_RATE


# --- silence ------------------------------------------------------------------------------------------------------


def zero(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Digital zero."""
    return np.zeros(samples)


def _hum(mains: float) -> Sound:
    def hum(rng: np.random.Generator, samples: int) -> np.ndarray:
        """The mains with its harmonics, and a little noise."""
        base = mains * (1.0 + rng.uniform(-0.002, 0.002))
        orders = np.arange(1, 13)
        levels = rng.uniform(0.2, 1.0, len(orders)) / orders ** rng.uniform(0.5, 1.5)
        levels[0] *= rng.uniform(0.2, 1.0)  # small loudspeakers and microphones lose the lowest
        phases = rng.uniform(0, 2 * np.pi, len(orders))
        waves = levels[:, None] * np.sin(2 * np.pi * base * orders[:, None] * _time(samples) + phases[:, None])
        return _unit(waves.sum(axis=0)) + rng.uniform(0.01, 0.2) * coloured(rng, samples, -1.0)

    return hum


def room_tone(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Air in a quiet room: low noise that wanders a little."""
    tone = band(rng, samples, rng.uniform(40, 100), rng.uniform(300, 1200))
    return (tone + 0.1 * coloured(rng, samples, 0.0)) * slow(rng, samples, 1.5, 0.5)


def fan(rng: np.random.Generator, samples: int) -> np.ndarray:
    """A fan: air with the tone of its blades."""
    blades = rng.uniform(80, 260)
    beat = 1.0 + 0.3 * np.sin(2 * np.pi * blades / 5 * _time(samples))
    tone = np.sin(2 * np.pi * blades * _time(samples)) + 0.4 * np.sin(4 * np.pi * blades * _time(samples))
    return beat * band(rng, samples, 80, rng.uniform(1000, 3000)) + rng.uniform(0.1, 0.6) * tone


# --- noise --------------------------------------------------------------------------------------------------------


def bursts(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Puffs of band-limited noise over a faint floor."""
    wave = 0.01 * rng.standard_normal(samples)
    for start in _events(rng, samples, per_second=2.5):
        length = int(rng.uniform(0.03, 0.5) * SAMPLE_RATE)
        low = rng.uniform(100, 4000)
        puff = band(rng, length, low, low * rng.uniform(1.3, 3.0)) * np.hanning(length)
        _add(wave, start, rng.uniform(0.2, 1.0) * puff)
    return wave


def clicks(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Knocks and clicks: short ringing decays."""
    wave = 0.002 * rng.standard_normal(samples)
    for start in _events(rng, samples, per_second=4.0):
        decay = rng.uniform(0.001, 0.02)
        t = _time(int(8 * decay * SAMPLE_RATE) + 8)
        ring = np.exp(-t / decay) * np.sin(2 * np.pi * rng.uniform(200, 6000) * t + rng.uniform(0, np.pi))
        _add(wave, start, rng.uniform(0.2, 1.0) * ring)
    return wave


def chirps(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Tones that glide up or down, one after the other."""
    hertz = np.exp(slow(rng, samples, rng.uniform(1.0, 6.0), 1.0) * np.log(rng.uniform(3, 30))) * rng.uniform(150, 250)
    return np.sin(2 * np.pi * np.cumsum(hertz) / SAMPLE_RATE) * slow(rng, samples, 3.0, 0.9)


def crackle(rng: np.random.Generator, samples: int) -> np.ndarray:
    """A scratched record: sparse impulses of very different heights through a band."""
    impulses = (rng.random(samples) < rng.uniform(0.002, 0.02)) * rng.standard_normal(samples) ** 3
    spectrum = np.fft.rfft(impulses)
    hertz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    middle = rng.uniform(1000, 4000)
    return np.fft.irfft(spectrum / (1.0 + ((hertz - middle) / (0.7 * middle)) ** 2), samples) + 0.005 * coloured(
        rng, samples, -1.0
    )


def wind(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Gusts over a microphone."""
    gusts = slow(rng, samples, rng.uniform(0.7, 3.0), 0.97) ** 2
    return gusts * (coloured(rng, samples, -2.0) + 0.2 * band(rng, samples, 200, rng.uniform(600, 2500)))


def beeps(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Signals of machines: one tone or two at once, on and off."""
    period = rng.uniform(0.15, 1.0)
    on = ((_time(samples) / period) % 1.0) < rng.uniform(0.3, 0.7)
    tones = sum(np.sin(2 * np.pi * hertz * _time(samples)) for hertz in rng.uniform(350, 2500, rng.integers(1, 3)))
    return np.convolve(on, np.full(80, 1 / 80), "same") * tones + 0.003 * rng.standard_normal(samples)


def _events(rng: np.random.Generator, samples: int, *, per_second: float) -> np.ndarray:
    """Starts, at least one."""
    count = max(1, int(rng.poisson(per_second * samples / SAMPLE_RATE)))
    return np.sort(rng.integers(0, max(1, samples - SAMPLE_RATE // 20), count))


def _add(wave_N: np.ndarray, start: int, sound: np.ndarray) -> None:
    end = min(len(wave_N), start + len(sound))
    wave_N[start:end] += sound[: end - start]


def _of(slope: float) -> Sound:
    return lambda rng, samples: coloured(rng, samples, slope)


SILENCES: Mapping[str, Mapping[str, Sound]] = {
    "train": {"zero": zero, "white floor": _of(0.0), "hum at 50 Hz": _hum(MAINS["train"]), "room tone": room_tone},
    "test": {"zero": zero, "pink floor": _of(-1.0), "hum at 60 Hz": _hum(MAINS["test"]), "fan": fan},
}
NOISES: Mapping[str, Mapping[str, Sound]] = {
    "train": {"white": _of(0.0), "pink": _of(-1.0), "bursts": bursts, "clicks": clicks, "chirps": chirps},
    "test": {"brown": _of(-2.0), "blue": _of(1.0), "crackle": crackle, "wind": wind, "beeps": beeps},
}
