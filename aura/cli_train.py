"""The verbs around a recipe: train, recipe."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from aura.errors import RecipeError

OPTIONS = ("--recipe", "--bundle", "--minutes", "--route", "--resume", "--overwrite", "--dry-run")


def train(
    *overrides: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)],
    recipe: Path | None = None,
    bundle: Path | None = None,
    minutes: float | None = None,
    route: Literal["aura", "bridge"] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> None:
    """Train an adapter. Any field of the recipe can be set: --lora.rank 16 --run.out r16 (see: aura recipe).

    Args:
        recipe: YAML file.
        bundle: in its place, a folder that aura bundle has made; leaves DIR/run, and DIR/adapter in archives.
        minutes: stop (and save) after this wall time, whatever the step.
        route: bridge trains the baseline with the speech encoder at run time on the same data, budget and schedule.
        resume: go on with the last checkpoint of the run folder.
        overwrite: start over in a run folder that is not empty.
        dry_run: parameters, memory, FLOP and the first batch's shapes, without loading weights.
    """
    from aura.config import BRIDGE_RUN, read_recipe

    chosen = {**({None: {}, "aura": {"run.route": "aura"}, "bridge": BRIDGE_RUN}[route]), **parse_overrides(overrides)}
    if (recipe is None) == (bundle is None) or (bundle is not None and dry_run):
        raise RecipeError("expected one of --recipe FILE (also with --dry-run) and --bundle DIR")
    if bundle is not None:
        from aura.bundle.train import train_bundle

        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        train_bundle(bundle, minutes=minutes, overrides=chosen, resume=resume, overwrite=overwrite)
        return
    if minutes is not None:
        chosen["run.max_minutes"] = minutes
    resolved = read_recipe(recipe, chosen)
    if dry_run:
        import yaml

        from aura.evaluation.json_text import plain
        from aura.training.dryrun import dry_run as run_dry

        print(yaml.safe_dump(plain(run_dry(resolved)), sort_keys=False, allow_unicode=True, width=110), end="")
        return
    # A line per library and device would bury the run's own lines; the environment may ask for them.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from aura.training.loop import train as run

    run(resolved, resume=resume, overwrite=overwrite)


def parse_overrides(tokens: Sequence[str]) -> dict[str, Any]:
    """`--lora.rank 16 --run.name=x` -> `{"lora.rank": 16, "run.name": "x"}`; values are YAML.

    Several words, or the same option again, make a list: `--data.train a.jsonl b.jsonl`.

    Raises:
        RecipeError: a stray word, an option without a dot that is none of ours, or one without a value.
    """
    overrides: dict[str, Any] = {}
    remaining = list(tokens)
    while remaining:
        token = remaining.pop(0)
        name, equals, value = token.removeprefix("--").partition("=")
        if not token.startswith("--") or "." not in name:
            close = difflib.get_close_matches(token, OPTIONS, n=1)
            hint = f"Did you mean {close[0]}?" if close else "List every field with: aura recipe"
            raise RecipeError(
                f"{token} is no option of aura train; expected a field of the recipe such as --lora.rank 16. {hint}"
            )
        values = [value] if equals else []
        while not equals and remaining and not remaining[0].startswith("--"):
            values.append(remaining.pop(0))
        if not values:
            raise RecipeError(f"{token} was given without a value; expected one: {token} VALUE")
        read = [_yaml_value(value) for value in values]
        if name in overrides:  # given twice: a list grows, never the first value silently lost
            before = overrides[name]
            read = [*(before if isinstance(before, list) else [before]), *read]
        overrides[name] = read if len(read) > 1 else read[0]
    return overrides


def _yaml_value(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text  # plain text that YAML would read as something else, such as @name


def recipe() -> None:
    """Print every field of a recipe with its default and what it does, as a recipe to start from."""
    print(recipe_text())


def recipe_text() -> str:
    """A commented YAML of the defaults; `read_recipe` reads it back."""
    import yaml

    from aura.config import as_tree, fields_with_help

    lines: list[str] = []
    open_sections: list[str] = []
    for dotted, default, help in fields_with_help():
        *sections, name = dotted.split(".")
        for depth, section in enumerate(sections):
            if open_sections[: depth + 1] != sections[: depth + 1]:
                lines += [""] * (depth == 0 and bool(lines)) + ["  " * depth + f"{section}:"]
        open_sections = sections
        value = yaml.safe_dump(as_tree(default), default_flow_style=True, width=1000, allow_unicode=True)
        setting = f"{'  ' * len(sections)}{name}: {value.splitlines()[0]}"
        lines.append(f"{setting:<44}  # {help}" if help else setting)
    return "\n".join(lines)
