"""The screened argmax: the plain product's token always, from a fraction of its bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch.nn.functional import linear

from aura.batch.collate import Example
from aura.batch.prompt import user_message
from aura.cli_speech import LoadOptions
from aura.inference import matvec, screened
from aura.inference.engine import Engine
from aura.inference.generate import generate_texts
from aura.inference.greedy import GreedyDecoder
from aura.inference.matvec import multiplies_bytes, packed
from aura.inference.screened import LIMIT, WAIT, Kind, ScreenedArgmax, open_screen

KINDS: tuple[Kind, ...] = ("int8", "float16")
kinds = pytest.mark.parametrize("kind", KINDS)
needs_bytes = pytest.mark.skipif(not multiplies_bytes(), reason="this CPU multiplies no bytes")
SPEECH = tiny.tiny_speech(6.0, seed=5)


@pytest.fixture(autouse=True)
def _only_what_this_cpu_has(request: pytest.FixtureRequest) -> None:
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("kind") == "int8" and not multiplies_bytes():
        pytest.skip("this CPU multiplies no bytes")


def screen_of(weight: torch.Tensor, kind: Kind, *, cap: float | None = None) -> ScreenedArgmax:
    def full(hidden: torch.Tensor) -> torch.Tensor:
        logits = linear(hidden, weight)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    made = ScreenedArgmax(weight, full, cap=cap, kind=kind)
    made.prepare()
    return made


def agrees(made: ScreenedArgmax, hidden: torch.Tensor) -> bool:
    """Row by row and as a batch."""
    single = [made(row[None]) for row in hidden]
    assert made(hidden).tolist() == made._full(hidden).argmax(-1).tolist()
    return torch.cat(single).tolist() == torch.cat([made._full(row[None]).argmax(-1) for row in hidden]).tolist()


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- the token ------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("shape", [(6000, 64), (1500, 640), (40, 16), (4097, 33)])
def test_random_matrices(kind: Kind, shape: tuple[int, int]) -> None:
    weight, hidden = seeded(*shape), 3 * seeded(24, shape[1], seed=1)
    made = screen_of(weight, kind)
    assert agrees(made, hidden)
    assert made.plain == 0 and made.screened == 25
    assert made.shortlisted < 0.2 * 48 * shape[0]


@kinds
def test_rows_and_hidden_states_of_very_different_size(kind: Kind) -> None:
    weight = seeded(5000, 96) * torch.logspace(-6, 3, 5000)[torch.randperm(5000), None]
    hidden = seeded(16, 96, seed=1) * torch.logspace(-8, 8, 16)[:, None]
    hidden[:, 7] *= 300  # an outlier, as real ones have
    made = screen_of(weight, kind)
    assert agrees(made, hidden) and made.plain == 0


@kinds
def test_the_bound_is_needed(kind: Kind) -> None:
    """Rows that the copy cannot tell apart or puts in the wrong order; the shortlist holds them all."""
    base = seeded(16)
    base[0] = 4.0  # one scale for all near rows
    weight = 0.3 * seeded(5000, 16, seed=1)
    near = torch.arange(0, 5000, 100)
    weight[near] = base + 1e-3 * seeded(50, 16, seed=2)  # float16 keeps 11 bits of them, int8 fewer
    hidden = base + 0.5 * seeded(40, 16, seed=3)
    made = screen_of(weight, kind)
    expected = linear(hidden, weight).argmax(-1)
    if kind == "float16":
        naive = packed(weight, None, "float16")(hidden).argmax(-1)
    else:
        exact = hidden.double()
        naive = made._copy(hidden, exact, exact.norm(dim=1))[0].argmax(-1)  # type: ignore[misc]
    assert int((naive != expected).sum()) >= 10, "the copy alone is wrong here"
    assert agrees(made, hidden) and made.screened > 0.9 * 41
    narrow = screen_of(weight, kind)
    narrow._sizes_2V = narrow._sizes_2V * 1e-3  # a bound that is none
    narrow._gamma *= 1e-3
    assert torch.cat([narrow(row[None]) for row in hidden]).tolist() != expected.tolist()


@kinds
@pytest.mark.parametrize("exact_rows", [False, True])
def test_every_plain_logit_lies_within_its_bound(kind: Kind, exact_rows: bool) -> None:
    """Also where the copy holds the rows exactly, and only the rounding of hidden state and sums is left."""
    weight, hidden = seeded(3000, 128), seeded(8, 128, seed=1)
    hidden[:4, 5] = 90.0  # the others get few of the 127 steps
    if exact_rows:
        weight = (30 * weight).round().clamp(-127, 127)
        weight[:, 0] = 127.0
    weight[::3] *= 64.0
    weight[1] = 0.0
    made = screen_of(weight, kind)
    assert (float(made._sizes_2V[0].max()) == 0.0) is exact_rows
    exact = hidden.double()
    rough, factors, unit = made._rough(hidden, exact, exact.norm(dim=1))
    rough, margin, unit = rough.double(), (factors @ made._sizes_2V).double(), unit.double()
    wanted = linear(exact, weight.double())
    for plain in (wanted, linear(hidden, weight).double()):
        assert bool(((rough * unit[:, None] - plain).abs() <= margin * unit[:, None]).all())
    # What it adds for the plain sums is needed as well: no order of them is assumed.
    reach = margin * unit[:, None] - (rough * unit[:, None] - wanted).abs()
    assert bool((reach >= 128 * 2**-24 * linear(exact.abs(), weight.double().abs())).all())


# --- where the plain product is computed ----------------------------------------------------------------------


@kinds
def test_equal_rows_give_the_plain_choice(kind: Kind) -> None:
    weight = 0.5 * seeded(4096, 64)
    hidden = seeded(3, 64, seed=1)
    for token in (900, 31, 4000):
        weight[token] = hidden[0]
    made = screen_of(weight, kind)
    assert agrees(made, hidden)
    assert int(made(hidden[:1])) == 31, "the first of equal ones"
    assert made.plain == 3  # alone, in the batch, and just now


@kinds
def test_a_lead_within_float32_rounding_is_left_to_the_plain_product(kind: Kind) -> None:
    weight = 0.1 * seeded(3000, 64)
    weight[5] = weight[70] = seeded(64, seed=2)
    weight[70, 0] *= 1 + 2**-22
    hidden = 2 * weight[5:6] + 0.01 * seeded(30, 64, seed=3)
    made = screen_of(weight, kind)
    assert agrees(made, hidden) and made.plain == 31


@kinds
def test_rows_that_are_all_alike_are_computed_plainly(kind: Kind) -> None:
    weight = seeded(1, 32) + 1e-6 * seeded(2 * LIMIT, 32, seed=1)
    made = screen_of(weight, kind)
    assert agrees(made, seeded(4, 32, seed=2)) and made.screened == 0 and made.plain == 5


@kinds
def test_a_long_shortlist_is_computed_plainly(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hidden = seeded(1, 32) + 1e-3 * seeded(600, 32, seed=1), seeded(1, 32, seed=2)
    made = screen_of(weight, kind)
    assert agrees(made, hidden) and made.plain == 0 and made.shortlisted > 6
    monkeypatch.setattr(screened, "LIMIT", 3)
    assert agrees(made, hidden) and made.plain == 2


@kinds
def test_hidden_states_without_a_shortlist(kind: Kind) -> None:
    weight = seeded(2048, 32)
    made = screen_of(weight, kind)
    normal = seeded(1, 32, seed=1)
    for value in (0.0, float("nan"), float("inf"), float("-inf"), 3e38, 1e-20):
        broken = normal.clone()
        broken[0, 3 if value else slice(None)] = value
        if value == 1e-20:
            broken *= value
        for hidden in (broken, torch.cat([normal, broken])):
            assert made(hidden).tolist() == made._full(hidden).argmax(-1).tolist(), value
    assert made.screened == 0
    assert made(normal).tolist() == made._full(normal).argmax(-1).tolist() and made.screened == 1


@kinds
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_without_a_copy(kind: Kind, value: float) -> None:
    weight = seeded(2048, 32)
    weight[7, 7] = value
    made = screen_of(weight, kind)
    assert made.nbytes == 0
    hidden = seeded(2, 32, seed=1)
    assert made(hidden).tolist() == made._full(hidden).argmax(-1).tolist() and made.screened == 0


@kinds
def test_capped_logits(kind: Kind) -> None:
    """Far above the cap tanh makes equal what was not: then the first wins, as it does in the plain product."""
    weight, hidden = seeded(4096, 64), seeded(12, 64, seed=1)
    made = screen_of(weight, kind, cap=30.0)
    assert agrees(made, hidden) and made.plain == 0
    loud = screen_of(weight, kind, cap=1.0)
    assert linear(hidden, weight).argmax(-1).tolist() != loud._full(hidden).argmax(-1).tolist()
    assert agrees(loud, hidden) and loud.plain > 0


@kinds
def test_the_kernels_copy_is_the_one_the_bound_is_of(kind: Kind) -> None:
    """Multiplied by unit vectors it gives its rows; tiny weights included."""
    weight = seeded(96, 48) * torch.logspace(-9, 0, 96)[:, None]
    made = screen_of(weight, kind)
    exact = torch.eye(48).double()
    rows, unit, _near, _miss = made._copy(torch.eye(48), exact, exact.norm(dim=1))  # type: ignore[misc]
    error = (weight.double() - (rows.double() * unit[:, None]).t()).norm(dim=1)
    torch.testing.assert_close(error, made._sizes_2V[0].double(), rtol=1e-3, atol=1e-12)


# --- when it is made ------------------------------------------------------------------------------------------


@needs_bytes
def test_the_copy_waits_until_it_pays_and_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hidden = seeded(2048, 32), seeded(1, 32, seed=1)
    made = ScreenedArgmax(weight, lambda h: linear(h, weight))
    for _ in range(WAIT):
        made(hidden)
    assert (made.plain, made.screened, made.nbytes) == (WAIT, 0, 0)
    makes: list[int] = []
    make = made._make
    monkeypatch.setattr(made, "_make", lambda: (makes.append(1), make()))
    threads = [threading.Thread(target=made, args=(hidden,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert makes == [1] and made.screened == 6
    assert made.nbytes == 2048 * (32 + 4 + 8)


def test_what_is_not_screened(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny.tiny_student("llama")
    assert open_screen(model) is None, "a small output layer"
    monkeypatch.setattr(screened, "MIN_ROWS", 1)
    assert isinstance(open_screen(model), ScreenedArgmax)
    monkeypatch.setattr(screened, "_kind", lambda: None)
    assert open_screen(model) is None
    monkeypatch.undo()
    monkeypatch.setattr(screened, "MIN_ROWS", 1)
    head = model.get_output_embeddings()

    class Other(torch.nn.Linear):
        pass

    for other in (
        Other(16, 300, bias=False),
        torch.nn.Linear(16, 300),
        torch.nn.Linear(16, 300, bias=False).bfloat16(),
    ):
        model.language_model.set_output_embeddings(other)
        assert open_screen(model) is None
    model.language_model.set_output_embeddings(head)
    made = open_screen(model)
    assert made is not None
    made.prepare()
    model.language_model.bfloat16()  # after it was opened
    hidden = seeded(1, head.in_features).bfloat16()
    assert made(hidden).tolist() == model.logits(hidden).argmax(-1).tolist() and made.screened == 0


# --- in decoding ----------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiny output layers are screened, from the first token on."""
    monkeypatch.setattr(screened, "MIN_ROWS", 1)
    monkeypatch.setattr(screened, "WAIT", 0)
    yield


