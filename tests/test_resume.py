"""A run that was stopped or killed and resumed ends as the one that was not: same losses, same weights, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from aura.config import Recipe
from aura.errors import CheckpointError, ModelError, TrainingError
from aura.recipes import write_recipe
from aura.training import loop
from aura.training.loop import RunResult, train
from aura.training.run_folder import step_folders
from aura.training.state import read_log
from aura.training.stop import StopWatch

TIMED = {"minutes", "audio_seconds_per_second", "positions_per_second"}

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "augmented": {
        **{"augment.gain_db": [-10, 6], "augment.noise_probability": 0.7, "augment.speed_probability": 0.7},
        **{"augment.time_masks": 2, "augment.freq_masks": 2, "data.workers": 2},
    },
    "accumulated": {"batch.micro_batches": 3, "distill.final_weight": 0.1},
    "dropout": {"lora.dropout": 0.3, "lora.gate": "all", "student.gradient_checkpointing": True},
    "everything": {
        **{"lora.dropout": 0.2, "batch.micro_batches": 2, "augment.noise_probability": 1.0, "distill.response_kl": 0.5},
        **{"run.log_every": 2, "run.eval_every": 2, "run.best_metric": "loss", "optim.weight_decay": 0.1},
        **{"optim.average": 0.9},
    },
    "streaming": {"data.streaming": True, "data.shuffle_buffer": 5, "data.max_seconds": 5.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, clips and uninterrupted runs, shared by the tests of this file."""
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "plot_run", lambda run: [])


def recipe_for(folder: Path, out: Path, overrides: dict[str, Any]) -> Recipe:
    valid = {"data.valid": [str(folder / "data" / "valid.jsonl")]} if "run.eval_every" in overrides else {}
    return tiny.tiny_recipe(folder, {"run.out": str(out), **valid, **overrides})


def uninterrupted(folder: Path, name: str) -> Path:
    out = folder / f"whole-{name}"
    if not out.is_dir():
        assert train(recipe_for(folder, out, RECIPES[name])).finished
    return out


def signal_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """The process gets a signal in the middle of that step (counted from 1)."""
    take = loop._Run._step

    def interrupted(self: Any, *args: Any) -> None:
        if self.progress.step + 1 == step:
            os.kill(os.getpid(), number)
        take(self, *args)

    monkeypatch.setattr(loop._Run, "_step", interrupted)


def stopped_run(folder: Path, out: Path, name: str, step: int, number: int = signal.SIGTERM) -> RunResult:
    with pytest.MonkeyPatch.context() as patch:
        signal_after(patch, step, number)
        return train(recipe_for(folder, out, RECIPES[name]))


def log_of(run: Path) -> list[dict[str, Any]]:
    """Rows without what the clock decides."""
    return [{k: v for k, v in row.items() if k not in TIMED} for row in read_log(run / "log.jsonl")]


def assert_same_run(found: Path, expected: Path) -> None:
    assert log_of(found) == log_of(expected)
    for file in ("checkpoint/adapter_model.safetensors", "checkpoint/audio_embedding.safetensors"):
        assert_same_tensors(found / file, expected / file)
    last, whole = step_folders(found)[-1], step_folders(expected)[-1]
    assert last.name == whole.name
    assert_same_tensors(last / "training.safetensors", whole / "training.safetensors")  # optimiser and heads too
    states = [json.loads((path / "training.json").read_text()) for path in (last, whole)]
    for state in states:
        del state["minutes"], state["window"]
    assert states[0] == states[1]


