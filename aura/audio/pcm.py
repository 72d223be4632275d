"""Sample arithmetic: integer PCM -> float32, many channels -> one."""

from __future__ import annotations

import numpy as np


def to_float32(samples: np.ndarray) -> np.ndarray:
    """Integer PCM scaled to [-1, 1), unsigned PCM centred first; floats unchanged but for their width."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    full_scale = 2.0 ** (8 * samples.dtype.itemsize - 1)
    centre = full_scale if samples.dtype.kind == "u" else 0.0
    return ((samples.astype(np.float64) - centre) / full_scale).astype(np.float32)


def downmix(samples_CN: np.ndarray) -> np.ndarray:
    """Mean over channels: `(channels, n)` or `(n,)` -> `(n,)`."""
    if samples_CN.ndim == 1:
        return samples_CN
    return samples_CN[0] if len(samples_CN) == 1 else samples_CN.mean(axis=0)
