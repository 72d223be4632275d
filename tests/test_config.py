"""Recipes: every problem in one message, strict types, flags over file over defaults."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from aura.config import LINEAR_MODULES, Recipe
from aura.errors import RecipeError
from aura.recipes import read_recipe, write_recipe
from aura.stages import read_stages
from aura.typed_tree import as_tree, fields_with_help

ROOT = Path(__file__).parent.parent
RECIPES = sorted([*ROOT.glob("recipes/*.yaml"), *ROOT.glob("demo/*.yaml")])


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def read(text: str, **overrides: Any) -> Recipe:
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return read_recipe(path, {name.replace("__", "."): value for name, value in overrides.items()})

    return read


def problems(error: pytest.ExceptionInfo[RecipeError]) -> list[str]:
    return [line.removeprefix("  - ") for line in str(error.value).splitlines() if line.startswith("  - ")]


def test_defaults_are_valid() -> None:
    assert read_recipe() == Recipe()
    assert Recipe().lora.modules == LINEAR_MODULES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_repository_is_valid(path: Path) -> None:
    assert read_stages(path)


def test_there_are_recipes() -> None:
    assert "qwen2.5-7b-whisper-large-v3" in {path.stem for path in RECIPES}


def test_flag_over_recipe_over_default(recipe: Any) -> None:
    text = "lora: {rank: 8, alpha: 4}\nrun: {name: file}\n"
    read = recipe(text, lora__rank=16, optim__learning_rate=0.5)
    assert (read.lora.rank, read.lora.alpha, read.lora.dropout) == (16, 4.0, 0.0)
    assert (read.run.name, read.optim.learning_rate, read.run.seed) == ("file", 0.5, 0)


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "lora:\n", "lora: {}\n", "lora: null\nrun:\n"])
def test_nothing_said_is_the_default(recipe: Any, text: str) -> None:
    assert recipe(text) == Recipe()


@pytest.mark.parametrize(
    ("text", "get", "expected"),
    [
        ("optim: {learning_rate: 1e-3}", lambda r: r.optim.learning_rate, 0.001),  # YAML 1.1: a string
        ("optim: {learning_rate: 1}", lambda r: r.optim.learning_rate, 1.0),
        ("optim: {betas: [0.5, 0.6]}", lambda r: r.optim.betas, (0.5, 0.6)),
        ("data: {train: a.jsonl}", lambda r: r.data.train, ("a.jsonl",)),
        ("data: {train: [a.jsonl, b.jsonl]}", lambda r: r.data.train, ("a.jsonl", "b.jsonl")),
        ("data: {columns: {audio: wav}}", lambda r: r.data.columns, {"audio": "wav"}),
        ("distill: {layer_map: [[1, 2], [6, 12]]}", lambda r: r.distill.layer_map, ((1, 2), (6, 12))),
        ("teacher: {encoder: null}", lambda r: r.teacher.encoder, None),
        ("lora: {layers: 12}", lambda r: r.lora.layers, 12),
        ("augment: {speed: [0.8, 1.2], gain_db: [-10, 6]}", lambda r: r.augment.gain_db, (-10.0, 6.0)),
        ("data: {prompt: 'Schreib’ auf: ß'}", lambda r: r.data.prompt, "Schreib’ auf: ß"),
    ],
)
def test_values_take_the_fields_type(recipe: Any, text: str, get: Any, expected: Any) -> None:
    found = get(recipe(text))
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lora: {rang: 8}", "lora.rang is no field of the recipe; did you mean lora.rank?"),
        ("lorra: {rank: 8}", "lorra is no field of the recipe; did you mean lora?"),
        (
            "lora: {zzz: 8}",
            "lora.zzz is no field of the recipe; expected one of: rank, alpha, rslora, dropout, layers, modules,",
        ),
        ("1: 2", "1 is no field of the recipe; expected one of: student, audio, "),
        ("lora: 8", "lora is 8; expected a mapping of fields"),
        ("lora: [8]", "lora is [8]; expected a mapping of fields"),
        ("lora: {rank: eight}", "lora.rank is 'eight'; expected a whole number"),
        ("lora: {rank: 8.0}", "lora.rank is 8.0; expected a whole number"),
        ("lora: {rank: true}", "lora.rank is True; expected a whole number"),
        ("lora: {rank: null}", "lora.rank is None; expected a whole number"),
        ("lora: {alpha: true}", "lora.alpha is True; expected a number"),
        ("lora: {alpha: much}", "lora.alpha is 'much'; expected a number"),
        ("lora: {alpha: .nan}", "lora.alpha is nan; expected a number"),
        ("optim: {clip: .inf}", "optim.clip is inf; expected a number"),
        ("lora: {rslora: 1}", "lora.rslora is 1; expected true or false"),
        ("lora: {rslora: 'yes please'}", "lora.rslora is 'yes please'; expected true or false"),
        ("lora: {layers: some}", "lora.layers is 'some'; expected a whole number or null"),
        ("lora: {gate: sound}", "lora.gate is 'sound'; expected 'audio' or 'all'"),
        ("lora: {modules: [q_proj, 3]}", "lora.modules is ['q_proj', 3]; expected a list of text"),
        ("optim: {betas: [0.9]}", "optim.betas is [0.9]; expected a list of a number"),
        ("optim: {betas: 0.9}", "optim.betas is 0.9; expected a list of a number"),
        ("data: {columns: [audio]}", "data.columns is ['audio']; expected a mapping"),
        ("student: {llm: 5}", "student.llm is 5; expected text"),
        ("distill: {layer_map: [[1, 2, 3]]}", "distill.layer_map is [[1, 2, 3]]; expected a list of"),
    ],
)
def test_unknown_keys_and_wrong_types(recipe: Any, text: str, problem: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(text)
    [found] = problems(error)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lora: {rank: 0}", "lora.rank is 0; expected more than 0"),
        ("lora: {rank: -4}", "lora.rank is -4; expected more than 0"),
        ("lora: {dropout: 1}", "lora.dropout is 1.0; expected 0 up to 1"),
        ("lora: {layers: 0}", "lora.layers is 0; expected null or at least 1"),
        ("lora: {modules: []}", "lora.modules is empty; expected module names such as q_proj"),
        (
            "audio: {patch_frames: 3}",
            "audio.patch_frames is 3; expected an even number of 10 ms frames, e.g. 8",
        ),
        ("audio: {patch_frames: 0}", "audio.patch_frames is 0; expected an even number"),
        (
            "data: {min_seconds: 5, max_seconds: 2}",
            "data.min_seconds is 5.0; expected less than data.max_seconds 2.0",
        ),
        ("data: {workers: 0}", "data.workers is 0; expected more than 0"),
        ("distill: {weight: -1}", "distill.weight is -1.0; expected 0 or more"),
        ("distill: {final_weight: -1}", "distill.final_weight is -1.0; expected 0 or more"),
        ("optim: {learning_rate: 0}", "optim.learning_rate is 0.0; expected more than 0"),
        ("optim: {warmup_steps: -1}", "optim.warmup_steps is -1; expected 0 or more"),
        ("optim: {final_ratio: 2}", "optim.final_ratio is 2.0; expected 0 to 1"),
        ("optim: {betas: [0.9, 1.0]}", "optim.betas is [0.9, 1.0]; expected two numbers from 0 up to 1"),
        ("run: {steps: 0}", "run.steps is 0; expected more than 0"),
        ("run: {max_minutes: 0}", "run.max_minutes is 0.0; expected more than 0"),
        ("augment: {noise_probability: 1.5}", "augment: noise_probability=1.5, expected 0 to 1"),
    ],
)
def test_impossible_values(recipe: Any, text: str, problem: str) -> None:
    with pytest.raises(RecipeError) as error:
        recipe(text)
    [found] = problems(error)
    assert found.startswith(problem)


def test_all_problems_are_reported_at_once(recipe: Any) -> None:
    text = """
    lora: {rang: 8, alpha: much, dropout: 2}
    run: {steps: -1}
    augment: {speed: [3, 4]}
    audio: wide
    nothing: 1
    """
    with pytest.raises(RecipeError) as error:
        recipe(text, optim__learning_rate="fast", lora__gate="sound")
    assert [problem.split(" ")[0].rstrip(":") for problem in sorted(problems(error))] == [
        "audio",
        "augment",
        "lora.alpha",
        "lora.dropout",
        "lora.gate",
        "lora.rang",
        "nothing",
        "optim.learning_rate",
        "run.steps",
    ]
    message = str(error.value)
    assert "recipe.yaml: 9 problem(s) in the recipe:" in message and message.endswith(
        "List every field with: aura recipe"
    )


def test_flags_are_named_without_a_file() -> None:
    with pytest.raises(
        RecipeError,
        match=r"(?s)defaults: 2 problem.*lora.rang is no field.*did you mean lora.rank.*loraa is no field",
    ):
        read_recipe(None, {"lora.rang": 3, "loraa.rank": 3})


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"demo.yaml does not exist; here are: no recipes"):
        read_recipe(tmp_path / "demo.yaml")
    (tmp_path / "other.yaml").write_text("")
    with pytest.raises(RecipeError, match=r"demo.yaml does not exist; here are: .*other.yaml"):
        read_recipe(tmp_path / "demo.yaml")
    with pytest.raises(RecipeError, match="does not exist"):
        read_recipe(tmp_path / "no" / "demo.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"lora: {rank: 8", r"is no valid YAML: while parsing a flow mapping"),
        (b"\xff\xfe\x00", r"is no valid YAML"),
        (b"- lora\n", r"holds a list; expected a mapping such as 'lora: \{rank: 32\}'"),
        (b"lora", r"holds a str; expected a mapping"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=message) as error:
        read_recipe(tmp_path / "recipe.yaml")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("path", [None, *RECIPES], ids=lambda path: path.stem if path else "defaults")
def test_round_trip(path: Path | None, tmp_path: Path) -> None:
    fields = {"data.prompt": "Schreib’ auf: ß", "optim.learning_rate": 3e-7, "data.columns": {"audio": "wav"}}
    stages = [("", read_recipe(None, fields))] if path is None else read_stages(path, fields)
    for _, read in stages:  # a stage's own recipe is one of a run
        write_recipe(read, tmp_path / "recipe.yaml")
        assert read_recipe(tmp_path / "recipe.yaml") == read
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def test_the_resolved_recipe_names_every_field(tmp_path: Path) -> None:
    tree = as_tree(Recipe())
    dotted = {f"{section}.{name}" for section, fields in tree.items() for name in fields}
    assert dotted == {name for name, _, _ in fields_with_help(Recipe)}


def test_every_field_has_its_help() -> None:
    assert not [name for name, _, help in fields_with_help(Recipe) if not help]


def test_validation_never_rewrites() -> None:
    assert dataclasses.is_dataclass(Recipe)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().lora.rank = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Recipe(Recipe().student)  # type: ignore[misc]


def test_a_best_metric_that_the_task_does_not_give_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"run\.best_metric is wer"):
        read_recipe(None, {"run.eval_task": "intent"})
    read_recipe(None, {"run.eval_task": "intent", "run.best_metric": "accuracy"})
