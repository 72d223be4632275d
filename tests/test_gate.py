"""LoRA gated to audio positions: stock PEFT when open, nothing when closed, the same under checkpointing."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import tiny
import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from aura.errors import ModelError
from aura.student.gate import GATE_KEY, PositionGatedLora, attach_gate, decoder_layers, detach_gate
from aura.student.lora import attach_lora, lora_parameters

# Hugging Face's new name for checkpointing is younger than the oldest release we support.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

families = pytest.mark.parametrize("family", tiny.LLM_FAMILIES)
IDS = torch.randint(6, tiny.VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
OPEN = torch.arange(24)[None].expand(2, -1) % 3 == 0  # a gate open at every third position
OPEN = OPEN & torch.tensor([[True], [False]])  # ... of the first row; the second is text


def gated_llm(family: str) -> Any:
    llm = tiny.tiny_llm(family)
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    attach_lora(llm, rank=4, alpha=8.0, rslora=True, dropout=0.0, layers=None, modules=modules, base="tiny")
    tiny.train_adapter(llm)
    return llm.eval()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@families
def test_open_gate_equals_stock_peft(family: str) -> None:
    llm = gated_llm(family)
    config = copy.deepcopy(llm.peft_config["default"])
    config.base_model_name_or_path = None
    stock = peft.get_peft_model(tiny.tiny_llm(family), config).eval()
    weights = peft.get_peft_model_state_dict(llm, save_embedding_layers=False)
    peft.set_peft_model_state_dict(stock, {f"base_model.model.{name}": t for name, t in weights.items()})
    expected = stock(input_ids=IDS).logits
    for gate in (None, torch.ones_like(IDS, dtype=torch.bool)):
        found = llm(input_ids=IDS, **{GATE_KEY: gate}).logits
        assert torch.equal(found, expected)
    llm(input_ids=IDS, labels=IDS).loss.backward()
    stock(input_ids=IDS, labels=IDS).loss.backward()
    ours, theirs = gradients(llm), gradients(stock)
    assert len(ours) == 2 * 7 * 4
    assert all(torch.equal(ours[name], theirs[f"base_model.model.{name}"]) for name in ours)


@families
def test_closed_gate_equals_the_llm_without_lora(family: str) -> None:
    llm = gated_llm(family)
    with torch.no_grad():
        expected = tiny.tiny_llm(family)(input_ids=IDS).logits
        for gate in ("off", torch.zeros_like(IDS, dtype=torch.bool)):
            assert torch.equal(llm(input_ids=IDS, **{GATE_KEY: gate}).logits, expected)
        assert not torch.allclose(llm(input_ids=IDS, **{GATE_KEY: OPEN}).logits[0], expected[0], atol=1e-2)
        assert torch.equal(llm(input_ids=IDS, **{GATE_KEY: OPEN}).logits[1], expected[1]), "a row with no open position"


@families
def test_closed_positions_give_no_gradient(family: str) -> None:
    llm = gated_llm(family)
    llm(input_ids=IDS, labels=IDS, **{GATE_KEY: OPEN}).loss.backward()
    whole = gradients(llm)
    labels = IDS.clone()
    labels[0] = -100  # loss on the closed row only
    llm(input_ids=IDS, labels=labels, **{GATE_KEY: OPEN}).loss.backward()
    assert all(not gradient.any() for gradient in gradients(llm).values())
    assert sum(bool(gradient.any()) for gradient in whole.values()) > 2 * 7 * 3
    # Before the first open position nothing of the update is seen either.
    llm(input_ids=IDS[:1, :1], **{GATE_KEY: OPEN[:1, 1:2]}).logits.sum().backward()
    assert all(not gradient.any() for gradient in gradients(llm).values())


@families
def test_gradient_checkpointing_gives_the_same_gradients(family: str) -> None:
    """Passes under different gates before one backward: each must be recomputed under its own."""
    llm = gated_llm(family).train()

    def step() -> dict[str, torch.Tensor]:
        heard = llm(input_ids=IDS, labels=IDS, use_cache=False, **{GATE_KEY: OPEN}).loss
        everywhere = llm(input_ids=IDS, labels=IDS, use_cache=False).loss
        with torch.no_grad():
            llm(input_ids=IDS, use_cache=False, **{GATE_KEY: "off"})
        (heard + 0.5 * everywhere).backward()
        return gradients(llm)

    expected = step()
    llm.gradient_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in decoder_layers(llm))
    found = step()
    assert found.keys() == expected.keys() and len(found) == 2 * 7 * 4
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)


def test_student_gradients_equal_under_checkpointing() -> None:
    model, processor = tiny.tiny_student("gemma3")
    model.train()
    ids = torch.tensor([[7, 8, *[processor.audio_token_id] * 12, 9, 10, 11]])
    features = torch.randn(1, 80, 96)

    def step() -> dict[str, torch.Tensor]:
        model(input_ids=ids, input_features=features, labels=ids.where(ids > 8, -100), use_cache=False).loss.backward()
        return gradients(model)

    expected = step()
    model.gradient_checkpointing_enable()
    found = step()
    assert any(name.startswith("audio_embedding.conv1") for name in found), (
        "the audio embedding is behind the checkpoints"
    )
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-7)


@families
def test_detached_gate_is_stock_peft_and_merges(family: str) -> None:
    llm = gated_llm(family)
    layers = [module for module in llm.modules() if isinstance(module, LoraLayer)]
    assert all(isinstance(layer.lora_variant["default"], PositionGatedLora) for layer in layers)
    with torch.no_grad():
        expected = llm(input_ids=IDS, **{GATE_KEY: None}).logits
        for safe in (True, False):
            with pytest.raises(ModelError, match="detach_gate"):
                layers[0].merge(safe_merge=safe)
        assert torch.equal(llm(input_ids=IDS, **{GATE_KEY: None}).logits, expected), "a refused merge changed weights"
        detach_gate(llm)
        assert not any(layer.lora_variant for layer in layers)
        assert torch.equal(llm(input_ids=IDS, **{GATE_KEY: OPEN}).logits, expected), "no gate listens any more"
        for layer in layers:
            layer.merge()
        torch.testing.assert_close(llm(input_ids=IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", tiny.MORE_FAMILIES)
def test_further_families_take_the_gate(family: str) -> None:
    model, _ = tiny.tiny_student(family)
    ids = torch.tensor([[7, 8, 9, 10, 11]])
    with torch.no_grad():
        expected = tiny.tiny_llm(family)(input_ids=ids).logits
        assert torch.equal(model(input_ids=ids).logits, expected)
        model.config.gate = "all"
        assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-2)


def test_attaching_twice_changes_nothing() -> None:
    llm = gated_llm("llama")
    expected = llm(input_ids=IDS, **{GATE_KEY: OPEN}).logits
    attach_gate(llm)
    assert torch.equal(llm(input_ids=IDS, **{GATE_KEY: OPEN}).logits, expected)
    assert all(len(layer.self_attn._forward_pre_hooks) == 1 for layer in decoder_layers(llm))


def test_lora_reaches_the_first_layers_only_when_asked() -> None:
    llm = tiny.tiny_llm("qwen3")
    config = attach_lora(
        llm, rank=2, alpha=2.0, rslora=False, dropout=0.0, layers=3, modules=("q_proj", "up_proj"), base="b"
    )
    names = {name.split(".lora_")[0] for name, _ in lora_parameters(llm)}
    assert names == {f"model.layers.{n}.{m}" for n in range(3) for m in ("self_attn.q_proj", "mlp.up_proj")}
    assert config.layers_to_transform == [0, 1, 2] and config.base_model_name_or_path == "b"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 5}, r"lora.layers is 5, but the LLM has 4 layers; choose at most 4"),
        (
            {"modules": ("q_proj", "c_attn")},
            r"lora.modules names c_attn, which the LLM does not have; it has down_proj, .*v_proj",
        ),
    ],
)
def test_lora_that_does_not_fit(options: dict[str, Any], message: str) -> None:
    asked: dict[str, Any] = {
        "rank": 2,
        "alpha": 2.0,
        "rslora": False,
        "dropout": 0.0,
        "layers": None,
        "modules": ("q_proj",),
    }
    llm = tiny.tiny_llm("llama")
    with pytest.raises(ModelError, match=message):
        attach_lora(llm, base="b", **(asked | options))
    assert not lora_parameters(llm)


def test_a_model_without_decoder_layers_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Linear has no decoder layers with self_attn; expected a causal LLM"):
        attach_gate(nn.Linear(2, 2))
