"""Model references: a Hub id, a local folder, or `pip:<distribution>`, turned into something loadable."""

from __future__ import annotations

from aura.references.cache import aura_home
from aura.references.resolve import explain_load_error, resolve, resolve_ctranslate2

__all__ = ["aura_home", "explain_load_error", "resolve", "resolve_ctranslate2"]
