"""One decode step of a decoder-only LLM without the modelling code around it: fused projections, a preallocated cache.

A step of Gemma 3 270M spends a tenth of its time, fp32 on one core, outside the matrix products, and more than half of
it once the weights are 8 bits: mask building, cache concatenation, norms in six operators, hooks. Here a layer is some
twenty operators. What a layer is made of is read off its modules; `check_step` compares the result with the LLM's own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from aura.inference.lean_layer import (
    LeanLayer,
    angles,
    check_supported,
    fused_product,
    heads_of,
    lean_layer,
    norm_weight,
    rms_norm,
    through_layer,
)
from aura.inference.matvec import Matvec, Precision
from aura.student.gate import decoder_layers


class LeanStep:
    """The decode step of an LLM on CPU, float32 activations.

    Args:
        model: an aura student; with gate `all` its adapter is part of the weights, with `audio` text does not use it.
        precision: of copies of every weight; None reads the LLM's own, and takes no memory.
        own_head: read the LLM's own output layer, whatever the precision.

    Raises:
        ModelError: an LLM whose layers are of another form, or that is not in float32 on CPU.
    """

    def __init__(self, model: Any, precision: Precision | None, *, own_head: bool = False) -> None:
        lm = model.language_model
        check_supported(lm)
        self._decoder = lm.get_decoder()
        self._config = lm.config
        self._embed = lm.get_input_embeddings()
        with_adapter = model.config.gate == "all"
        self.products: dict[int, Matvec] = {}  # by the id of the first module

        def product(*modules: Any) -> Matvec:
            made = self.products[id(modules[0])] = fused_product(list(modules), precision, with_adapter)
            return made

        self.layers = [lean_layer(layer, lm.config, product) for layer in decoder_layers(lm)]
        self._norm, self._eps = norm_weight(self._decoder.norm, lm.config), lm.config.rms_norm_eps
        head = lm.get_output_embeddings()
        self._head = fused_product([head], None if own_head else precision, with_adapter)
        self._angles: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def prepare(self, positions: int) -> None:
        """Tables of angles for that many positions."""
        for rope in {layer.rope for layer in self.layers if layer.rope is not None}:
            if rope not in self._angles or len(self._angles[rope][0]) < positions:
                self._angles[rope] = angles(self._decoder.rotary_emb, rope, positions + 256)

    def __call__(self, token_B: torch.Tensor, position_B: torch.Tensor, cache: StepCache) -> torch.Tensor:
        """Token ids (B,) at positions (B,) -> hidden states (B, K) for `logits`; the cache grows by one."""
        x = self._embed(token_B)
        turn = {rope: (cos[position_B][:, None], sin[position_B][:, None]) for rope, (cos, sin) in self._angles.items()}
        for index, layer in enumerate(self.layers):
            x = through_layer(layer, x, partial(_attend, layer, index, turn=turn, cache=cache))
        cache.length += 1
        return rms_norm(x, self._norm, self._eps)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, K) -> (B, V), without the family's scaling or capping: neither changes the order."""
        return self._head(hidden)


class StepCache:
    """Keys and values of a batch, with room for what is to come.

    Args:
        cache: of the prefill; left padding where rows differ in length.
        attention_mask: (B, S) of the prefill.
        room: further positions at most.
    """

    def __init__(self, cache: Any, attention_mask: torch.Tensor, room: int) -> None:
        self.length = 0  # steps taken
        self.keys = [_with_room(layer.keys, room) for layer in cache.layers]
        self.values = [_with_room(layer.values, room) for layer in cache.layers]
        self.held = [layer.keys.shape[2] for layer in cache.layers]  # a sliding layer holds its window only
        mask = torch.nn.functional.pad(attention_mask.bool(), (0, room), value=True)
        # (B, 1, 1, S + room): True where a query may look; None where nothing is padding
        self.visible = None if bool(mask.all()) else mask[:, None, None]
        self._prefilled = attention_mask.shape[1]

    def put(
        self, index: int, key: torch.Tensor, value: torch.Tensor, window: int | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Add one position's (B, Hkv, D) to a layer; everything the layer may see now, (B, Hkv, n, D), and its mask."""
        end = self.held[index] + self.length
        keys, values = self.keys[index], self.values[index]
        keys[:, :, end] = key
        values[:, :, end] = value
        start = 0 if window is None else max(0, end + 1 - window)
        mask = None
        if self.visible is not None:
            last = self._prefilled + self.length + 1
            mask = self.visible[..., last - (end + 1 - start) : last]
        return keys[:, :, start : end + 1], values[:, :, start : end + 1], mask

    def keep(self, rows: torch.Tensor) -> None:
        """Let go of all rows but these."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        if self.visible is not None:
            self.visible = self.visible[rows]


def _with_room(past: torch.Tensor, room: int) -> torch.Tensor:
    batch, heads, length, width = past.shape
    roomy = past.new_empty(batch, heads, length + room, width)
    roomy[:, :, :length] = past
    return roomy


def _attend(
    layer: LeanLayer, index: int, x: torch.Tensor, turn: dict[str, tuple[torch.Tensor, torch.Tensor]], cache: StepCache
) -> torch.Tensor:
    batch = len(x)
    qk, value = heads_of(layer, x, turn)
    keys, values, mask = cache.put(index, qk[:, layer.heads :], value, layer.window)
    # The queries that share a key head stand where a longer text's queries would: no key is repeated.
    query = qk[:, : layer.heads].reshape(batch, layer.kv_heads, -1, layer.head_dim)
    seen = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=layer.scale)
    return seen.reshape(batch, layer.heads * layer.head_dim)
