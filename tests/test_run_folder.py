"""What a run leaves behind: checkpoints, the best, the delivered one, log, pictures; and whose data it learnt from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file

from aura.batch.loader import BatchLoader
from aura.batch.plan import PlannedItem
from aura.data.utterance import Utterance
from aura.errors import DataError, MissingExtraError, RecipeError, TrainingError
from aura.recipes import read_recipe
from aura.student.checkpoint import load_checkpoint
from aura.training import loop
from aura.training.data import read_data
from aura.training.loop import train
from aura.training.run_folder import open_run, step_folders, tidy
from aura.training.state import RunLog, read_log
from aura.training.validate import Validation

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and clips, shared by the tests of this file."""
    return tmp_path_factory.mktemp("run-folder")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "plot_run", lambda run: [])


def recipe_for(folder: Path, out: Path, fields: dict[str, Any] | None = None) -> Any:
    return tiny.tiny_recipe(folder, {"run.out": str(out), **(fields or {})})


def with_valid(folder: Path, out: Path, fields: dict[str, Any] | None = None) -> Any:
    tiny.tiny_recipe(folder)
    return recipe_for(folder, out, {"data.valid": [str(folder / "data" / "valid.jsonl")], **(fields or {})})


def scored(monkeypatch: pytest.MonkeyPatch, name: str, values: list[float | None]) -> list[dict[str, torch.Tensor]]:
    """Evaluations that give these scores one after the other; returns the weights each of them saw."""
    seen: list[dict[str, torch.Tensor]] = []

    def validate(objective: Any, *args: Any) -> Validation:
        seen.append({n.removeprefix("student."): p.detach().clone() for n, p in objective.trainable().items()})
        return Validation(scores={"loss": 1.0, name: values[len(seen) - 1]}, cosines=[], samples=[])

    monkeypatch.setattr(loop, "validate", validate)
    return seen


def assert_delivers(checkpoint: Path, weights: dict[str, torch.Tensor]) -> None:
    """The folder loads on the stock LLM and holds exactly these weights."""
    model, _ = load_checkpoint(checkpoint)
    loaded = dict(model.named_parameters())
    names = [name for name in weights if not name.startswith("heads.")]
    assert names and {n for n in loaded if ".lora_" in n or n.startswith("audio_embedding.")} == set(names)
    assert [name for name in names if not torch.equal(loaded[name], weights[name])] == []


# --- a whole run ------------------------------------------------------------------------------------------


