"""Runs that start from another's weights, and recipes of several stages: one command, resumed anywhere."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file

from aura.batch.collate import collate
from aura.batch.loader import load_example
from aura.cli import main
from aura.config import BRIDGE_RUN, Recipe
from aura.data.manifest import read_utterances
from aura.errors import CheckpointError, RecipeError, TrainingError
from aura.recipes import read_recipe
from aura.stages import read_stages
from aura.student.checkpoint import load_checkpoint
from aura.training import loop, setup, stages
from aura.training.data import read_data
from aura.training.loop import train
from aura.training.run_folder import step_folders
from aura.training.setup import build_station
from aura.training.stages import train_stages
from aura.training.start import find_start
from aura.training.state import read_log
from aura.typed_tree import as_tree

STAGES: list[dict[str, Any]] = [
    {"name": "hear", "run": {"steps": 3}, "optim": {"average": 0.9}},
    {
        "name": "understand",
        "run": {"steps": 4, "save_every": 1, "eval_every": 2, "best_metric": "loss"},
        "distill": {"response_kl": 0.5, "weight": 0.3},
        "lora": {"dropout": 0.1},
    },
]
WEIGHTS = ("adapter_model.safetensors", "audio_embedding.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, clips and finished runs, shared by the tests of this file."""
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "plot_run", lambda run: [])
    monkeypatch.setattr(loop, "Curves", lambda *args, **options: Silent())


class Silent:
    def add(self, row: Any) -> None: ...
    def close(self) -> None: ...


def recipe_for(folder: Path, out: Path, fields: dict[str, Any] | None = None) -> Recipe:
    return tiny.tiny_recipe(folder, {"run.out": str(out), **(fields or {})})


def staged_file(folder: Path, path: Path, listed: Any = STAGES, **shared: Any) -> Path:
    """A recipe file: the tiny recipe as the shared part, then the stages; its run folder lies beside it."""
    tree = as_tree(recipe_for(folder, path.with_suffix("")))
    tree["data"]["valid"] = [str(folder / "data" / "valid.jsonl")]
    for section, fields in shared.items():
        tree[section] |= fields
    path.write_text(yaml.safe_dump({**tree, "stages": listed}))
    return path


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    """A finished run with a moving average, so that what it delivers is not what its last step left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot_run", lambda run: [])
        assert train(recipe_for(folder, folder / "source", {"optim.average": 0.9})).finished
    return folder / "source"


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """Both stages, uninterrupted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot_run", lambda run: [])
        assert train_stages(read_stages(staged_file(folder, folder / "whole.yaml"))).finished
    return folder / "whole"


def assert_same_weights(found: Path, expected: Path) -> None:
    for name in WEIGHTS:
        ours, theirs = load_file(found / name), load_file(expected / name)
        assert ours.keys() == theirs.keys()
        assert [n for n in ours if not torch.equal(ours[n], theirs[n])] == []


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_log(run / "log.jsonl") if row["kind"] == "train"]


def start_of(folder: Path, reference: Path, fields: dict[str, Any] | None = None) -> Any:
    recipe = recipe_for(folder, folder / "nowhere", {"run.init_from": str(reference), **(fields or {})})
    return build_station(recipe, read_data(recipe).train, start=find_start(recipe))


