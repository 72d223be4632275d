"""The endpoint route against a small server of the standard library: forms, retries, time-outs, streams."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny

from aura.batch.collate import Example
from aura.batch.prompt import user_message
from aura.errors import ModelError, PromptError, RecipeError
from aura.evaluation.routes.endpoint import EndpointOptions, EndpointRoute, with_audio
from aura.evaluation.routes.open import open_route

pytest.importorskip("openai")


class Server(ThreadingHTTPServer):
    """Answers "<samples of the audio>: <last text>"; the text steers what goes wrong."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = ["only"]
        self.requests: list[dict[str, Any]] = []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    def handle_error(self, *_: Any) -> None:
        """Nothing: a client that no longer waits is what one test is about."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = body["messages"][-1]["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        samples = [
            len(soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))[0])
            for part in parts
            if part["type"] == "input_audio"
        ]
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        with self.server.lock:
            self.server.requests.append(body)
            seen = sum(request == body for request in self.server.requests)
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
        time.sleep(1.0 if text == "hang" else 0.03)
        with self.server.lock:
            self.server.busy -= 1
        if text == "broken" or (text == "shaky" and seen < 3):
            return self.reply(500, {"error": {"message": "not\nnow"}}, **{"retry-after-ms": "1"})
        if text == "refused":
            return self.reply(400, {"error": {"message": "no such thing"}})
        if text == "nonsense":
            return self.reply(200, {"choices": [{"message": None}]})
        answer = None if text == "filtered" else f" {samples}: {text}"
        if body.get("stream"):
            return self.stream(answer or "")
        choice = {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}
        choice["finish_reason"] = "length" if text == "long" else "content_filter" if answer is None else "stop"
        self.reply(
            200, {"id": "1", "object": "chat.completion", "choices": [choice], "usage": {"completion_tokens": 9}}
        )

    def stream(self, answer: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for delta in ({"role": "assistant", "content": ""}, {"content": answer}):
            time.sleep(0.05)
            chunk = {"id": "1", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")

    def reply(self, status: int, body: dict[str, Any], **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def ask(text: str, seconds: float = 0.2, parts: int = 1) -> Example:
    waveforms = [tiny.tiny_speech(seconds, seed=n) for n in range(parts)]
    return Example(id=text, messages=[user_message(text, parts)], waveforms=waveforms)


def test_a_server_hears_what_it_is_sent_and_answers_in_order(server: Server) -> None:
    route = open_route(f"endpoint={server.url}")
    asked = [ask(f"clip {n}", 0.1 + 0.05 * n) for n in range(6)] + [ask("two", parts=2)]
    done: list[int] = []
    replies = route.answer(asked, max_new_tokens=7, progress=done.append)
    assert [reply.text for reply in replies] == [f"{[len(w) for w in q.waveforms]}: {q.id}" for q in asked]
    assert [route.answer([question], max_new_tokens=7)[0].text for question in asked] == [r.text for r in replies]
    assert sum(done) == len(asked) and all(reply.finished and reply.new_tokens == 9 for reply in replies)
    assert 1 < server.most_busy <= 4
    body = server.requests[0]
    assert (body["model"], body["temperature"], body["max_tokens"], body["stream"]) == ("only", 0.0, 7, False)
    assert route.facts.kind == "endpoint" and route.facts.parameters is None
    assert json.loads(json.dumps(route.facts.settings))["url"] == server.url


def test_shares_of_the_time_add_up_to_the_clock(server: Server) -> None:
    route = open_route(f"endpoint={server.url}")
    start = time.perf_counter()
    replies = route.answer([ask(f"clip {n}") for n in range(8)], max_new_tokens=7)
    assert sum(reply.wall_seconds for reply in replies) == pytest.approx(time.perf_counter() - start, abs=0.05)


def test_what_fails_is_failed_and_what_comes_back_is_tried_again(server: Server) -> None:
    route = EndpointRoute(EndpointOptions(url=server.url, retries=2, timeout=0.4))
    names = ["fine", "broken", "shaky", "refused", "filtered", "hang", "long", "nonsense"]
    by_name = dict(zip(names, route.answer([ask(name) for name in names], max_new_tokens=2), strict=True))
    assert {name for name, reply in by_name.items() if reply.error is None} == {"fine", "shaky", "long"}
    assert not by_name["long"].finished and by_name["fine"].finished
    said = {name: by_name[name].error or "" for name in ("broken", "refused", "filtered", "hang", "nonsense")}
    assert "InternalServerError" in said["broken"] and "no such thing" in said["refused"]
    assert "content_filter" in said["filtered"] and "APITimeoutError" in said["hang"]
    assert all(by_name[name].text is None and "\n" not in error for name, error in said.items())
    texts = [request["messages"][-1]["content"][-1]["text"] for request in server.requests]
    assert [texts.count(name) for name in ("broken", "refused", "fine")] == [3, 1, 1]


def test_the_first_token_comes_from_the_stream(server: Server) -> None:
    route = open_route(f"endpoint={server.url}")
    assert 0.1 < route.first_token(ask("fine")) < 5  # not the empty delta that opens the stream
    assert server.requests[-1]["stream"] is True
    with pytest.raises(ModelError, match="no such thing"):
        route.first_token(ask("refused"))
    with pytest.raises(ModelError, match="without a word"):
        route.first_token(ask("filtered"))


def test_it_scores_nothing(server: Server) -> None:
    with pytest.raises(ModelError, match="no likelihood"):
        open_route(f"endpoint={server.url}").score(ask("fine"), ["a"])


def test_a_server_with_several_models_must_be_told_which(server: Server) -> None:
    server.models = ["a", "b"]
    with pytest.raises(ModelError, match=r"lists 2 models \(a, b\)"):
        open_route(f"endpoint={server.url}")
    route = open_route(f"endpoint={server.url}", endpoint=EndpointOptions(url="http://ignored/v1", model="b"))
    assert route.facts.settings["model"] == "b" and route.facts.settings["url"] == server.url


def test_no_server_is_an_error_of_one_line() -> None:
    with pytest.raises(ModelError, match="APIConnectionError") as caught:
        EndpointRoute(EndpointOptions(url="http://127.0.0.1:9/v1", retries=0, timeout=2))
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="expected a URL"):
        open_route("endpoint=localhost")


def test_the_wire_form_keeps_the_audio_and_the_turns() -> None:
    wave_N = np.array([0.0, 0.5, -0.5, 1.5, -1.5], dtype=np.float32)
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Is"}, {"type": "audio"}, {"type": "text", "text": "?"}]},
    ]
    system, user = with_audio(Example(id="q", messages=turns, waveforms=[wave_N]))
    assert system == turns[0] and [part["type"] for part in user["content"]] == ["text", "input_audio", "text"]
    sent, rate = soundfile.read(io.BytesIO(base64.b64decode(user["content"][1]["input_audio"]["data"])))
    assert rate == 16_000 and sent == pytest.approx(np.clip(wave_N, -1, 1), abs=1e-4)
    for waveforms in ([], [wave_N, wave_N]):
        with pytest.raises(PromptError, match="expected one for each"):
            with_audio(Example(id="q", messages=turns, waveforms=waveforms))
