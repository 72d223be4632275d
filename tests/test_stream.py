"""Streaming prefill: token for token what the whole recording gives, however it arrives."""

from __future__ import annotations

import functools
import gc
import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aura.audio.patches import SAMPLE_RATE
from aura.batch.collate import Example, collate
from aura.batch.prompt import user_message
from aura.errors import AudioError, AuraError, ModelError, PromptError, RecipeError
from aura.inference.engine import Engine
from aura.inference.generate import Generation, generate_texts
from aura.inference.stream import StreamSession
from aura.student.cache_key import CACHE_KEY

FAMILIES = ("llama", "qwen3", "gemma3")
SPEECH = tiny.tiny_speech(8.0, seed=5)
NEW_TOKENS = tiny.WINDOW + 4

families = pytest.mark.parametrize("family", FAMILIES)
gates = pytest.mark.parametrize("gate", ["audio", "all"])
patterns = pytest.mark.parametrize("attention", ["block", "causal"])


@functools.cache
def _built(family: str, gate: str, decode: str) -> Engine:
    made = Engine(*tiny.tiny_student(family, gate=gate), decode=decode)
    _ = made.decoder  # its check of the LLM is no pass of a session
    return made


def engine(family: str = "gemma3", *, attention: str = "block", gate: str = "audio", decode: str = "auto") -> Engine:
    made = _built(family, gate, decode)
    made.model.config.attention = attention
    return made


def whole(made: Engine, wave: np.ndarray, *, prompt: str | None = "Why?", tokens: int = NEW_TOKENS) -> Generation:
    example = Example(id="whole", messages=[user_message(prompt)], waveforms=[wave])
    return generate_texts(made.model, made.processor, [example], max_new_tokens=tokens)[0]


def chunks_of(wave: np.ndarray, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    first = 0
    for size in itertools.cycle(sizes):
        if first >= len(wave):
            return
        yield wave[first : first + size]
        first += size


def streamed(made: Engine, wave: np.ndarray, sizes: Sequence[int] = (1600,), **options: Any) -> StreamSession:
    session = made.stream(**{"prompt": "Why?", "max_new_tokens": NEW_TOKENS, **options})
    for chunk in chunks_of(wave, sizes):
        session.feed(chunk)
    assert "".join(session.finish()) == session.text
    return session


def as_audio(wave: np.ndarray) -> dict[str, Any]:
    return {"type": "audio", "array": wave, "sampling_rate": SAMPLE_RATE}


@contextmanager
def passes(made: Engine) -> Iterator[list[int]]:
    """Positions of each pass of the LLM's decoder."""
    seen: list[int] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["inputs_embeds"].shape[1])

    handle = made.model.get_decoder().register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


# --- exact --------------------------------------------------------------------------------------------------


@families
@gates
@patterns
@settings(max_examples=10, deadline=None)
@given(samples=st.integers(1600, 60_000), sizes=st.lists(st.integers(160, 20_000), min_size=1, max_size=6))
def test_token_ids_equal_the_whole_run_for_any_chunking(
    family: str, gate: str, attention: str, samples: int, sizes: list[int]
) -> None:
    made = engine(family, gate=gate, attention=attention)
    wave = SPEECH[:samples]
    expected = whole(made, wave)
    session = streamed(made, wave, sizes)
    assert session.token_ids == expected.token_ids
    assert (session.text, session.finished) == (expected.text, expected.finished)
    assert session.seconds == samples / SAMPLE_RATE


@families
@patterns
def test_ten_milliseconds_at_a_time_far_beyond_the_sliding_window(family: str, attention: str) -> None:
    made = engine(family, attention=attention, decode="generate")
    with passes(made) as seen:
        session = streamed(made, SPEECH, (160,))
    assert session.token_ids == whole(made, SPEECH).token_ids
    assert sum(seen[1:-NEW_TOKENS]) == 96 > 10 * tiny.WINDOW, "the blocks of 99 final patches"
    assert len({streamed(made, SPEECH[:n]).token_ids for n in (16_000, 40_000, 80_000)}) > 1, "the audio is heard"


