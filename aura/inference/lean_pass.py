"""A pass of many positions over a decoder-only LLM without the modelling code around it, in front of `LeanStep`.

A block of streamed audio is eight positions: fewer than half of the time of the LLM's own pass is in its matrix products,
the rest in hooks, norms in six operators and three small products for each LoRA. Here projections of one input share one
product with all their A matrices, and the weights are the LLM's own.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from aura.errors import ModelError
from aura.inference.lean_layer import (
    LeanLayer,
    angles,
    check_supported,
    heads_of,
    lean_layer,
    norm_weight,
    only_adapter,
    rms_norm,
    through_layer,
)
from aura.inference.lean_step import LeanStep
from aura.inference.matvec import Matvec, linear, stock
from aura.student.cache_key import CACHE_KEY
from aura.student.gate import GATE_KEY, Gate, decoder_layers


class LeanPass:
    """Hidden states of further positions, on CPU in float32; one at a time, as for the LLM itself.

    Args:
        model: an aura student; its weights must stay as they are.
        step: a decode step whose float32 copies of the weights are read, with gate `all` the adapter in them.

    Raises:
        ModelError: an LLM whose layers or attention are of another form, or with more than one adapter.
    """

    def __init__(self, model: Any, step: LeanStep | None = None) -> None:
        lm = model.language_model
        check_supported(lm)
        if lm.config._attn_implementation != "sdpa":
            raise ModelError(f"the lean pass attends by sdpa; this LLM by {lm.config._attn_implementation}")
        self._copies = {} if step is None else step.products
        self._is_merged = step is not None and model.config.gate == "all"
        self._decoder = lm.get_decoder()
        self._gate: Gate = None  # (N, 1) in the weights' dtype, while a pass runs
        self._layers = [lean_layer(layer, lm.config, self._product) for layer in decoder_layers(lm)]
        self._kinds = getattr(lm.config, "layer_types", None) or [""] * len(self._layers)
        self._norm, self._eps = norm_weight(self._decoder.norm, lm.config), lm.config.rms_norm_eps
        self._angles: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __call__(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Final hidden states (B, S, K).

        Args:
            inputs: of `AuraForConditionalGeneration.decoder_inputs`, with a cache, which grows by the positions.
        """
        embeds_BSK, cache, gate = inputs["inputs_embeds"], inputs[CACHE_KEY], inputs[GATE_KEY]
        position_BS = inputs["position_ids"]
        batch, length, width = embeds_BSK.shape
        self._prepare(int(position_BS.max()) + 1)
        at_N = position_BS.expand(batch, length).reshape(-1)
        turn = {rope: (cos[at_N][:, None], sin[at_N][:, None]) for rope, (cos, sin) in self._angles.items()}
        self._gate = gate.reshape(-1, 1).to(embeds_BSK.dtype) if isinstance(gate, torch.Tensor) else gate
        seen: dict[tuple[str, int], torch.Tensor] = {}
        x_NK = embeds_BSK.reshape(-1, width)
        for index, layer in enumerate(self._layers):

            def attend(normed_NK: torch.Tensor, index: int = index, layer: LeanLayer = layer) -> torch.Tensor:
                qk, value = heads_of(layer, normed_NK, turn)
                key, value = (
                    t.view(batch, length, -1, layer.head_dim).transpose(1, 2) for t in (qk[:, layer.heads :], value)
                )
                keys, values = cache.update(key, value, index)
                kind = (self._kinds[index], keys.shape[2])
                if kind not in seen:
                    seen[kind] = _mask(inputs["attention_mask"], self._kinds[index], length, keys.shape[2], layer)
                # The queries that share a key head stand behind each other: no key is repeated.
                shape = (batch, length, layer.kv_heads, -1, layer.head_dim)
                query = qk[:, : layer.heads].reshape(shape).permute(0, 2, 3, 1, 4)
                found = scaled_dot_product_attention(
                    query.reshape(batch, layer.kv_heads, -1, layer.head_dim),
                    keys,
                    values,
                    attn_mask=seen[kind],
                    scale=layer.scale,
                )
                return found.view(query.shape).permute(0, 3, 1, 2, 4).reshape(batch * length, -1)

            x_NK = through_layer(layer, x_NK, attend)
        self._gate = None
        return rms_norm(x_NK, self._norm, self._eps).view(batch, length, width)

    def _prepare(self, positions: int) -> None:
        for rope in {layer.rope for layer in self._layers if layer.rope is not None}:
            if rope not in self._angles or len(self._angles[rope][0]) < positions:
                self._angles[rope] = angles(self._decoder.rotary_emb, rope, positions + 256)

    def _product(self, *modules: Any) -> Matvec:
        """Weights and gated LoRA of modules with the same input."""
        layers = [getattr(module, "base_layer", module) for module in modules]
        stocks = [stock(layer.weight.detach(), layer.bias) for layer in layers]
        copy = self._copies.get(id(modules[0]))
        starts = [0, *itertools.accumulate(len(layer.weight) for layer in layers)]
        downs: list[torch.Tensor] = []
        ups: list[tuple[slice, torch.Tensor]] = []  # which outputs, and their B, scaled and transposed
        for module, (start, end) in zip(modules, itertools.pairwise(starts), strict=True):
            if hasattr(module, "lora_A") and not self._is_merged:
                name = only_adapter(module)
                downs.append(module.lora_A[name].weight.detach())
                ups.append((slice(start, end), (module.lora_B[name].weight.detach() * module.scaling[name]).t()))
        down = torch.cat(downs) if downs else None
        ranks = [len(each) for each in downs]

        def product(x_NK: torch.Tensor) -> torch.Tensor:
            if copy is not None:
                y = copy(x_NK)
            else:
                y = stocks[0](x_NK) if len(stocks) == 1 else torch.cat([part(x_NK) for part in stocks], dim=-1)
            gate = self._gate
            if down is not None and not isinstance(gate, str):
                low = linear(x_NK, down)
                lows = (low if gate is None else low * gate).split(ranks, dim=-1)
                for (where, up), part in zip(ups, lows, strict=True):
                    y[:, where].addmm_(part, up)
            return y

        return product


def _mask(given: Any, kind: str, length: int, past: int, layer: LeanLayer) -> torch.Tensor:
    """(B or 1, 1, G * S, n) bool of one kind of layer; causal within its window where none is given."""
    mask = given.get(kind) if isinstance(given, dict) else given
    if mask is None or mask.dim() != 4:
        offset = past - length
        mask = torch.ones(length, past, dtype=torch.bool).tril(offset)
        if layer.window is not None:
            mask = mask.triu(offset + 1 - layer.window)
        mask = mask[None, None]
    return mask[..., :past].repeat(1, 1, layer.heads // layer.kv_heads, 1)
