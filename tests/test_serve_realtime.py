"""The realtime socket: the official client's events, answers equal to the engine's, limits, and every refusal."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
import soxr
import tiny
from serving import KEY, checkpoints, load_all, serving, until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from aura.inference.engine import load
from aura.serve.realtime_answers import Answers
from aura.serve.server import Server
from aura.serve.turn import Turn

TOKENS = 10


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return checkpoints(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def models(specs: dict[str, str]) -> Any:
    return load_all(specs)


@pytest.fixture(scope="module")
def server(models: Any) -> Iterator[Server]:
    with serving(models, max_sessions=3, max_recording_seconds=30.0) as running:
        yield running


class Talk:
    """A raw session that remembers what it was told."""

    def __init__(self, server: Server, query: str = "model=one", **options: Any) -> None:
        url = server.url.replace("http", "ws") + f"/v1/realtime?{query}"
        self.stack = contextlib.ExitStack()
        self.socket = self.stack.enter_context(connect(url, max_size=None, **options))
        self.events: list[dict[str, Any]] = []
        self.until("session.created")

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.stack.close()

    def send(self, type: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": type, **fields}))

    def until(self, type: str) -> dict[str, Any]:
        while True:
            event = json.loads(self.socket.recv(timeout=30))
            self.events.append(event)
            if event["type"] == type:
                return event
            assert event["type"] != "error", event

    def error(self) -> dict[str, Any]:
        while True:
            event = json.loads(self.socket.recv(timeout=30))
            if event["type"] == "error":
                assert set(event["error"]) == {"message", "type", "param", "code", "event_id"}
                return event["error"]

    def configure(self, **fields: Any) -> dict[str, Any]:
        self.send("session.update", session={"type": "realtime", **fields})
        return self.until("session.updated")["session"]

    def speak(self, pcm: bytes, size: int = 4000) -> None:
        for first in range(0, len(pcm), size):
            self.send("input_audio_buffer.append", audio=base64.b64encode(pcm[first : first + size]).decode())

    def answer(self) -> str:
        self.send("response.create")
        done = self.until("response.done")["response"]
        [item] = done["output"]
        return item["content"][0]["text"]


def pcm_at(rate: int, seconds: float = 1.5, *, seed: int = 0) -> bytes:
    samples = tiny.tiny_speech(seconds, seed=seed)
    if rate != 16_000:
        samples = soxr.resample(samples, 16_000, rate)
    return np.clip(np.round(samples * 32768), -32768, 32767).astype("<i2").tobytes()


def heard(pcm: bytes) -> np.ndarray:
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32768


def audio(wave: np.ndarray) -> dict[str, Any]:
    return {"type": "audio", "audio": wave, "sampling_rate": 16_000}


def fmt(rate: int, **more: Any) -> dict[str, Any]:
    return {"input": {"format": {"type": "audio/pcm", "rate": rate}, **more}}


# --- answers --------------------------------------------------------------------------------------------------


def test_the_official_client_asks_by_voice(server: Server, specs: dict[str, str]) -> None:
    pcm = pcm_at(16_000)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused")
    kinds, text = [], ""
    with client.realtime.connect(model="one") as connection:
        connection.session.update(
            session={"type": "realtime", "max_output_tokens": TOKENS, "audio": fmt(16_000)}  # type: ignore[typeddict-item]
        )
        for first in range(0, len(pcm), 3000):
            connection.input_audio_buffer.append(audio=base64.b64encode(pcm[first : first + 3000]).decode())
        connection.input_audio_buffer.commit()
        connection.response.create()
        for event in connection:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.output_text.done":
                assert event.text == text
            if event.type == "response.done":
                usage = event.response.usage
                break
    expected = load(specs["one"], device="cpu").chat(
        [{"role": "user", "content": [audio(heard(pcm))]}], max_new_tokens=TOKENS
    )
    assert text == expected and usage is not None and usage.output_tokens == TOKENS
    order = ["session.created", "session.updated", "input_audio_buffer.committed", "response.created"]
    order += ["response.output_item.added", "response.content_part.added", "response.output_text.delta"]
    order += ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.done"]
    assert [kind for kind in dict.fromkeys(kinds) if kind in order] == order


def test_the_work_is_done_while_one_speaks(server: Server) -> None:
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000), max_output_tokens=TOKENS)
        passes = server.service.metrics.batch_rows._sum.get()
        talk.speak(pcm_at(16_000, 3.0))
        talk.send("input_audio_buffer.commit")
        assert talk.answer()
        assert server.service.metrics.batch_rows._sum.get() == passes, "the live session answers, not a batch"


def test_24_khz_is_resampled_piece_by_piece(server: Server, specs: dict[str, str]) -> None:
    pcm = pcm_at(24_000, 2.0)
    stream = soxr.ResampleStream(24_000, 16_000, 1, dtype="float32")
    wave = np.concatenate(
        [stream.resample_chunk(heard(pcm)), stream.resample_chunk(np.zeros(0, np.float32), last=True)]
    )
    expected = load(specs["one"], device="cpu").chat(
        [{"role": "user", "content": [audio(wave)]}], max_new_tokens=TOKENS
    )
    answers = []
    for size in (len(pcm), 4800, 962):
        with Talk(server) as talk:
            assert talk.events[0]["session"]["audio"]["input"]["format"]["rate"] == 24_000
            talk.configure(max_output_tokens=TOKENS)
            talk.speak(pcm, size)
            talk.send("input_audio_buffer.commit")
            answers.append(talk.answer())
    assert answers == [expected] * 3


@pytest.mark.parametrize("late", [False, True], ids=["text in front", "text behind"])
def test_text_and_instructions_go_with_the_audio(server: Server, specs: dict[str, str], late: bool) -> None:
    pcm = pcm_at(16_000)
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "the two"}]}
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000), max_output_tokens=TOKENS, instructions="in on")
        if not late:
            talk.send("conversation.item.create", item=item)
        talk.speak(pcm)
        talk.send("input_audio_buffer.commit")
        if late:
            talk.send("conversation.item.create", item=item)
        text = talk.answer()
    turn = {"role": "user", "content": [audio(heard(pcm)), {"type": "text", "text": "the two"}]}
    messages = [{"role": "system", "content": "in on"}, turn]
    assert text == load(specs["one"], device="cpu").chat(messages, max_new_tokens=TOKENS)


def test_a_second_turn_knows_the_first(server: Server, specs: dict[str, str]) -> None:
    first, second = pcm_at(16_000, 0.6), pcm_at(16_000, 0.8, seed=5)
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000), max_output_tokens=TOKENS)
        answers = []
        for pcm in (first, second):
            talk.speak(pcm)
            talk.send("input_audio_buffer.commit")
            answers.append(talk.answer())
        engine = load(specs["one"], device="cpu")
        messages = [
            {"role": "user", "content": [audio(heard(first))]},
            {"role": "assistant", "content": answers[0]},
            {"role": "user", "content": [audio(heard(second))]},
        ]
        assert answers[0] == engine.chat(messages[:1], max_new_tokens=TOKENS)
        assert answers[1] == engine.chat(messages, max_new_tokens=TOKENS)
        items = [event["item"]["id"] for event in talk.events if event["type"] == "conversation.item.done"]
        assert len(items) == 4
        for item in items:
            talk.send("conversation.item.delete", item_id=item)
            talk.until("conversation.item.deleted")
        talk.speak(first)
        talk.send("input_audio_buffer.commit")
        assert talk.answer() == answers[0], "forgotten"


def test_an_answer_outside_the_conversation_leaves_it_alone(server: Server) -> None:
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000), max_output_tokens=TOKENS)
        talk.send(
            "conversation.item.create",
            item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "in"}]},
        )
        talk.send("response.create", response={"conversation": "none", "max_output_tokens": 3, "metadata": {"a": "b"}})
        done = talk.until("response.done")["response"]
        assert done["usage"]["output_tokens"] <= 3 and done["metadata"] == {"a": "b"}
        assert talk.answer()
        talk.send("response.create")
        assert talk.until("response.done")["response"]["usage"]["input_tokens"] > done["usage"]["input_tokens"]


def test_what_was_heard_comes_as_text(server: Server, specs: dict[str, str]) -> None:
    pcm = pcm_at(16_000, 2.5)
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000, transcription={"model": "whatever"}), max_output_tokens=TOKENS)
        for first in range(0, len(pcm), 16_000):
            talk.speak(pcm[first : first + 16_000])
            time.sleep(0.15)
        partial = talk.until("conversation.item.input_audio_transcription.partial")
        talk.send("input_audio_buffer.commit")
        text = talk.answer()
        whole = talk.until("conversation.item.input_audio_transcription.completed")
        assert partial["item_id"] == whole["item_id"] and partial["transcript"]
        engine = load(specs["one"], device="cpu")
        assert text == engine.chat([{"role": "user", "content": [audio(heard(pcm))]}], max_new_tokens=TOKENS)
        wave = {"array": heard(pcm), "sampling_rate": 16_000}
        assert whole["transcript"] == engine.transcribe(wave).text != ""


def test_what_the_model_is_unsure_of_is_no_transcript(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service.models["one"].engine.model.config, "min_avg_logprob", -1e-6)
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000, transcription={"model": "whatever"}), max_output_tokens=TOKENS)
        talk.speak(pcm_at(16_000))
        talk.send("input_audio_buffer.commit")
        assert talk.answer(), "an answer is not held to it"
        assert talk.until("conversation.item.input_audio_transcription.completed")["transcript"] == ""


def test_a_checkpoint_that_cannot_stream_answers_from_the_whole(
    server: Server, specs: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.service.models["one"].engine.model.config, "attention", "full")
    pcm = pcm_at(16_000)
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000), max_output_tokens=TOKENS)
        talk.speak(pcm)
        talk.send("input_audio_buffer.commit")
        assert talk.answer()


def test_cancelling_ends_an_answer_early(server: Server) -> None:
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000), max_output_tokens=400)
        for live in (True, False):
            if live:
                talk.speak(pcm_at(16_000))
                talk.send("input_audio_buffer.commit")
            talk.send("response.create")
            talk.until("response.output_text.delta")
            talk.send("response.cancel")
            done = talk.until("response.done")["response"]
            assert done["status"] == "cancelled" and done["output"][0]["status"] == "incomplete"
        talk.configure(max_output_tokens=3)
        assert talk.answer() is not None


def test_who_leaves_during_an_answer_is_owed_no_transcript(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[Turn] = []
    monkeypatch.setattr(Answers, "_follow", lambda answers, turn: followed.append(turn))
    for leaves in (True, False):
        with Talk(server) as talk:
            talk.configure(
                audio=fmt(16_000, transcription={"model": "whatever"}), max_output_tokens=400 if leaves else 2
            )
            talk.speak(pcm_at(16_000))
            talk.send("input_audio_buffer.commit")
            talk.send("response.create")
            talk.until("response.output_text.delta" if leaves else "response.done")
        assert until(lambda: server.service.sessions == 0)
        assert len(followed) == (0 if leaves else 1)


def test_a_transcript_that_fails_is_said_and_logged(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the ear is full")

    monkeypatch.setattr("aura.serve.realtime_answers.transcribe_each", broken)
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000, transcription={"model": "whatever"}), max_output_tokens=TOKENS)
        talk.speak(pcm_at(16_000))
        talk.send("input_audio_buffer.commit")
        assert talk.answer()
        failed = talk.until("conversation.item.input_audio_transcription.failed")
    assert failed["error"]["code"] == "internal_error" and "the ear is full" in caplog.text


# --- refusals -------------------------------------------------------------------------------------------------

TEXT = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "in"}]}


@pytest.mark.parametrize(
    ("message", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[" * 100_000, "invalid_json", None),
        ("[]", "invalid_event", None),
        (b"\x00\xff", "invalid_event", None),
        ({"type": "input_audio_buffer.sing"}, "invalid_value", None),
        ({"type": "input_audio_buffer.append"}, "invalid_value", "input_audio_buffer.append.audio"),
        ({"type": "input_audio_buffer.append", "audio": "äöü"}, "invalid_base64", "audio"),
        ({"type": "input_audio_buffer.append", "audio": "AAA="}, None, None),
        ({"type": "input_audio_buffer.append", "audio": "AA=="}, "invalid_audio", "audio"),
        ({"type": "input_audio_buffer.append", "audio": 5}, "invalid_value", "input_audio_buffer.append.audio"),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
        ({"type": "response.create"}, "empty_conversation", None),
        ({"type": "response.cancel"}, "response_cancel_not_active", None),
        ({"type": "conversation.item.delete", "item_id": "x"}, "item_not_found", "item_id"),
        ({"type": "conversation.item.create", "item": {**TEXT, "role": "tool"}}, "invalid_value", None),
        ({"type": "session.update", "session": {"model": "two"}}, None, "session.model"),
        ({"type": "session.update", "session": {"output_modalities": ["audio"]}}, "invalid_value", None),
        ({"type": "session.update", "session": {"max_output_tokens": 10**9}}, "invalid_value", None),
        ({"type": "session.update", "session": {"tools": [{"type": "function"}]}}, "invalid_value", None),
        ({"type": "session.update", "session": {"audio": fmt(96_000)}}, "invalid_value", None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_refused_keeps_the_session(server: Server, message: Any, code: str | None, param: str | None) -> None:
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000), max_output_tokens=2)
        talk.socket.send(json.dumps({**message, "event_id": "mine"}) if isinstance(message, dict) else message)
        if code or param:
            error = talk.error()
            assert error["code"] == (code or error["code"]) and error["type"] == "invalid_request_error"
            assert param is None or error["param"] == param
            assert len(error["message"]) < 700
        talk.send("conversation.item.create", item=TEXT)
        assert talk.answer() is not None


def test_a_turn_and_a_session_have_limits(server: Server) -> None:
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000), max_output_tokens=2)
        talk.speak(pcm_at(16_000, 16.0), 64_000)
        talk.send("input_audio_buffer.commit")
        talk.until("input_audio_buffer.committed")
        talk.speak(pcm_at(16_000, 16.0), 64_000)
        talk.send("input_audio_buffer.commit")
        assert talk.error()["code"] == "session_full"
        talk.speak(pcm_at(16_000, 16.0), 64_000)
        assert talk.error()["code"] == "audio_too_long"
        talk.send("input_audio_buffer.clear")
        talk.until("input_audio_buffer.cleared")
        talk.send("conversation.item.delete", item_id=talk.events[-1].get("item_id", "none"))
        assert talk.error()["code"] == "item_not_found"


def test_sessions_are_counted_and_models_named(server: Server) -> None:
    with Talk(server), Talk(server), Talk(server):
        with pytest.raises(InvalidStatus) as caught:
            Talk(server)
        assert caught.value.response.status_code == 429
        assert json.loads(caught.value.response.body)["error"]["code"] == "too_many_sessions"
        assert "retry-after" in caught.value.response.headers
    assert until(lambda: server.service.sessions == 0)
    with pytest.raises(InvalidStatus) as caught:
        Talk(server, "model=three")
    assert caught.value.response.status_code == 404
    with Talk(server, "") as talk:
        assert talk.events[0]["session"]["model"] == "one"


def test_keys_and_origins(models: Any) -> None:
    with serving(models, api_keys=(KEY,)) as server:
        for options in (
            {},
            {"additional_headers": {"Authorization": "Bearer wrong"}},
            {"subprotocols": ["realtime", "openai-insecure-api-key.wrong"]},
        ):
            with pytest.raises(InvalidStatus) as caught:
                Talk(server, **options)
            assert caught.value.response.status_code == 401
            assert json.loads(caught.value.response.body)["error"]["code"] == "invalid_api_key"
        with Talk(server, additional_headers={"Authorization": f"Bearer {KEY}"}):
            pass
        with Talk(server, subprotocols=["realtime", f"openai-insecure-api-key.{KEY}"]) as talk:
            assert talk.socket.subprotocol == "realtime"
        with pytest.raises(InvalidStatus) as caught:
            Talk(server, additional_headers={"Authorization": f"Bearer {KEY}"}, origin="https://evil.example")
        assert caught.value.response.status_code == 403


def test_silence_ends_a_session_and_leaving_frees_it(models: Any) -> None:
    with serving(models, idle=0.4) as server:
        with Talk(server) as talk:
            assert talk.error()["code"] == "session_expired"
        with Talk(server) as talk:
            talk.configure(audio=fmt(16_000), max_output_tokens=400)
            talk.speak(pcm_at(16_000))
            talk.send("input_audio_buffer.commit")
            talk.send("response.create")
            talk.until("response.output_text.delta")
        assert until(lambda: server.service.sessions == 0 and server.service.in_work == 0)


# --- turns without a button -----------------------------------------------------------------------------------


class Loud:
    """Speech is what is louder than nothing; 0.3 s of nothing ends it."""

    def __init__(self, **options: Any) -> None:
        self.silence = round(options["min_silence"] * 16_000)
        self.reset()

    def reset(self) -> None:
        self.quiet, self.speaking = 0, False

    def feed(self, samples: np.ndarray) -> str:
        if np.abs(samples).max() > 0.01:
            self.quiet, self.speaking = 0, True
            return "speech"
        self.quiet += len(samples)
        if self.speaking and self.quiet >= self.silence:
            return "end"
        return "speech" if self.speaking else "silence"


def test_the_server_finds_the_end_of_speech(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aura.inference.endpoint.Endpointer", Loud)
    nothing = np.zeros(16_000, "<i2").tobytes()
    with Talk(server) as talk:
        session = talk.configure(
            audio=fmt(16_000, turn_detection={"type": "server_vad", "silence_duration_ms": 300}), max_output_tokens=3
        )
        assert session["audio"]["input"]["turn_detection"]["silence_duration_ms"] == 300
        for _ in range(2):
            talk.speak(nothing)
            talk.speak(pcm_at(16_000, 1.0))
            talk.speak(nothing)
            started = talk.until("input_audio_buffer.speech_started")
            stopped = talk.until("input_audio_buffer.speech_stopped")
            assert 900 < stopped["audio_end_ms"] - started["audio_start_ms"] < 1800
            assert talk.until("response.done")["response"]["status"] in ("completed", "incomplete")


def test_speech_without_a_pause_is_cut_and_the_session_goes_on(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aura.inference.endpoint.Endpointer", Loud)
    nothing = np.zeros(16_000, "<i2").tobytes()
    turn_detection = {"type": "server_vad", "silence_duration_ms": 300}
    with serving(models, max_recording_seconds=3.0) as server, Talk(server) as talk:
        talk.configure(audio=fmt(16_000, turn_detection=turn_detection), max_output_tokens=3)
        talk.speak(pcm_at(16_000, 5.0) + nothing, 64_000)
        error = talk.error()
        assert error["code"] == "audio_too_long" and "the rest of it is left out" in error["message"]
        talk.until("response.done")  # `until` would stumble over a second error
        items = [event["item"]["id"] for event in talk.events if event["type"] == "conversation.item.done"]
        assert len(items) == 2
        # Beside three seconds there is no room for more: the turn is refused, forgotten, and the next one begins anew.
        talk.speak(pcm_at(16_000, 1.0) + nothing + pcm_at(16_000, 1.0) + nothing, 128_000)
        assert [talk.error()["code"] for _ in range(2)] == ["session_full"] * 2
        for item in items:
            talk.send("conversation.item.delete", item_id=item)
            talk.until("conversation.item.deleted")
        talk.speak(pcm_at(16_000, 1.0) + nothing)
        started = talk.until("input_audio_buffer.speech_started")["item_id"]
        assert talk.until("input_audio_buffer.committed")["item_id"] == started
        assert talk.until("response.done")["response"]["usage"]["input_tokens"] > 0


# --- what the model does wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["_open", "_feed", "_partial"])
def test_a_live_turn_that_fails_is_answered_from_the_whole(
    server: Server, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a secret path")

    if where == "_open":
        monkeypatch.setattr(Turn, "_open", broken)
    else:
        name = "feed" if where == "_feed" else "partial_steps"
        monkeypatch.setattr(f"aura.inference.stream.StreamSession.{name}", broken)
    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000, transcription={"model": "x"}), max_output_tokens=TOKENS)
        talk.speak(pcm_at(16_000, 12.0), 64_000)
        talk.send("input_audio_buffer.commit")
        assert talk.answer()


def test_a_turn_whose_worker_dies_does_not_hang(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dies(self: Turn) -> None:
        await asyncio.sleep(0.3)
        raise RuntimeError("a secret path")

    with Talk(server) as talk:
        talk.configure(audio=fmt(16_000), max_output_tokens=2)
        with monkeypatch.context() as patch:
            patch.setattr(Turn, "_work", dies)
            talk.speak(pcm_at(16_000, 12.0), 64_000)
            talk.send("input_audio_buffer.commit")
            error = talk.error()
        assert error["code"] == "internal_error" and "secret" not in error["message"]
        talk.speak(pcm_at(16_000))
        talk.send("input_audio_buffer.commit")
        assert talk.answer() is not None
