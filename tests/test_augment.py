"""Augmentation does what its numbers say, and nothing that the generator did not ask for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from aura.audio.resample import change_tempo_and_pitch
from aura.audio.waveform import SAMPLE_RATE
from aura.data.augment import Augment, AugmentConfig, mix_at_snr
from aura.errors import AudioError, RecipeError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def sine(seconds: float = 1.0, frequency: float = 440.0) -> np.ndarray:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def power(wave: np.ndarray) -> float:
    return float(np.mean(np.square(wave, dtype=np.float64)))


@pytest.fixture
def noise_file(tmp_path: Path) -> str:
    path = tmp_path / "hum.wav"
    soundfile.write(path, sine(0.3, 100.0), SAMPLE_RATE, subtype="FLOAT")
    return str(path)


def test_all_off_returns_the_input_itself() -> None:
    augment, wave, mel = Augment(AugmentConfig()), sine(), np.ones((80, 100), np.float32)
    assert augment(wave, rng()) is wave
    assert augment.spec_augment(mel, rng()) is mel


def test_the_generator_alone_decides(noise_file: str) -> None:
    augment = Augment(AugmentConfig.light(noise_files=(noise_file,)))
    wave = sine()
    once, again, other = (
        [Augment(augment.config)(wave, generator) for _ in range(8)] for generator in (rng(1), rng(1), rng(2))
    )
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not all(a.shape == b.shape and np.array_equal(a, b) for a, b in zip(once, other, strict=True))
    assert np.array_equal(wave, sine()), "the input was written to"
    assert all(a.dtype == np.float32 and a.ndim == 1 for a in once)


def test_one_clip_does_not_move_the_draws_of_the_next() -> None:
    """Whatever is drawn for a clip, and however long it is, the generator goes on from the same state."""
    augment = Augment(AugmentConfig(noise_probability=0.5, speed_probability=0.5, time_masks=2, freq_masks=2))
    after = []
    for seconds in (0.5, 3.0):
        generator = rng(3)
        augment(sine(seconds), generator)
        augment.spec_augment(np.zeros((80, int(100 * seconds)), np.float32), generator)
        after.append(generator.random())
    assert after[0] == after[1]


def test_a_telephone_carries_nothing_above_4_khz() -> None:
    wave = rng(5).standard_normal(16_000).astype(np.float32)
    augment = Augment(AugmentConfig(telephone_probability=0.5))
    generator = rng(6)
    heard = [augment(wave, generator) for _ in range(400)]
    narrow = [not np.array_equal(clip, wave) for clip in heard]
    assert 150 < sum(narrow) < 250  # 200 +- 5 standard deviations of 10
    power_F = np.abs(np.fft.rfft(heard[narrow.index(True)])) ** 2
    assert power_F[4200:].sum() < 1e-4 * power_F.sum() < power_F[3000:3800].sum()
    assert all(clip.shape == wave.shape and clip.dtype == np.float32 for clip in heard)


def test_what_is_not_asked_for_draws_nothing() -> None:
    """Older recipes hear what they heard before there were telephones."""
    wave, config = sine(), AugmentConfig.light()
    generators = rng(7), rng(7)
    same = [
        Augment(replace(config, telephone_probability=p))(wave, g) for p, g in zip((0.0, 1e-9), generators, strict=True)
    ]
    assert np.array_equal(*same)
    assert generators[0].random() != generators[1].random()  # the second drew once more


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
@pytest.mark.parametrize("files", [False, True], ids=["white", "file"])
def test_snr_measured_on_the_result(snr_db: float, files: bool, noise_file: str) -> None:
    config = AugmentConfig(
        noise_probability=1.0,
        snr_db=(snr_db, snr_db),
        noise_files=(noise_file,) if files else (),
        white_noise=0.0,
    )
    wave = sine(2.0)  # longer than the noise, which is looped
    noise = Augment(config)(wave, rng()) - wave
    assert 10 * np.log10(power(wave) / power(noise)) == pytest.approx(snr_db, abs=0.01)
    spectrum = np.abs(np.fft.rfft(noise))
    peak_share = float(spectrum.max() ** 2 / (spectrum**2).sum())
    assert (peak_share > 0.5) == files  # a hum has one line, white noise has none


def test_share_of_noisy_clips() -> None:
    augment, wave, generator = Augment(AugmentConfig(noise_probability=0.3)), sine(0.1), rng()
    noisy = sum(augment(wave, generator) is not wave for _ in range(1000))
    assert 250 < noisy < 350


def test_noise_on_silence_stays_silence() -> None:
    silence = np.zeros(1600, np.float32)
    assert np.array_equal(mix_at_snr(silence, sine(0.1), 10.0), silence)
    assert np.array_equal(mix_at_snr(sine(0.1), silence, 10.0), sine(0.1))


def test_gain() -> None:
    wave = sine()
    louder = Augment(AugmentConfig(gain_db=(6.0, 6.0)))(wave, rng())
    assert 10 * np.log10(power(louder) / power(wave)) == pytest.approx(6.0, abs=1e-4)


@pytest.mark.parametrize("factor", [0.9, 1.0437, 1.1])
def test_speed_changes_length_and_pitch_alike(factor: float) -> None:
    wave = change_tempo_and_pitch(sine(2.0), factor)
    assert len(wave) == pytest.approx(2.0 * SAMPLE_RATE / factor, abs=2)
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 8 * len(wave)))
    assert spectrum.argmax() * SAMPLE_RATE / (8 * len(wave)) == pytest.approx(440.0 * factor, abs=0.5)
    assert power(wave) == pytest.approx(power(sine(2.0)), rel=0.01)


def test_silence_on_both_sides_and_the_level_is_the_words() -> None:
    augment = Augment(AugmentConfig(silence=(0.1, 0.4), level_db=(-30.0, -30.0)))
    wave, generator = sine(0.5), rng()
    for _ in range(20):
        padded = augment(wave, generator)
        loud = np.flatnonzero(padded)
        before, behind = loud[0], len(padded) - 1 - loud[-1]
        assert (
            0.1 * SAMPLE_RATE <= before <= 0.4 * SAMPLE_RATE + 2
            and 0.1 * SAMPLE_RATE <= behind <= 0.4 * SAMPLE_RATE + 2
        )
        assert padded.dtype == np.float32 and len(padded) - before - behind == pytest.approx(len(wave), abs=2)
        assert 10 * np.log10(power(padded[loud[0] : loud[-1] + 1])) == pytest.approx(-30.0, abs=0.05)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_spec_augment(kind: str) -> None:
    config = AugmentConfig(time_masks=2, time_mask_frames=30, time_mask_share=0.1, freq_masks=2, freq_mask_bins=12)
    values = rng().standard_normal((80, 200)).astype(np.float32)
    mel = torch.from_numpy(values.copy()) if kind == "torch" else values.copy()
    masked = Augment(config).spec_augment(mel, rng(5))
    assert type(masked) is type(mel) and np.array_equal(np.asarray(mel), values), "the input was written to"
    hidden = np.isclose(np.asarray(masked), values.mean(), atol=1e-6)
    frames, bins = hidden.all(axis=0).sum(), hidden.all(axis=1).sum()
    assert 0 < frames <= 2 * 20 and 0 < bins <= 2 * 12  # 10 % of 200 frames is less than 30
    kept = ~(hidden.all(axis=0)[None, :] | hidden.all(axis=1)[:, None])
    assert np.array_equal(np.asarray(masked)[kept], values[kept])


def test_spec_augment_of_a_tiny_clip() -> None:
    config = AugmentConfig(time_masks=2, freq_masks=2, freq_mask_bins=200)
    for seed in range(20):
        assert Augment(config).spec_augment(np.ones((80, 3), np.float32), rng(seed)).shape == (80, 3)


def test_impossible_numbers_are_reported_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        AugmentConfig(gain_db=(3.0, -3.0), speed=(0.1, 1.0), noise_probability=1.5, time_masks=-1, silence=(-1.0, 0.0))
    for part in (
        "silence=(-1.0, 0.0)",
        "gain_db=(3.0, -3.0)",
        "speed=(0.1, 1.0)",
        "noise_probability=1.5",
        "time_masks=-1",
    ):
        assert part in str(caught.value)


def test_a_missing_noise_file_is_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        Augment(AugmentConfig(noise_files=(str(tmp_path / "absent.wav"),)))
