"""The moving average of the weights: its arithmetic, and that it is what a run validates and delivers."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from aura.training import loop
from aura.training.average import WeightAverage
from aura.training.loop import train
from aura.training.run_folder import step_folders


def test_a_constant_is_its_own_average_and_a_jump_is_followed() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    average = WeightAverage({"w": weight}, 0.9)
    expected = torch.zeros(3)
    for step in range(40):
        with torch.no_grad():
            weight.fill_(float(step % 7))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * float(step % 7)
        average.update(step)
    with average.applied():
        assert torch.allclose(weight, expected) and weight.requires_grad
    assert torch.equal(weight, torch.full((3,), 39.0 % 7))


def test_the_live_weights_come_back_after_an_error() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    average = WeightAverage({"w": weight}, 0.5)
    with torch.no_grad():
        weight.fill_(3.0)
    with pytest.raises(RuntimeError), average.applied():
        assert weight[0] == 1.0
        raise RuntimeError
    assert weight[0] == 3.0


def test_without_a_decay_nothing_is_kept() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    average = WeightAverage({"w": weight}, 0.0)
    average.update(1)
    with average.applied():
        assert weight[0] == 1.0
    assert average.tensors == {}


def test_a_run_delivers_the_average_and_goes_on_from_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "plot_run", lambda run: [])
    runs = {}
    for decay in (0.0, 0.9):
        out = tmp_path / f"run-{decay}"
        train(tiny.tiny_recipe(tmp_path, {"run.out": str(out), "optim.average": decay}))
        state = load_file(step_folders(out)[-1] / "training.safetensors")
        delivered = load_file(out / "checkpoint" / "audio_embedding.safetensors")
        runs[decay] = state, delivered
    (plain, plain_out), (averaged, averaged_out) = runs[0.0], runs[0.9]
    # Averaging looks on: the steps themselves are the same.
    assert all(torch.equal(averaged[name], tensor) for name, tensor in plain.items())
    name = "project.weight"
    full = next(key for key in plain if key.startswith("weight/") and key.endswith(f"audio_embedding.{name}"))
    assert torch.equal(plain_out[name], plain[full])
    assert torch.equal(averaged_out[name], averaged[full.replace("weight/", "average/", 1)])
    assert not torch.equal(averaged_out[name], plain_out[name])
