"""aura: give an open LLM ears. Audio understanding internalised as LoRA (arXiv 2606.11033)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aura.errors import AuraError

if TYPE_CHECKING:
    from aura.inference.engine import Engine, load

__version__ = "0.1.0"

__all__ = ["AuraError", "Engine", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Torch takes seconds to import; `aura --help` must not pay for it.
    if name in ("Engine", "load"):
        from aura.inference import engine

        return getattr(engine, name)
    raise AttributeError(f"module 'aura' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
