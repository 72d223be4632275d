"""The student's proofs: equal to the stock LLM where it must be, and to itself however it is fed.

`AURA_WRITE_GOLDEN=1 python -m pytest tests/test_student_proofs.py -k golden` writes the golden file anew.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from aura.batch.collate import Batch, Example, collate
from aura.batch.prompt import IGNORE
from aura.config import LINEAR_MODULES
from aura.errors import ModelError
from aura.student.cache_key import CACHE_KEY
from aura.student.gate import GATE_KEY
from aura.student.model import AUDIO_TYPE_ID

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}  # float32 sums in another order
PATTERNS = ("block", "causal", "full")
KERNELS = [
    (family, attn) for family in tiny.LLM_FAMILIES for attn in ("sdpa", "eager") if (family, attn) != ("gemma2", "sdpa")
]
NEW_TOKENS = tiny.WINDOW + 4
GOLDEN = Path(__file__).parent / "golden" / "student_tiny.safetensors"

families = pytest.mark.parametrize("family", tiny.LLM_FAMILIES)
kernels = pytest.mark.parametrize(("family", "attn"), KERNELS)
patterns = pytest.mark.parametrize("attention", PATTERNS)
sides = pytest.mark.parametrize("side", ["left", "right"])


@functools.cache
def _built(family: str, attn: str, train_like: bool) -> tuple[Any, Any]:
    return tiny.tiny_student(family, attn=attn, train_like=train_like)


def student(
    family: str, *, attn: str = "sdpa", attention: str = "block", gate: str = "audio", train_like: bool = True
) -> tuple[Any, Any]:
    model, processor = _built(family, attn, train_like)
    model.config.attention, model.config.gate = attention, gate
    return model, processor


@functools.cache
def stock(family: str, attn: str = "sdpa") -> Any:
    """The LLM that the student was built on, untouched."""
    return tiny.tiny_llm(family, attn=attn)


def example(number: int, *seconds: float) -> Example:
    """One turn per audio part, the text on either side of it by turns, and an answer to each."""
    messages: list[dict[str, Any]] = []
    for part, _ in enumerate(seconds):
        parts = [
            {"type": "audio"},
            {"type": "text", "text": f"What is said in the {part}th?"[: 12 + 5 * number]},
        ]
        messages += [
            {"role": "user", "content": parts if part % 2 == 0 else parts[::-1]},
            {"role": "assistant", "content": f"number {part}"},
        ]
    waveforms = [tiny.tiny_speech(s, seed=10 * number + part) for part, s in enumerate(seconds)]
    return Example(id=f"clip-{number}", messages=messages, waveforms=waveforms)


TEXT = Example(
    id="text",
    messages=[
        {"role": "user", "content": "the other thing, then?"},
        {"role": "assistant", "content": "the thing"},
    ],
    waveforms=[],
)
# 1 to 2 parts of 4 to 23 patches: below and above a block and a sliding window, no two alike
EXAMPLES = (example(1, 1.0), example(2, 0.3, 1.84), TEXT, example(3, 0.7))


def batch_of(
    processor: Any, examples: Sequence[Example] = EXAMPLES, *, side: Any = "left", answer: bool = True
) -> Batch:
    if not answer:
        examples = [Example(id=e.id, messages=e.messages[:-1], waveforms=e.waveforms) for e in examples]
    return collate(processor, examples, answer=answer, padding_side=side)


@torch.no_grad()
def forward(model: Any, batch: Batch) -> torch.Tensor:
    return model(**batch.model_inputs(), use_cache=False).logits


@torch.no_grad()
def stock_forward(model: Any, llm: Any, batch: Batch) -> torch.Tensor:
    """The stock LLM on the same embeddings under the same mask."""
    embeds, is_audio = model.embed(batch.input_ids, batch.input_features, batch.input_features_mask)
    inputs = model.decoder_inputs(embeds, is_audio, batch.attention_mask)
    del inputs[GATE_KEY]
    return llm(**inputs, use_cache=False).logits


# --- equal to the stock LLM -------------------------------------------------------------------------------


@kernels
def test_fresh_adapter_equals_base_on_text(family: str, attn: str) -> None:
    model, processor = student(family, attn=attn, train_like=False)
    batch = batch_of(processor, [TEXT])
    with torch.no_grad():
        expected = stock(family, attn)(input_ids=batch.input_ids).logits
        assert torch.equal(model(input_ids=batch.input_ids).logits, expected)


@kernels
@patterns
def test_fresh_adapter_equals_base_on_audio(family: str, attn: str, attention: str) -> None:
    model, processor = student(family, attn=attn, attention=attention, train_like=False)
    batch = batch_of(processor)
    assert torch.equal(forward(model, batch), stock_forward(model, stock(family, attn), batch))


@kernels
@sides
def test_text_only_equals_base_bit_for_bit(family: str, attn: str, side: str) -> None:
    model, processor = student(family, attn=attn)
    shorter = Example(
        id="b",
        messages=[{"role": "user", "content": "on"}, {"role": "assistant", "content": "x"}],
        waveforms=[],
    )
    batch = batch_of(processor, [TEXT, shorter], side=side)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        # Hugging Face's forward counts positions from the start of the row; `generate`, like the student,
        # from the first token.
        positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
        expected = stock(family, attn)(**inputs, position_ids=positions).logits
    assert torch.equal(forward(model, batch), expected)
    student(family, attn=attn, gate="all")
    assert not torch.allclose(forward(model, batch), expected, atol=1e-2), (
        "gate 'all' should change text: is there an adapter?"
    )


@families
@pytest.mark.parametrize("sampled", [False, True])
def test_text_only_generation_equals_base(family: str, sampled: bool) -> None:
    model, processor = student(family)
    shorter = Example(
        id="b",
        messages=[{"role": "user", "content": "on"}, {"role": "assistant", "content": ""}],
        waveforms=[],
    )
    batch = batch_of(processor, [TEXT, shorter], answer=False)
    outputs = []
    for one in (stock(family), model):
        torch.manual_seed(3)
        outputs.append(
            one.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=NEW_TOKENS,
                do_sample=sampled,
                output_logits=True,
                return_dict_in_generate=True,
            )
        )
    assert torch.equal(outputs[0].sequences, outputs[1].sequences)
    assert torch.equal(torch.stack(outputs[0].logits), torch.stack(outputs[1].logits))


@families
def test_a_generated_audio_token_is_text(family: str) -> None:
    """The reserved token is one the LLM can write; what follows must still be what the stock LLM says."""
    model, processor = student(family)
    batch = batch_of(processor, [TEXT], answer=False)
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = stock(family).generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)
    written = next(int(token) for token in expected[0, -6:-1] if token not in batch.input_ids)
    reserved, model.config.audio_token_id = model.config.audio_token_id, written
    try:
        assert torch.equal(model.generate(**batch.model_inputs(), **options), expected)
    finally:
        model.config.audio_token_id = reserved


@kernels
@patterns
@sides
def test_text_beside_and_before_audio_equals_base(family: str, attn: str, attention: str, side: str) -> None:
    model, processor = student(family, attn=attn, attention=attention)
    batch = batch_of(processor, side=side)
    found, expected = forward(model, batch), stock_forward(model, stock(family, attn), batch)
    is_audio = batch.input_ids == processor.audio_token_id
    untouched = (is_audio.cumsum(-1) == 0) & batch.attention_mask.bool()
    assert untouched[2].sum() == batch.attention_mask[2].sum(), "the text row"
    assert (untouched.sum(-1) > 2).all(), "some text stands before the audio of every row"
    assert torch.equal(found[untouched], expected[untouched])
    assert not torch.allclose(found[is_audio], expected[is_audio], atol=1e-3)


# --- equal to itself --------------------------------------------------------------------------------------


@kernels
@patterns
@sides
def test_padded_batch_equals_single_items(family: str, attn: str, attention: str, side: str) -> None:
    model, processor = student(family, attn=attn, attention=attention)
    batch = batch_of(processor, side=side)
    together = forward(model, batch)
    for row, one in enumerate(EXAMPLES):
        alone = forward(model, batch_of(processor, [one]))[0]
        torch.testing.assert_close(together[row][batch.attention_mask[row].bool()], alone, **TOLERANCE)


@pytest.mark.parametrize("stem", ["conv", "linear"])
def test_neighbours_do_not_change_the_audio_embedding(stem: str) -> None:
    model, processor = tiny.tiny_student("llama", stem=stem)
    waveforms = [tiny.tiny_speech(s, seed=n) for n, s in enumerate((0.5, 2.0, 0.08))]
    together = processor.feature_extractor(waveforms)
    with torch.no_grad():
        found = model.get_audio_features(**together).pooler_output
        alone = [model.get_audio_features(**processor.feature_extractor([w])).pooler_output for w in waveforms]
        noise = torch.full_like(together["input_features"], torch.nan)
        mask = together["input_features_mask"][:, None]
        together["input_features"] = torch.where(mask, together["input_features"], noise)
        assert torch.equal(model.get_audio_features(**together).pooler_output, found), "values behind the end are read"
    torch.testing.assert_close(found, torch.cat(alone), **TOLERANCE)


@families
@patterns
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cached_generation_equals_full_forward(family: str, attention: str, cache: str) -> None:
    model, processor = student(family, attention=attention)
    batch = batch_of(processor, answer=False)
    output = model.generate(
        **batch.model_inputs(),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        cache_implementation=cache if cache == "static" else None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        prompt, is_audio = model.embed(batch.input_ids, batch.input_features, batch.input_features_mask)
        written = model.get_input_embeddings()(output.sequences[:, -NEW_TOKENS:])
        whole = model(
            inputs_embeds=torch.cat([prompt, written], dim=1),
            mm_token_type_ids=torch.nn.functional.pad(is_audio.long() * AUDIO_TYPE_ID, (0, NEW_TOKENS)),
            attention_mask=torch.nn.functional.pad(batch.attention_mask, (0, NEW_TOKENS), value=1),
            use_cache=False,
        ).logits[:, -NEW_TOKENS - 1 : -1]
    torch.testing.assert_close(torch.stack(output.logits, dim=1), whole, **TOLERANCE)
    eos = model.generation_config.eos_token_id
    whole[..., eos] = -torch.inf
    assert torch.equal(whole.argmax(-1), output.sequences[:, -NEW_TOKENS:])


@families
def test_beams_and_samples_of_several_audio_parts(family: str) -> None:
    model, processor = student(family)
    batch = batch_of(processor, (EXAMPLES[1], TEXT, EXAMPLES[0]), answer=False)
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "return_dict_in_generate": True}
    beams = model.generate(**batch.model_inputs(), num_beams=3, do_sample=False, output_scores=True, **options)
    alone = [
        model.generate(
            **batch_of(processor, [one], answer=False).model_inputs(),
            num_beams=3,
            do_sample=False,
            output_scores=True,
            **options,
        )
        for one in (EXAMPLES[1], TEXT, EXAMPLES[0])
    ]
    torch.testing.assert_close(beams.sequences_scores, torch.cat([one.sequences_scores for one in alone]), **TOLERANCE)
    samples = model.generate(
        **batch.model_inputs(), num_return_sequences=2, do_sample=True, top_k=1, output_logits=True, **options
    )
    greedy = model.generate(**batch.model_inputs(), do_sample=False, output_logits=True, **options)
    expected = torch.stack(greedy.logits).repeat_interleave(2, dim=1)
    torch.testing.assert_close(torch.stack(samples.logits), expected, **TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_generation_without_cache_and_from_embeddings_equals_cached(family: str) -> None:
    model, processor = student(family)
    batch = batch_of(processor, answer=False)
    options: dict[str, Any] = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    cached = model.generate(**batch.model_inputs(), **options)[:, -5:]
    assert torch.equal(model.generate(**batch.model_inputs(), use_cache=False, **options)[:, -5:], cached)
    embeds, is_audio = model.embed(batch.input_ids, batch.input_features, batch.input_features_mask)
    found = model.generate(
        inputs_embeds=embeds,
        mm_token_type_ids=is_audio.long() * AUDIO_TYPE_ID,
        attention_mask=batch.attention_mask,
        **options,
    )
    assert torch.equal(found, cached)


@families
@patterns
def test_second_turn_on_the_first_ones_cache_equals_whole(family: str, attention: str) -> None:
    model, processor = student(family, attention=attention)
    two_turns = EXAMPLES[1]
    whole = batch_of(processor, [two_turns], answer=False)
    options: dict[str, Any] = {
        "max_new_tokens": NEW_TOKENS,
        "min_new_tokens": NEW_TOKENS,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    expected = model.generate(**whole.model_inputs(), **options)
    first = batch_of(
        processor,
        [Example(id="first", messages=two_turns.messages[:2], waveforms=two_turns.waveforms[:1])],
    )
    cache = DynamicCache(config=model.language_model.config)
    n = first.input_ids.shape[1]
    assert torch.equal(whole.input_ids[:, :n], first.input_ids)
    with torch.no_grad():
        model(**first.model_inputs(), use_cache=True, **{CACHE_KEY: cache})
    second = {name: whole.model_inputs()[name][1:] for name in ("input_features", "input_features_mask")}
    found = model.generate(
        input_ids=whole.input_ids,
        attention_mask=whole.attention_mask,
        **{CACHE_KEY: cache},
        **second,
        **options,
    )
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), **TOLERANCE)


@torch.no_grad()
def prefill_in_blocks(model: Any, batch: Batch, *, rows: int, per_call: int = 8) -> torch.Tensor:
    """Text as it stands, audio `per_call` patches at a time on one cache; logits of the last call."""
    cache = DynamicCache(config=model.language_model.config)
    is_audio = (batch.input_ids == model.config.audio_token_id)[0]
    patches = model.get_audio_features(batch.input_features[:rows], batch.input_features_mask[:rows]).pooler_output
    logits, done, heard = torch.empty(0), 0, 0
    while done < len(is_audio):
        kind = bool(is_audio[done])
        end = done
        while end < len(is_audio) and bool(is_audio[end]) == kind and (not kind or end - done < per_call):
            end += 1
        ids = batch.input_ids[:, done:end]
        embeds = patches[None, heard : heard + end - done] if kind else model.get_input_embeddings()(ids)
        types = torch.full_like(ids, AUDIO_TYPE_ID if kind else 0)
        logits = model(
            inputs_embeds=embeds,
            mm_token_type_ids=types,
            attention_mask=batch.attention_mask[:, :end],
            **{CACHE_KEY: cache},
            use_cache=True,
        ).logits
        heard += (end - done) * kind
        done = end
    return logits[0, -1]


@kernels
@pytest.mark.parametrize(("attention", "per_call"), [("block", 8), ("causal", 8), ("block", 16), ("causal", 3)])
@pytest.mark.parametrize("one", [EXAMPLES[0], EXAMPLES[1], example(4, 3.0, 2.0)], ids=lambda one: one.id)
def test_prefill_in_blocks_equals_whole_prefill(
    family: str, attn: str, attention: str, per_call: int, one: Example
) -> None:
    model, processor = student(family, attn=attn, attention=attention)
    batch = batch_of(processor, [one], answer=False)
    assert batch.input_ids.shape[1] > 3 * tiny.WINDOW
    whole = forward(model, batch)[0, -1]
    found = prefill_in_blocks(model, batch, rows=len(one.waveforms), per_call=per_call)
    torch.testing.assert_close(found, whole, **TOLERANCE)


@families
def test_last_blocks_only_depend_on_what_was_heard(family: str) -> None:
    """Patterns `block` and `causal` let prefill run while the user speaks; `full` does not."""
    for attention, streams in (("block", True), ("causal", True), ("full", False)):
        model, processor = student(family, attention=attention)
        batch = batch_of(processor, [EXAMPLES[0]])
        first = int((batch.input_ids[0] == processor.audio_token_id).long().argmax())
        changed = batch.input_features.clone()
        changed[:, :, 8 * 8 + 4 :] += 1.0  # behind the first block and the reach of its last convolution
        with torch.no_grad():
            other = model(**{**batch.model_inputs(), "input_features": changed}).logits
        same = torch.allclose(forward(model, batch)[0, : first + 8], other[0, : first + 8], atol=1e-6)
        assert same == streams, attention


# --- the parts add up -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.LLM_FAMILIES + tiny.MORE_FAMILIES)
def test_logits_equal_the_llms_own(family: str) -> None:
    model, processor = student(family)
    batch = batch_of(processor)
    embeds, is_audio = model.embed(batch.input_ids, batch.input_features, batch.input_features_mask)
    with torch.no_grad():
        inputs = model.decoder_inputs(embeds, is_audio, batch.attention_mask)
        hidden = model.get_decoder()(**inputs, use_cache=False).last_hidden_state
        assert torch.equal(model.logits(hidden), forward(model, batch))


@families
def test_loss_is_the_cross_entropy_of_the_answers(family: str) -> None:
    model, processor = student(family)
    batch = batch_of(processor)
    with torch.no_grad():
        loss = model(**batch.model_inputs(), labels=batch.labels).loss
    logits, labels = forward(model, batch)[:, :-1], batch.labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[labels != IGNORE], labels[labels != IGNORE])
    torch.testing.assert_close(loss, expected)


def test_placeholders_and_patches_must_agree() -> None:
    model, processor = student("llama")
    batch = batch_of(processor, EXAMPLES[:1])
    with pytest.raises(ModelError, match=r"13 audio positions but the audio fills 12 patches"):
        model(input_ids=batch.input_ids, input_features=batch.input_features[:, :, :96])
    with pytest.raises(ModelError, match=r"13 audio positions but no audio was given"):
        model(input_ids=batch.input_ids)
    with pytest.raises(ModelError, match="neither input_ids nor inputs_embeds"):
        model()


@families
@pytest.mark.parametrize("gate", ["audio", "all"])
def test_only_embedding_and_adapter_learn(family: str, gate: str) -> None:
    model, processor = tiny.tiny_student(family, gate=gate)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if ".lora_" in n or n.startswith("audio_embedding.")}
    batch = batch_of(processor)
    model(**batch.model_inputs(), labels=batch.labels).loss.backward()
    still = {
        n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    }
    assert still == set()
    # With gate "audio", what the last layer makes of audio positions beyond their keys and values is read by no
    # answer: there is nothing to learn, and nothing is attached.
    last = {n.split(".lora_")[0].rsplit(".", 1)[-1] for n in names if ".layers.3." in n}
    assert last == ({"k_proj", "v_proj"} if gate == "audio" else set(LINEAR_MODULES))


# --- golden -----------------------------------------------------------------------------------------------


@torch.no_grad()
def golden_logits() -> dict[str, torch.Tensor]:
    """Last logits of students whose every weight comes from one seed, however libraries initialise."""
    found = {}
    for family in ("llama", "qwen3", "gemma3"):
        model, processor = tiny.tiny_student(family)
        generator = torch.Generator().manual_seed(0)
        for _, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * 0.1 + (1.0 if parameter.dim() == 1 else 0.0))
        for attention in PATTERNS:
            model.config.attention = attention
            found[f"{family}.{attention}"] = forward(model, batch_of(processor, EXAMPLES[1:2]))[0, -2:].contiguous()
    return found


def test_golden_logits() -> None:
    found = golden_logits()
    if os.environ.get("AURA_WRITE_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        save_file(found, GOLDEN)
    expected = load_file(GOLDEN)
    assert found.keys() == expected.keys()
    for name, logits in found.items():
        torch.testing.assert_close(logits, expected[name], **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")
