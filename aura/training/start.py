"""The weights a run starts from, where `run.init_from` names some: another run's audio embedding, LoRA and heads.

Only weights: the optimiser, the schedule and the steps are the new run's own. The student must be of the same form; what a
recipe may change between the two is everything that has no weights, such as data, losses and rates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from aura.config import Recipe
from aura.errors import CheckpointError
from aura.stages import flat_fields
from aura.student.checkpoint import RECIPE
from aura.student.configuration import AuraConfig
from aura.student.files import CONFIG, EMBEDDING, checkpoint_folder, load_embedding
from aura.student.llm import check_fingerprint
from aura.student.lora import fill_lora
from aura.student.model import AuraForConditionalGeneration
from aura.training.objective import Objective
from aura.training.run_folder import step_folders, step_of
from aura.training.state import TENSORS, check_speech_encoder, read_progress
from aura.typed_tree import as_tree

ADAPTER_CONFIG = "adapter_config.json"
DELIVERED = ("checkpoint", "best")  # folders of a run that hold a student without a training state
# What a head is made for: of another teacher, layer or target it would be no start.
HEAD_FIELDS = (
    *(("teacher", "encoder"), ("teacher", "pad_to_30s"), ("distill", "student_layers")),
    *(("distill", "layer_map"), ("distill", "frame_map"), ("distill", "targets")),
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where weights come from.

    Args:
        folder: student checkpoint.
        state: training checkpoint of the same run, with the distillation heads; None where there is none any more.
        config: the checkpoint's `config.json`.
    """

    folder: Path
    state: Path | None
    config: dict[str, Any]

    def fill(self, student: AuraForConditionalGeneration) -> None:
        """Audio embedding (or projector) and LoRA, into a student of the same form.

        Raises:
            CheckpointError: weights of another LLM or of another shape.
        """
        llm = student.language_model
        if expected := self.config.get("base_fingerprint"):
            check_fingerprint(expected, llm, checkpoint=str(self.folder), llm=student.config.base_model)
        check_speech_encoder(self.config, student, self.folder)
        load_embedding(student.audio_embedding, self.folder)
        if student.config.adapter:
            fill_lora(llm, self.folder)

    def fill_heads(self, objective: Objective, recipe: Recipe) -> str | None:
        """Heads with the statistics of their targets; why they are left as they are, or None.

        Raises:
            CheckpointError: a torn file.
        """
        if self.state is None:
            return "its run's training checkpoints are gone"
        if changed := _changed_head_fields(self.state, recipe):
            return f"{', '.join(changed)} changed"
        wanted: dict[str, torch.Tensor] = {
            f"weight/{name}": p for name, p in objective.trainable().items() if name.startswith("heads.")
        }
        wanted |= {f"buffer/{name}": buffer for name, buffer in objective.named_buffers() if name.startswith("heads.")}
        try:
            with safe_open(self.state / TENSORS, framework="pt") as file:
                there = set(file.keys())
                # The student's weights are the moving average, where the run kept one: so are the heads then.
                names = {name: name.replace("weight/", "average/", 1) for name in wanted}
                found = {n: file.get_tensor(a if a in there else n) for n, a in names.items() if n in there}
        except Exception as error:  # safetensors and the file system each raise their own types
            raise _unreadable(self.state / TENSORS, error) from error
        if any(name not in found or found[name].shape != tensor.shape for name, tensor in wanted.items()):
            return "its run had none of this shape"
        with torch.no_grad():
            for name, tensor in wanted.items():
                tensor.copy_(found[name])
        return None


