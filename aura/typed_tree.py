"""Plain trees, as YAML holds them, and nested dataclasses that type them: every problem is found, none is mended."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import os
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import yaml

from aura.errors import RecipeError


def option(default: Any, help: str) -> Any:
    """A dataclass field with its help beside it; mutable defaults are copied per instance."""
    metadata = {"help": help}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def as_tree(config: Any) -> Any:
    """Dataclasses -> plain dicts and lists, as YAML and JSON hold them."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: as_tree(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [as_tree(value) for value in config]
    return config


def fields_with_help(config: type, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted name, default, help) of every field, for `aura recipe`."""
    default = config()
    for f in dataclasses.fields(config):
        value = getattr(default, f.name)
        if dataclasses.is_dataclass(value):
            yield from fields_with_help(type(value), f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value, f.metadata.get("help") or _docstrings(config).get(f.name, "")


def _docstrings(config: type) -> dict[str, str]:
    """The string below each field, for dataclasses that document themselves that way."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    body = typing.cast(ast.ClassDef, definition).body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def load_yaml(path: Path) -> dict[str, Any]:
    """A recipe file's mapping; empty for an empty file.

    Raises:
        RecipeError: no such file, no YAML, or no mapping.
    """
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise RecipeError(f"recipe {path} does not exist; here are: {', '.join(near) or 'no recipes'}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is no valid YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise RecipeError(
            f"recipe {path} holds a {type(tree).__name__}; expected a mapping such as 'lora: {{rank: 32}}'"
        )
    return tree


def write_yaml(tree: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Plain dicts and lists -> YAML in their order, through a temporary file and a rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(temporary, path)


def set_field(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value where `section.field` says."""
    *parents, last = dotted.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    tree[last] = value


def build(config: type, tree: Any, prefix: str, problems: list[str]) -> Any:
    """Mapping -> dataclass; problems are added to the list, not raised, and leave the default or None.

    Args:
        prefix: what stands before a field's name in messages, e.g. `lora.`.
    """
    if not isinstance(tree, Mapping):
        problems.append(f"{prefix.rstrip('.') or 'recipe'} is {tree!r}; expected a mapping of fields")
        return config()
    hints = typing.get_type_hints(config)
    names = [f.name for f in dataclasses.fields(config)]
    values = {}
    for key, value in tree.items():
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"expected one of: {', '.join(names)}"
            problems.append(f"{prefix}{key} is no field of the recipe; {hint}")
            continue
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            values[key] = build(typing.cast(type, kind), {} if value is None else value, f"{prefix}{key}.", problems)
            continue
        try:
            values[key] = _convert(value, kind)
        except (TypeError, ValueError):
            problems.append(f"{prefix}{key} is {value!r}; expected {_type_name(kind)}")
    try:
        return config(**values)
    except (RecipeError, ValueError, TypeError) as error:
        # a config that checks itself begins its message with its own name
        problems.append(f"{prefix.rstrip('.')}: {str(error).removeprefix(prefix.rstrip('.') + ': ')}")
        return None


def _convert(value: Any, kind: Any) -> Any:
    """YAML value -> field type, strictly; int passes for float, list for tuple, nothing else bends."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            try:
                return _convert(value, choice)
            except (TypeError, ValueError):
                continue
        raise TypeError
    if kind is type(None):
        if value is None:
            return None
        raise TypeError
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise ValueError
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            # one manifest is as good as a list of one
            value = [value] if value is not None and len(arguments) == 2 and arguments[1] is ... else _refuse()
        if len(arguments) == 2 and arguments[1] is ...:
            return tuple(_convert(item, arguments[0]) for item in value)
        if len(value) != len(arguments):
            raise ValueError
        return tuple(_convert(item, choice) for item, choice in zip(value, arguments, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError
        return {_convert(k, arguments[0]): _convert(v, arguments[1]) for k, v in value.items()}
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        value = float(value)  # YAML 1.1 reads 1e-3 as a string
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError  # .nan and .inf are YAML, but no sensible value of any field
    if kind is int and isinstance(value, bool):
        raise TypeError
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    raise TypeError


def _refuse() -> typing.NoReturn:
    raise TypeError


def _type_name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(choice) for choice in arguments)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if kind is type(None):
        return "null"
    if origin is tuple:
        return f"a list of {_type_name(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    return {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}.get(
        getattr(kind, "__name__", ""), str(kind)
    )
