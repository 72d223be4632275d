"""Log-mel: Whisper's where the settings coincide, and no frame that depends on the future."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from aura.audio.logmel import log_mel, log_mel_batch, mel_filters

SECOND = 16_000  # samples
FRAME_REACH = 200  # samples on either side of a frame's centre


def speech(samples: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(tiny.tiny_speech(samples / SECOND, seed=seed))


def signals() -> dict[str, torch.Tensor]:
    time = torch.arange(2 * SECOND) / SECOND
    sweep = 0.5 * torch.sin(2 * torch.pi * (100 + 1800 * time) * time)
    return {
        "noise": speech(3 * SECOND),
        "sweep": sweep,
        "loud end": torch.cat([speech(SECOND) * 1e-3, speech(SECOND)]),
        "digital silence around": torch.cat([torch.zeros(SECOND), sweep, torch.zeros(SECOND)]),
        "silence": torch.zeros(SECOND),
        "not a whole number of hops": speech(12_345),
        "shortest": speech(1280),
    }


@pytest.mark.parametrize("n_mels", [80, 128])
@pytest.mark.parametrize("name", signals())
def test_equals_whisper_at_real_length(name: str, n_mels: int) -> None:
    waveform = signals()[name]
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    theirs = extractor(
        waveform.numpy(), sampling_rate=SECOND, padding="do_not_pad", truncation=False, return_tensors="pt"
    )
    found = log_mel(waveform, n_mels=n_mels, floor="clip")
    assert found.shape == (n_mels, len(waveform) // 160)
    torch.testing.assert_close(found, theirs["input_features"][0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_fixed_floor_equals_whisper_above_both_floors(n_mels: int) -> None:
    loud = speech(2 * SECOND)  # its quietest frame is far above six decades below its loudest
    torch.testing.assert_close(log_mel(loud, n_mels=n_mels), log_mel(loud, n_mels=n_mels, floor="clip"), rtol=0, atol=0)


def test_scale_is_whispers() -> None:
    assert log_mel(torch.zeros(SECOND)).unique().tolist() == [-0.5]  # (-6 + 4) / 4
    assert log_mel(torch.zeros(SECOND), floor=-10.0).unique().tolist() == [-1.5]
    tone = torch.sin(2 * torch.pi * 1000 * torch.arange(SECOND) / SECOND)
    difference = log_mel(tone).amax(0) - log_mel(0.1 * tone).amax(0)
    torch.testing.assert_close(difference[2:-2], torch.full((96,), 0.5))  # 20 dB: two decades of power


def test_filters_are_shared_and_unharmed() -> None:
    before = mel_filters(80).clone()
    log_mel(speech(SECOND))
    assert mel_filters(80) is mel_filters(80) and torch.equal(mel_filters(80), before)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_no_frame_depends_on_the_future(n_mels: int) -> None:
    waveform = speech(3 * SECOND)
    changed = waveform.clone()
    changed[2 * SECOND :] = 20 * speech(SECOND, seed=1)
    untouched = (2 * SECOND - FRAME_REACH) // 160 + 1
    ours, other = log_mel(waveform, n_mels=n_mels), log_mel(changed, n_mels=n_mels)
    assert torch.equal(ours[:, :untouched], other[:, :untouched])
    assert not torch.equal(ours[:, untouched + 1], other[:, untouched + 1]), "the bound is tight"
    # Whisper's own rule lets a loud end lift the floor of what came before.
    quiet = torch.cat([waveform[: 2 * SECOND] * 1e-4, waveform[2 * SECOND :]])
    calm = torch.cat([waveform[: 2 * SECOND] * 1e-4, waveform[2 * SECOND :] * 1e-4])
    clip = [log_mel(w, n_mels=n_mels, floor="clip")[:, :untouched] for w in (quiet, calm)]
    fixed = [log_mel(w, n_mels=n_mels)[:, :untouched] for w in (quiet, calm)]
    assert not torch.allclose(*clip, atol=1e-2) and torch.allclose(*fixed, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(heard=st.integers(1280, 3 * SECOND))
def test_what_was_heard_so_far_gives_the_same_frames(heard: int) -> None:
    """Streaming: a prefix of the samples gives a prefix of the frames, all but those that reach beyond it."""
    waveform = speech(3 * SECOND)
    whole = log_mel(waveform)
    prefix = log_mel(waveform[:heard])
    certain = (heard - FRAME_REACH) // 160 + 1
    torch.testing.assert_close(prefix[:, :certain], whole[:, :certain], rtol=0, atol=2e-6)


def test_batch_is_items_side_by_side() -> None:
    waveforms = [speech(n, seed=n) for n in (1280, 6400, 3840)]
    mel_BMT, frames_B = log_mel_batch(waveforms, n_mels=80)
    assert frames_B.tolist() == [8, 40, 24] and mel_BMT.shape == (3, 80, 40)
    for row, waveform in zip(mel_BMT, waveforms, strict=True):
        mel = log_mel(waveform)
        assert torch.equal(row[:, : mel.shape[1]], mel) and not row[:, mel.shape[1] :].any()


def test_any_float_type() -> None:
    waveform = speech(SECOND)
    assert log_mel(torch.from_numpy(waveform.numpy().astype(np.float64))).dtype == torch.float32
    assert torch.equal(log_mel(waveform.double()), log_mel(waveform))
