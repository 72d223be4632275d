"""The text-to-speech engines by name; each is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence

from aura.errors import AuraError, DataError
from aura.synthesis.engine import Engine, EngineOptions


def _piper(options: EngineOptions) -> Engine:
    from aura.synthesis.piper import PiperEngine

    return PiperEngine(options)


def _kokoro(options: EngineOptions) -> Engine:
    from aura.synthesis.kokoro import KokoroEngine

    return KokoroEngine(options)


def _flite(options: EngineOptions) -> Engine:
    from aura.synthesis.commands import FliteEngine

    return FliteEngine()


def _espeak(options: EngineOptions) -> Engine:
    from aura.synthesis.commands import EspeakEngine

    return EspeakEngine()


ENGINES: Mapping[str, Callable[[EngineOptions], Engine]] = {
    "piper": _piper,
    "kokoro": _kokoro,
    "flite": _flite,
    "espeak-ng": _espeak,
}


def open_engine(name: str, options: EngineOptions | None = None) -> Engine:
    """An engine by name, or your own as `module:function`, called with the options.

    Raises:
        AuraError: no such engine, or what it needs is not installed; the message says how to install it.
    """
    options = options or EngineOptions()
    if name in ENGINES:
        return ENGINES[name](options)
    module, colon, function = name.partition(":")
    if not colon:
        raise DataError(f"no engine {name!r}; expected {', '.join(ENGINES)}, or module:function for one of your own")
    try:
        return getattr(importlib.import_module(module), function)(options)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"the engine {name!r} cannot be loaded: {error}; expected an importable module:function"
        ) from error


def open_engines(names: Sequence[str], options: EngineOptions) -> tuple[dict[str, Engine], dict[str, str]]:
    """Engines by name; those that cannot be opened come back as reasons.

    Raises:
        AuraError: an engine that was asked for by name cannot be opened. `all` takes what is there.
    """
    engines: dict[str, Engine] = {}
    missing: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name != "all":
            engines[name] = open_engine(name, options)
            continue
        for known in ENGINES:
            try:
                engines.setdefault(known, open_engine(known, options))
            except AuraError as error:
                missing[known] = str(error)
    return engines, missing
