"""Augmentation on the fly: gain, additive noise at a sampled SNR, speed perturbation, a telephone's band, SpecAugment.

Waveform in, waveform out, NumPy only, and a function of the generator alone: the same `rng` state gives the
same result on every machine and with every number of workers.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from aura.audio.resample import change_tempo_and_pitch, telephone_band
from aura.audio.waveform import SAMPLE_RATE, load_waveform
from aura.errors import RecipeError

MelMT = TypeVar("MelMT")  # (mels, frames), NumPy array or torch tensor


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What to do to a training clip. Everything is off by default; `AugmentConfig.light()` is our choice.

    Ranges are `(lowest, highest)`, sampled uniformly for each clip.
    """

    gain_db: tuple[float, float] = (0.0, 0.0)
    """Level change, dB. Our choice for training: (-10, 6); real microphones differ by more than 20 dB."""

    level_db: tuple[float, float] | None = None
    """RMS level that each clip is set to before the gain, dB below full scale; None keeps the recorded level. Speakers
    of one corpus can differ by 20 dB (the demo's do), and the fixed floor of the log-mel makes levels audible. Our
    choice where levels differ: (-40, -15)."""

    silence: tuple[float, float] = (0.0, 0.0)
    """Seconds of silence put before and behind each clip, drawn for each side. The length of a trimmed clip tells what was
    said, and recordings of strangers come with pauses around the words. Our choice for trimmed clips: (0, 0.35)."""

    noise_probability: float = 0.0
    """Share of the clips that get noise. Our choice: 0.5."""

    snr_db: tuple[float, float] = (5.0, 30.0)
    """Signal-to-noise ratio of the noisy clips, dB over the whole clip. Our choice."""

    noise_files: tuple[str, ...] = ()
    """Recordings of noise, any format; a random stretch of a random one is mixed in, looped if too short."""

    white_noise: float = 0.3
    """Share of white noise among noisy clips; the rest comes from `noise_files` (all is white without any).
    Our choice."""

    telephone_probability: float = 0.0
    """Share of the clips that are sampled at 8 kHz in between, their noise too: nothing above 4 kHz is left. Where what is to
    be told apart was recorded in different bands, the band alone tells. Our choice where telephones are heard: 0.3."""

    speed_probability: float = 0.0
    """Share of the clips whose speed changes. Our choice: 0.7 (Kaldi changes two copies of three)."""

    speed: tuple[float, float] = (0.9, 1.1)
    """Speed factor; 1.1 is faster and higher by 10 %: Kaldi's speed perturbation (Ko et al., 2015)."""

    time_masks: int = 0
    """SpecAugment (Park et al., 2019): number of masks over time. Our choice: 2."""

    time_mask_frames: int = 30
    """Widest time mask, mel frames of 10 ms; never more than `time_mask_share` of the clip. Our choice."""

    time_mask_share: float = 0.15
    """Most of a clip's frames that one time mask may cover, for short clips. Our choice."""

    freq_masks: int = 0
    """SpecAugment: number of masks over mel bins. Our choice: 2."""

    freq_mask_bins: int = 12
    """Widest frequency mask, mel bins of 80. Our choice."""

    @classmethod
    def light(cls, *, noise_files: tuple[str, ...] = ()) -> AugmentConfig:
        """Our choice for small corpora of clean speech: all of it, mildly."""
        return cls(
            gain_db=(-10.0, 6.0),
            noise_probability=0.5,
            noise_files=noise_files,
            speed_probability=0.7,
            time_masks=2,
            freq_masks=2,
        )

    def __post_init__(self) -> None:
        problems = [*self._range_problems(), *self._number_problems()]
        if problems:
            raise RecipeError("augment: " + "; ".join(problems) + ".")

    def _range_problems(self) -> list[str]:
        problems = []
        for field in ("gain_db", "snr_db", "speed", "silence"):
            pair = getattr(self, field)
            if len(pair) != 2 or not pair[0] <= pair[1]:
                problems.append(f"{field}={pair!r}, expected (lowest, highest)")
        if self.level_db is not None and not self.level_db[0] <= self.level_db[1] <= 0.0:
            problems.append(
                f"level_db={self.level_db!r}, expected (lowest, highest) in dB below full scale, such as (-40, -15)"
            )
        if min(self.silence) < 0.0:
            problems.append(f"silence={self.silence!r}, expected seconds of 0 or more")
        if min(self.speed) < 0.5 or max(self.speed) > 2.0:
            problems.append(f"speed={self.speed!r}, expected factors from 0.5 to 2")
        return problems

    def _number_problems(self) -> list[str]:
        problems = []
        shares = ("noise_probability", "white_noise", "telephone_probability", "speed_probability", "time_mask_share")
        for field in shares:
            if not 0.0 <= getattr(self, field) <= 1.0:
                problems.append(f"{field}={getattr(self, field)!r}, expected 0 to 1")
        for field in ("time_masks", "time_mask_frames", "freq_masks", "freq_mask_bins"):
            if getattr(self, field) < 0:
                problems.append(f"{field}={getattr(self, field)!r}, expected 0 or more")
        return problems


