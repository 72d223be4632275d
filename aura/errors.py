"""What can go wrong, and what a caller may catch.

    AuraError                     everything aura raises on purpose
    ├── RecipeError               a recipe or an option has unknown keys, wrong types or impossible values
    ├── DataError                 a manifest, a dataset or one of its rows
    │   └── AudioError            a file, bytes or array that cannot be heard
    ├── PromptError               messages that cannot be turned into a prompt
    ├── ModelError                a model or a checkpoint that cannot be used
    │   ├── ModelReferenceError   a model reference that names nothing we can load
    │   └── CheckpointError       a folder that is no aura checkpoint, or one of another LLM
    ├── TrainingError             a run that cannot go on
    └── MissingExtraError         an optional dependency that is not installed

Each message says what was given, what was expected and what to type next. The command line prints it
without a traceback and exits with status 2.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class AuraError(Exception):
    """Base of every error that aura raises on purpose."""


class RecipeError(AuraError):
    """A recipe or an option has unknown keys, wrong types or impossible values."""


class DataError(AuraError):
    """A manifest, a dataset or one of its rows cannot be used."""


class AudioError(DataError):
    """A file, bytes or array cannot be decoded to at least `MIN_SECONDS` of finite samples."""


class PromptError(AuraError):
    """Messages cannot be turned into a prompt."""


class ModelError(AuraError):
    """A model or a checkpoint cannot be used."""


class ModelReferenceError(ModelError):
    """A model reference names nothing that can be loaded."""


class CheckpointError(ModelError):
    """A folder is no aura checkpoint, or belongs to another LLM."""


class TrainingError(AuraError):
    """A training run cannot go on."""


class MissingExtraError(AuraError):
    """An optional dependency is not installed."""


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: import name, e.g. `"jiwer"`.
        extra: the extra of the `aura-lora` distribution that installs it.
        purpose: what needs it, for the message.

    Raises:
        MissingExtraError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs the package '{module}', which is not installed. "
            f"Install it with: pip install 'aura-lora[{extra}]'"
        ) from error
