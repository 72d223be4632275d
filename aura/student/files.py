"""Files of a checkpoint folder, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from aura.errors import CheckpointError, ModelError

EMBEDDING = "audio_embedding.safetensors"
CONFIG = "config.json"
SHIPPED = Path("checkpoints") / "hear-270m"  # in the source tree
CHOICE = "AURA_CHECKPOINT"  # environment variable: the checkpoint where none is named


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes otherwise.

    Raises:
        ModelError: the disk is full or not writable; what stood at `target` before is untouched.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    except BaseException as error:  # an interrupt between the two renames must not lose the old folder either
        if old.exists() and not target.exists():
            os.replace(old, target)
        number = getattr(error, "errno", None)
        # safetensors wraps the system's error in its own type and keeps only the text
        if isinstance(error, OSError) or "os error" in str(error).lower() or "No space left" in str(error):
            full = number == errno.ENOSPC or "No space left" in str(error)
            reason = "the disk is full" if full else str(error)
            raise ModelError(
                f"could not write {target}: {reason}. Nothing there was changed; free some space or choose another folder"
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def checkpoint_folder(path: str | os.PathLike[str]) -> Path:
    """Local checkpoint folder, or the snapshot of a Hub id.

    Raises:
        CheckpointError: no such folder, or no aura checkpoint in it.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or str(path).startswith((".", "~")) or len(folder.parts) != 2:
            raise CheckpointError(
                f"{path} is no folder; expected an aura checkpoint such as runs/demo/checkpoint, or a Hub id"
            )
        folder = _snapshot(str(path))
    if not (folder / CONFIG).is_file() or not (folder / EMBEDDING).is_file():
        inside = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        best = [p for p in (folder / "checkpoint", folder / "best") if (p / EMBEDDING).is_file()]
        hint = f" Did you mean {best[0]}?" if best else ""
        raise CheckpointError(f"{path} is no aura checkpoint: {CONFIG} and {EMBEDDING} expected, found {inside}.{hint}")
    return folder


def default_checkpoint() -> str:
    """The checkpoint where none is named: `$AURA_CHECKPOINT`, else the one in the source tree.

    Raises:
        CheckpointError: neither is there, as in an installation from a wheel.
    """
    if chosen := os.environ.get(CHOICE):
        return chosen
    folder = Path(__file__).parents[2] / SHIPPED
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            f"no checkpoint was named and {SHIPPED} is not beside this installation; name one, or set {CHOICE} to its folder"
        )
    return str(folder)


def _snapshot(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository))
    except Exception as error:  # the hub client raises many types: offline, unknown, gated
        raise CheckpointError(
            f"{repository} is neither a folder here nor a checkpoint that could be fetched from the Hub "
            f"({type(error).__name__}). Check the name, or the connection"
        ) from error


def save_embedding(module: nn.Module, folder: Path) -> None:
    """Audio embedding -> `audio_embedding.safetensors`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    save_file(tensors, folder / EMBEDDING, metadata={"format": "pt"})


def load_embedding(module: nn.Module, folder: Path) -> None:
    """`audio_embedding.safetensors` -> audio embedding, every name and shape checked.

    Raises:
        CheckpointError: torn file, or weights of another shape.
    """
    try:
        module.load_state_dict(load_file(folder / EMBEDDING))
    except Exception as error:  # safetensors and torch raise different types for torn and misfit files
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder / EMBEDDING} cannot be loaded ({reason}); copy or save the checkpoint again"
        ) from error
