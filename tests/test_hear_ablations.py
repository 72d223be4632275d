"""hear/ablations.py: which runs it asks for, which it leaves alone, and what it says of them."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aura.config import Recipe
from aura.recipes import write_recipe

ROOT = Path(__file__).parent.parent
RECIPE = """\
run: {out: runs/x, steps: 20}
data: {train: [a.jsonl], valid: [b.jsonl]}
stages:
  - name: words
    run: {steps: 10}
  - name: more
"""


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the script on a small recipe; `.asked` is what it let `aura train` do."""
    monkeypatch.syspath_prepend(str(ROOT / "hear"))
    module = importlib.import_module("ablations")
    (tmp_path / "recipe.yaml").write_text(RECIPE)

    class Script:
        def __init__(self) -> None:
            self.asked: list[Recipe] = []
            self.signal: int | None = None

        def train(self, recipe: Recipe, *, resume: bool, more_follow: bool) -> Any:
            assert resume
            self.asked.append(recipe)
            if self.signal is None:
                log(recipe, loss=0.5 if recipe.lora.rank == 8 else 0.25)
            return SimpleNamespace(signal=self.signal)

        def __call__(self, *words: str) -> int:
            own = ("--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--picture", tmp_path / "picture")
            monkeypatch.setattr(sys, "argv", ["ablations", *map(str, own), *words])
            status: int = module.main()
            return status

    script = Script()
    monkeypatch.setattr(module, "train", script.train)
    return script


def log(recipe: Recipe, *, loss: float, steps: int = 10) -> None:
    rows = [{"kind": "train", "step": step, "loss": 1.0, "minutes": step / 2} for step in range(5, steps + 1, 5)]
    rows += [
        {"kind": "valid", "step": step, "loss": loss + 1 / step, "accuracy": 0.75} for step in range(5, steps + 1, 5)
    ]
    run = Path(recipe.run.out)
    run.mkdir(parents=True, exist_ok=True)
    write_recipe(recipe, run / "recipe.yaml")
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_run_differs_in_its_own_field_and_finished_ones_stay(
    ablations: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablations("--only", "base", "rank8", "--seeds", "0", "2", "10") == 0
    assert [(r.run.seed, r.lora.rank, r.run.steps) for r in ablations.asked] == [
        (seed, rank, 10) for seed in (0, 2, 10) for rank in (32, 8)
    ]
    [base, *_] = ablations.asked
    log(replace(base, run=replace(base.run, out=str(tmp_path / "out" / "off-0"))), loss=9.0, steps=5)  # interrupted
    (tmp_path / "out" / "rank8-2" / "log.jsonl").unlink()
    capsys.readouterr()
    ablations.asked.clear()
    (tmp_path / "out" / "off-0" / "recipe.yaml").unlink()
    write_recipe(changed(base, "off-0", weight=0.0), tmp_path / "out" / "off-0" / "recipe.yaml")
    assert ablations("--only") == 0 and ablations.asked == []
    said = capsys.readouterr().out
    assert "| | held-out loss (seeds 0, 2, 10) | exact match | minutes |" in said
    assert "| the recipe | 0.35, 0.35, 0.35 | 0.75, 0.75, 0.75 | 5, 5, 5 |" in said
    assert "| rank 8 | 0.60, -, 0.60 | 0.75, -, 0.75 | 5, -, 5 |" in said
    assert "no distillation" not in said
    assert (tmp_path / "picture.png").stat().st_size > 1000


def changed(recipe: Recipe, name: str, *, weight: float) -> Recipe:
    run = replace(recipe.run, out=str(Path(recipe.run.out).with_name(name)))
    return replace(recipe, run=run, distill=replace(recipe.distill, weight=weight))


def test_runs_of_another_recipe_are_not_laid_beside_these(
    ablations: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablations("--only", "base") == 0
    (tmp_path / "recipe.yaml").write_text(RECIPE + "optim: {learning_rate: 0.5}\n")
    assert ablations("--only", "rank8") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "base-0 was trained from another recipe" in said and "0.5" in said and "another --out" in said


def test_nothing_to_compare_with_is_one_line(
    ablations: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablations("--only") == 2
    said = capsys.readouterr().err
    assert said.startswith("hear/ablations.py: ") and "--only base" in said and said.count("\n") == 1
    ablations.signal = 2
    assert ablations("--only", "base") == 130
    assert ablations("--recipe", str(tmp_path / "none.yaml")) == 2
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace(", valid: [b.jsonl]", ""))
    assert ablations("--only", "base") == 2 and "expected held-out speech" in capsys.readouterr().err


def test_every_variation_is_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "hear"))
    from aura.cli_train import parse_overrides
    from aura.stages import read_stages

    variations = importlib.import_module("ablations").VARIATIONS
    recipes = [
        read_stages(ROOT / "recipes" / "hear-270m.yaml", parse_overrides(words))[0][1]
        for _, words in variations.values()
    ]
    assert all(recipe != recipes[0] for recipe in recipes[1:])
