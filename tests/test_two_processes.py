"""Two processes equal one: the same losses and weights up to the order of sums, started by torchrun and by accelerate."""

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

from aura.recipes import write_recipe
from aura.training import loop
from aura.training.loop import train
from aura.training.run_folder import step_folders
from aura.training.state import read_log

# Everything that has a number of its own in each process: micro-batches, dropout, augmentation, a row that only one of
# them finds broken, the calibration, the evaluation on the main process.
FIELDS: dict[str, Any] = {
    **{"batch.micro_batches": 4, "lora.dropout": 0.2, "distill.response_kl": 0.5, "lora.gate": "all", "run.steps": 4},
    **{"augment.noise_probability": 0.7, "augment.time_masks": 1, "run.eval_every": 2, "run.best_metric": "loss"},
    **{"data.skip_bad": True, "batch.max_items": 1, "run.threads": 1},
}

WORKER = """
import faulthandler, os, signal, sys
faulthandler.dump_traceback_later(60, exit=True)  # processes that wait for each other say where
from aura.recipes import read_recipe
from aura.errors import AuraError
from aura.training import loop

loop.plot_run = lambda run: []
if len(sys.argv) > 2 and os.environ["RANK"] == "1":  # one of them gets a signal
    take = loop._Run._step
    def step(self, *args):
        if self.progress.step + 1 == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGTERM)
        take(self, *args)
    loop._Run._step = step
try:
    result = loop.train(read_recipe(sys.argv[1]), resume=True)
    outcome = "finished" if result.finished else f"stopped by {result.signal} at {result.progress.step}"
except AuraError as error:
    outcome = f"{type(error).__name__}: {error}"
open(f"{sys.argv[1]}.{os.environ['RANK']}", "w").write(outcome)
"""

LAUNCHERS = {
    "torchrun": ("torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    # `--cpu` would start one process only
    "accelerate": ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and clips; one clip has a whole header and hardly a sample."""
    folder = tmp_path_factory.mktemp("two")
    tiny.tiny_recipe(folder)
    broken = folder / "data" / "train-5.wav"
    broken.write_bytes(broken.read_bytes()[:44] + bytes(40))
    manifest = folder / "data" / "train.jsonl"  # lengths in the manifest: what is broken shows when it is decoded only
    rows = [json.loads(line) | {"seconds": 0.4} for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """The run of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot_run", lambda run: [])
        result = train(recipe_for(folder, folder / "one", FIELDS))
    assert result.finished and result.progress.micro_batches == 16  # the broken row's among them
    return folder / "one"


def recipe_for(folder: Path, out: Path, fields: dict[str, Any]) -> Any:
    return tiny.tiny_recipe(
        folder, {"run.out": str(out), "data.valid": [str(folder / "data" / "valid.jsonl")], **fields}
    )


def launch(folder: Path, out: Path, fields: dict[str, Any], launcher: str = "torchrun", *arguments: str) -> list[str]:
    """How the run ended in each of two processes."""
    script, recipe = out.with_suffix(".py"), out.with_suffix(".yaml")
    script.write_text(WORKER)
    write_recipe(recipe_for(folder, out, fields), recipe)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", *LAUNCHERS[launcher], str(script), str(recipe), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return [recipe.with_name(f"{recipe.name}.{rank}").read_text() for rank in (0, 1)]


def assert_same_run(found: Path, expected: Path) -> None:
    ours, theirs = (read_log(run / "log.jsonl") for run in (found, expected))
    assert [(row["kind"], row["step"]) for row in ours] == [(row["kind"], row["step"]) for row in theirs]
    assert [row["kind"] for row in ours].count("train") == FIELDS["run.steps"]
    for mine, other in zip(ours, theirs, strict=True):
        for name in {"loss", "kl", "distance", "cosines", "gradient_norm", "learning_rate"} & other.keys():
            assert mine[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6), (mine["kind"], mine["step"], name)
        assert mine.get("bad_steps") == other.get("bad_steps")
    mine, other = (load_file(step_folders(run)[-1] / "training.safetensors") for run in (found, expected))
    assert mine.keys() == other.keys()
    for name, tensor in other.items():
        if name.startswith("weight/"):
            torch.testing.assert_close(
                mine[name], tensor, rtol=1e-3, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
            )


def test_two_processes_equal_one(folder: Path, alone: Path, tmp_path: Path) -> None:
    """Stopped by a signal that only the second of them gets, and resumed."""
    out = tmp_path / "run"
    assert launch(folder, out, FIELDS, "torchrun", "2") == [f"stopped by {int(signal.SIGTERM)} at 2"] * 2
    assert [path.name for path in step_folders(out)] == ["step-000002"] and not (out / "checkpoint").exists()
    assert launch(folder, out, FIELDS, "accelerate") == ["finished"] * 2
    assert_same_run(out, alone)
    assert (out / "checkpoint").is_dir() and (out / "best").is_dir()


def test_micro_batches_must_be_shared_out_evenly(folder: Path, tmp_path: Path) -> None:
    lines = launch(folder, tmp_path / "run", {"batch.micro_batches": 3})
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("RecipeError: batch.micro_batches is 3 on 2 processes")
        assert line.endswith("--batch.micro_batches 2")
    assert not (tmp_path / "run").exists()
