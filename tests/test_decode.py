"""Decoding: the lean loop gives what transformers' own gives, rows leave, prefixes are reused, copies cost what they say."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import tiny
import torch

from aura.batch.collate import Example, collate
from aura.batch.prompt import user_message
from aura.errors import ModelError
from aura.inference.engine import Engine
from aura.inference.generate import Generation, generate_texts
from aura.inference.greedy import DECODES, GreedyDecoder, check_step, open_decoder
from aura.inference.lean_layer import FAMILIES
from aura.inference.lean_step import LeanStep, StepCache
from aura.inference.matvec import PRECISIONS, WIDE, _round_up, blocked, linear, packed, quantize_rows
from aura.inference.prefix import MIN_PREFIX, PrefixStore
from aura.inference.screened import first_largest
from aura.student.cache_key import CACHE_KEY

LEAN = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "smollm3")
SYSTEM = "You hear short orders in a kitchen and answer each of them with the one word that was said in it."


@functools.cache
def student(family: str, gate: str = "audio") -> tuple[Any, Any]:
    return tiny.tiny_student(family, gate=gate, seed=3)


def question(number: int, *, seconds: float = 0.6, system: str | None = None) -> Example:
    head = [] if system is None else [{"role": "system", "content": system}]
    return Example(
        id=f"question {number}",
        messages=[*head, user_message("What was said?" * (1 + number % 3), 1)],
        waveforms=[tiny.tiny_speech(seconds + 0.13 * number, seed=number)],
    )


def text_only(text: str) -> Example:
    return Example(id=text, messages=[{"role": "user", "content": text}], waveforms=[])


def answers(model: Any, processor: Any, examples: list[Example], **options: Any) -> list[Generation]:
    return generate_texts(model, processor, examples, max_new_tokens=24, batch_tokens=10_000, **options)


def ids(generations: list[Generation]) -> list[tuple[tuple[int, ...], bool]]:
    return [(g.token_ids, g.finished) for g in generations]


def test_every_lean_family_is_proven() -> None:
    assert {tiny.tiny_llm_config(family).model_type for family in LEAN} == set(FAMILIES)


@pytest.mark.parametrize("gate", ["audio", "all"])
@pytest.mark.parametrize("family", LEAN)
def test_token_for_token_as_transformers_own_loop(family: str, gate: str) -> None:
    model, processor = student(family, gate)
    examples = [question(n) for n in range(3)] + [text_only("Name a number in the house.")]
    expected = ids(answers(model, processor, examples))
    own = GreedyDecoder(model)
    assert ids(answers(model, processor, examples, decoder=own)) == expected
    columns = GreedyDecoder(model, "float32")
    assert [ids(answers(model, processor, [example], decoder=columns))[0] for example in examples] == expected
    assert len(set(expected)) > 1  # and they are not all the same


def test_logits_of_many_steps_are_the_models_own() -> None:
    """Beyond the sliding window, in a left-padded batch, to the rounding of float32."""
    model, _ = student("gemma3", "all")
    torch.manual_seed(0)
    tokens = torch.randint(7, tiny.VOCABULARY, (2, 40))
    mask = torch.ones_like(tokens)
    mask[1, :5] = 0
    with torch.no_grad():
        own = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
        cache = model(input_ids=tokens[:, :20], attention_mask=mask[:, :20], use_cache=True)[CACHE_KEY]
        step, state = LeanStep(model, "float32"), StepCache(cache, mask[:, :20], 20)
        step.prepare(40)
        for at in range(20, 40):
            found = step.logits(step(tokens[:, at], mask[:, :at].sum(1), state))
            torch.testing.assert_close(found, own[:, at], rtol=1e-4, atol=1e-4)


def test_rows_that_are_done_leave_the_batch() -> None:
    model, processor = student("qwen3")
    examples = [question(n) for n in range(6)]
    inputs = collate(processor, examples, answer=False).model_inputs()
    decoder = GreedyDecoder(model)
    free = decoder.generate(inputs, max_new_tokens=16, ends=[])
    assert all(len(row) == 16 for row in free)
    ends = sorted({row[3 * n] for n, row in enumerate(free[:4])})  # so that rows end at different places
    expected = [row[: next((i + 1 for i, token in enumerate(row) if token in ends), 16)] for row in free]
    assert len({len(row) for row in expected}) > 1
    sizes: list[int] = []
    step = decoder.step

    class Watched:
        prepare, logits = step.prepare, step.logits

        def __call__(self, token_B: torch.Tensor, *rest: Any) -> torch.Tensor:
            sizes.append(len(token_B))
            return step(token_B, *rest)

    decoder.step = Watched()  # type: ignore[assignment]
    assert decoder.generate(inputs, max_new_tokens=16, ends=ends) == expected
    assert sizes[0] < 6 or sizes[-1] < sizes[0]
    assert sizes == sorted(sizes, reverse=True)


def test_who_takes_the_tokens_can_end_a_row() -> None:
    model, processor = student("qwen3")
    inputs = collate(processor, [question(n) for n in range(3)], answer=False).model_inputs()
    decoder = GreedyDecoder(model)
    free = decoder.generate(inputs, max_new_tokens=8, ends=[])
    taken: list[list[int]] = [[], [], []]
    steps = 0

    def take(row: int, token: int) -> bool:
        taken[row].append(token)
        return len(taken[row]) == 2 + 2 * row  # 2, 4 and 6 tokens

    def count() -> None:
        nonlocal steps
        steps += 1

    assert decoder.generate(inputs, max_new_tokens=8, ends=[], take=take, between=count) == taken
    assert taken == [row[: 2 + 2 * number] for number, row in enumerate(free)]
    assert steps == 6


@pytest.mark.parametrize("gate", ["audio", "all"])
def test_a_shared_prefix_is_computed_once_and_changes_nothing(gate: str) -> None:
    model, processor = student("gemma3", gate)
    decoder = GreedyDecoder(model)
    for number in range(3):
        example = question(number, seconds=0.3, system=SYSTEM)
        expected = answers(model, processor, [example])
        assert ids(answers(model, processor, [example], decoder=decoder)) == ids(expected)
    # the first is remembered, the second shows what is shared, the third reuses it
    assert decoder.prefixes.reused >= len(SYSTEM.split())
    other = text_only("Something else entirely, with another beginning, that shares nothing with the others.")
    assert ids(answers(model, processor, [other], decoder=decoder)) == ids(answers(model, processor, [other]))


def test_prefixes_end_at_audio_and_are_bounded() -> None:
    model, _ = student("llama")
    store = PrefixStore(model)
    audio = model.config.audio_token_id
    prompt = [*range(10, 40), audio, audio, *range(50, 60)]
    assert [store.start(prompt)[1] for _ in range(3)] == [0, 30, 30]
    cache, known = store.start([*range(10, 40), audio, 7, 8])
    assert known == 30 == cache.get_seq_length() and store.reused == 60
    assert store.start([*range(10, 10 + MIN_PREFIX // 2), *range(60, 80)])[1] == 0  # too short to split for
    for first in range(100, 160, 5):
        for _ in range(2):
            store.start(list(range(first, first + 40)))
    assert len(store._caches) == 4


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_packed_weight_multiplies_as_closely_as_it_says(precision: Any) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(96, 64), torch.randn(96), torch.randn(3, 64)
    exact = torch.nn.functional.linear(x, weight)
    error = {"float32": 1e-6, "float16": 6e-4, "int8": 2e-2}[precision]
    for b in (None, bias):
        found = packed(weight, b, precision)(x)
        assert found.dtype == torch.float32
        wanted = exact if b is None else exact + b
        assert (found - wanted).norm() <= error * exact.norm()
    # and a row does not depend on the others of its batch
    product = packed(weight, None, precision)
    torch.testing.assert_close(product(x)[1:2], product(x[1:2]), rtol=1e-2 if precision == "int8" else 1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 8, 15, 17, 33, 100])
def test_a_float32_product_is_float32_whatever_computes_it(rows: int) -> None:
    torch.manual_seed(rows)
    x, weight, bias = torch.randn(rows, 48), torch.randn(80, 48), torch.randn(80)
    expected = (x.double() @ weight.double().t() + bias).float()
    for form in (weight, blocked(weight)):
        if form is not None:
            torch.testing.assert_close(linear(x, form, bias), expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(linear(x[:, :], form), expected - bias, rtol=1e-5, atol=1e-5)


def test_the_numbers_of_rows_that_kernels_are_made_for_stay_few() -> None:
    rounded = {_round_up(rows) for rows in range(1, 5000)}
    assert len(rounded) < 100
    assert all(rows <= _round_up(rows) <= 1.25 * rows for rows in range(1, 5000))


def test_a_wide_int8_product_has_a_scale_for_each_row_of_the_batch() -> None:
    torch.manual_seed(0)
    weight = torch.randn(WIDE, 32)
    x = torch.randn(3, 32) * torch.tensor([[1e-3], [1.0], [1e3]])
    product, exact = packed(weight, None, "int8"), x @ weight.t()
    found = product(x)
    assert ((found - exact).norm(dim=1) <= 2e-2 * exact.norm(dim=1)).all()
    torch.testing.assert_close(found[:1], product(x[:1]), rtol=1e-5, atol=1e-7)
    assert product(torch.zeros(1, 32)).abs().max() == 0


def test_the_first_of_equal_logits_wins() -> None:
    torch.manual_seed(0)
    for size in (300, 1024, 5120, 5121):
        logits = torch.randint(0, 40, (5, size)).float()  # full of ties
        assert first_largest(logits).tolist() == logits.argmax(dim=-1).tolist()


def test_int8_rows_hold_their_weights() -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 64) * torch.logspace(-3, 2, 32)[:, None]  # rows of very different size
    weight[5] = 0.0
    rows, scale = quantize_rows(weight)
    assert rows.dtype == torch.int8 and int(rows[5].abs().max()) == 0
    assert (
        (rows * scale.float()[:, None] - weight).abs() <= 0.51 * scale.float()[:, None] + weight.abs() * 2**-7
    ).all()


@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("gate", ["audio", "all"])
def test_a_rounded_step_stays_near_the_models_logits(gate: str, precision: Any) -> None:
    model, _ = student("gemma3", gate)
    tokens = torch.randint(7, tiny.VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model(input_ids=tokens, use_cache=False).logits[0, -1]
        cache = model(input_ids=tokens[:, :-1], use_cache=True)[CACHE_KEY]
        step, state = LeanStep(model, precision), StepCache(cache, torch.ones(1, 11), 1)
        step.prepare(12)
        found = step.logits(step(tokens[:, -1], torch.tensor([11]), state))[0]
    limit = {"float16": 2e-3, "int8": 8e-2}[precision]
    assert 0 < float((found - own).norm() / own.norm()) < limit


def test_an_engine_decodes_as_it_is_told() -> None:
    model, processor = student("gemma3")
    speech = {"array": tiny.tiny_speech(0.7), "sampling_rate": 16_000}
    texts = {d: Engine(model, processor, decode=d).ask(speech, "What?", max_new_tokens=8) for d in DECODES}
    assert texts["lean"] == texts["auto"] == texts["generate"] == texts["float32"]
    pieces: list[str] = []
    whole = Engine(model, processor, decode="lean").ask(speech, "What?", max_new_tokens=8, stream=pieces.append)
    assert "".join(pieces).strip() == whole == texts["generate"]
    assert Engine(model, processor, decode="generate").decoder is None
    assert isinstance(Engine(model, processor).decoder, GreedyDecoder)


def test_what_cannot_be_lean_is_refused_or_left_to_transformers() -> None:
    model, _ = student("gemma2")
    assert open_decoder(model, "auto") is None
    for decode in ("lean", "int8"):
        with pytest.raises(ModelError, match="gemma2 has no lean decode step; expected one of"):
            open_decoder(model, decode)
    with pytest.raises(ModelError, match="decode is 'int7'; expected one of auto, generate"):
        open_decoder(model, "int7")
    half, _ = tiny.tiny_student("llama")
    half.language_model.bfloat16()
    with pytest.raises(ModelError, match="float32 on CPU"):
        open_decoder(half, "int8")


def test_an_llm_whose_code_has_changed_is_noticed() -> None:
    model, _ = tiny.tiny_student("llama")
    step = LeanStep(model, None)
    check_step(model, step)
    attention = model.get_decoder().layers[2].self_attn
    attention.scaling *= 1.5
    with pytest.raises(ModelError, match="does not give what the LLM's own code"):
        check_step(model, step)
    assert open_decoder(model, "auto") is not None  # built anew, it reads the factor off the module