@pytest.mark.parametrize("decode", ["generate", "lean", "float32"])
@families
@gates
@patterns
def test_every_position_is_computed_from_the_same_numbers(family: str, gate: str, attention: str, decode: str) -> None:
    """Keys, values and first logits, up to the order of sums; with the LLM's own code the text in front bit for bit."""
    made = engine(family, gate=gate, attention=attention, decode=decode)
    model = made.model
    example = Example(id="x", messages=[user_message("Why?")], waveforms=[SPEECH[:50_000]])
    batch = collate(made.processor, [example], answer=False)
    with torch.no_grad():
        expected = model(**batch.model_inputs(), use_cache=True)
        first = int((batch.input_ids[0] == model.config.audio_token_id).long().argmax())
        prefix = model(input_ids=batch.input_ids[:, :first], use_cache=True)[CACHE_KEY]
    session = made.stream(prompt="Why?", max_new_tokens=1)
    for found, alone in zip(session._cache.layers, prefix.layers, strict=True):
        if decode == "generate":
            assert torch.equal(found.keys, alone.keys) and torch.equal(found.values, alone.values)
        torch.testing.assert_close(found.keys, alone.keys, rtol=1e-5, atol=1e-5)
    for chunk in chunks_of(SPEECH[:50_000], (1600,)):
        session.feed(chunk)
    logits: list[torch.Tensor] = []
    original = model.logits
    model.logits = lambda hidden: logits.append(original(hidden)) or logits[-1]  # type: ignore[method-assign]
    cache = session._cache
    try:
        steps = session.finish_steps()
        next(steps)
    finally:
        del model.logits
    torch.testing.assert_close(logits[0], expected.logits[:, -1], rtol=1e-5, atol=1e-5)
    for found, alone in zip(cache.layers, expected[CACHE_KEY].layers, strict=True):
        torch.testing.assert_close(found.keys, alone.keys, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.values, alone.values, rtol=1e-5, atol=1e-5)


@families
@patterns
def test_history_with_audio_and_several_parts_in_the_live_turn(family: str, attention: str) -> None:
    made = engine(family, attention=attention)
    earlier, beside, live = SPEECH[:20_000], SPEECH[20_000:35_000], SPEECH[40_000:90_000]
    history = [
        {"role": "user", "content": [{"type": "text", "text": "Listen: "}, as_audio(earlier)]},
        {"role": "assistant", "content": "the thing"},
    ]
    turns: list[list[dict[str, Any]]] = [
        [{"type": "audio"}, {"type": "text", "text": "And this?"}],
        [{"type": "text", "text": "Or this: "}, {"type": "audio"}],
        [as_audio(beside), {"type": "audio"}, {"type": "text", "text": "Which?"}],
        [{"type": "audio"}, as_audio(beside), {"type": "text", "text": "Which?"}],
    ]
    for turn in turns:
        full = [as_audio(live) if part == {"type": "audio"} else part for part in turn]
        expected = made.chat([*history, {"role": "user", "content": full}], max_new_tokens=NEW_TOKENS)
        session = streamed(made, live, (700, 9000), messages=[*history, {"role": "user", "content": turn}], prompt=None)
        assert session.text == expected, turn
    added = streamed(made, live, messages=history, prompt="And this?")
    assert added.text == made.chat(
        [*history, {"role": "user", "content": [as_audio(live), {"type": "text", "text": "And this?"}]}],
        max_new_tokens=NEW_TOKENS,
    )


