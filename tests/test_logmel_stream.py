"""Incremental front-end: bit for bit the frames of the whole, and the audio embedding's patches."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aura.audio.logmel import MIN_FRAMES, log_mel, mel_filters
from aura.audio.logmel_stream import LogMelStream
from aura.audio.patches import HOP, PatchGrid
from aura.errors import AudioError, ModelError
from aura.inference.patch_stream import PatchStream

CHUNKS = st.lists(st.integers(1, 20_000), min_size=1, max_size=12)
SPEECH = tiny.tiny_speech(16.0)


def pieces(samples: int, chunks: list[int]) -> list[np.ndarray]:
    """The first `samples` of the speech in chunks of those sizes, by turns."""
    cut, first, turn = [], 0, 0
    while first < samples:
        cut.append(SPEECH[first : min(samples, first + chunks[turn % len(chunks)])])
        first, turn = first + chunks[turn % len(chunks)], turn + 1
    return cut


def stream(patch_frames: int = 8, n_mels: int = 80) -> LogMelStream:
    return LogMelStream(grid=PatchGrid(patch_frames=patch_frames), n_mels=n_mels, floor=-6.0)


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 60_000), chunks=CHUNKS, patch_frames=st.sampled_from([2, 4, 8, 16]))
def test_frames_are_the_wholes_bit_for_bit(samples: int, chunks: list[int], patch_frames: int) -> None:
    mel = stream(patch_frames)
    frames = [mel.feed(piece) for piece in pieces(samples, chunks)]
    whole = log_mel(torch.from_numpy(mel.grid.pad(SPEECH[:samples])))
    assert torch.equal(torch.cat([*frames, mel.rest()], dim=1), whole)
    assert mel.samples == samples and mel.frames == sum(f.shape[1] for f in frames)


@pytest.mark.parametrize("chunk", [160, 480, 1600])
def test_ten_seconds_in_steady_chunks(chunk: int) -> None:
    mel = stream(n_mels=128)
    frames = [mel.feed(piece) for piece in pieces(160_000, [chunk])]
    assert torch.equal(torch.cat([*frames, mel.rest()], dim=1), log_mel(torch.from_numpy(SPEECH[:160_000]), n_mels=128))


def test_sample_by_sample() -> None:
    mel = stream()
    frames = [mel.feed(SPEECH[n : n + 1]) for n in range(3000)]
    assert torch.equal(torch.cat([*frames, mel.rest()], dim=1), log_mel(torch.from_numpy(mel.grid.pad(SPEECH[:3000]))))


def test_a_frame_comes_as_soon_as_its_last_sample() -> None:
    for frame in (0, 1, 7, 50):
        last = max(201, frame * HOP + 200)  # the first frame mirrors 200 samples behind the first one
        mel = stream()
        mel.feed(SPEECH[: last - 1])
        assert mel.frames <= frame
        mel.feed(SPEECH[last - 1 : last])
        assert mel.frames > frame


def test_rest_changes_nothing_and_little_is_held_back() -> None:
    mel = stream()
    for piece in pieces(100_000, [333]):
        mel.feed(piece)
        assert len(mel._tail) < 2 * 400 + 160
    assert torch.equal(mel.rest(), mel.rest())
    again = stream()
    again.feed(SPEECH[:100_000])
    assert torch.equal(again.rest(), mel.rest())
    with pytest.raises(AudioError, match="0 samples make no patch"):
        stream().rest()


def test_the_filterbank_product_does_not_depend_on_how_many_frames_go_in() -> None:
    """What bit equality rests on; below `MIN_FRAMES` it does not hold, so fewer are padded."""
    power = torch.rand(3000, 201).T
    whole = mel_filters(80) @ power
    for count in (MIN_FRAMES, MIN_FRAMES + 1, 23, 64, 100):
        for first in (0, 8, 1000):
            found = mel_filters(80) @ power[:, first : first + count]
            assert torch.equal(found, whole[:, first : first + count])


# --- patches ------------------------------------------------------------------------------------------------


@functools.cache
def student(stem: str) -> tuple[Any, Any]:
    return tiny.tiny_student("llama", stem=stem)


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 60_000), chunks=CHUNKS, stem=st.sampled_from(["conv", "linear"]))
def test_patches_are_the_wholes(samples: int, chunks: list[int], stem: str) -> None:
    model, processor = student(stem)
    audio = PatchStream(model, processor)
    found = [audio.feed(piece) for piece in pieces(samples, chunks)]
    rest = audio.rest()
    assert audio.left == len(rest) and audio.seconds == samples / 16_000
    with torch.no_grad():
        whole = model.get_audio_features(**processor.feature_extractor([SPEECH[:samples]])).pooler_output
    torch.testing.assert_close(torch.cat([*found, rest]), whole, rtol=1e-5, atol=1e-5)


def test_a_patch_comes_12_5_ms_after_its_last_sample() -> None:
    model, processor = student("conv")
    audio = PatchStream(model, processor)
    audio.feed(SPEECH[: 3 * 1280 + 199])
    assert audio.patches == 2
    audio.feed(SPEECH[3 * 1280 + 199 : 3 * 1280 + 200])
    assert audio.patches == 3


def test_a_final_patch_does_not_depend_on_the_future() -> None:
    model, processor = student("conv")
    later = [SPEECH[20_000:40_000], -3 * SPEECH[20_000:40_000]]
    found = []
    for end in later:
        with torch.no_grad():
            features = processor.feature_extractor([np.concatenate([SPEECH[:20_000], end])])
            found.append(model.get_audio_features(**features).pooler_output)
    audio = PatchStream(model, processor)
    final = len(audio.feed(SPEECH[:20_000]))
    assert final == 15
    torch.testing.assert_close(found[0][:final], found[1][:final], rtol=0, atol=1e-6)
    assert not torch.allclose(found[0][final], found[1][final], atol=1e-4), "the bound is tight"


def test_a_front_end_that_hears_the_whole_clip_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = student("conv")
    monkeypatch.setattr(processor.feature_extractor, "floor", "clip")
    with pytest.raises(ModelError, match=r"floor 'clip'.*fixed audio.floor"):
        PatchStream(model, processor)
