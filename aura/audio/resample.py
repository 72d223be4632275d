"""The same words otherwise: played faster or slower, or as a telephone carries them."""

from __future__ import annotations

import numpy as np

from aura.audio.waveform import SAMPLE_RATE

TELEPHONE_RATE = 8000


def change_tempo_and_pitch(wave_N: np.ndarray, factor: float) -> np.ndarray:
    """Play `factor` times as fast: `n / factor` samples, every frequency times `factor`."""
    import soxr

    # At a ratio like this the qualities cost the same (1 ms for 10 s of audio), so take the best.
    return soxr.resample(wave_N, SAMPLE_RATE * factor, SAMPLE_RATE, quality="HQ")


def telephone_band(wave_N: np.ndarray) -> np.ndarray:
    """As a telephone carries it: (N,) at 16 kHz with nothing above 4 kHz."""
    import soxr

    narrow_N = soxr.resample(wave_N, SAMPLE_RATE, TELEPHONE_RATE, quality="HQ")
    return soxr.resample(narrow_N, TELEPHONE_RATE, SAMPLE_RATE, quality="HQ")
