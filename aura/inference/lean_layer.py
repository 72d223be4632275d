"""What a decoder layer is made of, read off its modules, and what it does with positions; attention is its user's.

Fused projections, and as few operators as the form allows: `aura.inference.lean_step` and `lean_pass` are built on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from aura.errors import ModelError
from aura.inference.matvec import Matvec, Precision, packed, stock

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "smollm3")
"""Model types whose layers are of the form below."""

ROPE_TYPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angles do not change with the length of the text."""


@dataclass(frozen=True, kw_only=True)
class LeanLayer:
    """Weights of one decoder layer.

    Args:
        norms: weights before attention, behind it (Gemma), before the MLP, behind it (Gemma).
        eps: of every norm.
        qkv, out, gate_up, down: products.
        head_norm: (H + Hkv, D) weights of the norm of queries and keys, or None.
        heads, kv_heads, head_dim: H, Hkv, D.
        rope: which table of angles; None for a layer without.
        window: positions it looks back, itself included; None for all.
        scale: of the attention scores.
        act: of the MLP.
    """

    norms: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]
    eps: float
    qkv: Matvec
    out: Matvec
    gate_up: Matvec
    down: Matvec
    head_norm: torch.Tensor | None
    heads: int
    kv_heads: int
    head_dim: int
    rope: str | None
    window: int | None
    scale: float
    act: Callable[[torch.Tensor], torch.Tensor]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """torch's own, over the last dimension, in five operators for its eight: of which a step takes a hundred."""
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x.mul(torch.addcmul(_scalar(eps), size, size, value=1 / x.shape[-1]).rsqrt_()).mul_(weight)


