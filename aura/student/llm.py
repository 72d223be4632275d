"""The stock LLM: loading it, and recognising it again."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from aura.errors import CheckpointError
from aura.references import explain_load_error, resolve

SAMPLES = 64  # weights kept per sampled tensor


def load_llm(reference: str, *, dtype: str | torch.dtype = "float32", attention: str = "sdpa") -> PreTrainedModel:
    """Frozen causal LLM behind a hub id, folder or `pip:` reference.

    Args:
        attention: kernel; `sdpa` becomes `eager` where the family has no sdpa (Gemma 2 soft-caps its scores).

    Raises:
        ModelReferenceError: nothing loadable there.
    """
    path = resolve(reference)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    try:
        try:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention)
        except ValueError as error:
            if attention != "sdpa" or "scaled_dot_product_attention" not in str(error):
                raise
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    except (OSError, ValueError) as error:
        raise explain_load_error(reference, error) from error
    model.requires_grad_(False)
    return model.eval()


def load_tokenizer(reference: str) -> PreTrainedTokenizerBase:
    """Tokenizer of the LLM behind a reference."""
    try:
        return AutoTokenizer.from_pretrained(resolve(reference))
    except (OSError, ValueError) as error:
        raise explain_load_error(reference, error) from error


@torch.no_grad()
def embedding_rms(model: PreTrainedModel) -> float:
    """RMS of the token embeddings as `inputs_embeds` carries them (with Gemma's factor where it applies there)."""
    table: Any = model.get_input_embeddings()
    ids = torch.linspace(0, table.weight.shape[0] - 1, min(4096, table.weight.shape[0])).long()
    return float(table(ids.to(table.weight.device)).float().square().mean().sqrt())


@torch.no_grad()
def fingerprint(model: PreTrainedModel) -> dict[str, Any]:
    """Shapes and a few weights of the LLM; survives a change of dtype."""
    config = model.config
    sampled = {}
    table: Any = model.get_input_embeddings()
    decoder: Any = model.get_decoder()
    for name, weight in (("embeddings", table.weight), ("norm", decoder.norm.weight)):
        flat = weight.reshape(-1)
        picks = torch.linspace(0, flat.numel() - 1, SAMPLES, dtype=torch.float64).long().to(flat.device)
        sampled[name] = [round(value, 6) for value in flat[picks].float().tolist()]
    return {
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "vocabulary": table.weight.shape[0],
        **sampled,
    }


def check_fingerprint(expected: dict[str, Any], model: PreTrainedModel, *, checkpoint: str, llm: str) -> None:
    """Refuse an LLM that the adapter was not trained on.

    Raises:
        CheckpointError: naming both, and what differs.
    """
    found = fingerprint(model)
    for key, value in expected.items():
        other = found.get(key)
        same = value == other
        if isinstance(value, list) and isinstance(other, list):
            # bfloat16 keeps 8 bits: 2 ** -8 relative
            same = torch.allclose(torch.tensor(value), torch.tensor(other), rtol=1e-2, atol=1e-4)
        if not same:
            shown = (
                f"{key} {value} expected, {other} found" if not isinstance(value, list) else f"its {key} weights differ"
            )
            raise CheckpointError(
                f"{checkpoint} was trained on another LLM than {llm}: {shown}. Load it on the LLM named in its config.json, "
                "or train an adapter for this one with aura train --student.llm"
            )