# --- run.init_from ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["", "checkpoint"])
def test_a_run_starts_from_what_another_delivered(
    folder: Path, source: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same forward pass as the delivered checkpoint's, and the run's heads without a calibration pass."""
    monkeypatch.setattr(setup, "calibrate_heads", lambda *args: pytest.fail("calibrated"))
    station = start_of(folder, source / inside)
    delivered, processor = load_checkpoint(source / "checkpoint")
    examples = [load_example(u) for u in list(read_utterances(folder / "data" / "valid.jsonl"))[:2]]
    batch = collate(processor, examples, answer=True)
    inputs = {
        name: getattr(batch, name) for name in ("input_ids", "attention_mask", "input_features", "input_features_mask")
    }
    with torch.no_grad():
        assert torch.equal(station.student.eval()(**inputs).logits, delivered(**inputs).logits)
    saved = load_file(step_folders(source)[-1] / "training.safetensors")
    heads = {n: t for n, t in station.objective.state_dict().items() if n.startswith("heads.")}
    buffers = {"heads.mean", "heads.std"}
    assert buffers < heads.keys()
    assert all(torch.equal(t, saved[f"{'buffer' if n in buffers else 'average'}/{n}"]) for n, t in heads.items())
    trainable = station.objective.trainable()
    assert all(p.dtype == torch.float32 for p in trainable.values())
    assert {n.removeprefix("weight/") for n in saved if n.startswith("weight/")} == trainable.keys()


def test_heads_are_calibrated_where_they_are_gone_or_for_another_layer(folder: Path, source: Path) -> None:
    """On the student as it was loaded."""
    alone = folder / "alone"
    shutil.copytree(source / "checkpoint", alone, dirs_exist_ok=True)
    station = start_of(folder, alone)
    assert station.notes == (
        "the distillation heads start from a calibration pass: its run's training checkpoints are gone",
    )
    fresh = build_station(r := recipe_for(folder, folder / "nowhere"), read_data(r).train)
    ours, theirs = station.objective.heads.state_dict(), fresh.objective.heads.state_dict()
    assert torch.equal(ours["mean"], theirs["mean"])  # of the teacher's targets
    assert not torch.equal(ours["heads.0.linear.weight"], theirs["heads.0.linear.weight"])  # of the student
    [note] = start_of(folder, source, {"distill.layer_map": [[1, 2], [3, 3], [2, 1]]}).notes
    assert note.endswith("distill.layer_map changed")


def test_a_resumed_run_does_not_read_where_it_started(
    folder: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(source, tmp_path / "source")
    fields = {"run.init_from": str(tmp_path / "source"), "run.steps": 2}
    train(recipe_for(folder, tmp_path / "run", fields))
    assert f"starts from the weights of {tmp_path / 'source'}" in capsys.readouterr().err
    card = (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    assert f"| started from | `{tmp_path / 'source'}` |" in card
    shutil.rmtree(tmp_path / "source")
    assert train(recipe_for(folder, tmp_path / "run", {**fields, "run.steps": 3}), resume=True).progress.step == 3
    with pytest.raises(CheckpointError, match=r"run\.init_from: .*source is no folder"):
        train(recipe_for(folder, tmp_path / "run", fields), overwrite=True)
    assert step_folders(tmp_path / "run")  # and nothing was cleared for it


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"lora.rank": 8}, r"lora\.rank is 8, 4 there.*--lora\.rank 4"),
        (
            {"lora.gate": "all", "audio.patch_frames": 16, "lora.layers": 2},
            r"audio\.patch_frames is 16, 8 there; lora\.gate is all, audio there; lora\.layers is 2, null there",
        ),
        ({"lora.modules": ["q_proj"]}, r"lora\.modules is \[q_proj\], \[down_proj, .*\] there"),
        ({"audio.stem": "linear"}, r"audio\.stem is linear, conv there"),
        ({"run.route": "bridge", "distill.weight": 0.0}, r"run\.route is bridge, aura there"),
    ],
)
def test_weights_of_another_form_are_named_before_anything_is_loaded(
    folder: Path, source: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], named: str
) -> None:
    monkeypatch.setattr(loop, "build_station", lambda *args, **options: pytest.fail("loaded"))
    with pytest.raises(CheckpointError, match=named) as caught:
        train(recipe_for(folder, folder / "misfit", {"run.init_from": str(source), **fields}))
    assert "\n" not in str(caught.value)


def test_all_layers_by_number_are_all_layers(folder: Path, source: Path) -> None:
    assert find_start(recipe_for(folder, folder, {"run.init_from": str(source), "lora.layers": 4})) is not None


def test_another_llm_and_no_checkpoint_are_refused(folder: Path, source: Path, tmp_path: Path) -> None:
    tiny.tiny_llm_folder("llama", tmp_path / "other", seed=5)
    with pytest.raises(CheckpointError, match=r"trained on another LLM than .*other"):
        start_of(folder, source, {"student.llm": str(tmp_path / "other")})
    with pytest.raises(CheckpointError, match=r"run\.init_from: .* is no aura checkpoint"):
        start_of(folder, folder / "data")
    shutil.copytree(source / "checkpoint", tmp_path / "torn")
    for text in ("{", "[1]", '{"r": 4}'):
        (tmp_path / "torn" / "adapter_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"adapter_config\.json cannot be read"):
            start_of(folder, tmp_path / "torn")


# --- reading stages ---------------------------------------------------------------------------------------


def test_stage_over_shared_and_flag_over_stage(folder: Path, tmp_path: Path) -> None:
    path = staged_file(folder, tmp_path / "two.yaml")
    flags = {"batch.tokens": 99, "distill.weight": 0.7, "stages.hear.run.steps": 10, "run.init_from": "before"}
    [(first, hear), (second, understand)] = read_stages(path, flags, minutes=28)
    assert (first, second) == ("hear", "understand")
    assert (hear.run.steps, understand.run.steps) == (10, 4) and hear.batch.tokens == understand.batch.tokens == 99
    assert hear.distill.weight == understand.distill.weight == 0.7
    assert (hear.distill.response_kl, understand.distill.response_kl) == (0.0, 0.5)
    assert hear.run.out == str(tmp_path / "two" / "1-hear") and hear.run.init_from == "before"
    assert understand.run.out == str(tmp_path / "two" / "2-understand")
    assert understand.run.init_from == str(tmp_path / "two" / "1-hear" / "checkpoint")
    assert (hear.run.max_minutes, understand.run.max_minutes) == (20, 8)  # by their steps
    assert hear.run.save_every == 0 and understand.run.save_every == 1


def test_all_problems_of_all_stages_in_one_message(folder: Path, tmp_path: Path) -> None:
    listed = [
        {"name": "hear", "lora": {"rang": 3}, "run": {"out": "x"}},
        {"name": "understand", "batch": {"tokens": -1}, "lora": {"rank": 8}, "run": {"init_from": "y"}, "typo": 1},
        {"name": "understand"},
        {"run": {}},
    ]
    path = staged_file(folder, tmp_path / "bad.yaml", listed, data={"nonsense": 1})
    with pytest.raises(RecipeError) as caught:
        read_stages(path, {"stages.here.run.steps": 1}, minutes=-1)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("11 problem(s) in the recipe:") and len(lines) == 13
    for text in (
        "two stages are called understand",
        "stage 4 has no usable name",
        "--stages.here.run.steps names no stage; expected e.g. --stages.hear.run.steps",
        "  - data.nonsense is no field",  # of the shared part: once
        "stage hear: lora.rang is no field of the recipe; did you mean lora.rank?",
        "stage understand: batch.tokens is -1",
        "stage understand: typo is no field of the recipe",
        "stage hear: run.out is its own",
        "stage understand: run.init_from is set; expected none",
        "stage understand: lora.rank is 8, but hear has 4",
        "--minutes is -1",
    ):
        assert text in str(caught.value), text
    assert str(caught.value).count("nonsense") == 1
    path.write_text("stages: []")
    with pytest.raises(RecipeError, match="stages holds none"):
        read_stages(path)


def test_a_recipe_without_stages_is_as_before(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(as_tree(recipe_for(folder, tmp_path))))
    assert read_stages(path, {"run.steps": 3}, minutes=2.0) == [
        ("", read_recipe(path, {"run.steps": 3, "run.max_minutes": 2.0}))
    ]
    with pytest.raises(RecipeError, match="stages is no field"):
        read_stages(path, {"stages.hear.run.steps": 3})
    with pytest.raises(RecipeError, match="has stages, which aura train and aura bundle take"):
        read_recipe(staged_file(folder, tmp_path / "two.yaml"))


# --- training stages --------------------------------------------------------------------------------------


def test_one_command_trains_both_and_delivers(
    folder: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = staged_file(folder, tmp_path / "two.yaml")
    assert main(["train", "--recipe", str(path)]) == 0
    out = tmp_path / "two"
    said = capsys.readouterr().err
    assert "stage 1 of 2, hear: 3 steps" in said and "stage 2 of 2, understand: 4 steps" in said
    assert "calibration" not in said  # the heads came along
    assert {p.name for p in out.iterdir()} == {"recipe.yaml", "1-hear", "2-understand", "checkpoint"}
    assert [losses(out / name) for name in ("1-hear", "2-understand")] == [
        losses(whole / name) for name in ("1-hear", "2-understand")
    ]
    assert_same_weights(out / "checkpoint", out / "2-understand" / "checkpoint")
    model, _ = load_checkpoint(out / "checkpoint")
    assert model.config.base_model == str(folder / "llama")
    assert read_recipe(out / "checkpoint" / "recipe-1-hear.yaml").run.steps == 3
    assert read_recipe(out / "checkpoint" / "recipe.yaml").run.init_from == str(out / "1-hear" / "checkpoint")
    card = (out / "checkpoint" / "README.md").read_text()
    assert "| 1 hear | 3 |" in card and "| 2 understand | 4 |" in card
    assert read_stages(out / "recipe.yaml") == read_stages(path)
    # what stage 2 starts from is what stage 1 delivered, not what its last step left
    last = load_file(step_folders(out / "1-hear")[-1] / "training.safetensors")
    name = next(n for n in last if n.startswith("weight/") and ".lora_B." in n)
    assert not torch.equal(last[name], last[name.replace("weight/", "average/")])

    assert main(["train", "--recipe", str(path)]) == 2
    assert "go on with --resume, start anew with --overwrite" in capsys.readouterr().err
    changed = out / "checkpoint" / "adapter_model.safetensors"
    changed.unlink()
    assert main(["train", "--recipe", str(path), "--resume"]) == 0  # nothing is learnt, what is missing is delivered
    said = capsys.readouterr().err
    assert "1 of 2, hear: finished before" in said and "2 of 2, understand: finished before" in said
    assert_same_weights(out / "checkpoint", whole / "checkpoint")


KILLED = """
import os, signal, sys
from aura.stages import read_stages
from aura.training import loop, stages

take = loop._Run._step

def step_or_die(self, *args):
    if self.run.name == "2-understand" and self.progress.step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    take(self, *args)

loop._Run._step, loop.plot_run = step_or_die, lambda run: []
stages.train_stages(read_stages(sys.argv[1]), resume=True)
"""


class Killed(Exception):
    """As if by kill -9: nothing is saved."""


def test_killed_in_either_stage_between_them_and_at_the_end(folder: Path, whole: Path, tmp_path: Path) -> None:
    """In stage 1, at stage 2's first step, in its middle (by kill -9) and before the delivery: the same weights."""
    path, out, take = staged_file(folder, tmp_path / "two.yaml"), tmp_path / "two", loop._Run._step

    def die(*args: Any) -> None:
        raise Killed

    def resume_and_die(name: str, at: int) -> None:
        def step_or_die(self: Any, *args: Any) -> None:
            die() if (self.run.name, self.progress.step) == (name, at) else take(self, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop._Run, "_step", step_or_die)
            patch.setattr(stages, "_deliver", die)
            with pytest.raises(Killed):
                train_stages(read_stages(path), resume=True)
        assert not (out / "checkpoint").exists()

    resume_and_die("1-hear", 1)
    assert not (out / "2-understand").exists()
    resume_and_die("2-understand", 0)
    assert not step_folders(out / "2-understand")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [p.name for p in step_folders(out / "2-understand")] == ["step-000001", "step-000002"]
    resume_and_die("none", 0)
    assert (out / "2-understand" / "checkpoint").is_dir()
    assert train_stages(read_stages(path), resume=True).checkpoint == out / "checkpoint"
    assert_same_weights(out / "checkpoint", whole / "checkpoint")
    assert losses(out / "2-understand") == losses(whole / "2-understand")
    ours, theirs = (load_file(step_folders(run / "2-understand")[-1] / "training.safetensors") for run in (out, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)  # optimiser and heads too


def test_ctrl_c_in_the_second_stage(
    folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out, take = staged_file(folder, tmp_path / "two.yaml"), tmp_path / "two", loop._Run._step

    def interrupted(self: Any, *args: Any) -> None:
        if self.run.name == "2-understand" and self.progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        take(self, *args)

    command = ["train", "--recipe", str(path), "--overwrite"]
    monkeypatch.setattr(sys, "argv", ["aura", *command])
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_step", interrupted)
        assert main(command) == 130
    said = capsys.readouterr().err
    assert "stopped by SIGINT after step 2 of" in said and f"aura train --recipe {path} --resume" in said
    assert main(["train", "--recipe", str(path), "--resume"]) == 0
    assert_same_weights(out / "checkpoint", whole / "checkpoint")


def test_stages_that_a_later_one_started_from_do_not_learn_on(whole: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "two")
    path = staged_file(folder, tmp_path / "two.yaml")
    with pytest.raises(TrainingError, match=r"stage hear is not finished.*3 of 5 steps.*understand has started"):
        train_stages(read_stages(path, {"stages.hear.run.steps": 5}), resume=True)
    longer = read_stages(path, {"stages.understand.run.steps": 5})
    assert train_stages(longer, resume=True).progress.step == 5
    with pytest.raises(CheckpointError, match=r"another recipe: lora\.rank 4 -> 2"):
        train_stages(read_stages(path, {"lora.rank": 2}), resume=True)


def test_overwrite_starts_all_of_them(folder: Path, whole: Path, tmp_path: Path) -> None:
    """A kill in the new stage 1 leaves nothing of the old stage 2 to go on with."""
    shutil.copytree(whole, tmp_path / "two")
    anew = read_stages(staged_file(folder, tmp_path / "two.yaml"), {"run.seed": 3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_step", lambda self, *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_stages(anew, overwrite=True)
    assert not (tmp_path / "two" / "checkpoint").exists() and not step_folders(tmp_path / "two" / "2-understand")
    train_stages(anew, resume=True)
    assert losses(tmp_path / "two" / "2-understand") != losses(whole / "2-understand")


def test_missing_data_of_a_later_stage_shows_at_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [*STAGES, {"name": "last", "data": {"train": ["nowhere.jsonl"]}}]
    path = staged_file(folder, tmp_path / "three.yaml", listed)
    assert main(["train", "--recipe", str(path)]) == 2
    assert "stage last: nowhere.jsonl does not exist" in capsys.readouterr().err
    assert not (tmp_path / "three").exists()


def test_dry_run_shows_each_stage(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = staged_file(folder, tmp_path / "two.yaml")
    assert main(["train", "--recipe", str(path), "--dry-run"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert list(shown) == ["hear", "understand"] and "LoRA" in shown["understand"]["trainable"]


def test_bundles_take_recipes_that_start_from_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack = ["--out", str(tmp_path / "b"), "--archive-mb", "9"]
    one = tmp_path / "one.yaml"
    one.write_text(yaml.safe_dump(as_tree(recipe_for(folder, tmp_path / "run", {"run.init_from": "before"}))))
    two = [str(staged_file(folder, tmp_path / "two.yaml")), "--stages.hear.run.init_from", "before"]
    for words in ([str(one)], two):
        assert main(["bundle", *words, *pack]) == 2
        assert "run.init_from is before, which a bundle does not pack" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["docs/curriculum.md", "recipes/hear-270m.yaml"])
def test_published_recipes_are_ones(name: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / name).read_text()
    if name.endswith(".md"):
        text = text.split("```yaml\n")[1].split("```")[0]
    (tmp_path / "recipe.yaml").write_text(text)
    assert len(read_stages(tmp_path / "recipe.yaml")) > 1


WORKER = """
import faulthandler, os, sys
faulthandler.dump_traceback_later(200, exit=True)  # processes that wait for each other say where
from aura.stages import read_stages
from aura.training import loop
from aura.training.stages import train_stages

loop.plot_run = lambda run: []
result = train_stages(read_stages(sys.argv[1], {"batch.micro_batches": 2, "run.threads": 1}))
open(f"{sys.argv[1]}.{os.environ['RANK']}", "w").write(f"{result.finished} {result.progress.step}")
"""


@pytest.mark.slow
def test_two_processes_stay_together_between_stages(folder: Path, tmp_path: Path) -> None:
    path, script = staged_file(folder, tmp_path / "two.yaml"), tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*command, str(script), str(path)], capture_output=True, text=True, timeout=400, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [Path(f"{path}.{rank}").read_text() for rank in (0, 1)] == ["True 4"] * 2
    assert (tmp_path / "two" / "checkpoint").is_dir()


def test_a_bridge_starts_from_a_bridge(folder: Path, tmp_path: Path) -> None:
    fields = {**BRIDGE_RUN, "bridge.projector_width": 24, "run.steps": 2}
    train(recipe_for(folder, tmp_path / "bridge", fields))
    station = start_of(folder, tmp_path / "bridge", fields)
    delivered, _ = load_checkpoint(tmp_path / "bridge" / "checkpoint")
    ours, theirs = station.student.state_dict(), delivered.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(CheckpointError, match=r"bridge\.projector_width is 12, 24 there"):
        start_of(folder, tmp_path / "bridge", {**fields, "bridge.projector_width": 12})