def examples() -> list[Example]:
    return [
        Example(id=str(n), messages=[user_message("What was said?" * (1 + n))], waveforms=[SPEECH[: 9000 + 7000 * n]])
        for n in range(3)
    ]


@pytest.mark.usefixtures("small")
@kinds
@pytest.mark.parametrize("family", ["gemma3", "qwen3", "llama"])
@pytest.mark.parametrize("precision", [None, "float32"])
def test_greedy_answers_are_transformers_own(
    family: str, precision: Any, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screened, "_kind", lambda: kind)
    model, processor = tiny.tiny_student(family, gate="all", seed=3)
    expected = generate_texts(model, processor, examples(), max_new_tokens=20)
    screen = open_screen(model)
    assert screen is not None
    decoder = GreedyDecoder(model, precision, screen=screen)
    for batch_tokens in (10_000, 1):
        found = generate_texts(
            model, processor, examples(), max_new_tokens=20, batch_tokens=batch_tokens, decoder=decoder
        )
        assert found == expected
    assert screen.screened >= 20 and screen.plain <= 2


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("decode", ["lean", "generate", "float16", "int8"])
def test_sessions_answer_as_the_engine_does(decode: str) -> None:
    model, processor = tiny.tiny_student("gemma3", seed=3)
    made = Engine(model, processor, decode=decode)
    assert made.screen is not None and made.screen.nbytes == 0
    session = made.stream(prompt="Why?", max_new_tokens=16)
    assert made.screen.nbytes > 0, "made while the speaker speaks"
    session.feed(SPEECH[:50_000])
    partial = session.partial(prompt="Why?", max_new_tokens=16)
    assert "".join(session.finish()) == partial
    plain = Engine(model, processor, decode=decode, screen=False)
    assert plain.screen is None
    speech = {"array": SPEECH[:50_000], "sampling_rate": 16_000}
    assert partial == made.ask(speech, "Why?", max_new_tokens=16)
    if decode in ("lean", "generate"):
        assert partial == plain.ask(speech, "Why?", max_new_tokens=16)
    assert made.screen.screened >= (2 if decode == "int8" else 30)


@pytest.mark.usefixtures("small")
def test_a_copy_of_the_weights_holds_no_second_output_layer() -> None:
    model, _ = tiny.tiny_student("gemma3")
    weight = model.get_output_embeddings().weight
    hidden = seeded(1, weight.shape[1])
    for precision, own in ((None, True), ("float16", True), ("int8", False)):
        step = GreedyDecoder(model, precision, screen=open_screen(model)).step  # type: ignore[arg-type]
        assert torch.equal(step.logits(hidden), matvec.linear(hidden, weight)) is own


def test_it_can_be_switched_off_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    monkeypatch.setattr("aura.inference.engine.load", lambda checkpoint, **options: seen.append(options["screen"]))
    for options in (LoadOptions(), LoadOptions(no_screen=True)):
        options.load("checkpoint")
    assert seen == [True, False]