def assert_same_tensors(found: Path, expected: Path) -> None:
    ours, theirs = load_file(found), load_file(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# --- stopped by a signal ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_resumed_equals_uninterrupted(folder: Path, tmp_path: Path, name: str) -> None:
    expected, out = uninterrupted(folder, name), tmp_path / "run"
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    first = stopped_run(folder, out, name, 3)
    assert not first.finished and first.signal == signal.SIGTERM and first.checkpoint is None
    assert first.progress.step == 3 and [p.name for p in step_folders(out)] == ["step-000003"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    second = train(recipe_for(folder, out, RECIPES[name]), resume=True)
    assert second.finished and second.signal is None and second.checkpoint == out / "checkpoint"
    assert_same_run(out, expected)


def test_stopped_again_and_again(folder: Path, tmp_path: Path) -> None:
    """At an evaluation's own step too: it is made up for; and by Ctrl-C."""
    out = tmp_path / "run"
    recipe = recipe_for(folder, out, RECIPES["everything"])
    for step in (1, 2, 4, 5):
        with pytest.MonkeyPatch.context() as patch:
            signal_after(patch, step, signal.SIGINT)
            assert train(recipe, resume=True).progress.step == step
    assert train(recipe, resume=True).finished
    assert_same_run(out, uninterrupted(folder, "everything"))


def test_a_second_signal_interrupts_at_once(folder: Path, tmp_path: Path) -> None:
    def twice(self: Any, *args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_step", twice)
        with pytest.raises(KeyboardInterrupt):
            train(recipe_for(folder, tmp_path / "run", {}))


def test_resuming_a_finished_run_changes_nothing(folder: Path, tmp_path: Path) -> None:
    expected = uninterrupted(folder, "everything")
    before = log_of(expected)
    again = train(recipe_for(folder, expected, RECIPES["everything"]), resume=True)
    assert again.finished and again.progress.step == 6 and log_of(expected) == before


def test_resume_without_a_checkpoint_starts(folder: Path, tmp_path: Path) -> None:
    assert train(recipe_for(folder, tmp_path / "run", {}), resume=True).finished
    assert_same_run(tmp_path / "run", uninterrupted(folder, "plain"))


def test_a_longer_run_goes_on_from_a_finished_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    train(recipe_for(folder, out, {}))
    result = train(recipe_for(folder, out, {"run.steps": 8}), resume=True)
    assert result.progress.step == 8 and [row["step"] for row in read_log(out / "log.jsonl")] == list(range(1, 9))
    assert "changed since then: run.steps 6 -> 8" in capsys.readouterr().err


# --- the clock --------------------------------------------------------------------------------------------


def slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute passes each time the watch is read."""

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            self.now += 60.0
            return self.now

    monkeypatch.setattr("aura.training.stop.time", Clock())


def test_max_minutes_ends_the_run_with_a_checkpoint(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_clock(monkeypatch)
    changes = {"run.max_minutes": 3.5, "run.steps": 100, "optim.warmup_steps": 0, "distill.final_weight": 0.0}
    recipe = recipe_for(folder, tmp_path, changes)
    result = train(recipe)
    assert result.finished and result.progress.step == 4 and (tmp_path / "checkpoint").is_dir()
    rates = [row["learning_rate"] for row in read_log(tmp_path / "log.jsonl")]
    # decayed by the clock: after 3 of 3.5 minutes, whatever the 100 steps
    assert rates == sorted(rates, reverse=True) and rates[0] == 3e-3 and rates[-1] < 0.2 * rates[0]
    pulls = [row["distill_weight"] for row in read_log(tmp_path / "log.jsonl")]
    assert pulls[0] == recipe.distill.weight and pulls[-1] == pytest.approx(pulls[0] * (1 - 85 / 99))
    again = train(recipe, resume=True)  # its time is over: nothing more is learnt
    assert again.finished and again.progress.step == 4


def test_minutes_of_earlier_parts_count(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_clock(monkeypatch)
    recipe = recipe_for(folder, tmp_path, {"run.max_minutes": 4.5, "run.steps": 100})
    with pytest.MonkeyPatch.context() as patch:
        signal_after(patch, 2)
        assert train(recipe).progress.step == 2
    result = train(recipe, resume=True)
    assert result.finished and result.progress.step == 5 and result.progress.minutes == pytest.approx(5.0)


def test_save_minutes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_clock(monkeypatch)  # read twice a step with save_minutes: once for the run, once for the checkpoint
    train(recipe_for(folder, tmp_path, {"run.save_minutes": 3.5, "run.keep_last": 9}))
    assert [path.name for path in step_folders(tmp_path)] == ["step-000002", "step-000004", "step-000006"]


def test_one_process_that_wants_to_stop_stops_all() -> None:
    """What rank 1 brings along decides for rank 0 as well, the number of the signal included."""

    class TwoProcesses:
        num_processes, device = 2, torch.device("cpu")

        def gather(self, mine: torch.Tensor) -> torch.Tensor:
            return torch.cat([mine, torch.tensor([[1.0, 0.0, float(signal.SIGTERM), 7.5]])])

    agreed = StopWatch(max_minutes=None, save_minutes=None).agree(TwoProcesses())
    assert (agreed.stop, agreed.save, agreed.signal, agreed.minutes) == (True, False, signal.SIGTERM, 7.5)


# --- killed -----------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from aura.recipes import read_recipe
from aura.training import loop, state

recipe, how, step = read_recipe(sys.argv[1]), sys.argv[2], int(sys.argv[3])
take, write = loop._Run._step, state.write_student

def step_or_die(self, *args):
    if how == "step" and self.progress.step + 1 == step:
        os.kill(os.getpid(), signal.SIGKILL)
    take(self, *args)

def write_and_die(folder, *args):
    write(folder, *args)
    if how == "save" and f"step-{step:06d}" in folder.name:
        os.kill(os.getpid(), signal.SIGKILL)

loop._Run._step, state.write_student = step_or_die, write_and_die
loop.plot_run = lambda run: []
loop.train(recipe, resume=True)
"""


def test_kill_9_in_a_step_and_in_a_save(folder: Path, tmp_path: Path) -> None:
    expected, out = uninterrupted(folder, "everything"), tmp_path / "run"
    recipe = recipe_for(folder, out, {**RECIPES["everything"], "run.save_every": 2})
    write_recipe(recipe, tmp_path / "recipe.yaml")
    for how, step, newest in (("step", 4, "step-000002"), ("save", 4, "step-000002")):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "recipe.yaml"), how, str(step)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert step_folders(out)[-1].name == newest
    torn = [path for path in (out / "checkpoints").iterdir() if path.name.startswith(".")]
    assert torn  # half of step 4
    with (out / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "step": 4, "lo')  # as a kill tears a line
    assert train(recipe, resume=True).finished
    assert_same_run(out, expected)
    assert not list(out.rglob(".*"))  # and nothing half-written is left behind


# --- full disk --------------------------------------------------------------------------------------------


def test_full_disk_while_saving_leaves_the_checkpoints_before(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aura.training import state

    out = tmp_path / "run"
    recipe = recipe_for(folder, out, {**RECIPES["everything"], "run.save_every": 2})
    write = state.save_file

    def full(tensors: Any, path: Path) -> None:
        if "step-000004" in str(path):
            write(dict(list(tensors.items())[:3]), path)  # what still fitted
            raise OSError(28, "No space left on device")
        write(tensors, path)

    with monkeypatch.context() as patch:
        patch.setattr(state, "save_file", full)
        with pytest.raises(ModelError, match=r"step-000004: the disk is full.*free some space"):
            train(recipe)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002"]
    assert train(recipe, resume=True).finished
    assert_same_run(out, uninterrupted(folder, "everything"))


def test_full_disk_while_logging(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Path.open

    def full(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if self.name == "log.jsonl" and mode == "a":
            raise OSError(28, "No space left on device")
        return opened(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(TrainingError, match=r"log\.jsonl cannot be written: No space left.*--resume"):
        train(recipe_for(folder, tmp_path, {}))


# --- what cannot be resumed -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resumable(folder: Path) -> Path:
    stopped_run(folder, folder / "resumable", "plain", 3)
    return folder / "resumable"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lora.rank": 8}, "lora.rank 4 -> 8"),
        ({"lora.gate": "all", "audio.block_patches": 4}, "audio.block_patches 8 -> 4; lora.gate audio -> all"),
        ({"distill.layer_map": [[1, 1], [3, 2]]}, "distill.layer_map"),
    ],
)
def test_another_recipe_is_refused_and_the_runs_own_is_kept(
    folder: Path, resumable: Path, change: dict[str, Any], named: str
) -> None:
    kept = {
        path: path.read_bytes() for path in resumable.rglob("*") if path.is_file() and "tensorboard" not in str(path)
    }
    with pytest.raises(CheckpointError, match="another recipe") as caught:
        train(recipe_for(folder, resumable, change), resume=True)
    assert named in str(caught.value) and "--overwrite" in str(caught.value)
    assert {path: path.read_bytes() for path in kept} == kept


def test_weights_of_another_shape_are_refused(folder: Path, resumable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tensors themselves, should the recipe not tell: of another shape, too few, too many."""
    monkeypatch.setattr(loop, "changed_fields", lambda *args: [])
    for change in ({"lora.rank": 8}, {"lora.layers": 2}, {"distill.student_layers": 2}):
        with pytest.raises(CheckpointError, match="belongs to another recipe"):
            train(recipe_for(folder, resumable, change), resume=True)


def test_another_llm_is_refused(folder: Path, resumable: Path) -> None:
    other = folder / "other-llm"
    tiny.tiny_llm_folder("llama", other, seed=5)
    with pytest.raises(CheckpointError, match="trained on another LLM"):
        train(recipe_for(folder, resumable, {"student.llm": str(other)}), resume=True)


@pytest.mark.parametrize("file", ["training.safetensors", "training.json", "config.json"])
def test_a_torn_state_is_named(folder: Path, tmp_path: Path, file: str) -> None:
    stopped_run(folder, tmp_path, "plain", 1)
    path = step_folders(tmp_path)[-1] / file
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="step-000001 cannot be resumed from"):
        train(recipe_for(folder, tmp_path, {}), resume=True)


def test_runs_are_compared_to_the_last_digit(folder: Path, tmp_path: Path) -> None:
    """The tests above can fail: a learning rate off by a millionth makes another run."""
    train(recipe_for(folder, tmp_path / "run", {"optim.learning_rate": 3.000003e-3}))
    assert log_of(tmp_path / "run") != log_of(uninterrupted(folder, "plain"))
