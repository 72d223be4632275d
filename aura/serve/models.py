"""Checkpoints -> named models; adapters on one LLM share its weights."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft.tuners.lora.layer import LoraLayer

from aura.errors import CheckpointError, RecipeError
from aura.inference.engine import Engine, pick_device
from aura.student.configuration import AuraConfig, read_config
from aura.student.files import checkpoint_folder, load_embedding
from aura.student.lora import load_lora
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor

# A run folder's checkpoint is better known by the run's name.
PLAIN_NAMES = ("checkpoint", "best", "last")


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model of the server.

    Args:
        name: what clients put into `model`.
        engine: with its adapter.
        adapter: PEFT's name of it, on an LLM that several may share.
        created: seconds since 1970 at which it was loaded.
    """

    name: str
    engine: Engine
    adapter: str = "default"
    created: int = 0

    def activate(self) -> None:
        """Make it the adapter that the shared LLM uses; on the model's thread only."""
        for module in self.engine.model.language_model.modules():
            if isinstance(module, LoraLayer):
                module.set_adapter(self.adapter, inference_mode=True)


def parse_specs(specs: Sequence[str]) -> dict[str, str]:
    """`CKPT` or `NAME=CKPT` -> checkpoint by name.

    Raises:
        RecipeError: no checkpoint, or two under one name.
    """
    found: dict[str, str] = {}
    for spec in specs:
        name, equals, checkpoint = spec.partition("=")
        if not equals or not name or "/" in name:
            name, checkpoint = default_name(spec), spec
        if name in found:
            raise RecipeError(
                f"two checkpoints are called {name!r} ({found[name]} and {checkpoint}); "
                f"expected a name each: aura serve first={found[name]} second={checkpoint}"
            )
        found[name] = checkpoint
    if not found:
        raise RecipeError("no checkpoint was given; expected at least one: aura serve runs/demo/checkpoint")
    return found


def default_name(checkpoint: str) -> str:
    """`runs/demo/checkpoint` -> `demo`."""
    parts = [part for part in Path(checkpoint).parts if part not in ("/", ".", "..")]
    while len(parts) > 1 and parts[-1] in PLAIN_NAMES:
        parts.pop()
    return parts[-1] if parts else checkpoint


def load_models(
    specs: Mapping[str, str], *, load_engine: Callable[[str], Engine], device: str = "auto"
) -> dict[str, Served]:
    """Load every checkpoint; the LLM of checkpoints that name the same one only once.

    Args:
        specs: checkpoint by name.
        load_engine: loads a checkpoint together with its LLM.
        device: where later adapters go.

    Raises:
        CheckpointError: as `aura.load`.
        ModelError: a way to decode that two adapters on one LLM do not have.
    """
    models: dict[str, Served] = {}
    for name, checkpoint in specs.items():
        config = read_config(checkpoint_folder(checkpoint))
        host = next((m for m in models.values() if _same_llm(m.engine.model.config, config)), None)
        adapter = "default" if host is None else f"adapter{len(models)}"  # PEFT allows no dots, users do
        engine = load_engine(checkpoint) if host is None else _beside(host.engine, checkpoint, config, adapter, device)
        models[name] = Served(name=name, engine=engine, adapter=adapter, created=int(time.time()))
    for served in models.values():
        served.activate()  # also freezes what a fresh injection left trainable
        served.engine.warm()
    return models


def _same_llm(one: Any, other: Any) -> bool:
    if getattr(one, "encoder", None) or getattr(other, "encoder", None):
        return False  # a bridge, the baseline, brings networks of its own and is loaded whole
    return one.base_model == other.base_model and one.base_fingerprint == other.base_fingerprint


def _beside(host: Engine, checkpoint: str, config: AuraConfig, adapter: str, device: str) -> Engine:
    """A second adapter on the host's LLM, with its own audio embedding."""
    folder = checkpoint_folder(checkpoint)
    llm = host.model.language_model
    model = AuraForConditionalGeneration(config, llm)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # a second adapter is what we want
        load_lora(llm, folder, adapter)
    load_embedding(model.audio_embedding, folder)
    model.to(pick_device(device))  # type: ignore[arg-type]  # its decorator hides the signature
    try:
        processor = AuraProcessor.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"the processor files in {folder} cannot be loaded; copy or save them again") from error
    engine = Engine(model, processor, checkpoint=checkpoint, decode=host.decode, screen=False)
    engine.screen = host.screen  # of the same output layer
    return engine
