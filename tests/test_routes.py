"""Routes through an LLM: each answers a batch as it answers single questions, and reads with the stock LLM's weights."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import aura
from aura.batch.collate import Example, collate
from aura.batch.prompt import replace_audio, user_message
from aura.bridge.encoder import load_encoder
from aura.config import AudioConfig, BridgeConfig, LoraConfig
from aura.data.utterance import AudioRef, Utterance, build_messages
from aura.errors import CheckpointError, DataError, ModelError, PromptError, RecipeError
from aura.evaluation.routes import answering
from aura.evaluation.routes.answering import Answerer
from aura.evaluation.routes.cascade import CascadeRoute
from aura.evaluation.routes.llm import LlmShelf, line_breaks, text_reader, with_same_weights
from aura.evaluation.routes.open import open_route
from aura.evaluation.routes.recognise import Heard
from aura.evaluation.routes.route import Question, Reply, Route
from aura.evaluation.routes.student import StudentRoute, llm_of
from aura.evaluation.routes.text import TextReader, TextRoute, shot_messages
from aura.inference.bound import Bound
from aura.inference.confidence import confidence, sureness
from aura.inference.engine import Engine
from aura.inference.generate import generate_texts
from aura.student.checkpoint import new_bridge, new_processor, save_checkpoint

SPOKEN = ("the one", "no other", "", "on the two in a row then")


@functools.cache
def stock(family: str = "gemma3") -> Any:
    return tiny.tiny_llm(family)


@functools.cache
def reading(family: str = "gemma3") -> tuple[Any, Any]:
    return text_reader(with_same_weights(stock(family)), tiny.tiny_tokenizer())


class EarsOfPaper:
    """An ASR that knows what each length of audio says."""

    settings = {"asr": "paper"}  # noqa: RUF012
    parameters: int | None = 7
    bytes_on_disk: int | None = 70

    def __init__(self) -> None:
        self.calls = 0

    def hear(self, wave_N: np.ndarray) -> Heard:
        self.calls += 1
        if float(np.abs(wave_N).max()) == 0.0:
            raise RuntimeError("nothing but zeros\nin two lines")
        text = SPOKEN[len(wave_N) % len(SPOKEN)]
        return Heard(text=text, tokens=len(text.split()))


def questions(count: int = 5) -> list[Question]:
    """Of unlike lengths, prompts and turns; the last one has no audio at all."""
    made = []
    for number in range(count - 1):
        wave_N = tiny.tiny_speech(0.3 + 0.35 * number, seed=number)[: -(number + 1)]
        messages: list[Any] = [user_message((None, "Why?", "What was said?")[number % 3])]
        if number % 2:
            messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "in"}, *messages]
        spoken = SPOKEN[len(wave_N) % len(SPOKEN)]
        made.append(Example(id=f"q{number}", messages=messages, waveforms=[wave_N], transcripts=[spoken]))
    made.append(Example(id="text", messages=[{"role": "user", "content": "on the other"}], waveforms=[]))
    return made


def shots(count: int = 2) -> list[Utterance]:
    made = []
    for number in range(count):
        spoken = f"the {number}"
        messages = build_messages(transcript=spoken, label=None, task="transcribe", prompt="What?")
        made.append(
            Utterance(id=f"shot{number}", audio=(AudioRef(source="x.wav"),), messages=messages, transcript=spoken)
        )
    return made


def make_route(kind: str, family: str = "gemma3", **options: Any) -> Route:
    if kind == "aura":
        return StudentRoute(Engine(*tiny.tiny_student(family)), **options)
    reader = TextReader(Answerer(*reading(family), **options), llm="tiny", shots=shot_messages(shots()))
    return TextRoute(reader) if kind == "text" else CascadeRoute(EarsOfPaper(), None if kind == "asr" else reader)


def texts(replies: Sequence[Reply]) -> list[Any]:
    return [(reply.text, reply.finished, reply.new_tokens, reply.heard) for reply in replies]


# --- every route ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma3", "llama"])
@pytest.mark.parametrize("kind", ["aura", "text", "cascade", "asr"])
def test_a_batch_of_n_answers_as_n_batches_of_one(kind: str, family: str) -> None:
    route = make_route(kind, family)
    asked = questions()
    together = route.answer(asked, max_new_tokens=12)
    alone = [route.answer([question], max_new_tokens=12)[0] for question in asked]
    assert texts(together) == texts(alone)
    assert texts(together) == texts(route.answer(asked[::-1], max_new_tokens=12)[::-1])
    assert all(reply.error is None and reply.wall_seconds > 0 for reply in together if kind != "asr")
    if kind != "asr":
        assert len({reply.text for reply in together}) > 2  # random weights, but not deaf ones


def test_where_the_context_cuts_an_answer_its_own_prompt_decides() -> None:
    route = make_route("text")
    asked = [Example(id=str(n), messages=[{"role": "user", "content": "a b " * n}], waveforms=[]) for n in (20, 90)]
    together = route.answer(asked, max_new_tokens=150)
    assert texts(together) == texts([route.answer([question], max_new_tokens=150)[0] for question in asked])
    assert together[0].new_tokens == 150 > together[1].new_tokens > 0  # of 512 positions


@pytest.mark.parametrize("kind", ["aura", "text", "cascade"])
def test_a_failing_question_has_an_error_and_no_text_and_fails_nobody_else(kind: str) -> None:
    route = make_route(kind)
    good = questions()
    bad = [
        Example(id="too long for the LLM", messages=[{"role": "user", "content": "a" * 600}], waveforms=[]),
        Example(id="no user", messages=[], waveforms=[]),
        replace(good[0], id="parts and audio differ", waveforms=[], transcripts=None),
    ]
    done: list[int] = []
    replies = route.answer([bad[0], *good, *bad[1:]], max_new_tokens=4, progress=done.append)
    assert sum(done) == len(replies) == len(good) + len(bad)
    for reply in (replies[0], *replies[-2:]):
        assert reply.text is None and reply.error and "\n" not in reply.error
        assert not reply.finished and reply.new_tokens == 0
    assert texts(replies[1:-2]) == texts(route.answer(good, max_new_tokens=4))


def test_a_reply_is_a_text_or_an_error() -> None:
    for text, error in ((None, None), ("a", "b")):
        with pytest.raises(ModelError, match="exactly one"):
            Reply(text=text, error=error, finished=False, new_tokens=0, wall_seconds=0.0)
    assert Reply(text="", finished=True, new_tokens=0, wall_seconds=0.0).error is None  # said nothing: an answer


def test_a_batch_that_breaks_is_tried_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = answering.generate_texts

    def short_of_memory(model: Any, processor: Any, examples: Any, **options: Any) -> Any:
        if len(examples) > 1 or examples[0].id == "q1":
            raise RuntimeError("out of memory")
        return generate(model, processor, examples, **options)

    route = make_route("text")
    want = route.answer(questions(), max_new_tokens=4)
    monkeypatch.setattr(answering, "generate_texts", short_of_memory)
    got = route.answer(questions(), max_new_tokens=4)
    assert got[1].error == "RuntimeError: out of memory" and got[1].text is None
    assert [r.text for r in got[:1] + got[2:]] == [r.text for r in want[:1] + want[2:]]


@pytest.mark.parametrize("kind", ["aura", "text", "cascade"])
def test_first_token_is_timed_and_raises_where_there_is_none(kind: str) -> None:
    route = make_route(kind)
    assert 0 < route.first_token(questions()[1]) < 60
    with pytest.raises(PromptError):
        route.first_token(Example(id="nothing", messages=[], waveforms=[]))


# --- likelihoods ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma3", "llama", "granite", "gemma2"])
@pytest.mark.parametrize("kind", ["aura", "text", "cascade"])
def test_score_is_the_summed_log_likelihood_of_the_answer_alone(kind: str, family: str) -> None:
    route = make_route(kind, family)
    question, options = questions()[1], ["the one", "no", "then on the other in a row"]
    scores = route.score(question, options)
    assert scores == pytest.approx([route.score(question, [option])[0] for option in options], abs=1e-4)
    answerer = route._answerer if kind == "aura" else route.reader.answerer  # type: ignore[attr-defined]
    read = question if kind == "aura" else route.reader.read(question, question.transcripts)  # type: ignore[attr-defined]
    for option, score in zip(options, scores, strict=True):
        assert score == pytest.approx(by_hand(answerer, read, option), abs=1e-4)
    assert max(scores) < 0 and len({round(score, 3) for score in scores}) == 3


@torch.no_grad()
def by_hand(answerer: Answerer, question: Question, option: str) -> float:
    """Token by token, each behind all those before it, with no padding."""
    model, processor = answerer.model, answerer.processor
    batch = collate(processor, [question], answer=False)
    total = 0.0
    inputs = batch.model_inputs()
    for token in processor.tokenizer.encode(option, add_special_tokens=False):
        logits = model(**inputs, use_cache=False).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return total


def test_score_refuses_an_empty_option() -> None:
    with pytest.raises(PromptError, match="empty option"):
        make_route("text").score(questions()[0], ["a", " "])


# --- the LLM they share -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen3"])
def test_the_text_route_is_the_stock_llm(family: str) -> None:
    model, processor = reading(family)
    question = questions()[1]
    written = replace(question, messages=replace_audio(question.messages, question.transcripts or []), waveforms=[])
    inputs = collate(processor, [written], answer=False).model_inputs()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, stock(family)(**inputs).logits)
    route = TextRoute(TextReader(Answerer(model, processor), llm="tiny"))
    [reply] = route.answer([question], max_new_tokens=10)
    ids = stock(family).generate(
        **inputs, max_new_tokens=10, do_sample=False, eos_token_id=4, pad_token_id=0, use_cache=True
    )
    want = processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert reply.text == want


def test_an_llm_without_a_chat_template_gets_lines_and_ends_with_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = text_reader(with_same_weights(stock("llama")), tiny.tiny_tokenizer(chat_template=None))
    reader = TextReader(Answerer(model, processor), llm="tiny", shots=shot_messages(shots()))
    question, tokenizer = questions()[0], processor.tokenizer
    read = reader.read(question, ["no"])
    ids = collate(processor, [read], answer=False).input_ids[0]
    assert tokenizer.decode(ids) == "<s>the 0\nWhat?\nthe 0\n\nthe 1\nWhat?\nthe 1\n\nno\n"
    assert reader.settings["answer_ends_with"] == "line"
    assert TextReader(Answerer(*reading()), llm="tiny").settings["answer_ends_with"] == "turn"
    breaks = line_breaks(tokenizer)
    assert (
        breaks == {id_ for id_ in tokenizer.get_vocab().values() if "\n" in tokenizer.decode([id_])} and len(breaks) > 1
    )
    # The option alone is scored, not the line break behind it.
    assert reader.answerer.score(read, ["the one"]) == pytest.approx(
        [by_hand(reader.answerer, read, "the one")], abs=1e-4
    )
    for token in breaks:
        monkeypatch.setattr(answering, "generate_texts", partial(says, answering.generate_texts, token))
        [reply] = TextRoute(reader).answer([question], max_new_tokens=4)
        assert reply.finished and reply.new_tokens == 0 and reply.text == ""
        monkeypatch.undo()
    with torch.no_grad():  # in lines or not, the logits are the stock LLM's
        assert torch.equal(model(input_ids=ids[None]).logits, stock("llama")(input_ids=ids[None]).logits)


def says(generate: Any, token: int, model: Any, *arguments: Any, **options: Any) -> Any:
    """Generation by an LLM whose output layer wants nothing but one token."""

    def biased(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits + 1e4 * torch.nn.functional.one_hot(torch.tensor(token), logits.shape[-1])

    hook = model.get_output_embeddings().register_forward_hook(biased)
    try:
        return generate(model, *arguments, **options)
    finally:
        hook.remove()


@pytest.mark.parametrize("gate", ["audio", "all"])
def test_routes_share_the_weights_and_not_the_adapter(gate: str, tmp_path: Path) -> None:
    llm = str(tiny.tiny_llm_folder("gemma3", tmp_path / "llm"))
    model, processor = tiny.tiny_student("gemma3", gate=gate, base=llm)
    save_checkpoint(tmp_path / "ck", model, processor)
    shelf = LlmShelf(device="cpu")
    before = open_route("text", llm=llm, shelf=shelf)
    asked = questions()
    want = texts(before.answer(asked, max_new_tokens=8))
    first = open_route(f"aura={tmp_path / 'ck'}", shelf=shelf)
    heard = texts(first.answer(asked, max_new_tokens=8))
    assert texts(before.answer(asked, max_new_tokens=8)) == want  # the adapter came after it
    assert texts(open_route("text", llm=llm, shelf=shelf).answer(asked, max_new_tokens=8)) == want
    again = open_route(f"aura={tmp_path / 'ck'}", shelf=shelf)  # a second adapter on the same weights
    assert texts(again.answer(asked, max_new_tokens=8)) == heard
    tables = {
        id(route.model.get_input_embeddings().weight)
        for route in (first.engine, again.engine, before.reader.answerer)  # type: ignore[attr-defined]
    }
    assert len(tables) == 1
    assert texts(loaded(tmp_path / "ck").answer(asked, max_new_tokens=8)) == heard


def test_answers_that_a_route_is_unsure_of_say_nothing(tmp_path: Path) -> None:
    llm = str(tiny.tiny_llm_folder("llama", tmp_path / "llm"))
    model, processor = tiny.tiny_student("llama", base=llm)
    asked = questions()
    generations = generate_texts(model, processor, asked, max_new_tokens=6)
    means = confidence(model, processor, asked, generations)
    sure = [sureness(generation.text, mean) for generation, mean in zip(generations, means, strict=True)]
    model.config.min_avg_logprob = sorted(sure)[1]
    save_checkpoint(tmp_path / "ck", model, processor)
    shelf = LlmShelf(device="cpu")
    spec = f"aura={tmp_path / 'ck'}"
    every = open_route(spec, shelf=shelf)
    said = [reply.text for reply in every.answer(asked, max_new_tokens=6)]
    assert "min_avg_logprob" not in every.facts.settings and "" not in said
    own = open_route(spec, shelf=shelf, bound=Bound())
    assert own.facts.settings["min_avg_logprob"] == sorted(sure)[1]
    assert [reply.text for reply in own.answer(asked, max_new_tokens=6)] == [
        "" if value == min(sure) else text for value, text in zip(sure, said, strict=True)
    ]
    asked_otherwise = open_route(spec, shelf=shelf, bound=Bound(), prompt="Write it down.")
    assert [reply.text for reply in asked_otherwise.answer(asked, max_new_tokens=6)] == said
    with pytest.raises(RecipeError, match="at most 0"):
        open_route(spec, shelf=shelf, bound=Bound(min_avg_logprob=0.5))


def loaded(checkpoint: Path) -> StudentRoute:
    return StudentRoute(aura.load(checkpoint, device="cpu"))


def test_a_text_adapter_reads_with_its_update_and_one_for_audio_is_refused(tmp_path: Path) -> None:
    llm = str(tiny.tiny_llm_folder("llama", tmp_path / "llm"))
    for gate in ("audio", "all"):
        save_checkpoint(tmp_path / gate, *tiny.tiny_student("llama", gate=gate, base=llm))
    adapted = open_route(f"text={tmp_path / 'all'}", device="cpu")  # its own LLM
    assert adapted.facts.settings["llm"] == llm
    plain = open_route("text", llm=llm, device="cpu")
    asked = questions()
    assert texts(adapted.answer(asked, max_new_tokens=8)) != texts(plain.answer(asked, max_new_tokens=8))
    with pytest.raises(CheckpointError, match="gate audio"):
        open_route(f"text={tmp_path / 'audio'}", device="cpu")


# --- what an LLM reads ------------------------------------------------------------------------------------


def test_shots_stand_between_the_system_turn_and_the_question() -> None:
    reader = TextReader(Answerer(*reading()), llm="tiny", shots=shot_messages(shots()))
    system = {"role": "system", "content": "Be brief."}
    asked = Example(id="q", messages=[system, user_message("What?")], waveforms=[], transcripts=["no"])
    assert [message["content"] for message in reader.read(asked, ["no"]).messages] == [
        "Be brief.",
        *("the 0\nWhat?", "the 0", "the 1\nWhat?", "the 1"),
        "no\nWhat?",
    ]
    other = shot_messages(shots(), prompt="Which?")
    assert [message["content"] for message in other] == ["the 0\nWhich?", "the 0", "the 1\nWhich?", "the 1"]
    assert TextReader(reader.answerer, llm="tiny", shots=other).settings != reader.settings  # resume must see it


def test_shots_need_transcript_and_answer() -> None:
    [shot] = shots(1)
    for broken in (replace(shot, transcript=None), replace(shot, messages=shot.messages[:1]), replace(shot, audio=())):
        with pytest.raises(DataError, match="shot0"):
            shot_messages([broken])


def test_the_text_route_fails_where_nobody_knows_what_was_said() -> None:
    question = replace(questions()[0], transcripts=None)
    [reply] = make_route("text").answer([question], max_new_tokens=2)
    assert reply.error is not None and "no transcript" in reply.error


def test_the_cascade_reads_what_its_asr_wrote() -> None:
    route, asked = make_route("cascade"), questions()
    replies = route.answer(asked, max_new_tokens=8)
    assert [reply.heard for reply in replies] == [(q.transcripts or [""])[0] for q in asked]
    # This ASR makes no mistakes, so the cascade reaches its ceiling.
    assert [r.text for r in replies] == [r.text for r in make_route("text").answer(asked, max_new_tokens=8)]
    two = Example(id="two", messages=[user_message("Same?", 2)], waveforms=[q.waveforms[0] for q in asked[:2]])
    [reply] = route.answer([two], max_new_tokens=2)
    assert reply.heard == "\n".join((q.transcripts or [""])[0] for q in asked[:2])


def test_an_asr_that_fails_on_one_recording_fails_that_question() -> None:
    asked = questions()
    silent = replace(asked[0], id="zeros", waveforms=[np.zeros(4000, np.float32)])
    for kind in ("cascade", "asr"):
        replies = make_route(kind).answer([silent, *asked], max_new_tokens=2)
        assert replies[0].error == "the ASR failed on zeros: RuntimeError: nothing but zeros in two lines"
        assert replies[0].text is None and all(reply.error is None for reply in replies[1:])
        with pytest.raises(ModelError, match="zeros"):
            make_route(kind).first_token(silent)


def test_an_asr_alone_answers_with_its_text_and_scores_nothing() -> None:
    route, done = make_route("asr"), []
    replies = route.answer(questions(), max_new_tokens=1, progress=done.append)
    assert [reply.text for reply in replies] == [reply.heard for reply in replies]
    assert sum(done) == len(replies) and replies[0].new_tokens == len((replies[0].text or "").split())
    assert route.facts.settings["asr_only"] is True and route.facts.parameters == 7
    with pytest.raises(ModelError, match="scores no options"):
        route.score(questions()[0], ["a"])


# --- facts and specs --------------------------------------------------------------------------------------


def test_facts_say_what_runs_and_how_large_it_is(tmp_path: Path) -> None:
    llm = str(tiny.tiny_llm_folder("gemma3", tmp_path / "llm"))
    save_checkpoint(tmp_path / "ck", *tiny.tiny_student("gemma3", base=llm))
    shelf = LlmShelf(device="cpu")
    own = open_route(f"aura={tmp_path / 'ck'}", shelf=shelf, name="mine").facts
    text = open_route("text", llm=llm, shelf=shelf, shots=shots()).facts
    count = sum(parameter.numel() for parameter in stock().parameters())
    assert text.parameters == count and own.parameters is not None and own.parameters > count
    size = (tmp_path / "llm" / "model.safetensors").stat().st_size
    learnt = sum(file.stat().st_size for file in (tmp_path / "ck").glob("*.safetensors"))
    assert (text.bytes_on_disk, own.bytes_on_disk) == (size, size + learnt)
    assert (text.name, text.kind, own.name, own.kind) == ("text", "text", "mine", "aura")
    assert text.settings["shots"] == 2 and own.settings["gate"] == "audio" and own.settings["llm"] == llm
    for facts in (own, text):
        assert json.loads(json.dumps(facts.settings)) == facts.settings
    assert llm_of(str(tmp_path / "ck")) == llm


@pytest.mark.parametrize("spec", ["", "aura", "aura=", "bridge", "endpoint", "cascade=", "text=", "whisper", "auro=x"])
def test_an_unknown_spec_says_what_could_be_typed(spec: str) -> None:
    with pytest.raises(RecipeError, match=r"the route is .*expected one of aura=CHECKPOINT"):
        open_route(spec)


@pytest.mark.parametrize("spec", ["text", "cascade", "cascade=small.en"])
def test_a_reading_route_needs_an_llm(spec: str) -> None:
    with pytest.raises(RecipeError, match="no LLM"):
        open_route(spec, device="cpu")


def test_an_aura_checkpoint_is_no_bridge(tmp_path: Path) -> None:
    llm = str(tiny.tiny_llm_folder("llama", tmp_path / "llm"))
    save_checkpoint(tmp_path / "ck", *tiny.tiny_student("llama", base=llm))
    with pytest.raises(CheckpointError, match=r"given as bridge.* use aura="):
        open_route(f"bridge={tmp_path / 'ck'}", device="cpu")


def test_a_bridge_checkpoint_is_opened_by_its_name_with_its_encoder(tmp_path: Path) -> None:
    llm, encoder = tiny.tiny_llm_folder("llama", tmp_path / "llm"), tiny.tiny_whisper(tmp_path / "encoder")
    audio = AudioConfig()
    speech_encoder = load_encoder(str(encoder))
    processor = new_processor(tiny.tiny_tokenizer(), audio, floor="clip")
    model = new_bridge(
        tiny.tiny_llm("llama"),
        speech_encoder,
        processor,
        base=str(llm),
        encoder=str(encoder),
        audio=audio,
        bridge=BridgeConfig(projector_width=16),
        lora=LoraConfig(rank=4, alpha=8.0),
    )
    save_checkpoint(tmp_path / "ck", model.eval(), processor)
    route = open_route(f"bridge={tmp_path / 'ck'}", device="cpu")
    facts, stock_count = route.facts, sum(p.numel() for p in tiny.tiny_llm("llama").parameters())
    assert (facts.name, facts.kind, facts.settings["encoder"]) == ("bridge", "bridge", str(encoder))
    assert facts.parameters is not None
    assert facts.parameters > stock_count + sum(p.numel() for p in speech_encoder.parameters())
    together = route.answer(questions(), max_new_tokens=6)
    assert texts(together) == texts([route.answer([q], max_new_tokens=6)[0] for q in questions()])
    assert all(reply.error is None for reply in together)
    with pytest.raises(CheckpointError, match=r"given as aura.* use bridge="):
        open_route(f"aura={tmp_path / 'ck'}", device="cpu")
