"""hear/ablations.py: which runs it asks for, which it leaves alone, and what it says of them."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RECIPE = """\
run: {out: runs/x, steps: 20}
data: {train: [a.jsonl]}
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
            self.asked: list[list[str]] = []
            self.fails = False

        def train(self, command: list[str], *, check: bool) -> None:
            self.asked.append(command)
            if self.fails:
                raise subprocess.CalledProcessError(130, command)
            run = Path(command[command.index("--run.out") + 1])
            log(run, loss=0.5 if "--lora.rank" in command else 0.25)

        def __call__(self, *words: str) -> int:
            own = ("--recipe", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--picture", tmp_path / "picture")
            monkeypatch.setattr(sys, "argv", ["ablations", *map(str, own), *words])
            status: int = module.main()
            return status

    script = Script()
    monkeypatch.setattr(module.subprocess, "run", script.train)
    return script


def log(run: Path, *, loss: float, steps: int = 10) -> None:
    rows = [{"kind": "train", "step": step, "loss": 1.0, "minutes": step / 2} for step in range(5, steps + 1, 5)]
    rows += [
        {"kind": "valid", "step": step, "loss": loss + 1 / step, "accuracy": 0.75} for step in range(5, steps + 1, 5)
    ]
    run.mkdir(parents=True, exist_ok=True)
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_each_run_differs_in_its_own_field_and_finished_ones_stay(
    ablations: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log(tmp_path / "out" / "off-0", loss=9.0, steps=5)  # interrupted, and not asked for now
    assert ablations("--only", "base", "rank8", "--seeds", "0", "1") == 0
    asked = [command[command.index("--run.seed") :] for command in ablations.asked]
    assert [words[1] for words in asked] == ["0", "0", "1", "1"]
    assert [words[5:] for words in asked] == [[], ["--lora.rank", "8"]] * 2
    assert all("--resume" in words for words in asked)
    resolved = (tmp_path / "out" / "recipe.yaml").read_text()
    assert "steps: 10" in resolved and "stages" not in resolved
    said = capsys.readouterr().out
    assert "| the recipe | 0.35, 0.35 | 0.75, 0.75 | 5, 5 |" in said and "| rank 8 | 0.60, 0.60 |" in said
    assert "no distillation" not in said
    assert (tmp_path / "picture.png").stat().st_size > 1000
    ablations.asked.clear()
    assert ablations("--only", "base", "rank8") == 0 and ablations.asked == []
    assert capsys.readouterr().out == said  # all finished runs, whoever was asked for


def test_nothing_to_compare_with_is_one_line(
    ablations: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablations("--only") == 2
    said = capsys.readouterr().err
    assert said.startswith("hear/ablations.py: ") and "--only base" in said and said.count("\n") == 1
    ablations.fails = True
    assert ablations("--only", "base") == 130
    assert ablations("--recipe", str(tmp_path / "none.yaml")) == 2


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