def test_equals_ask_and_transcribe(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine("qwen3")
    source = {"array": SPEECH[:40_000], "sampling_rate": SAMPLE_RATE}
    assert streamed(made, SPEECH[:40_000]).text == made.ask(source, "Why?", max_new_tokens=NEW_TOKENS)
    for trained_with, prompt in ((None, None), ("Write it down.", None), ("Write it down.", "")):
        monkeypatch.setattr(made.model.config, "prompt", trained_with)
        transcript = made.transcribe(source, prompt=prompt, max_new_tokens=NEW_TOKENS).text
        assert " ".join(streamed(made, SPEECH[:40_000], prompt=prompt).text.split()) == transcript


def test_a_prompt_without_any_text_in_front() -> None:
    tokenizer = tiny.tiny_tokenizer(chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}")
    made = Engine(*tiny.tiny_student("gemma3", tokenizer=tokenizer))
    assert streamed(made, SPEECH[:40_000]).token_ids == whole(made, SPEECH[:40_000]).token_ids


def test_pieces_join_to_the_answer_also_within_characters() -> None:
    made = engine()
    session = made.stream(prompt="Why?", max_new_tokens=40)
    session.feed(SPEECH[:30_000])
    pieces = list(session.finish())
    assert all(pieces) and len(pieces) > 3
    assert "".join(pieces) == session.text == whole(made, SPEECH[:30_000], tokens=40).text


def test_an_end_token_ends_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    made = next(e for e in map(engine, FAMILIES) if len(set(whole(e, SPEECH[:30_000]).token_ids)) > 1)
    ids = whole(made, SPEECH[:30_000]).token_ids
    end = next(token for token in ids if token != ids[0])
    monkeypatch.setattr(made.model.generation_config, "eos_token_id", [end])
    session = streamed(made, SPEECH[:30_000])
    assert session.finished and session.token_ids == ids[: ids.index(end)] == whole(made, SPEECH[:30_000]).token_ids


def test_the_llms_context_cuts_the_answer_where_it_cuts_the_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(decode="generate")
    with passes(made) as seen:
        streamed(made, SPEECH[:30_000], max_new_tokens=1)
    monkeypatch.setattr(made.model.config.text_config, "max_position_embeddings", sum(seen) + 3)
    assert len(streamed(made, SPEECH[:30_000]).token_ids) == 3
    assert streamed(made, SPEECH[:30_000]).token_ids == whole(made, SPEECH[:30_000]).token_ids


def test_sixteen_bit_weights_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny.tiny_student("gemma3")
    model.language_model.to(torch.bfloat16)
    for name, parameter in model.language_model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    assert streamed(Engine(model, processor), SPEECH[:30_000]).token_ids


# --- fast ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [1.0, 4.0, 8.0])
def test_at_the_end_of_speech_only_the_last_block_the_prompt_and_a_step_remain(seconds: float) -> None:
    made = engine(decode="generate")  # whose steps of decoding are passes of the LLM's own code
    session = made.stream(prompt="Why?", max_new_tokens=4)
    suffix = len(session._prompt.behind)
    with passes(made) as before:
        for chunk in chunks_of(SPEECH[: round(seconds * SAMPLE_RATE)], (1600,)):
            session.feed(chunk)
    assert set(before) == {8} and len(before) == (round(seconds * 12.5 + 0.49) - 1) // 8
    with passes(made) as after:
        list(session.finish())
    left = -(-round(seconds * SAMPLE_RATE) // 1280) - 8 * len(before)
    assert after == [left + suffix, 1, 1, 1] and left <= 8
    assert session.first_token_seconds is not None and session.first_token_seconds > 0


def test_a_long_chunk_goes_through_in_few_passes() -> None:
    made = engine("llama", decode="generate")
    session = made.stream(max_new_tokens=1)
    with passes(made) as seen:
        session.feed(np.tile(SPEECH, 3))
    assert seen == [128, 128, 40]


def test_listening_computes_no_logits() -> None:
    made = engine(decode="generate")
    calls: list[int] = []
    handle = made.model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    session = made.stream(prompt="Why?", max_new_tokens=3)
    session.feed(SPEECH)
    assert not calls
    list(session.finish())
    handle.remove()
    assert len(calls) == 3


# --- partial ------------------------------------------------------------------------------------------------


@families
@patterns
def test_partials_are_the_answer_so_far_and_leave_the_session_as_it_was(family: str, attention: str) -> None:
    made = engine(family, attention=attention)
    session = made.stream(prompt="Why?", max_new_tokens=NEW_TOKENS)
    heard = 0
    for chunk in chunks_of(SPEECH[:60_000], (7000,)):
        session.feed(chunk)
        heard += len(chunk)
        states = [(layer.keys, layer.get_seq_length()) for layer in session._cache.layers]
        said = session.partial(prompt="Why?", max_new_tokens=NEW_TOKENS)
        assert said == whole(made, SPEECH[:heard]).text
        for layer, (keys, length) in zip(session._cache.layers, states, strict=True):
            assert layer.keys is keys and layer.get_seq_length() == length, "nothing was copied"
    list(session.finish())
    assert session.token_ids == whole(made, SPEECH[:60_000]).token_ids


def test_a_partial_is_a_transcript_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    monkeypatch.setattr(made.model.config, "prompt", "Write it down.")
    session = made.stream(prompt="Why?")
    assert session.partial() == "", "nothing heard yet"
    session.feed(SPEECH[:30_000])
    assert session.partial(max_new_tokens=5) == whole(made, SPEECH[:30_000], prompt="Write it down.", tokens=5).text


def test_a_partial_that_is_broken_off_leaves_the_session_as_it_was() -> None:
    made = engine()
    session = made.stream(prompt="Why?", max_new_tokens=NEW_TOKENS)
    session.feed(SPEECH[:30_000])
    steps = session.partial_steps(max_new_tokens=20)
    next(steps)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    session.feed(SPEECH[30_000:50_000])
    list(session.finish())
    assert session.token_ids == whole(made, SPEECH[:50_000]).token_ids


# --- cancel and bounds --------------------------------------------------------------------------------------


def test_cancel_from_another_thread_stops_at_the_next_token() -> None:
    made = engine("llama")
    session = made.stream(prompt="Why?", max_new_tokens=400)
    session.feed(SPEECH[:20_000])
    steps = session.finish_steps()
    next(steps)
    thread = threading.Thread(target=session.cancel)
    thread.start()
    thread.join()
    with passes(made) as seen:
        assert list(steps) in ([], [session.text])
    assert not seen and len(session.token_ids) == 1 and session.cancelled and not session.finished
    with pytest.raises(AudioError, match="was cancelled; start a new one"):
        session.feed(SPEECH[:160])


def test_cancel_while_listening_ends_the_session() -> None:
    session = engine().stream()
    session.feed(SPEECH[:20_000])
    session.cancel()
    for call in (lambda: session.feed(SPEECH[:160]), session.partial, session.finish):
        with pytest.raises(AudioError, match="was cancelled"):
            call()


def test_the_cache_is_let_go_when_the_answer_is_out() -> None:
    session = streamed(engine(), SPEECH[:20_000])
    assert session._cache.length == 0 and session._cache.layers[0].keys is None
    session = engine().stream()
    session.feed(SPEECH[:20_000])
    keys = weakref.ref(session._cache.layers[0].keys)
    del session
    gc.collect()
    assert keys() is None


def test_feeding_beyond_max_seconds_is_refused_and_what_was_heard_stands() -> None:
    made = engine()
    session = made.stream(prompt="Why?", max_new_tokens=NEW_TOKENS, max_seconds=2.0)
    session.feed(SPEECH[:30_000])
    with pytest.raises(AudioError, match=r"heard 1\.88 s and was fed 1\.00 s more; expected at most 2 s"):
        session.feed(SPEECH[:16_000])
    session.feed(SPEECH[30_000:32_000])
    list(session.finish())
    assert session.token_ids == whole(made, SPEECH[:32_000]).token_ids


def test_feeding_beyond_the_llms_context_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    monkeypatch.setattr(made.model.config.text_config, "max_position_embeddings", 60)
    session = made.stream(prompt="Why?", max_new_tokens=4)
    with pytest.raises(PromptError, match=r"8\.0 s of speech fill 100 positions, but the LLM's context has \d+ left"):
        session.feed(SPEECH)
    session.feed(SPEECH[:16_000])
    list(session.finish())
    assert session.token_ids == whole(made, SPEECH[:16_000], tokens=4).token_ids
    monkeypatch.setattr(made.model.config.text_config, "max_position_embeddings", 10)
    with pytest.raises(PromptError, match="must hear and answer as well"):
        made.stream(prompt="Why?")


@pytest.mark.parametrize(
    "samples",
    [
        [0.0] * 500,
        np.zeros((2, 500), np.float32),
        np.zeros(500, complex),
        np.full(500, np.nan, np.float32),
        np.full(500, np.inf),
        np.zeros(500, bool),
    ],
)
def test_what_is_no_audio_is_refused(samples: Any) -> None:
    session = engine().stream()
    with pytest.raises(AudioError, match="a session was fed"):
        session.feed(samples)
    assert session.seconds == 0


def test_integer_pcm_is_scaled() -> None:
    made = engine()
    pcm = (SPEECH[:30_000] * 20_000).astype(np.int16)
    assert streamed(made, pcm).token_ids == whole(made, pcm.astype(np.float32) / 32_768).token_ids


def test_too_little_speech_and_a_second_end_are_refused() -> None:
    session = engine().stream(max_new_tokens=1)
    with pytest.raises(AudioError, match=r"heard 0\.000 s; expected at least 0\.1 s"):
        session.finish()
    session.feed(SPEECH[:1000])
    session.feed(np.zeros(0, np.float32))
    with pytest.raises(AudioError, match=r"heard 0\.06"):
        session.finish()
    session.feed(SPEECH[1000:5000])
    list(session.finish())
    for call in (session.finish, session.partial, lambda: session.feed(SPEECH[:10])):
        with pytest.raises(AudioError, match=r"ended its listening with finish\(\)"):
            call()


def test_the_pattern_full_cannot_stream() -> None:
    with pytest.raises(ModelError, match=r"audio\.attention: full.*Use engine\.ask.*audio\.attention: block"):
        engine(attention="full").stream()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"max_new_tokens": 0}, RecipeError, "max_new_tokens is 0"),
        ({"max_seconds": 1000.0}, RecipeError, "max_seconds is 1000; expected 0.1 to 300"),
        ({"max_seconds": 0.0}, RecipeError, "max_seconds is 0"),
        ({"messages": "hello"}, PromptError, "expected a list of messages"),
        ({"messages": [3]}, PromptError, "message 1 is 3"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}] * 2}]}, PromptError, "one at most"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}, {"role": "assistant", "content": "x"}]},
            PromptError,
            "in the last message",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}], "prompt": "Why?"},
            PromptError,
            "prompt 'Why\\?' was given",
        ),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], error: type[AuraError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        engine().stream(**options)
    assert "\n" not in str(caught.value)


def test_many_sessions_interleaved_equal_single_ones() -> None:
    made = engine("qwen3")
    waves = [SPEECH[n * 9000 : n * 9000 + 20_000 + 7000 * n] for n in range(6)]
    sessions = [made.stream(prompt="Why?", max_new_tokens=NEW_TOKENS) for _ in waves]
    parts = [list(chunks_of(wave, (1600,))) for wave in waves]
    for row in itertools.zip_longest(*parts):
        for session, chunk in zip(sessions, row, strict=True):
            if chunk is not None:
                session.feed(chunk)
    answers = [session.finish_steps() for session in sessions]
    for _ in itertools.zip_longest(*answers):
        pass
    expected = [whole(made, wave).token_ids for wave in waves]
    assert [session.token_ids for session in sessions] == expected
    assert len(set(expected)) > 1


def test_a_session_and_a_chat_in_two_threads_do_not_mix_their_gates() -> None:
    made = engine("llama")
    chat = [{"role": "user", "content": [as_audio(SPEECH[:9000]), {"type": "text", "text": "What?"}]}]
    expected = made.chat(chat, max_new_tokens=20), whole(made, SPEECH[:60_000]).token_ids
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.extend(made.chat(chat, max_new_tokens=20) for _ in range(4)))
    thread.start()
    heard = [streamed(made, SPEECH[:60_000]).token_ids for _ in range(4)]
    thread.join()
    assert set(said) == {expected[0]} and set(heard) == {expected[1]}
