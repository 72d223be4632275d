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
    window = torch.hann_window(WINDOW, device=waveform.device)
    spectrum = torch.stft(
        waveform.float(), WINDOW, HOP, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    power = spectrum[..., :-1].abs() ** 2  # Whisper drops the frame centred behind the last sample
    logarithm = (mel_filters(n_mels).to(waveform.device) @ power).clamp(min=TINY).log10()
    bound = logarithm.max() - DYNAMIC_RANGE if floor == "clip" else torch.tensor(floor, device=waveform.device)
    return (torch.maximum(logarithm, bound) + 4.0) / 4.0


def log_mel_batch(
    waveforms: list[torch.Tensor], *, n_mels: int = 80, floor: float = -6.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Waveforms of whole hops -> mel_BMT (zeros behind each item) and frames_B."""
    mels = [log_mel(waveform, n_mels=n_mels, floor=floor) for waveform in waveforms]
    frames = torch.tensor([mel.shape[1] for mel in mels])
    batch = torch.zeros(len(mels), n_mels, int(frames.max()))
    for row, mel in zip(batch, mels, strict=True):
        row[:, : mel.shape[1]] = mel
    return batch, frames
