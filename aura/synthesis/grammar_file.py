"""A grammar file -> `Grammar`: Picovoice's YAML, or a JSON form that has weights and synonyms too.

JSON (the same keys are understood in YAML, and weights and synonyms in either):

    {"intents": {"orderDrink": {"weight": 2, "expressions": ["@please a $size:size tea",
                                                             {"say": "tea (now)", "weight": 0.2}]}},
     "slots":   {"size": ["small", {"value": "large", "say": ["large", "big"], "weight": 0.5}]},
     "macros":  {"please": ["may I have", "I want"]}}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aura.errors import DataError
from aura.synthesis.builtin_slots import builtin_values
from aura.synthesis.expression import SlotUse, parse_expression, uses
from aura.synthesis.grammar import Grammar, Intent, SlotValue, Weighted


def is_grammar(path: str | os.PathLike[str]) -> bool:
    """Whether a file is read as a grammar: by its name."""
    return os.fspath(path).lower().endswith((".yaml", ".yml", ".json"))


def read_grammar(path: str | os.PathLike[str]) -> Grammar:
    """Read a grammar file.

    Raises:
        DataError: no such file, or something in it that is not understood; the message says where.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file}: {reason}; expected a grammar as .yaml or .json") from error
    try:
        return grammar_from_tree(_load(file, text))
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def _load(file: Path, text: str) -> Any:
    if file.suffix.lower() == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"is no JSON ({error.msg}, line {error.lineno})") from error
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"is no YAML ({' '.join(str(error).split())})") from error


def grammar_from_tree(tree: Any) -> Grammar:
    """What a grammar file holds -> `Grammar`."""
    if isinstance(tree, Mapping) and isinstance(tree.get("context"), Mapping):
        tree = tree["context"]
    if not isinstance(tree, Mapping):
        raise DataError("holds no mapping; expected 'expressions' (or 'intents'), 'slots' and 'macros'")
    unknown = sorted(set(tree) - {"expressions", "intents", "slots", "macros"})
    if unknown:
        raise DataError(f"has the key {unknown[0]!r}; expected 'expressions' (or 'intents'), 'slots' and 'macros'")
    intents = tuple(_intent(str(name), body) for name, body in _named(tree, "expressions", "intents").items())
    if not intents:
        raise DataError("has no expressions; expected at least one under 'expressions' (or 'intents')")
    macros = {name: _phrases(body, f"macro {name}") for name, body in _named(tree, "macros").items()}
    slots = {name: _values(body, f"slot {name}") for name, body in _named(tree, "slots").items()}
    used = [e.phrase for intent in intents for e in intent.expressions]
    used += [w.phrase for group in macros.values() for w in group]
    builtin = {use.type for phrase in used for use in uses(phrase) if isinstance(use, SlotUse)} - slots.keys()
    for type in builtin:
        if type.startswith("pv.") and (values := builtin_values(type)) is not None:
            slots[type] = tuple(SlotValue(value=value, say=(say,)) for say, value in values)
    return Grammar(intents=intents, slots=slots, macros=macros)


def _named(tree: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    for key in keys:
        if tree.get(key) is not None:
            if not isinstance(tree[key], Mapping):
                raise DataError(f"{key!r} is {type(tree[key]).__name__}; expected names with their lists")
            return tree[key]
    return {}


def _intent(name: str, body: Any) -> Intent:
    weight = 1.0
    if isinstance(body, Mapping):
        weight, body = _weight(body, f"intent {name}"), body.get("expressions")
    return Intent(name=name, expressions=_phrases(body, f"intent {name}"), weight=weight)


def _phrases(body: Any, where: str) -> tuple[Weighted, ...]:
    """Texts, or `{"say": text, "weight": number}`."""
    found = []
    for item in _items(body, where):
        text, weight = (item.get("say"), _weight(item, where)) if isinstance(item, Mapping) else (item, 1.0)
        try:
            found.append(Weighted(phrase=parse_expression(str(text) if text is not None else ""), weight=weight))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
    return tuple(found)


def _values(body: Any, where: str) -> tuple[SlotValue, ...]:
    """Texts, or `{"value": text, "say": [texts], "weight": number}`."""
    found = []
    for item in _items(body, where):
        given = item if isinstance(item, Mapping) else {"value": item}
        value = given.get("value")
        say = given.get("say", value)
        texts = tuple(" ".join(str(text).split()) for text in (say if isinstance(say, list) else [say]))
        if value is None or not all(texts) or not texts:
            raise DataError(f"{where} has the value {item!r}; expected text, or {{'value': text, 'say': [texts]}}")
        found.append(SlotValue(value=" ".join(str(value).split()), say=texts, weight=_weight(given, where)))
    return tuple(found)


def _items(body: Any, where: str) -> Iterable[Any]:
    if not isinstance(body, list) or not body:
        raise DataError(f"{where} holds {body!r:.60}; expected a list that is not empty")
    return body


def _weight(item: Mapping[str, Any], where: str) -> float:
    weight = item.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight <= 0:
        raise DataError(f"{where} has the weight {weight!r}; expected a number above 0")
    return float(weight)
