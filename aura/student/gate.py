"""LoRA whose update is switched on per position: a PEFT `LoraVariant` plus one hook per decoder layer.

With gate `audio`, text positions use the stock weights: a text-only prompt gives bit-identical output to the stock
LLM. The files PEFT saves stay stock; the gate is put back after every load. Merging ungates by definition.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from torch import nn

from aura.errors import ModelError

GATE_KEY = "audio_gate"  # the keyword that carries the mask down through the Hugging Face layers
Gate = torch.Tensor | Literal["off"] | None
"""(B, S) bool: on at True. "off": nowhere, and nothing is computed. None: everywhere, as stock PEFT."""


class GateState:
    """The mask one decoder layer works under; set by its attention's hook, read by its LoRA modules."""

    def __init__(self) -> None:
        self.gate: Gate = None


class PositionGatedLora(LoraVariant):
    """y = W x + gate * scale * B A x, with an exact zero where the gate is closed."""

    def __init__(self, state: GateState) -> None:
        self.state = state

    def forward(  # type: ignore[override]  # PEFT's are static; ours carries the layer's gate
        self, module: LoraLayer, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        gate = self.state.gate
        if isinstance(gate, str):
            return result
        low_rank = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        if gate is not None:
            low_rank = low_rank * gate[..., None].to(low_rank.dtype)
        return result + module.lora_B[active_adapter](low_rank) * module.scaling[active_adapter]

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        raise ModelError(
            "merging would apply the adapter to text positions as well; remove the gate first with detach_gate"
        )

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: torch.Tensor) -> None:
        PositionGatedLora.merge_safe(module, active_adapter, orig_weight)


def decoder_layers(language_model: Any) -> nn.ModuleList:
    """The LLM's decoder layers, found through its public `get_decoder()`.

    Raises:
        ModelError: the model is no decoder-only LLM of the usual form.
    """
    decoder = language_model.get_decoder() if hasattr(language_model, "get_decoder") else None
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(layer, "self_attn") for layer in layers):
        raise ModelError(
            f"{type(language_model).__name__} has no decoder layers with self_attn; expected a causal LLM of the Llama, "
            "Qwen, Gemma or SmolLM kind"
        )
    return layers


def attach_gate(language_model: nn.Module) -> None:
    """Put the position gate on every LoRA module below `language_model`; needed after every load of an adapter."""
    layer: Any
    layers: Any = decoder_layers(language_model)
    for layer in layers:
        state = getattr(layer, "aura_gate", None)
        if state is None:
            state = layer.aura_gate = GateState()
            layer.self_attn.register_forward_pre_hook(_take_gate(state), with_kwargs=True)
        for module in layer.modules():
            if isinstance(module, LoraLayer):
                for adapter in module.lora_A:
                    module.lora_variant[adapter] = PositionGatedLora(state)


def detach_gate(language_model: nn.Module) -> None:
    """Back to stock PEFT: the update works at every position, text included."""
    for module in language_model.modules():
        if isinstance(module, LoraLayer):
            for adapter in list(module.lora_variant):
                if isinstance(module.lora_variant[adapter], PositionGatedLora):
                    del module.lora_variant[adapter]


def _take_gate(state: GateState) -> Any:
    # On self_attn, not on the layer: gradient checkpointing replays the layer's forward without its hooks. The key is
    # taken out so that no attention kernel sees it.
    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        state.gate = kwargs.pop(GATE_KEY, None)
        return args, kwargs

    return hook
