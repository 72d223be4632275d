"""Waveform -> log-mel: Whisper's filterbank at real length, with a fixed floor.

Whisper clamps to eight decades below the loudest frame of the clip, which lets the last word change the first. A fixed
floor keeps every frame a function of its own 25 ms, so that streaming can be exact. The scale (x + 4) / 4 is Whisper's,
so that its convolutions still fit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from transformers.audio_utils import mel_filter_bank

from aura.audio.patches import HOP, SAMPLE_RATE, WINDOW

DYNAMIC_RANGE = 8.0  # decades below the clip's maximum, Whisper's rule
TINY = 1e-10  # power below which Whisper takes the logarithm of this instead
MIN_FRAMES = 16  # of one filterbank product: below, BLAS takes kernels that add up in another order


@lru_cache(maxsize=8)
def mel_filters(n_mels: int) -> torch.Tensor:
    """Slaney filterbank as in Whisper, (n_mels, 201)."""
    filters = mel_filter_bank(
        num_frequency_bins=1 + WINDOW // 2,
        num_mel_filters=n_mels,
        min_frequency=0.0,
        max_frequency=8000.0,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).T.contiguous().float()


def log_mel(waveform: torch.Tensor, *, n_mels: int = 80, floor: float | Literal["clip"] = -6.0) -> torch.Tensor:
    """Log-mel spectrogram of one waveform.

    Args:
        waveform: (samples,) float at 16 kHz, at least 201 samples.
        n_mels: mel bins M.
        floor: lower bound of log10 power; `"clip"` is Whisper's own rule (eight decades below the clip's maximum).

    Returns:
        mel_MT: (n_mels, samples // 160) float32, scaled as (log10 power + 4) / 4.

    Source: `WhisperFeatureExtractor`, equal to it with `floor="clip"`.
    """
    reach = WINDOW // 2
    padded = torch.nn.functional.pad(waveform.float()[None], (reach, reach), mode="reflect")[0]
    frames = len(waveform) // HOP  # Whisper drops the one centred behind the last sample
    return log_mel_frames(padded[: (frames - 1) * HOP + WINDOW], n_mels=n_mels, floor=floor)


def log_mel_frames(padded: torch.Tensor, *, n_mels: int, floor: float | Literal["clip"]) -> torch.Tensor:
    """Log-mel of the windows that lie within the samples; bit for bit the same for a frame wherever the cut is.

    Args:
        padded: (samples,) float32, at least one window; whatever padding is meant has been added.

    Returns:
        mel_MT: (n_mels, (samples - 400) // 160 + 1).
    """
    window = torch.hann_window(WINDOW, device=padded.device)
    spectrum = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
    power_FT = spectrum.abs() ** 2
    frames = power_FT.shape[1]
    if frames < MIN_FRAMES:
        power_FT = torch.nn.functional.pad(power_FT.T, (0, 0, 0, MIN_FRAMES - frames)).T
    logarithm = (mel_filters(n_mels).to(padded.device) @ power_FT).clamp(min=TINY).log10()[:, :frames]
    bound = logarithm.max() - DYNAMIC_RANGE if floor == "clip" else torch.tensor(floor, device=padded.device)
    return (torch.maximum(logarithm, bound) + 4.0) / 4.0


def log_mel_batch(
    waveforms: list[torch.Tensor], *, n_mels: int = 80, floor: float | Literal["clip"] = -6.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms of whole hops -> mel_BMT (zeros behind each item) and frames_B."""
    mels = [log_mel(waveform, n_mels=n_mels, floor=floor) for waveform in waveforms]
    frames = torch.tensor([mel.shape[1] for mel in mels])
    batch = torch.zeros(len(mels), n_mels, int(frames.max()))
    for row, mel in zip(batch, mels, strict=True):
        row[:, : mel.shape[1]] = mel
    return batch, frames
