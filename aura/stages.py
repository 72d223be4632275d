"""Recipes of several runs, one after the other: `stages:`, each going on with the weights of the one before.

run: {out: runs/hear}                 what all stages share
stages:
  - name: hear                        runs in runs/hear/1-hear
    run: {steps: 600}
  - name: understand                  starts from runs/hear/1-hear/checkpoint
    distill: {response_kl: 1.0}
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from aura.config import STAGES, Recipe
from aura.recipes import build_recipe, read_recipe, read_tree, refuse_problems
from aura.typed_tree import as_tree, set_field, write_yaml

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # part of a folder's name and of a flag's
# What the weights mean that a stage hands on, and what of it may change all the same
CARRIED = ("student.llm", "run.route", "audio.", "lora.", "bridge.")
FREE = ("audio.max_seconds", "audio.scale", "bridge.scale", "lora.dropout")


def read_stages(
    path: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None, *, minutes: float | None = None
) -> list[tuple[str, Recipe]]:
    """Recipe file plus dotted overrides -> name and recipe of each stage; one without a name where there are no stages.

    A stage's own fields win over the shared ones, and overrides over both; `{"stages.hear.run.steps": 10}` is for the
    stage `hear` alone. Stage i runs in `<run.out>/<i>-<name>`; from the second on, `run.init_from` is the checkpoint that
    the stage before delivers.

    Args:
        minutes: wall time of all stages together, shared out in proportion to their `run.steps`.

    Raises:
        RecipeError: as `read_recipe`, for all stages at once; or stages that cannot follow each other.
    """
    source, tree = read_tree(path)
    chosen = dict(overrides or {})
    if STAGES not in tree:
        return [("", read_recipe(path, chosen if minutes is None else {**chosen, "run.max_minutes": minutes}))]
    problems: list[str] = []
    entries = _entries(tree.pop(STAGES), problems)
    own = {name: dict[str, Any]() for name, _ in entries}
    for dotted in [key for key in chosen if key.startswith(f"{STAGES}.")]:
        _, name, field = (*dotted.split(".", 2), "")[:3]
        if name in own and field:
            own[name][field] = chosen.pop(dotted)
        else:
            problems.append(f"--{dotted} names no stage; expected e.g. --stages.{next(iter(own), 'NAME')}.run.steps 10")
            del chosen[dotted]
    shared = copy.deepcopy(tree)
    _override(shared, chosen)
    recipes = _build_all(shared, [(name, entry, {**chosen, **own[name]}) for name, entry in entries], problems)
    problems += _broken_chain(recipes, [{*flat_fields(entry), *own[name]} for name, entry in entries])
    if minutes is not None and not minutes > 0:
        problems.append(f"--minutes is {minutes}; expected more than 0")
    refuse_problems(source, problems)
    return _linked(recipes, minutes)


def write_stages(stages: Sequence[tuple[str, Recipe]], path: str | os.PathLike[str]) -> None:
    """Resolved stages -> YAML that `read_stages` reads back, through a temporary file and a rename."""
    write_yaml(stages_tree([(name, as_tree(recipe)) for name, recipe in stages], root_of(stages)), path)


def stages_tree(stages: Sequence[tuple[str, dict[str, Any]]], root: Path) -> dict[str, Any]:
    """What `read_stages` reads, of resolved recipes by name as `as_tree` gives them; one without a name is all of it."""
    if not stages[0][0]:
        return stages[0][1]
    listed: list[dict[str, Any]] = []
    for number, (name, tree) in enumerate(stages):
        # The stages' folders and starts follow from their order.
        run = {key: value for key, value in tree["run"].items() if key != "out" and not (number and key == "init_from")}
        listed.append({"name": name, **tree, "run": run})
    return {"run": {"out": str(root)}, STAGES: listed}


def root_of(stages: Sequence[tuple[str, Recipe]]) -> Path:
    """The folder around the stages' run folders, or the only one's."""
    out = Path(stages[0][1].run.out)
    return out.parent if stages[0][0] else out


def _entries(listed: Any, problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """(name, own sections) of each stage."""
    if not isinstance(listed, list) or not listed:
        problems.append("stages holds none; expected a list such as '- name: hear', each with the sections that differ")
        return []
    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(listed, start=1):
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not NAME.fullmatch(name):
            problems.append(f"stage {number} has no usable name; expected letters, digits, - and _, e.g. 'name: hear'")
            name = str(number)
        if name in found:
            problems.append(f"two stages are called {name}; expected a name for each")
        found.setdefault(name, {k: v for k, v in entry.items() if k != "name"} if isinstance(entry, dict) else {})
    return list(found.items())


def _build_all(
    shared: dict[str, Any], stages: Sequence[tuple[str, dict[str, Any], dict[str, Any]]], problems: list[str]
) -> list[tuple[str, Recipe]]:
    """Recipes of (name, own sections, overrides); what is wrong in the shared part is named once, the rest by stage."""
    in_shared: list[str] = []
    build_recipe(shared, in_shared)
    recipes, found = [], []
    for name, entry, overrides in stages:
        tree = copy.deepcopy(shared)
        for section, fields in entry.items():
            both = isinstance(fields, dict) and isinstance(tree.get(section), dict)
            tree[section] = {**tree[section], **fields} if both else copy.deepcopy(fields)
        _override(tree, overrides)
        own: list[str] = []
        recipes.append((name, build_recipe(tree, own)))
        found.append((name, own))
    everywhere = [problem for problem in in_shared if all(problem in own for _, own in found)]
    problems += everywhere
    problems += [f"stage {name}: {problem}" for name, own in found for problem in own if problem not in everywhere]
    return recipes


def _broken_chain(recipes: Sequence[tuple[str, Recipe]], written: Sequence[set[str]]) -> list[str]:
    """Why a stage could not go on with the weights of the one before."""
    problems = []
    for (name, _), fields in zip(recipes, written, strict=True):
        if "run.out" in fields:
            problems.append(f"stage {name}: run.out is its own; expected it beside stages, for all of them")
    for (name, recipe), fields in zip(recipes[1:], written[1:], strict=True):
        first, theirs, ours = recipes[0][0], flat_fields(as_tree(recipes[0][1])), flat_fields(as_tree(recipe))
        if "run.init_from" in fields:
            problems.append(f"stage {name}: run.init_from is set; expected none, it starts from the stage before")
        problems += [
            f"stage {name}: {field} is {ours[field]}, but {first} has {theirs[field]}; expected the same"
            for field in ours
            if field.startswith(CARRIED) and field not in FREE and ours[field] != theirs.get(field)
        ]
    return problems


def _linked(recipes: Sequence[tuple[str, Recipe]], minutes: float | None) -> list[tuple[str, Recipe]]:
    """Every stage with its folder, its start and its share of the time."""
    steps = sum(recipe.run.steps for _, recipe in recipes)
    linked: list[tuple[str, Recipe]] = []
    for number, (name, recipe) in enumerate(recipes, start=1):
        run = replace(recipe.run, out=str(Path(recipe.run.out) / f"{number}-{name}"))
        if linked:
            run = replace(run, init_from=str(Path(linked[-1][1].run.out) / "checkpoint"))
        if minutes is not None:
            run = replace(run, max_minutes=minutes * run.steps / steps)
        linked.append((name, replace(recipe, run=run)))
    return linked


def _override(tree: dict[str, Any], overrides: Mapping[str, Any]) -> None:
    for dotted, value in overrides.items():
        set_field(tree, dotted, value)


def flat_fields(tree: Mapping[str, Any]) -> dict[str, Any]:
    """section.field -> value."""
    return {
        f"{section}.{name}": value
        for section, fields in tree.items()
        if isinstance(fields, Mapping)
        for name, value in fields.items()
    }