def test_a_run_folder_holds_all_that_is_promised(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "run"
    recipe = with_valid(
        folder, out, {"run.eval_every": 2, "run.save_every": 2, "run.best_metric": "loss", "run.name": "named"}
    )
    result = train(recipe)
    assert result.finished and result.checkpoint == out / "checkpoint"
    expected = {
        "recipe.yaml",
        "log.jsonl",
        "checkpoints",
        "best",
        "checkpoint",
        "loss.png",
        "layers.png",
        "tensorboard",
    }
    assert {path.name for path in out.iterdir()} == expected
    for name in ("loss.png", "layers.png"):
        assert (out / name).read_bytes().startswith(PNG) and (out / name).stat().st_size > 5_000
    events = list((out / "tensorboard").glob("events.out.tfevents.*"))
    assert events and events[0].stat().st_size > 1_000
    assert read_recipe(out / "recipe.yaml") == recipe == read_recipe(out / "checkpoint" / "recipe.yaml")
    for path in (out / "checkpoint", out / "best", step_folders(out)[-1]):
        files = {file.name for file in path.iterdir()}
        assert files >= {"adapter_config.json", "adapter_model.safetensors", "audio_embedding.safetensors"}
        assert files >= {"config.json", "recipe.yaml", "README.md", "processor_config.json"}
    pickles = [path for path in out.rglob("*") if path.suffix in (".pt", ".pth", ".bin", ".pkl")]
    assert not pickles and not list(out.rglob(".*"))
    card = (out / "checkpoint" / "README.md").read_text()
    assert (
        yaml.safe_load(card.split("---")[1])["library_name"] == "aura-lora" and "# named" in card and "| loss |" in card
    )

    rows = read_log(out / "log.jsonl")
    assert [(row["kind"], row["step"]) for row in rows] == [
        *(("train", 1), ("train", 2), ("valid", 2), ("train", 3), ("train", 4), ("valid", 4), ("train", 5)),
        *(("train", 6), ("valid", 6)),
    ]
    for row in rows:
        pairs = [[1, 1], [2, 2], [3, 3]]
        assert row["pairs"] == pairs and len(row["cosines"]) == 3 and all(-1 <= c <= 1 for c in row["cosines"])
        assert {"loss", "wer", "accuracy", "cosine"} <= row.keys() if row["kind"] == "valid" else row["distance"] > 0
        if row["kind"] == "train":
            assert row["distance"] == pytest.approx(1 - sum(row["cosines"]) / 3)
    shown = capfd.readouterr().err
    assert "step 6/6" in shown and "held out (3)" in shown and "audio-s/s" in shown and "left" in shown


def test_without_distillation_there_is_no_picture_of_layers(folder: Path, tmp_path: Path) -> None:
    train(recipe_for(folder, tmp_path, {"teacher.encoder": None, "run.steps": 2}))
    assert (tmp_path / "loss.png").is_file() and not (tmp_path / "layers.png").exists()


def test_a_run_goes_on_without_matplotlib(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def missing(run: Path) -> list[Path]:
        raise MissingExtraError("plotting a run needs the package 'matplotlib'")

    monkeypatch.setattr(loop, "plot_run", missing)
    assert train(recipe_for(folder, tmp_path, {"run.steps": 2})).finished
    assert "needs the package 'matplotlib'" in capfd.readouterr().err


# --- which weights ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "scores", "best"),
    [
        ("wer", [0.9, 0.4, 0.7], 1),
        ("loss", [3.0, 2.0, 1.0], 2),
        ("accuracy", [0.8, 0.9, 0.1], 1),
        ("accuracy", [0.5, 0.5, 0.5], 0),  # a tie keeps the first
        ("wer", [float("nan"), 0.5, None], 1),  # what could not be scored is never best
    ],
)
def test_the_best_is_kept_and_delivered(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_pictures: None,
    metric: str,
    scores: list[float | None],
    best: int,
) -> None:
    seen = scored(monkeypatch, metric, scores)
    result = train(with_valid(folder, tmp_path, {"run.eval_every": 2, "run.best_metric": metric}))
    assert len(seen) == 3 and result.progress.best_step == 2 * (best + 1)
    assert_delivers(tmp_path / "checkpoint", seen[best])
    assert_delivers(tmp_path / "best", seen[best])


@pytest.mark.parametrize("metric", ["none", "wer"])
def test_the_last_is_delivered_where_no_score_chose(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None, metric: str
) -> None:
    seen = scored(monkeypatch, "slot_f1", [0.9, 0.5, 0.1])  # a task without word error rate
    train(with_valid(folder, tmp_path, {"run.eval_every": 2, "run.best_metric": metric}))
    assert not (tmp_path / "best").exists()
    assert_delivers(tmp_path / "checkpoint", seen[-1])
    card = (tmp_path / "checkpoint" / "README.md").read_text()
    assert "| slot_f1 | 0.1000 |" in card and "No held-out figures" not in card


def test_keep_last(folder: Path, tmp_path: Path, no_pictures: None) -> None:
    train(recipe_for(folder, tmp_path, {"run.save_every": 1, "run.keep_last": 2}))
    assert [path.name for path in step_folders(tmp_path)] == ["step-000005", "step-000006"]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_the_last_checkpoint_is_what_was_delivered(folder: Path, tmp_path: Path, no_pictures: None) -> None:
    train(recipe_for(folder, tmp_path))
    state = load_file(step_folders(tmp_path)[-1] / "training.safetensors")
    weights = {n.removeprefix("weight/student."): t for n, t in state.items() if n.startswith("weight/student.")}
    assert_delivers(tmp_path / "checkpoint", weights)
    assert_delivers(step_folders(tmp_path)[-1], weights)


# --- a folder that is taken -------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["checkpoints/step-000006", "best", "checkpoint"])
def test_an_existing_run_is_not_touched(folder: Path, tmp_path: Path, no_pictures: None, held: str) -> None:
    train(with_valid(folder, tmp_path, {"run.best_metric": "loss"}))
    for name in {"checkpoints", "best", "checkpoint"} - {held.split("/")[0]}:
        shutil.rmtree(tmp_path / name)  # whichever is left, it is a run's
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError) as caught:
        train(recipe_for(folder, tmp_path, {"run.steps": 3}))
    assert all(text in str(caught.value) for text in (str(tmp_path), held, "--resume", "--overwrite", "--run.out"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_overwrite_starts_anew_and_leaves_nothing_of_the_old_run(
    folder: Path, tmp_path: Path, no_pictures: None
) -> None:
    train(with_valid(folder, tmp_path, {"run.best_metric": "loss", "run.eval_every": 1}))
    train(recipe_for(folder, tmp_path, {"run.steps": 3, "run.seed": 5}), overwrite=True)
    assert not (tmp_path / "best").exists()  # without validation nothing chose; the old best is another run's
    assert [path.name for path in step_folders(tmp_path)] == ["step-000003"]
    assert [(row["kind"], row["step"]) for row in read_log(tmp_path / "log.jsonl")] == [("train", n) for n in (1, 2, 3)]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert read_recipe(tmp_path / "checkpoint" / "recipe.yaml").run.seed == 5


def test_overwrite_takes_the_old_run_only_when_the_new_one_can_start(
    folder: Path, tmp_path: Path, no_pictures: None
) -> None:
    train(recipe_for(folder, tmp_path))
    with pytest.raises(DataError):
        train(recipe_for(folder, tmp_path, {"data.train": [str(tmp_path / "nowhere.jsonl")]}), overwrite=True)
    assert load_checkpoint(tmp_path / "checkpoint") and step_folders(tmp_path)


def test_a_folder_that_cannot_be_made(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TrainingError, match=r"cannot be written.*--run\.out"):
        train(recipe_for(folder, tmp_path / "file" / "run"))


def test_open_run_prefers_the_newest_and_ignores_the_torn(tmp_path: Path) -> None:
    assert open_run(tmp_path, resume=False, overwrite=False) is None
    for name in ("step-000009", "step-000100", "step-1000000", ".step-2000000.77.tmp", "step-x", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert open_run(tmp_path, resume=True, overwrite=False) == tmp_path / "checkpoints" / "step-1000000"
    assert open_run(tmp_path, resume=False, overwrite=True) is None


def test_tidy_takes_only_what_a_kill_left(tmp_path: Path) -> None:
    for name in (".best.12.tmp", ".best.13.old", ".checkpoint.12.old", "checkpoint", ".git", "best.1.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".log.jsonl.12.tmp").write_text("")
    (tmp_path / ".best.13.old" / "weights").write_text("kept")
    tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"best", "checkpoint", ".git", "best.1.tmp"}
    assert (tmp_path / "best" / "weights").read_text() == "kept"


# --- log --------------------------------------------------------------------------------------------------


def test_log_is_cut_to_the_resumed_step_and_torn_lines_are_dropped(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    for step in (1, 2, 3, 4):
        log.add({"kind": "train", "step": step})
        if step % 2 == 0:
            log.add({"kind": "valid", "step": step})
    with log.path.open("a") as file:
        file.write('{"kind": "train", "st')
    assert len(read_log(log.path)) == 6
    again = RunLog(tmp_path, step=4, evaluated=2)  # saved after step 4, before its evaluation
    again.add({"kind": "valid", "step": 4})
    kinds = [(row["kind"], row["step"]) for row in read_log(log.path)]
    assert kinds == [("train", 1), ("train", 2), ("valid", 2), ("train", 3), ("train", 4), ("valid", 4)]
    assert all(json.loads(line) for line in log.path.read_text().splitlines())


def test_log_every_averages_over_tokens(folder: Path, tmp_path: Path, no_pictures: None) -> None:
    for every in (1, 3):
        train(recipe_for(folder, tmp_path / str(every), {"run.log_every": every, "optim.learning_rate": 1e-9}))
    fine, coarse = (read_log(tmp_path / name / "log.jsonl") for name in ("1", "3"))
    assert [row["step"] for row in coarse] == [3, 6]
    for row, group in zip(coarse, (fine[:3], fine[3:]), strict=True):
        assert min(r["loss"] for r in group) < row["loss"] < max(r["loss"] for r in group)
        assert row["gradient_norm"] == pytest.approx(sum(r["gradient_norm"] for r in group) / 3)


# --- data -------------------------------------------------------------------------------------------------


def loaded_by(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """Which utterances are loaded for training, and which for validation."""
    seen: dict[str, set[str]] = {"train": set(), "valid": set()}
    load = BatchLoader.load

    def watched(self: BatchLoader, planned: list[PlannedItem]) -> Any:
        seen["train" if self.augment is not None else "valid"] |= {item.utterance.id for item in planned}
        return load(self, planned)

    monkeypatch.setattr(BatchLoader, "load", watched)
    return seen


def test_validation_is_never_trained_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    heard: list[str] = []
    load = Utterance.__dict__["answer"].fget
    monkeypatch.setattr(Utterance, "answer", property(lambda self: heard.append(self.id) or load(self)))
    seen = loaded_by(monkeypatch)
    train(with_valid(folder, tmp_path, {"run.eval_every": 3, "run.steps": 8}))
    assert seen == {"train": {f"train-{n}.wav" for n in range(12)}, "valid": {f"valid-{n}.wav" for n in range(3)}}
    assert set(heard) == seen["train"] | seen["valid"]


def test_evaluation_takes_evenly_spread_rows(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    seen = loaded_by(monkeypatch)
    tiny.tiny_recipe(folder)
    every_row = {"data.valid": [str(folder / "data" / "train.jsonl")], "run.eval_items": 3, "run.steps": 1}
    train(recipe_for(folder, tmp_path, {**every_row, "data.train": [str(folder / "data" / "valid.jsonl")]}))
    assert seen["valid"] == {"train-0.wav", "train-5.wav", "train-11.wav"}


def test_rows_that_are_too_long_too_short_or_silent_are_counted(
    folder: Path, tmp_path: Path, no_pictures: None, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    tiny.tiny_manifest(data, count=10, shortest=0.3)  # 0.30, 0.355 ... 0.795 s
    rows = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    rows[3]["transcript"] = ""
    rows[1]["audio"] = "gone.wav"
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{not json\n")
    fields = {
        "data.train": [str(data / "train.jsonl")],
        "data.min_seconds": 0.31,
        "data.max_seconds": 0.5,
        "data.skip_bad": True,
    }
    recipe = recipe_for(folder, tmp_path / "run", {**fields, "run.steps": 1})
    found = read_data(recipe)
    lengths = [u.seconds for u in found.train]
    assert lengths and all(0.31 <= seconds <= 0.5 for seconds in lengths)
    reasons = {key.split(": ")[1]: count for key, count in found.dropped.items()}
    assert set(reasons) == {"unreadable", "longer than 0.5 s", "shorter than 0.31 s", "no answer to learn"}
    assert sum(reasons.values()) + len(found.train) == 11 and reasons["unreadable"] == 2
    train(recipe)
    shown = capfd.readouterr().err
    assert f"left out {reasons['longer than 0.5 s']} row(s)" in shown and "longer than 0.5 s" in shown

    with pytest.raises(DataError, match=r"gone\.wav|line 11"):
        read_data(recipe_for(folder, tmp_path, {**fields, "data.skip_bad": False}))
    with pytest.raises(DataError, match=r"no utterance .* between 2\.0 and 3\.0 s.*data\.max_seconds"):
        read_data(recipe_for(folder, tmp_path, {**fields, "data.min_seconds": 2.0, "data.max_seconds": 3.0}))


def test_no_training_data_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.train is empty.*--data\.train"):
        train(recipe_for(folder, tmp_path, {"data.train": []}))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="no rows"):
        train(recipe_for(folder, tmp_path, {"data.train": [str(empty)]}))


def test_a_recording_in_both_splits_is_refused(folder: Path, tmp_path: Path) -> None:
    recipe = with_valid(folder, tmp_path, {})
    with pytest.raises(DataError, match=r"stand in data\.train and in data\.valid"):
        read_data(read_recipe(None, {"data.train": list(recipe.data.valid), "data.valid": list(recipe.data.valid)}))
