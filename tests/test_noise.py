"""Noise at a given ratio: the ratio is met, the stretch is the item's own, and nothing clips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from aura.data.manifest import write_manifest
from aura.data.utterance import AudioRef, Utterance
from aura.errors import AudioError, DataError
from aura.evaluation.noise import PEAK_FRAME, snr_of, with_noise
from aura.evaluation.tables import tables
from aura.evaluation.tasks import TASKS

RATE = 16_000


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "noise.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(2 * RATE), RATE, subtype="FLOAT")
    return path


def speech(folder: Path, name: str = "a", *, loudness: float = 0.2) -> Utterance:
    """Three seconds, half of them a pause: longer than the noise."""
    wave = loudness * np.sin(np.arange(3 * RATE) / 20) * (np.arange(3 * RATE) < 1.5 * RATE)
    soundfile.write(folder / f"{name}.wav", wave, RATE, subtype="FLOAT")
    part = AudioRef(source=str(folder / f"{name}.wav"), seconds=3.0)
    return Utterance(id=name, audio=(part,), messages=(), transcript=name, speaker="s")


def power(wave: np.ndarray) -> float:
    return float(np.mean(wave.astype(np.float64) ** 2))


def loudest(wave: np.ndarray) -> float:
    whole = wave[: len(wave) // PEAK_FRAME * PEAK_FRAME].reshape(-1, PEAK_FRAME)
    return max(power(frame) for frame in whole)


@pytest.mark.parametrize("snr_db", [24, 6.0, -3])
def test_the_ratio_is_met(snr_db: float, noise: Path, tmp_path: Path) -> None:
    clean = speech(tmp_path)
    wave = clean.audio[0].load()
    (noisy,) = with_noise([clean], noise, snr_db)
    added = noisy.audio[0].load() - wave
    assert 10 * np.log10(power(wave) / power(added)) == pytest.approx(snr_db, abs=0.01)
    (noisy,) = with_noise([clean], noise, snr_db, level="peak")
    added = noisy.audio[0].load() - wave
    assert 10 * np.log10(loudest(wave) / loudest(added)) == pytest.approx(snr_db, abs=0.01)


def test_the_stretch_is_the_items_own_at_every_ratio(noise: Path, tmp_path: Path) -> None:
    rows = [speech(tmp_path, "a"), speech(tmp_path, "b")]
    found = with_noise(rows, noise, [12, 6])
    assert [u.id for u in found] == ["a@12dB", "b@12dB", "a@6dB", "b@6dB"]
    assert [snr_of(u) for u in found] == [12, 12, 6, 6] and snr_of(rows[0]) is None
    added = [u.audio[0].load() - rows[i % 2].audio[0].load() for i, u in enumerate(found)]
    assert np.allclose(added[0] * 10 ** (6 / 20), added[2], atol=1e-5)  # the same noise, 6 dB louder
    assert not np.allclose(added[0], added[1], atol=1e-3)
    backwards = with_noise(rows[::-1], noise, 12)
    assert np.array_equal(backwards[1].audio[0].load(), found[0].audio[0].load())
    other = with_noise(rows, noise, 12, seed=1)
    assert not np.array_equal(other[0].audio[0].load(), found[0].audio[0].load())
    assert found[0].seconds == 3.0 and found[0].transcript == "a"


def test_loud_mixtures_do_not_clip_and_silence_stays(noise: Path, tmp_path: Path) -> None:
    (loud,) = with_noise([speech(tmp_path, loudness=0.9)], noise, -10)
    assert np.abs(loud.audio[0].load()).max() == pytest.approx(1.0)
    (silent,) = with_noise([speech(tmp_path, "zero", loudness=0.0)], noise, 6)
    assert not silent.audio[0].load().any()


def test_what_cannot_be_mixed_is_said(noise: Path, tmp_path: Path) -> None:
    clean = speech(tmp_path)
    with pytest.raises(AudioError, match=r"absent\.wav"):
        with_noise([clean], tmp_path / "absent.wav", 6)
    for wrong in ([], [float("nan")]):
        with pytest.raises(DataError, match="expected one ratio"):
            with_noise([clean], noise, wrong)
    with pytest.raises(DataError, match="'loud'"):
        with_noise([clean], noise, 6, level="loud")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="changed on the fly"):
        write_manifest(with_noise([clean], noise, 6), tmp_path / "m.jsonl")


def test_a_score_is_cut_by_ratio(noise: Path, tmp_path: Path) -> None:
    pytest.importorskip("jiwer")
    clean = speech(tmp_path)
    rows = [clean, *with_noise([clean], noise, [12, 6])]
    score = TASKS["transcribe"].score(["a"] * 3, ["a", "a", "b"])
    assert [(row["snr_db"], row["wer"]) for row in tables(rows, score)["by_snr"]] == [(6, 1.0), (12, 0.0), (None, 0.0)]
