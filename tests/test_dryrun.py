"""The dry run: no weights, no network, and the counts of the real modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from aura.errors import RecipeError
from aura.recipes import read_recipe
from aura.training.cost import step_cost
from aura.training.dryrun import dry_run

PAPER = Path(__file__).parent.parent / "recipes" / "qwen2.5-7b-whisper-large-v3.yaml"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the dry run asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_the_papers_size_without_weights() -> None:
    figures = dry_run(read_recipe(PAPER))
    assert "7.62B weights" in figures["llm"]  # Qwen2.5-7B as published
    assert "637" in figures["teacher"]  # Whisper-large-v3's encoder
    assert figures["layer pairs"].endswith("32->24")
    assert "12.5 positions a second" in figures["audio"]
    for key in ("trainable", "trainable share", "memory", "FLOP per step", "FLOP per second of audio", "first batch"):
        assert figures[key]


def test_wrong_front_end_is_named() -> None:
    with pytest.raises(RecipeError, match=r"audio\.n_mels: 128 and audio\.stem_width: 1280"):
        dry_run(read_recipe(PAPER, {"audio.n_mels": 80, "audio.stem_width": 512}))


def test_flops_count_the_linear_layers() -> None:
    model, _ = tiny.tiny_student("llama")
    cost = step_cost(model)
    linear = [m for n, m in model.language_model.named_modules() if isinstance(m, torch.nn.Linear) and "layers." in n]
    assert cost.frozen + cost.trained == sum(m.weight.numel() for m in linear)
    assert cost.trained == sum(m.weight.numel() for m in linear if m.weight.requires_grad) > 0
    one = cost.student(positions=10, length=1, answers=0, patches=0)
    assert one - 10 * 6 * cost.attention_width == 10 * (4 * cost.frozen + 6 * cost.trained)
