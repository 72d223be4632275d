"""The server through the official client: chat, streams, transcripts, models, errors."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import openai
import pytest
import tiny
from serving import audio_message, b64, checkpoints, load_all, serving, wav

from aura.audio.waveform import load_waveform
from aura.batch.collate import Example
from aura.errors import RecipeError
from aura.inference.engine import load
from aura.inference.generate import Generation
from aura.inference.transcribe import Segment, Transcript, to_srt
from aura.serve.failures import ApiError
from aura.serve.listener import Listener
from aura.serve.models import default_name, parse_specs
from aura.serve.server import Server
from aura.serve.transcription import TRANSLATE, to_vtt

TOKENS = 24  # of a window's transcript: random models never stop by themselves


@pytest.fixture(autouse=True)
def _short_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aura.serve.transcription.WINDOW_TOKENS", TOKENS)


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return checkpoints(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def server(specs: dict[str, str]) -> Iterator[Server]:
    with serving(load_all(specs)) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as found:
        yield found


def ask(client: openai.OpenAI, message: dict[str, Any], **options: Any) -> Any:
    options = {"model": "one", "max_tokens": 12, **options}
    return client.chat.completions.create(messages=[message], **options)


def streamed(client: openai.OpenAI, message: dict[str, Any], **options: Any) -> tuple[str, list[Any]]:
    chunks = list(ask(client, message, stream=True, **options))
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices), chunks


# --- models -------------------------------------------------------------------------------------------------


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["one", "two"]
    assert client.models.retrieve("two").owned_by == "aura"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("three")
    assert caught.value.code == "model_not_found"


def test_adapters_share_one_llm_and_answer_as_if_alone(
    server: Server, client: openai.OpenAI, specs: dict[str, str]
) -> None:
    served = server.service.models
    assert served["one"].engine.model.language_model is served["two"].engine.model.language_model
    message = audio_message(wav(), "the one")
    answers = []
    for name in ("one", "two", "one"):
        alone = load(specs[name], device="cpu")
        turn = {"role": "user", "content": [{"type": "audio", "audio": wav()}, {"type": "text", "text": "the one"}]}
        answers.append(ask(client, message, model=name).choices[0].message.content)
        assert answers[-1] == alone.chat([turn], max_new_tokens=12)
    assert answers[0] == answers[2] != answers[1]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["runs/demo/checkpoint"], {"demo": "runs/demo/checkpoint"}),
        (["a/b", "cafe=runs/x/checkpoint"], {"b": "a/b", "cafe": "runs/x/checkpoint"}),
        (["a=b/c=d"], {"a": "b/c=d"}),
        (["x/a=b/checkpoint"], {"a=b": "x/a=b/checkpoint"}),
    ],
)
def test_names_of_checkpoints(given: list[str], expected: dict[str, str]) -> None:
    assert parse_specs(given) == expected


def test_names_that_clash_or_lack() -> None:
    with pytest.raises(RecipeError, match="two checkpoints are called 'demo'"):
        parse_specs(["runs/demo/checkpoint", "old/demo"])
    with pytest.raises(RecipeError, match="no checkpoint"):
        parse_specs([])
    assert default_name("/checkpoint") == "checkpoint"


# --- chat ---------------------------------------------------------------------------------------------------


def test_chat_with_text(client: openai.OpenAI) -> None:
    reply = ask(client, {"role": "user", "content": "the two in"})
    assert reply.object == "chat.completion" and reply.model == "one" and reply.id.startswith("chatcmpl-")
    assert reply.choices[0].message.role == "assistant" and reply.choices[0].finish_reason in ("stop", "length")
    usage = reply.usage
    assert usage.prompt_tokens_details.audio_tokens == 0 and usage.prompt_tokens > 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3"])
def test_chat_with_audio_in_any_container(client: openai.OpenAI, specs: dict[str, str], form: str) -> None:
    data = wav(form=form)
    reply = ask(client, audio_message(data, "in", form.lower()))
    turn = {"role": "user", "content": [{"type": "audio", "audio": data}, {"type": "text", "text": "in"}]}
    assert reply.choices[0].message.content == load(specs["one"], device="cpu").chat([turn], max_new_tokens=12)
    assert reply.usage.prompt_tokens_details.audio_tokens == -(-len(load_waveform(data)) // 1280)


def test_chat_of_several_turns(client: openai.OpenAI) -> None:
    messages = [
        {"role": "developer", "content": "on"},
        audio_message(wav(0.5)),
        {"role": "assistant", "content": "the", "refusal": None},
        {"role": "user", "content": [{"type": "text", "text": "in"}, {"type": "text", "text": " on"}]},
    ]
    reply = client.chat.completions.create(model="one", messages=messages, max_completion_tokens=3)  # type: ignore[call-overload]
    assert reply.usage.completion_tokens <= 3


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    message = audio_message(wav(), "the")
    whole = ask(client, message)
    text, chunks = streamed(client, message, stream_options={"include_usage": True})
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 5, "it must come as it is written"


def test_sampling_follows_its_seed_and_leaves_neighbours_greedy(client: openai.OpenAI) -> None:
    message = {"role": "user", "content": "the one"}
    greedy = ask(client, message).choices[0].message.content

    def sampled(seed: int) -> str:
        return ask(client, message, temperature=1.5, top_p=0.95, seed=seed).choices[0].message.content

    assert sampled(3) == sampled(3)
    assert len({sampled(seed) for seed in range(4)}) > 1
    assert ask(client, message, temperature=0).choices[0].message.content == greedy
    assert ask(client, message, temperature=1.5, top_p=1e-9).choices[0].message.content == greedy
    found: list[str] = []
    threads = [
        threading.Thread(
            target=lambda s=s: found.append(sampled(s) if s else ask(client, message).choices[0].message.content)
        )  # type: ignore[misc]
        for s in (0, 3, 0, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([greedy, greedy, sampled(3), sampled(3)])


def test_stop_texts_end_the_answer(client: openai.OpenAI) -> None:
    message = audio_message(wav(), "the one")
    whole = ask(client, message).choices[0].message.content
    cut = whole[2:4]
    reply = ask(client, message, stop=["never there", cut])
    expected = whole[: whole.index(cut)].rstrip()
    assert reply.choices[0].message.content == expected and reply.choices[0].finish_reason == "stop"
    assert streamed(client, message, stop=cut)[0] == expected


# --- transcripts --------------------------------------------------------------------------------------------


def test_transcripts_equal_the_engine_in_every_form(client: openai.OpenAI, specs: dict[str, str]) -> None:
    data = wav(3.0)
    expected = load(specs["one"], device="cpu").transcribe(data, max_new_tokens=TOKENS)
    assert isinstance(expected, Transcript) and expected.text

    def create(form: str, **options: Any) -> Any:
        return client.audio.transcriptions.create(
            model="one",
            file=("talk.wav", data),
            response_format=form,
            **options,  # type: ignore[arg-type]
        )

    assert create("json").text == expected.text
    assert create("text") == expected.text + "\n"
    assert create("srt") == to_srt(expected)
    assert create("vtt") == to_vtt(expected)
    verbose = create("verbose_json", language="de", timestamp_granularities=["segment"])
    assert verbose.text == expected.text and verbose.language == "de" and verbose.duration == 3.0
    assert [(s.start, s.end, s.text) for s in verbose.segments] == [(s.start, s.end, s.text) for s in expected.segments]


def test_verbose_segments_say_how_sure_each_model_is(client: openai.OpenAI, specs: dict[str, str]) -> None:
    found = {}
    for name in specs:  # adapters on one LLM: each score is of the one that wrote
        data = wav(34.0, form="FLAC")
        verbose = client.audio.transcriptions.create(model=name, file=("a.flac", data), response_format="verbose_json")
        expected = load(specs[name], device="cpu").transcribe(data, max_new_tokens=TOKENS, scores=True)
        assert isinstance(expected, Transcript)
        found[name] = [segment.avg_logprob for segment in verbose.segments or ()]
        assert found[name] == pytest.approx([segment.avg_logprob for segment in expected.segments], abs=1e-3)
        assert found[name] and all(value < 0 for value in found[name])
    assert len({tuple(values) for values in found.values()}) == len(specs) > 1


def test_scoring_keeps_to_the_deadline_and_names_failures(specs: dict[str, str]) -> None:
    served = load_all(specs)["one"]
    question = Example(id="q", messages=[], waveforms=[])
    answer = Generation(text="a", token_ids=(1,), finished=True)
    for outcome, status in ((None, 504), (RuntimeError("out of memory"), 503), (RuntimeError("no"), 500)):
        future: Future[list[float]] = Future()
        if outcome is not None:
            future.set_exception(outcome)
        options = SimpleNamespace(timeout=0.2)
        scheduler = SimpleNamespace(call=lambda model, function, future=future: future)
        listener = Listener(SimpleNamespace(options=options, scheduler=scheduler), served)  # type: ignore[arg-type]
        with pytest.raises(ApiError) as raised:
            listener.confidence([question], [answer], batch_tokens=1)
        assert raised.value.status == status
        listener.leave()
        with pytest.raises(ApiError) as raised:
            listener.confidence([question], [answer], batch_tokens=1)
        assert raised.value.status == 499


def test_a_window_that_never_comes_back_ends_in_time(specs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aura.serve.listener.GRACE", 0.1)
    [served] = load_all({"one": specs["one"]}).values()
    jobs: list[Any] = []
    service = SimpleNamespace(
        options=SimpleNamespace(timeout=0.2),
        scheduler=SimpleNamespace(submit=jobs.append),  # and nothing more: the model hangs
        job=lambda *_, **__: object(),
    )
    listener = Listener(service, served)  # type: ignore[arg-type]
    question = Example(id="q", messages=[], waveforms=[])
    with pytest.raises(ApiError) as raised:
        listener.generate([question], max_new_tokens=2, batch_tokens=64)
    assert raised.value.status == 504 and len(jobs) == 1


def test_a_long_recording_goes_by_windows(client: openai.OpenAI, specs: dict[str, str]) -> None:
    data = wav(34.0, form="FLAC")
    [expected] = load(specs["one"], device="cpu").transcribe([data], max_new_tokens=TOKENS)  # type: ignore[misc]
    found = client.audio.transcriptions.create(model="one", file=("talk.flac", data), response_format="verbose_json")
    assert found.duration == 34.0 and found.text == expected.text
    assert len(found.segments) == len(expected.segments) == 2


def test_a_prompt_stands_behind_the_audio(client: openai.OpenAI, specs: dict[str, str]) -> None:
    data = wav()
    engine = load(specs["one"], device="cpu")
    found = client.audio.transcriptions.create(model="one", file=("a.wav", data), prompt="the two in")
    assert found.text == engine.transcribe(data, prompt="the two in", max_new_tokens=TOKENS).text  # type: ignore[union-attr]
    with pytest.warns(DeprecationWarning):  # the client's own, about OpenAI's models
        found = client.audio.translations.create(model="one", file=("a.wav", data))
    assert found.text == engine.transcribe(data, prompt=TRANSLATE, max_new_tokens=TOKENS).text  # type: ignore[union-attr]


def test_vtt_escapes_markup() -> None:
    transcript = Transcript(text="a", segments=(Segment(start=3599.9996, end=3601.5, text="<b> --> &"),), seconds=1.0)
    assert to_vtt(transcript) == "WEBVTT\n\n01:00:00.000 --> 01:00:01.500\n&lt;b&gt; --&gt; &amp;\n"


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": 5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"tools": []}, "tools"),
        ({"extra_body": {"max_token": 3}}, "max_token"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "<unused0>"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "the " * 600}]}, "messages"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: openai.OpenAI, options: dict[str, Any], param: str) -> None:
    given = {"model": "one", "messages": [{"role": "user", "content": "in"}], **options}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**given)
    assert caught.value.type == "invalid_request_error" and str(caught.value.param).startswith(param)
    assert len(caught.value.message) < 700


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ("not base64!", "invalid_base64"),
        (b64(b"This is a letter, not a recording."), "invalid_audio"),
        (b64(b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.wav\n"), "invalid_audio"),
        (b64(wav()[:60]), "invalid_audio"),
        (b64(wav(0.05)), "invalid_audio"),
        ("data:audio/wav;base64,", "invalid_audio"),
    ],
)
def test_audio_that_cannot_be_heard(client: openai.OpenAI, data: str, code: str) -> None:
    part = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, {"role": "user", "content": [part]})
    assert caught.value.code == code and caught.value.param == "messages[0].content[0].input_audio.data"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"response_format": "xml"}, "invalid_value"),
        ({"temperature": 0.4}, "invalid_value"),
        ({"timestamp_granularities": ["word"]}, "invalid_value"),
        ({"stream": True}, "invalid_value"),
        ({"file": ("a.wav", b"")}, "invalid_audio"),
        ({"file": ("../../etc/passwd", b"root:x:0:0")}, "invalid_audio"),
        ({"prompt": "<unused0>"}, "invalid_prompt"),
    ],
)
def test_transcriptions_that_are_refused(client: openai.OpenAI, fields: dict[str, Any], code: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(**{"model": "one", "file": ("a.wav", wav()), **fields})
    assert caught.value.code == code


def test_unknown_model_and_path(server: Server, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="expected one of: one, two"):
        ask(client, {"role": "user", "content": "in"}, model="gpt-4o")
    with pytest.raises(openai.NotFoundError, match="openapi"):
        client.embeddings.create(model="one", input="x")
    with pytest.raises(openai.NotFoundError):
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", wav()))


# --- around it ----------------------------------------------------------------------------------------------


def get(server: Server, path: str) -> tuple[Any, str]:
    with urllib.request.urlopen(server.url + path, timeout=10) as response:
        return response, response.read().decode()


def test_health_ready_metrics_schema(server: Server, client: openai.OpenAI) -> None:
    ask(client, audio_message(wav()))
    assert json.loads(get(server, "/health")[1]) == {"status": "ok"}
    assert json.loads(get(server, "/ready")[1]) == {"status": "ready"}
    figures = get(server, "/metrics")[1]
    assert 'aura_tokens_total{kind="audio",model="one"}' in figures
    assert 'aura_requests_total{route="/v1/chat/completions",status="200"}' in figures
    assert "aura_first_token_seconds_bucket" in figures and "aura_requests_in_work 0.0" in figures
    schema = json.loads(get(server, "/openapi.json")[1])
    assert {"/v1/chat/completions", "/v1/audio/transcriptions", "/v1/models"} <= set(schema["paths"])
    assert "422" not in json.dumps(schema)


def test_the_page_is_served_whole_and_needs_nothing_from_elsewhere(server: Server) -> None:
    response, html = get(server, "/")
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert "http://" not in html and "https://" not in html
    import re

    for path in re.findall(r'(?:src|href)="([^"#]+)"', html):
        assert get(server, "/" + path.lstrip("/"))[1]


def test_each_answer_in_a_crowd_equals_the_one_alone(server: Server, client: openai.OpenAI) -> None:
    rng = np.random.default_rng(0)
    cases = [
        (("one", "two")[n % 2], audio_message(wav(float(rng.uniform(0.2, 3.0)), seed=n), tiny.WORDS[n % 8]))
        for n in range(16)
    ]
    alone = [ask(client, message, model=model).choices[0].message.content for model, message in cases]
    found: dict[int, str] = {}

    def work(number: int) -> None:
        model, message = cases[number]
        if number % 3:
            found[number] = ask(client, message, model=model).choices[0].message.content
        else:
            found[number] = streamed(client, message, model=model)[0]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[n] for n in range(len(cases))] == alone
    rows = server.service.metrics.batch_rows
    assert rows._sum.get() > sum(bucket.get() for bucket in rows._buckets), "no batch was shared"
