"""Bundles of recipes with stages: each source once, and training there is training at home."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import soundfile
import tiny
import yaml

from aura.bundle.bundle import make_bundle
from aura.bundle.train import train_bundle
from aura.bundle.unbundle import open_bundle
from aura.cli import main
from aura.errors import RecipeError
from aura.stages import read_stages
from aura.training import loop
from aura.training.stages import train_all
from aura.typed_tree import as_tree

WEIGHTS = ("adapter_model.safetensors", "audio_embedding.safetensors")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of two stages: the second reads one source of the first in another way, and adds one and noise."""
    monkeypatch.setattr(loop, "plot_run", lambda run: [])
    folder = tmp_path / "home"
    tree = as_tree(tiny.tiny_recipe(folder))
    data = folder / "data"
    soundfile.write(data / "hum.wav", tiny.tiny_speech(0.5, seed=8), 16_000)
    row = {"audio": "train-1.wav", "label": {"intent": "on", "slots": {"n": "one"}}}
    (data / "more.jsonl").write_text(json.dumps(row) + "\n")
    train, more = str(data / "train.jsonl"), str(data / "more.jsonl")
    tree["data"] |= {"train": [train], "valid": [str(data / "valid.jsonl")]}
    tree["run"] |= {"out": str(folder / "run"), "eval_every": 2}
    tree["stages"] = [
        {"name": "hear", "run": {"steps": 3}},
        {
            "name": "understand",
            "data": {"train": [train, more, more], "prompt": "the other"},
            "augment": {"noise_files": [str(data / "hum.wav")], "noise_probability": 0.5, "white_noise": 0.0},
            "run": {"steps": 4},
        },
    ]
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def losses(run: Path) -> list[tuple[Any, ...]]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], {k: v for k, v in row.items() if "loss" in k or "entropy" in k}) for row in rows]


def test_stages_travel_and_train_as_at_home(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = read_stages(home)
    ended = train_all(stages)
    at_home = [losses(Path(recipe.run.out)) for _, recipe in stages]
    weights = [(Path(str(ended.checkpoint)) / name).read_bytes() for name in WEIGHTS]

    packed = tmp_path / "packed"
    assert main(["bundle", str(home), "--out", str(packed), "--archive-mb", "0.1"]) == 0
    names = {entry["name"] for entry in json.loads((packed / "bundle.json").read_text())["files"]}
    # train.jsonl twice, for its two prompts; more.jsonl and the held-out rows, read with the two prompts as well
    assert {name for name in names if name.endswith(".jsonl")} == {
        *(f"data/train-{n}.jsonl" for n in range(3)),
        *(f"data/valid-{n}.jsonl" for n in range(2)),
    }
    shutil.rmtree(home.parent)  # nothing of home is left: what is needed has travelled
    there = tmp_path / "there"
    shutil.copytree(packed, there)
    capsys.readouterr()
    assert main(["train", "--bundle", str(there), "--minutes", "5"]) == 0
    assert "stage 2 of 2, understand" in capsys.readouterr().err
    assert [losses(there / "run" / name) for name in ("1-hear", "2-understand")] == at_home

    assert main(["unbundle", str(there / "adapter"), "--out", str(tmp_path / "adapter")]) == 0
    assert [(tmp_path / "adapter" / name).read_bytes() for name in WEIGHTS] == weights
    texts = [path for path in (tmp_path / "adapter").iterdir() if path.suffix in (".yaml", ".md")]
    assert {"recipe-1-hear.yaml", "recipe.yaml", "README.md"} <= {path.name for path in texts}
    assert all(str(there) not in path.read_text() for path in texts)  # what came home names the things of home
    assert yaml.safe_load((tmp_path / "adapter" / "recipe-1-hear.yaml").read_text())["run"]["out"] == str(
        home.parent / "run" / "1-hear"
    )


def test_a_stage_can_be_set_there_and_the_run_resumed(home: Path, tmp_path: Path) -> None:
    make_bundle(read_stages(home), tmp_path / "b", archive_mb=10)
    whole = train_bundle(tmp_path / "b", overrides={"run.out": str(tmp_path / "whole")})
    train_bundle(tmp_path / "b", overrides={"stages.understand.run.steps": 2})
    result = train_bundle(tmp_path / "b", resume=True)
    for name in WEIGHTS:
        assert (result.checkpoint / name).read_bytes() == (whole.checkpoint / name).read_bytes()
    assert (tmp_path / "b" / "adapter" / "adapter.json").is_file()


def test_a_bundle_trained_where_it_lies_names_the_things_of_home(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(read_stages(home), tmp_path / "b", archive_mb=10)
    monkeypatch.chdir(tmp_path / "b")
    assert main(["train", "--bundle", "."]) == 0  # as its own README says
    assert main(["unbundle", "adapter", "--out", "mine"]) == 0
    for name in ("recipe-1-hear.yaml", "recipe.yaml"):
        tree = yaml.safe_load(Path("mine", name).read_text())
        assert tree["run"]["out"].startswith(str(home.parent / "run")) and tree["data"]["train"][0].startswith(
            str(home.parent / "data")
        )


def test_data_named_there_is_for_all_stages(home: Path, tmp_path: Path) -> None:
    make_bundle(read_stages(home), tmp_path / "b", archive_mb=10)
    bundle = open_bundle(tmp_path / "b")
    assert {key for key in bundle.paths() if key.endswith("data.train")} == {
        "stages.hear.data.train",
        "stages.understand.data.train",
    }
    own = ["mine.jsonl"]
    fields = {**bundle.paths(without={"data.train": own}), "data.train": own}
    assert all(recipe.data.train == ("mine.jsonl",) for _, recipe in read_stages(bundle.recipe, fields))


def test_a_stage_without_data_is_not_packed(home: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.train is empty"):
        make_bundle(read_stages(home, {"stages.understand.data.train": []}), tmp_path / "b", archive_mb=1)
    assert not (tmp_path / "b").exists()