class Augment:
    """Applies an `AugmentConfig`. Keeps decoded noise in memory, so name minutes of it, not hours.

    Raises:
        AudioError: a noise file that cannot be read, when the object is made, not in the middle of a run.
    """

    def __init__(self, config: AugmentConfig):
        self.config = config
        self._noises = tuple(load_noise(path) for path in config.noise_files)

    def __call__(self, wave_N: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Speed, noise, the telephone's band, level and gain, silence: the noise is not sped up, and the gain moves both.

        Args:
            wave_N: mono float32 at 16 kHz; never written to.
            rng: consumed the same way for every clip, whatever is drawn.

        Returns:
            float32, of a new length where the speed changed or silence was added; `wave_N` itself where nothing is to be
            done.
        """
        config = self.config
        change_speed, add_noise = rng.random(2)
        factor, snr_db, gain_db = (rng.uniform(*pair) for pair in (config.speed, config.snr_db, config.gain_db))
        level_draw = rng.random()
        noise_rng = np.random.default_rng(rng.integers(2**63))
        # Drawn only where it is asked for, so that the losses of older recipes stay what they were.
        pauses = rng.uniform(*config.silence, 2) if config.silence[1] > 0.0 else (0.0, 0.0)
        by_telephone = config.telephone_probability > 0.0 and rng.random() < config.telephone_probability
        before, behind = (round(SAMPLE_RATE * seconds) for seconds in pauses)
        if change_speed < config.speed_probability:
            wave_N = change_tempo_and_pitch(wave_N, factor)
        if add_noise < config.noise_probability:
            wave_N = mix_at_snr(wave_N, self._noise(len(wave_N), noise_rng), snr_db)
        if by_telephone:
            wave_N = telephone_band(wave_N)
        if config.level_db is not None and (power := _power(wave_N)) > 0.0:
            lowest, highest = config.level_db
            gain_db += lowest + level_draw * (highest - lowest) - 10.0 * float(np.log10(power))
        if gain_db != 0.0:
            wave_N = wave_N * np.float32(10.0 ** (gain_db / 20.0))
        if before or behind:
            wave_N = np.pad(wave_N, (before, behind))
        return wave_N

    def spec_augment(self, mel_MT: MelMT, rng: np.random.Generator) -> MelMT:
        """Mask stretches of frames and of mel bins with the clip's mean.

        Args:
            mel_MT: log-mel, `(mels, frames)`, NumPy or torch; never written to.
            rng: consumed the same way for every clip of a config.

        Returns:
            A masked copy; `mel_MT` itself where no mask is configured.
        """
        config, masked = self.config, _copy(mel_MT)
        if not config.time_masks and not config.freq_masks:
            return mel_MT
        mels, frames = masked.shape
        fill = masked.mean()  # zero after the mean is taken off, which is what SpecAugment masks with
        widest = min(config.time_mask_frames, int(frames * config.time_mask_share))
        for _ in range(config.time_masks):
            first, last = _stretch(frames, widest, rng)
            masked[:, first:last] = fill
        for _ in range(config.freq_masks):
            first, last = _stretch(mels, min(config.freq_mask_bins, mels), rng)
            masked[first:last] = fill
        return masked

    def _noise(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        if not self._noises or rng.random() < self.config.white_noise:
            return rng.standard_normal(samples, dtype=np.float32)
        return noise_stretch(self._noises[rng.integers(len(self._noises))], samples, rng)


def mix_at_snr(wave_N: np.ndarray, noise_N: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise so that mean signal power over mean noise power is `snr_db` (silence stays as it is)."""
    signal, noise = _power(wave_N), _power(noise_N)
    if signal == 0.0 or noise == 0.0:
        return wave_N
    scale = np.sqrt(signal / (noise * 10.0 ** (snr_db / 10.0)))
    return wave_N + noise_N * np.float32(scale)


def _power(wave_N: np.ndarray) -> float:
    return float(np.dot(wave_N, wave_N)) / max(1, len(wave_N))


def noise_stretch(recording_N: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    """A random stretch of a recording of noise, looped where it is too short."""
    start = int(rng.integers(len(recording_N)))
    return np.take(recording_N, np.arange(start, start + samples), mode="wrap")


@functools.lru_cache(maxsize=64)
def load_noise(path: str) -> np.ndarray:
    """A recording of noise, decoded once per process; read-only. Raises `AudioError`."""
    noise = load_waveform(path)
    noise.setflags(write=False)  # shared by every Augment of this process
    return noise


def _copy(mel: Any) -> Any:
    return mel.clone() if hasattr(mel, "clone") else mel.copy()


def _stretch(length: int, widest: int, rng: np.random.Generator) -> tuple[int, int]:
    # Two floats, not `integers`: that one may draw again, and the next clip would get other masks.
    width_share, first_share = rng.random(2)
    width = int(width_share * (widest + 1))
    first = int(first_share * (length - width + 1))
    return first, first + width
