"""Length arithmetic: one count for placeholders, patches, mel frames and teacher frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aura.audio.logmel import log_mel
from aura.audio.patches import FRAMES_PER_SECOND, HOP, SAMPLE_RATE, PatchGrid
from aura.errors import AudioError

GRIDS = st.sampled_from([2, 4, 8, 16, 32]).map(lambda frames: PatchGrid(patch_frames=frames))
SAMPLES = st.integers(1, 200_000)


def test_units() -> None:
    assert SAMPLE_RATE / HOP == FRAMES_PER_SECOND == 100
    assert [PatchGrid(patch_frames=n).patches_per_second for n in (4, 8, 16)] == [25.0, 12.5, 6.25]
    assert PatchGrid().patch_samples == 1280  # 80 ms


@pytest.mark.parametrize(
    ("samples", "patches"),
    [(1, 1), (1279, 1), (1280, 1), (1281, 2), (16_000, 13), (480_000, 375), (172_800_000, 135_000)],
)
def test_counts_as_a_table(samples: int, patches: int) -> None:
    assert PatchGrid().count(samples) == patches


@given(grid=GRIDS, samples=SAMPLES)
def test_samples_fill_their_patches(grid: PatchGrid, samples: int) -> None:
    patches = grid.count(samples)
    assert (patches - 1) * grid.patch_samples < samples <= patches * grid.patch_samples
    assert grid.mel_frames(patches) * HOP == patches * grid.patch_samples
    assert grid.count_seconds(samples / SAMPLE_RATE) == patches


@given(grid=GRIDS, samples=st.integers(1, 20_000))
def test_padding_is_zeros_behind_and_changes_no_count(grid: PatchGrid, samples: int) -> None:
    waveform = np.arange(1, samples + 1, dtype=np.float32)
    padded = grid.pad(waveform)
    assert len(padded) == grid.count(samples) * grid.patch_samples and padded.dtype == np.float32
    assert np.array_equal(padded[:samples], waveform) and not padded[samples:].any()
    assert grid.pad(padded) is padded
    assert grid.count(len(padded)) == grid.count(samples)


@given(grid=GRIDS, samples=st.integers(1, 20_000))
def test_mel_and_teacher_frames_divide_the_padded_waveform(grid: PatchGrid, samples: int) -> None:
    padded = grid.pad(np.ones(samples, dtype=np.float32))
    patches = grid.count(samples)
    assert log_mel(torch.from_numpy(padded)).shape[1] == grid.mel_frames(patches)
    for frame in (160, 320):
        if frame <= grid.patch_samples:
            assert patches * grid.teacher_frames(frame) * frame == len(padded)


@pytest.mark.parametrize(
    ("patch_frames", "frame_samples", "expected"),
    [(8, 320, 4), (4, 320, 2), (16, 320, 8), (8, 640, 2), (2, 320, 1)],
)
def test_teacher_frames_of_a_patch(patch_frames: int, frame_samples: int, expected: int) -> None:
    assert PatchGrid(patch_frames=patch_frames).teacher_frames(frame_samples) == expected


@pytest.mark.parametrize(("patch_frames", "frame_samples", "multiple"), [(8, 400, 5), (5, 320, 2), (2, 640, 4)])
def test_a_teacher_frame_must_divide_the_patch(patch_frames: int, frame_samples: int, multiple: int) -> None:
    with pytest.raises(
        ValueError,
        match=rf"of {patch_frames * 160} samples .* of {frame_samples} samples; .* multiple of {multiple}",
    ):
        PatchGrid(patch_frames=patch_frames).teacher_frames(frame_samples)


@pytest.mark.parametrize("samples", [0, -1])
def test_no_samples_make_no_patch(samples: int) -> None:
    with pytest.raises(AudioError, match=rf"{samples} samples make no patch; expected at least 1 sample"):
        PatchGrid().count(samples)


def test_no_seconds_count_as_the_shortest() -> None:
    assert PatchGrid().count_seconds(0.0) == 1
