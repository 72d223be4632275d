"""Recipe files: read with overrides, refused with every problem at once, written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aura.config import STAGES, Recipe
from aura.errors import RecipeError
from aura.recipe_checks import check
from aura.typed_tree import as_tree, build, load_yaml, set_field, write_yaml


def read_recipe(path: str | os.PathLike[str] | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Recipe file plus dotted overrides (`{"lora.rank": 16}`) -> validated `Recipe`.

    Raises:
        RecipeError: the file is missing or no YAML mapping, or holds unknown keys, wrong types or impossible
            values; all of them are named in one message.
    """
    source, tree = read_tree(path)
    if STAGES in tree and path is not None:
        raise RecipeError(
            f"{source} has stages, which aura train and aura bundle take; expected a recipe of one run here, such as a run "
            "folder's recipe.yaml"
        )
    for dotted, value in (overrides or {}).items():
        set_field(tree, dotted, value)
    problems: list[str] = []
    recipe = build_recipe(tree, problems)
    refuse_problems(source, problems)
    return recipe


def read_tree(path: str | os.PathLike[str] | None) -> tuple[str, dict[str, Any]]:
    """Name of a recipe for messages, and what its file holds; nothing without a file."""
    return ("defaults", {}) if path is None else (str(path), load_yaml(Path(path)))


def build_recipe(tree: Mapping[str, Any], problems: list[str]) -> Recipe:
    """Tree -> recipe; what is wrong with it is added to `problems`."""
    recipe: Recipe = build(Recipe, tree, "", problems)
    problems += check(recipe)  # fields with another problem hold their default here
    return recipe


def refuse_problems(source: str, problems: Sequence[str]) -> None:
    """Raises `RecipeError` with all of them, if there are any."""
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise RecipeError(
            f"{source}: {len(problems)} problem(s) in the recipe:\n{lines}\nList every field with: aura recipe"
        )


def write_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Resolved recipe -> YAML, through a temporary file and a rename."""
    write_yaml(as_tree(recipe), path)
