"""LoRA on the LLM through PEFT, in PEFT's own files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from aura.errors import CheckpointError, ModelError
from aura.student.gate import attach_gate, decoder_layers

PREFIX = "base_model.model."  # what PEFT's own loader expects in front of every name
WEIGHTS = "adapter_model.safetensors"


def attach_lora(
    model: PreTrainedModel,
    *,
    rank: int,
    alpha: float,
    rslora: bool,
    dropout: float,
    layers: int | None,
    modules: Sequence[str],
    base: str,
    gate: str = "all",
    adapter: str = "default",
) -> peft.LoraConfig:
    """Inject a fresh adapter (its update is zero) and put the position gate on it.

    Args:
        layers: first N decoder layers; all when None.
        base: reference of the LLM, for `adapter_config.json`.
        gate: with `audio`, the last layer gets only the modules that later positions read (keys and values): what else it
            makes of audio positions nobody sees, and weights there would never learn.

    Raises:
        ModelError: more layers than the LLM has, or a module it does not have.
    """
    available = len(decoder_layers(model))
    if layers is not None and layers > available:
        raise ModelError(f"lora.layers is {layers}, but the LLM has {available} layers; choose at most {available}")
    present = {name.rsplit(".", 1)[-1] for name, _ in decoder_layers(model).named_modules()}
    if missing := [module for module in modules if module not in present]:
        linear = sorted(n for n in present if n.endswith("proj"))
        raise ModelError(
            f"lora.modules names {', '.join(missing)}, which the LLM does not have; it has {', '.join(linear)}"
        )
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT scales by any number
        use_rslora=rslora,
        lora_dropout=dropout,
        target_modules=list(modules),
        exclude_modules=_unread_modules(available) if gate == "audio" else None,
        layers_to_transform=list(range(layers)) if layers is not None and layers < available else None,
        base_model_name_or_path=base,
    )
    peft.inject_adapter_in_model(config, model, adapter_name=adapter)
    attach_gate(model)
    _keep_float32(model)
    return config


def _unread_modules(layers: int) -> str:
    """Pattern of the last layer's modules whose output at audio positions no answer reads."""
    return rf".*\.layers\.{layers - 1}\.(self_attn\.(q_proj|o_proj)|mlp\.\w+)"


def lora_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Every LoRA weight with its name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if ".lora_" in name]


def _keep_float32(model: torch.nn.Module) -> None:
    # PEFT gives LoRA the dtype of the layer below it
    for _, parameter in lora_parameters(model):
        parameter.data = parameter.data.float()


def save_lora(model: PreTrainedModel, folder: Path, adapter: str = "default") -> None:
    """`adapter_config.json` + `adapter_model.safetensors`, as `peft.PeftModel.from_pretrained` reads them."""
    config = model.peft_config[adapter]
    config.inference_mode = True
    config.save_pretrained(str(folder))
    config.inference_mode = False
    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    tensors = {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def load_lora(model: PreTrainedModel, folder: Path, adapter: str = "default") -> None:
    """Inject the adapter saved in a folder and put the position gate on it.

    Raises:
        CheckpointError: files are missing or broken, or their names or shapes do not fit the LLM.
    """
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
    except Exception as error:  # PEFT raises several unrelated types for a missing or torn file
        raise _unreadable(folder, error) from error
    tensors = _read_weights(folder)
    peft.inject_adapter_in_model(config, model, adapter_name=adapter)
    _keep_float32(model)  # before the weights go in: bfloat16 would round them
    _fill(model, tensors, folder, adapter)
    attach_gate(model)


def fill_lora(model: PreTrainedModel, folder: Path, adapter: str = "default") -> None:
    """The weights saved in a folder into an adapter that is attached already, and of the same form.

    Raises:
        CheckpointError: as `load_lora`.
    """
    _fill(model, _read_weights(folder), folder, adapter)


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors and the file system each raise their own types
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{folder} holds no readable LoRA adapter: {_first_line(error)}. Expected {WEIGHTS}")


def _fill(model: PreTrainedModel, tensors: dict[str, torch.Tensor], folder: Path, adapter: str) -> None:
    state = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    try:
        result: Any = set_peft_model_state_dict(model, state, adapter_name=adapter)
    except RuntimeError as error:
        raise CheckpointError(f"the adapter in {folder} does not fit this LLM: {_first_line(error)}") from error
    missing = [name for name in result.missing_keys if ".lora_" in name and f".{adapter}." in name]
    if result.unexpected_keys or missing:
        name = (list(result.unexpected_keys) + missing)[0]
        raise CheckpointError(
            f"the adapter in {folder} does not fit this LLM: {len(result.unexpected_keys)} unknown and {len(missing)} missing "
            f"weights, e.g. {name}"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip() if str(error).strip() else type(error).__name__
