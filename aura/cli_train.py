"""The verbs around a recipe: train, recipe."""

from __future__ import annotations

import difflib
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from aura.errors import RecipeError

if TYPE_CHECKING:
    from aura.config import Recipe
    from aura.training.loop import RunResult

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
) -> int:
    """Train an adapter. Any field of the recipe can be set: --lora.rank 16 --run.out r16 (see: aura recipe).

    Of a recipe with stages, --stages.hear.run.steps 10 sets a field of the one called hear.

    Args:
        recipe: YAML file.
        bundle: in its place, a folder that aura bundle has made; leaves DIR/run, and DIR/adapter in archives.
        minutes: stop (and save) after this wall time, whatever the step; stages share it in proportion to their steps.
        route: bridge trains the baseline with the speech encoder at run time on the same data, budget and schedule.
        resume: go on with the last checkpoint of the run folder.
        overwrite: start over in a run folder that is not empty, all stages of it.
        dry_run: parameters, memory, FLOP and the first batch's shapes, without loading weights.
    """
    from aura.config import BRIDGE_RUN

    chosen = {**({None: {}, "aura": {"run.route": "aura"}, "bridge": BRIDGE_RUN}[route]), **parse_overrides(overrides)}
    if (recipe is None) == (bundle is None) or (bundle is not None and dry_run):
        raise RecipeError("expected one of --recipe FILE (also with --dry-run) and --bundle DIR")
    if bundle is not None:
        from aura.bundle.train import train_bundle

        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        return _status(train_bundle(bundle, minutes=minutes, overrides=chosen, resume=resume, overwrite=overwrite))
    from aura.stages import read_stages

    assert recipe is not None
    stages = read_stages(recipe, chosen, minutes=minutes)
    if dry_run:
        _print_dry_run(stages)
        return 0
    # A line per library and device would bury the run's own lines; the environment may ask for them.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from aura.training.stages import train_all

    return _status(train_all(stages, resume=resume, overwrite=overwrite))


def _status(result: RunResult) -> int:
    """0, or as shells report the signal that stopped the run, with the way to go on."""
    if result.signal is None:
        return 0
    if os.environ.get("RANK", "0") == "0":
        command = [word for word in sys.argv[1:] if word not in ("--resume", "--overwrite")]
        print(
            f"aura: stopped by {signal.Signals(result.signal).name} after step {result.progress.step} of {result.run}; go on "
            f"with: aura {shlex.join([*command, '--resume'])}",
            file=sys.stderr,
        )
    return 128 + result.signal


def _print_dry_run(stages: Sequence[tuple[str, Recipe]]) -> None:
    import yaml

    from aura.evaluation.json_text import plain
    from aura.training.dryrun import dry_run
    from aura.training.start import find_start

    find_start(stages[0][1])  # later stages start from what is still to be made
    figures = {name: plain(dry_run(recipe)) for name, recipe in stages}
    shown = figures if stages[0][0] else figures[""]
    print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=110), end="")


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

    from aura.config import Recipe
    from aura.typed_tree import as_tree, fields_with_help

    lines: list[str] = []
    open_sections: list[str] = []
    for dotted, default, help in fields_with_help(Recipe):
        *sections, name = dotted.split(".")
        for depth, section in enumerate(sections):
            if open_sections[: depth + 1] != sections[: depth + 1]:
                lines += [""] * (depth == 0 and bool(lines)) + ["  " * depth + f"{section}:"]
        open_sections = sections
        value = yaml.safe_dump(as_tree(default), default_flow_style=True, width=1000, allow_unicode=True)
        setting = f"{'  ' * len(sections)}{name}: {value.splitlines()[0]}"
        lines.append(f"{setting:<44}  # {help}" if help else setting)
    return "\n".join(lines)