def find_start(recipe: Recipe) -> Start | None:
    """What `run.init_from` names; None where it names nothing. No weights are read.

    Raises:
        CheckpointError: no checkpoint there, or one of another form; the message names the recipe's fields.
    """
    if recipe.run.init_from is None:
        return None
    try:
        folder = checkpoint_folder(_delivered(recipe.run.init_from))
    except CheckpointError as error:
        raise CheckpointError(f"run.init_from: {error}") from error
    config = _read_json(folder / CONFIG)
    known: dict[str, Any] = {**AuraConfig().to_dict(), **config}
    adapter = _read_json(folder / ADAPTER_CONFIG) if known["adapter"] else None
    try:
        there = _form(known, adapter)
    except (KeyError, TypeError) as error:
        raise _unreadable(folder / ADAPTER_CONFIG, error) from error
    here = _recipe_form(recipe, known)
    differing = {name: value for name, value in there.items() if name in here and here[name] != value}
    if differing:
        shown = "; ".join(f"{name} is {_yaml(here[name])}, {_yaml(value)} there" for name, value in differing.items())
        flags = " ".join(f"--{name} {_yaml(value)}" for name, value in differing.items())
        raise CheckpointError(
            f"run.init_from: {folder} holds weights of another form: {shown}; expected the same. Set {flags}, or start without "
            "run.init_from"
        )
    return Start(folder=folder, state=_state(folder), config=config)


def _delivered(reference: str) -> str | Path:
    """The checkpoint in a run folder: what it delivered, or else its newest; anything else as it is."""
    run = Path(reference).expanduser()
    if (run / EMBEDDING).is_file():
        return run
    for folder in (run / "checkpoint", *step_folders(run)[::-1]):
        if (folder / EMBEDDING).is_file():
            return folder
    return reference


def _state(folder: Path) -> Path | None:
    """The training checkpoint nearest to the step that a student checkpoint was taken at."""
    if (folder / TENSORS).is_file():
        return folder
    folders = step_folders(folder.parent) if folder.name in DELIVERED else []
    if not folders:
        return None
    best = read_progress(folders[-1]).best_step
    wanted = step_of(folders[-1]) if best is None else best
    return min(folders, key=lambda path: abs(step_of(path) - wanted))


def _form(config: dict[str, Any], adapter: dict[str, Any] | None) -> dict[str, Any]:
    """Recipe fields that a checkpoint's weights mean, from its own files: it may come without its recipe."""
    is_bridge = config["stem"] == "encoder"
    form: dict[str, Any] = {"run.route": "bridge" if is_bridge else "aura"}
    form |= {f"audio.{name}": config[name] for name in ("n_mels", "patch_frames", "attention")}
    if config["attention"] == "block":
        form["audio.block_patches"] = config["block_patches"]
    if is_bridge:
        form |= {f"bridge.{name}": config[name] for name in ("floor", "projector_width", "silence_seconds")}
        form["bridge.lora"] = config["adapter"]
    else:
        form |= {f"audio.{name}": config[name] for name in ("stem", "floor")}
        if config["stem"] == "conv":
            form["audio.stem_width"] = config["stem_width"]
    if adapter is not None:
        layers = adapter.get("layers_to_transform")
        form |= {"lora.rank": adapter["r"], "lora.alpha": adapter["lora_alpha"], "lora.gate": config["gate"]}
        form |= {"lora.rslora": adapter["use_rslora"], "lora.modules": sorted(adapter["target_modules"])}
        form["lora.layers"] = None if layers is None else len(layers)
    return form


def _recipe_form(recipe: Recipe, config: dict[str, Any]) -> dict[str, Any]:
    """The same fields as the recipe has them, written the same way."""
    form = flat_fields(as_tree(recipe))
    form["lora.modules"] = sorted(recipe.lora.modules)
    available = (config.get("base_fingerprint") or {}).get("layers")
    if available is not None and recipe.lora.layers == available:
        form["lora.layers"] = None  # all of them, by number
    return form


def _changed_head_fields(state: Path, recipe: Recipe) -> list[str]:
    try:
        saved = yaml.safe_load((state / RECIPE).read_text(encoding="utf-8"))
        now = as_tree(recipe)
        return [f"{a}.{b}" for a, b in HEAD_FIELDS if saved[a].get(b) != now[a][b]]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(state / RECIPE, error) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return CheckpointError(f"run.init_from: {path} cannot be read ({reason}); copy or save the checkpoint again")


def _yaml(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=1000)).splitlines()[0]
