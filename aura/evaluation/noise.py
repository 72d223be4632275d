"""Utterances with noise mixed in at a given signal-to-noise ratio, when they are decoded.

    noisy = with_noise(utterances, "noise/kitchen.opus", [24, 18, 12, 6])

The stretch of noise depends on the utterance's id and the seed alone: every route hears the same audio, on every
machine and in every order, and one utterance meets the same stretch at every ratio.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from aura.data.augment import load_noise, mix_at_snr, noise_stretch
from aura.data.utterance import AudioRef, Utterance
from aura.errors import DataError

Level = Literal["mean", "peak"]
PEAK_FRAME = 2048  # samples, 128 ms: the frame that the Picovoice benchmark takes the loudest of


@dataclass(frozen=True, kw_only=True)
class NoisyAudio(AudioRef):
    """A recording with a stretch of noise behind it.

    Args:
        noise: path of the noise, any format.
        snr_db: signal-to-noise ratio, dB.
        level, seed: see `with_noise`.
        key: what else decides the stretch: the utterance and the number of the part in it.
    """

    noise: str
    snr_db: float
    level: Level = "mean"
    seed: int = 0
    key: str = ""

    def load(self) -> np.ndarray:
        """wave_N with noise, mono float32 at 16 kHz, scaled down where it would clip. Raises `AudioError`."""
        wave_N = super().load()
        digest = hashlib.sha256(f"{self.seed}/{self.key}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
        noise_N = noise_stretch(load_noise(self.noise), len(wave_N), rng)
        snr_db = self.snr_db if self.level == "mean" else self.snr_db - _crest_gap(wave_N, noise_N)
        mixed_N = mix_at_snr(wave_N, noise_N, snr_db)
        loudest = float(np.abs(mixed_N).max())
        return mixed_N / np.float32(loudest) if loudest > 1.0 else mixed_N


def with_noise(
    utterances: Iterable[Utterance],
    noise_file: str | os.PathLike[str],
    snr_db: float | Sequence[float],
    *,
    level: Level = "mean",
    seed: int = 0,
) -> list[Utterance]:
    """The utterances with noise at each ratio, one after the other; `@12dB` is added to their ids.

    Args:
        utterances: clean ones; nothing is decoded here.
        noise_file: recording of noise, looped where it is shorter than a clip.
        snr_db: one ratio, or several.
        level: what the ratio compares: `mean` powers over the whole clip, or the `peak` power, of the loudest
            128 ms of speech and of noise, as the Picovoice speech-to-intent benchmark does. Pauses in the
            speech lower the first, so 6 dB `peak` usually is the harder of the two.
        seed: another one takes other stretches of the noise.

    Raises:
        AudioError: the noise cannot be read.
        DataError: no ratio, or one that is no number; a level that is not known.
    """
    ratios = [float(snr_db)] if isinstance(snr_db, (int, float)) else [float(ratio) for ratio in snr_db]
    if not ratios or not np.isfinite(ratios).all():
        raise DataError(f"snr_db is {snr_db!r}; expected one ratio in dB or more, such as [24, 12, 6]")
    if level not in ("mean", "peak"):
        raise DataError(f"level is {level!r}; expected 'mean' or 'peak'")
    noise = os.fspath(noise_file)
    load_noise(noise)  # a file that cannot be read is said now, not at the first clip
    clean = list(utterances)
    return [_noisy(utterance, noise, ratio, level, seed) for ratio in ratios for utterance in clean]


def snr_of(utterance: Utterance) -> float | None:
    """The ratio that `with_noise` gave an utterance; None for a clean one."""
    return next((part.snr_db for part in utterance.audio if isinstance(part, NoisyAudio)), None)


def noise_settings(utterances: Iterable[Utterance]) -> list[dict[str, object]] | None:
    """Which noise the utterances have, for reports and for the check of a resumed evaluation; None without any."""
    parts = [part for utterance in utterances for part in utterance.audio if isinstance(part, NoisyAudio)]
    kinds = sorted({(part.noise, part.level, part.seed) for part in parts})
    return [{"file": file, "level": level, "seed": seed} for file, level, seed in kinds] or None


def _noisy(utterance: Utterance, noise: str, snr_db: float, level: Level, seed: int) -> Utterance:
    parts = []
    for number, part in enumerate(utterance.audio):
        known = {field.name: getattr(part, field.name) for field in fields(AudioRef)}
        key = f"{utterance.id}/{number}"
        parts.append(NoisyAudio(**known, noise=noise, snr_db=snr_db, level=level, seed=seed, key=key))
    return replace(utterance, id=f"{utterance.id}@{snr_db:g}dB", audio=tuple(parts))


def _crest_gap(wave_N: np.ndarray, noise_N: np.ndarray) -> float:
    """How many dB more the speech's loudest frame stands out of its mean than the noise's does."""
    return _crest(wave_N) - _crest(noise_N)


def _crest(wave_N: np.ndarray) -> float:
    frame = min(PEAK_FRAME, len(wave_N))
    frames = wave_N[: len(wave_N) // frame * frame].reshape(-1, frame).astype(np.float64)
    mean, peak = float(np.mean(wave_N.astype(np.float64) ** 2)), float((frames**2).mean(1).max())
    return 10.0 * float(np.log10(peak / mean)) if mean > 0.0 and peak > 0.0 else 0.0
