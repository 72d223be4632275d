"""Layer map, frame map, standardised targets, heads and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from aura.distill.frame_map import TargetStatistics, frames_to_targets
from aura.distill.layer_map import LayerPair, layer_pairs, spread_layers
from aura.distill.loss import DistillHeads, response_kl
from aura.errors import RecipeError

LAYERS = st.integers(1, 64)


def as_tuples(pairs: tuple[LayerPair, ...]) -> list[tuple[int, int]]:
    return [(pair.teacher, pair.student) for pair in pairs]


# --- layer map --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (
            6,
            12,
            [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12)],
        ),  # Whisper base on Gemma 3 270M: the prototype
        (6, 6, [(n, n) for n in range(1, 7)]),
        (4, 10, [(1, 2), (2, 5), (3, 8), (4, 10)]),
        (1, 12, [(1, 12)]),
        (12, 1, [(12, 1)]),
        (12, 4, [(3, 1), (6, 2), (9, 3), (12, 4)]),
    ],
)
def test_spread_as_a_table(teacher: int, student: int, expected: list[tuple[int, int]]) -> None:
    assert as_tuples(spread_layers(teacher, student)) == expected


def test_more_teacher_than_student_layers_are_thinned_out() -> None:
    pairs = as_tuples(spread_layers(32, 24))  # Whisper-large-v3 on 24 layers of a 7B LLM
    assert [student for _, student in pairs] == list(range(1, 25))
    assert pairs[:4] == [(1, 1), (3, 2), (4, 3), (5, 4)] and pairs[-1] == (32, 24)


@given(teacher=LAYERS, student=LAYERS)
def test_every_spread_ends_with_the_last_and_repeats_nothing(teacher: int, student: int) -> None:
    pairs = as_tuples(spread_layers(teacher, student))
    assert len(pairs) == min(teacher, student) and pairs[-1] == (teacher, student)
    for side in zip(*pairs, strict=True):
        assert list(side) == sorted(set(side)) and side[0] >= 1


@given(teacher=LAYERS, llm=LAYERS)
def test_the_teachers_last_layer_is_always_compared(teacher: int, llm: int) -> None:
    pairs = layer_pairs(teacher_layers=teacher, llm_layers=llm)
    assert pairs[-1].teacher == teacher and 1 <= pairs[-1].student <= llm


def test_default_is_two_thirds_of_the_llm() -> None:
    assert as_tuples(layer_pairs(teacher_layers=6, llm_layers=18)) == as_tuples(spread_layers(6, 12))
    assert as_tuples(layer_pairs(teacher_layers=6, llm_layers=18, student_layers=18))[-1] == (6, 18)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student_layers": 19}, "distill.student_layers is 19; expected 1 to 18"),
        ({"student_layers": 0}, "distill.student_layers is 0; expected 1 to 18"),
        (
            {"explicit": [(1, 1), (7, 2)]},
            "pairs teacher layer 7 with student layer 2; expected 1 to 6 and 1 to 18",
        ),
        ({"explicit": [(0, 1)]}, "pairs teacher layer 0 with student layer 1; expected 1 to 6"),
        ({"explicit": [(1, 19)]}, "pairs teacher layer 1 with student layer 19; expected 1 to 6 and 1 to 18"),
        ({"explicit": [(1, 3), (2, 3)]}, "names a student layer twice"),
        ({"explicit": []}, "distill.layer_map is empty"),
    ],
)
def test_maps_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        layer_pairs(teacher_layers=6, llm_layers=18, **options)


def test_explicit_pairs_are_taken_as_they_are() -> None:
    pairs = layer_pairs(teacher_layers=6, llm_layers=18, student_layers=3, explicit=[(6, 9), (6, 10), (2, 1)])
    assert as_tuples(pairs) == [(6, 9), (6, 10), (2, 1)]


# --- frame map --------------------------------------------------------------------------------------------


def test_frames_of_a_patch_become_one_target() -> None:
    hidden = torch.arange(2 * 6 * 2.0).reshape(2, 6, 2)  # 2 layers, 6 frames, 2 channels
    stacked = frames_to_targets(hidden, 3, how="stack")
    assert stacked.shape == (2, 2, 6)
    assert stacked[0].tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]], (
        "frame by frame, no information thrown away"
    )
    pooled = frames_to_targets(hidden, 3, how="pool")
    assert pooled.shape == (2, 2, 2) and pooled[0].tolist() == [[2, 3], [8, 9]]
    assert torch.equal(frames_to_targets(hidden, 1, how="stack"), frames_to_targets(hidden, 1, how="pool"))


def test_frames_that_fill_no_patch_are_an_error() -> None:
    with pytest.raises((RuntimeError, ValueError)):
        frames_to_targets(torch.zeros(1, 7, 2), 3, how="stack")


# --- statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_equal_torch_over_all_frames(dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 500, 16) * torch.rand(3, 1, 16) * 5 + torch.randn(3, 1, 16)
    hidden[:, :, 7] = hidden[:, :, 7] * 0.5 + 800.0  # one of Whisper's huge channels, nearly constant
    hidden[1, :, 3] *= 300
    hidden = hidden.to(dtype)
    statistics = TargetStatistics()
    for chunk in hidden.split([1, 99, 250, 150], dim=1):
        statistics.add(chunk)
    mean, std = statistics.mean_std()
    assert statistics.count == 500 and mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(mean, hidden.double().mean(1).float())
    expected = (
        hidden.double().std(1, correction=0).float()
    )  # a channel that bfloat16 rounds to a constant gets the least
    torch.testing.assert_close(std, expected.maximum(expected.amax(1, keepdim=True) * 1e-4), rtol=1e-5, atol=1e-6)


def test_dead_channels_do_not_blow_up() -> None:
    hidden = torch.randn(1, 100, 4)
    hidden[..., 2] = 3.0
    statistics = TargetStatistics()
    statistics.add(hidden)
    mean, std = statistics.mean_std()
    standardised = (hidden - mean[:, None]) / std[:, None]
    assert standardised.isfinite().all() and standardised[..., 2].abs().max() < 0.1


def test_statistics_need_frames() -> None:
    with pytest.raises(ValueError, match="at least one utterance"):
        TargetStatistics().mean_std()


# --- heads and losses -------------------------------------------------------------------------------------


def heads(mean: Any = 0.0, std: Any = 1.0, *, pairs: int = 2, width: int = 8, target: int = 6) -> DistillHeads:
    mean, std = (torch.as_tensor(value).expand(pairs, 3).clone() for value in (mean, std))
    return DistillHeads(pairs=pairs, width=width, target_width=target, mean=mean, std=std)


def test_loss_is_zero_for_the_same_direction_and_two_for_the_opposite() -> None:
    made = heads()
    hidden = [torch.randn(5, 8) for _ in range(2)]
    with torch.no_grad():
        own = torch.stack([head(h) for head, h in zip(made.heads, hidden, strict=True)])
        lengths = torch.rand(2, 5, 1) * 100 + 0.01
        torch.testing.assert_close(made(hidden, own * lengths), torch.zeros(2), atol=1e-5, rtol=0)
        torch.testing.assert_close(made(hidden, -own * lengths), torch.full((2,), 10.0), atol=1e-5, rtol=0)


def test_loss_is_the_sum_of_one_minus_cosine_per_pair() -> None:
    made, hidden, targets = heads(), [torch.randn(5, 8) for _ in range(2)], torch.randn(2, 5, 6)
    found = made(hidden, targets)
    for pair in range(2):
        expected = 0.0
        for patch in range(5):
            ours = made.heads[pair](hidden[pair][patch]).detach().numpy()
            theirs = targets[pair, patch].numpy()
            expected += 1 - float(ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs))
        assert found[pair].item() == pytest.approx(expected, abs=1e-5)


def test_loss_of_no_patches_is_zero_and_pairs_must_match() -> None:
    assert heads()([torch.zeros(0, 8)] * 2, torch.zeros(2, 0, 6)).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="zip"):
        heads()([torch.zeros(1, 8)], torch.zeros(2, 1, 6))


def test_every_head_learns_and_the_last_pair_is_one_of_them() -> None:
    made = heads(pairs=3)
    hidden = [torch.randn(5, 8, requires_grad=True) for _ in range(3)]
    made(hidden, torch.randn(3, 5, 6)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())
    assert all(h.grad is not None and h.grad.abs().sum() > 0 for h in hidden)
    assert {name for name, _ in made.named_buffers()} == {"mean", "std"}


def test_standardised_targets_are_not_drowned_by_a_huge_channel() -> None:
    frames = torch.randn(2, 400, 3) * torch.tensor([500.0, 1.0, 2.0]) + torch.tensor([3000.0, 0.0, 1.0])
    statistics = TargetStatistics()
    statistics.add(frames)
    made = heads(*statistics.mean_std())
    standardised = made.standardise(frames)
    torch.testing.assert_close(standardised.mean(1), torch.zeros(2, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(standardised.std(1, correction=0), torch.ones(2, 3), atol=1e-4, rtol=0)
    assert torch.equal(heads().standardise(frames), frames), "zeros and ones leave targets raw"


def test_response_kl() -> None:
    teacher, student = torch.randn(4, 9), torch.randn(4, 9)
    assert response_kl(teacher, teacher).item() == pytest.approx(0.0, abs=1e-6)
    p, q = teacher.softmax(-1), student.softmax(-1)
    torch.testing.assert_close(response_kl(student, teacher), (p * (p / q).log()).sum())
    torch.testing.assert_close(response_kl(student + 7.0, teacher), response_kl(student, teacher))


# --- start values -----------------------------------------------------------------------------------------


def test_calibrated_heads_fit_what_is_linear_though_some_channels_are_huge() -> None:
    made = heads()
    scales = torch.tensor([1.0, 1.0, 300.0, 1.0, 0.5, 1.0, 1.0, 20.0])
    hidden = [torch.randn(400, 8) * scales + scales for _ in range(2)]
    with torch.no_grad():
        channels = torch.stack([head.channels(h) for head, h in zip(made.heads, hidden, strict=True)])
        deviations = channels - channels.mean(1, keepdim=True)
        targets = deviations / deviations.std(1, keepdim=True) @ torch.randn(8, 6)
        before = made(hidden, targets) / 400
        made.calibrate(hidden, targets, ridge=1e-6)
        after = made(hidden, targets) / 400
    assert (before > 0.1).all() and (after < 1e-3).all()
    for head, one in zip(made.heads, hidden, strict=True):
        channels = head.channels(one)
        torch.testing.assert_close(channels.mean(0), torch.zeros(8), atol=1e-3, rtol=0)
        torch.testing.assert_close(channels.std(0), torch.ones(8), atol=1e-3, rtol=0)


def test_conv_stem_starts_as_the_teachers_front_end(tmp_path: Path) -> None:
    from transformers import WhisperModel

    from aura.errors import ModelError
    from aura.student.embedding import AudioEmbedding

    encoder = WhisperModel.from_pretrained(tiny.tiny_whisper(tmp_path, full=False)).encoder.eval()
    front_end = {n: p for n, p in encoder.named_parameters() if n.startswith("conv")}
    options: dict[str, Any] = {"width": 32, "patch_frames": 8, "stem": "conv", "scale": 1.0}
    embedding = AudioEmbedding(n_mels=80, stem_width=16, **options)
    embedding.warm_start(front_end)
    mel = torch.randn(1, 80, 64)
    with torch.no_grad():
        hidden = torch.nn.functional.gelu(encoder.conv2(torch.nn.functional.gelu(encoder.conv1(mel))))
        patches = embedding.stack_norm(hidden.transpose(1, 2).reshape(8, 4 * 16))
        expected = embedding.norm(embedding.project(patches))
        torch.testing.assert_close(embedding(mel, torch.tensor([64])), expected, rtol=1e-5, atol=1e-5)
    other = AudioEmbedding(n_mels=128, stem_width=24, **options)
    with pytest.raises(
        ModelError,
        match=r"80 mel bins and 16 channels.*128 and 24. Set audio.n_mels: 80 and audio.stem_width: 16",
    ):
        other.warm_start(front_end)