@cache
def _scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def through_layer(layer: LeanLayer, x_NK: torch.Tensor, attend: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Positions (N, K) through a layer.

    Args:
        attend: normed (N, K) -> what the heads saw, (N, H * D).
    """
    before, behind, before_mlp, behind_mlp = layer.norms
    attended = layer.out(attend(rms_norm(x_NK, before, layer.eps)))
    x_NK = x_NK + (attended if behind is None else rms_norm(attended, behind, layer.eps))
    gate, up = layer.gate_up(rms_norm(x_NK, before_mlp, layer.eps)).chunk(2, dim=-1)
    made = layer.down(layer.act(gate) * up)
    return x_NK + (made if behind_mlp is None else rms_norm(made, behind_mlp, layer.eps))


def heads_of(
    layer: LeanLayer, x_NK: torch.Tensor, turn: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normed positions (N, K) -> queries and keys, turned by their positions, (N, H + Hkv, D), and values (N, Hkv, D).

    Args:
        turn: cos and sin by rope, (N, 1, D) each.
    """
    both = layer.heads + layer.kv_heads
    qkv = layer.qkv(x_NK).view(len(x_NK), both + layer.kv_heads, layer.head_dim)
    qk, value = qkv[:, :both], qkv[:, both:]
    if layer.head_norm is not None:
        qk = rms_norm(qk, layer.head_norm, layer.eps)
    if layer.rope is not None:
        cos, sin = turn[layer.rope]
        # The first half of `sin` is negative: halves changed about are the usual rotation.
        qk = torch.addcmul(qk * cos, torch.cat(qk.chunk(2, dim=-1)[::-1], dim=-1), sin)
    return qk, value


# --- reading the LLM -------------------------------------------------------------------------------------------------


def check_supported(lm: Any) -> None:
    config = lm.config
    table = lm.get_input_embeddings().weight
    if table.device.type != "cpu" or table.dtype != torch.float32:
        raise ModelError(
            f"the lean decode step runs in float32 on CPU; this LLM is in {table.dtype} on {table.device}. "
            "Expected decode='generate' here"
        )
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = {p.get("rope_type", "default") for p in [ropes, *ropes.values()] if isinstance(p, dict)}
    if config.model_type not in FAMILIES or not kinds <= set(ROPE_TYPES):
        raise ModelError(
            f"{config.model_type} has no lean decode step; expected one of {', '.join(FAMILIES)} with rotary embeddings "
            f"of type {', '.join(ROPE_TYPES)}. Use decode='generate'"
        )


def lean_layer(layer: Any, config: Any, product: Callable[..., Matvec]) -> LeanLayer:
    """What a decoder layer is made of.

    Args:
        product: of modules with the same input, their outputs side by side.
    """
    attention, mlp = layer.self_attn, layer.mlp
    sandwich = hasattr(layer, "pre_feedforward_layernorm")
    before_mlp = layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_norm = None
    if getattr(attention, "q_norm", None) is not None:
        query, key = norm_weight(attention.q_norm, config), norm_weight(attention.k_norm, config)
        head_norm = torch.stack([query] * heads + [key] * kv_heads)
    kind = (getattr(config, "layer_types", None) or [""] * config.num_hidden_layers)[attention.layer_idx]
    window = getattr(config, "sliding_window", None)
    slides = kind == "sliding_attention" or (config.model_type == "mistral" and not kind)
    return LeanLayer(
        norms=(
            norm_weight(layer.input_layernorm, config),
            norm_weight(layer.post_attention_layernorm, config) if sandwich else None,
            norm_weight(before_mlp, config),
            norm_weight(layer.post_feedforward_layernorm, config) if sandwich else None,
        ),
        eps=config.rms_norm_eps,
        qkv=product(attention.q_proj, attention.k_proj, attention.v_proj),
        out=product(attention.o_proj),
        gate_up=product(mlp.gate_proj, mlp.up_proj),
        down=product(mlp.down_proj),
        head_norm=head_norm,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=attention.head_dim,
        rope=kind if getattr(attention, "use_rope", True) else None,
        window=window if slides else None,
        scale=attention.scaling,
        act=mlp.act_fn,
    )


def norm_weight(norm: Any, config: Any) -> torch.Tensor:
    weight = norm.weight.detach()
    return 1.0 + weight if config.model_type.startswith("gemma") else weight


def fused_product(modules: list[Any], precision: Precision | None, with_adapter: bool) -> Matvec:
    """One product for projections of the same input, their outputs side by side."""
    if precision is None:
        parts = [_own(module, with_adapter) for module in modules]
        return parts[0] if len(parts) == 1 else lambda x: torch.cat([part(x) for part in parts], dim=-1)
    layers = [getattr(module, "base_layer", module) for module in modules]
    weights = [
        layer.weight.detach() + _update(module) if with_adapter and hasattr(module, "lora_A") else layer.weight.detach()
        for module, layer in zip(modules, layers, strict=True)
    ]
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if biases and len(biases) < len(layers):
        raise ModelError("some projections of one layer have a bias and some have none; expected decode='generate'")
    return packed(torch.cat(weights), torch.cat(biases).detach() if biases else None, precision)


def _own(module: Any, with_adapter: bool) -> Matvec:
    layer = getattr(module, "base_layer", module)
    product = stock(layer.weight.detach(), layer.bias)
    if not with_adapter or not hasattr(module, "lora_A"):
        return product
    adapter = only_adapter(module)
    down, up = module.lora_A[adapter].weight.detach(), module.lora_B[adapter].weight.detach()
    scale = module.scaling[adapter]
    return lambda x: product(x) + torch.nn.functional.linear(torch.nn.functional.linear(x, down), up) * scale


def _update(module: Any) -> torch.Tensor:
    adapter = only_adapter(module)
    return (module.lora_B[adapter].weight @ module.lora_A[adapter].weight).detach() * module.scaling[adapter]


def only_adapter(module: Any) -> str:
    names = list(module.lora_A)
    if len(names) != 1 or module.merged or len(module.lora_magnitude_vector):
        raise ModelError(
            f"the LLM carries the adapters {', '.join(names)}, merged ones or DoRA; the lean decode step expects one plain "
            "LoRA. Use decode='generate'"
        )
    return names[0]


def angles(rotary: Any, rope: str, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, sin (positions, D), the first half of sin negative."""
    at = torch.arange(positions)[None]
    # Families with several tables (Gemma 3) take the layer's type; the others do not.
    own = (rope,) if hasattr(rotary, f"{rope}_inv_freq") else ()
    cos, sin = (table[0].clone() for table in rotary(torch.zeros(1), at, *own))
    sin[:, : sin.shape[1] // 2].neg_()
    return cos, sin
