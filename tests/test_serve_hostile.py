"""Thousands of malformed requests from a fixed seed: always a clear 4xx in OpenAI's shape, no 500, no hang, no growth."""

from __future__ import annotations

import http.client
import json
import random
import re
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import b64, checkpoints, load_all, serving, until, wav
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from aura.serve.failures import ApiError
from aura.serve.listen import waveform
from aura.serve.server import Server

SEED = 20_261_123
FORMS = ("WAV", "FLAC", "OGG", "MP3", "AIFF")
STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 10**30, -(10**400), 1e308, "", "x", "\x00", "../../etc/passwd", "🜁" * 50),
    *([], [[]], {}, {"type": "text"}, ["x"] * 100, "A" * 100_000, "<unused0>", "<|im_start|>", "%s%n{{7*7}}"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = load_all(checkpoints(tmp_path_factory.mktemp("serve")))
    with serving(models, max_bytes=400_000, max_recording_seconds=20.0, default_new_tokens=2) as running:
        yield running


class Wire:
    """One kept-alive connection."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.connection = http.client.HTTPConnection(*server.socket.getsockname()[:2], timeout=20)

    def post(self, path: str, body: bytes, kind: str) -> tuple[int, bytes]:
        try:
            self.connection.request("POST", path, body, {"Content-Type": kind})
            response = self.connection.getresponse()
            return response.status, response.read()
        except (http.client.HTTPException, ConnectionError):
            # The server may close after a refusal; it must take the next connection.
            self.connection.close()
            return 0, b""


def assert_clear(status: int, body: bytes) -> None:
    """200, or a 4xx that says what is wrong."""
    if status in (0, 200):
        return
    assert 400 <= status < 500, (status, body[:500])
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"} and 5 < len(error["message"]) <= 600


def mangled(rng: random.Random, data: bytes) -> bytes:
    """Cut, overwrite, repeat or swap some of the bytes."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        kind, place = rng.randrange(5), rng.randrange(max(1, len(found)))
        if kind == 0:
            del found[place:]
        elif kind == 1:
            found[place : place + 4] = rng.choice(
                [b"\xff" * 4, b"\0" * 4, struct.pack("<I", 1 << 31), rng.randbytes(4)]
            )
        elif kind == 2:
            found[place:place] = rng.randbytes(rng.randint(1, 64))
        elif kind == 3 and len(found) > 60:
            found[:60] = mangled_head(rng, bytes(found[:60]))
        else:
            found += found[: rng.randint(0, 2000)]
        if not found:
            found = bytearray(b"RIFF")
    return bytes(found)


def mangled_head(rng: random.Random, head: bytes) -> bytes:
    found = bytearray(head)
    for _ in range(rng.randint(1, 3)):
        found[rng.randrange(4, len(found))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    return bytes(found)


def lying_wav(rng: random.Random) -> bytes:
    """A header whose rate, channels, depth and sizes are anything."""
    pick = lambda *values: rng.choice(values)  # noqa: E731
    head = b"RIFF" + struct.pack("<I", pick(0, 36, 1 << 31, 0xFFFFFFFF)) + b"WAVEfmt "
    head += struct.pack("<IHH", pick(16, 0, 18, 0xFFFFFFFF), pick(1, 3, 2, 85, 0xFFFE, 0), pick(0, 1, 2, 255, 65535))
    rate = pick(0, 1, 16_000, 44_100, 999_999, 0xFFFFFFFF)
    head += struct.pack("<IIHH", rate, pick(0, 32_000, 0xFFFFFFFF), pick(0, 1, 2, 65535), pick(0, 8, 16, 24, 64, 65535))
    return (
        head
        + b"data"
        + struct.pack("<I", pick(0, 10, 64_000, 0x7FFFFFFF, 0xFFFFFFFF))
        + rng.randbytes(rng.randint(0, 20_000))
    )


def resident() -> float:
    """MiB in memory; 0 where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0


def test_damaged_and_lying_audio_is_refused_or_heard() -> None:
    rng = random.Random(SEED)
    good = [wav(0.5, form=form) for form in FORMS]
    seen: dict[int, int] = {}
    start = time.monotonic()
    for number in range(1500):
        if number == 500:
            before = resident()
        data = lying_wav(rng) if number % 3 == 0 else mangled(rng, rng.choice(good))
        try:
            wave_N = waveform(data, max_seconds=5.0, param="file")
        except ApiError as error:
            assert error.status in (400, 413) and error.param == "file", error
            seen[error.status] = seen.get(error.status, 0) + 1
        else:
            assert 0.1 * 16_000 <= len(wave_N) <= 5.2 * 16_000
            seen[200] = seen.get(200, 0) + 1
    assert seen[400] > 300 and seen[200] > 50
    assert resident() - before < 64, "MiB that a thousand bad files left behind"
    assert time.monotonic() - start < 120


@pytest.mark.parametrize(
    "data",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:1/a.wav\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
        b"<?xml version='1.0'?><MPD><BaseURL>http://127.0.0.1:1/</BaseURL></MPD>",
        b"ID3\x04\0\0\0\0\0\0c=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\nc=IN IP4 127.0.0.1\n" * 20,
        b"fLaC#EXTM3U\nhttp://127.0.0.1:1/a.wav\n" * 20,
    ],
    ids=["hls", "concat", "sdp", "dash", "sdp behind mp3", "hls behind flac"],
)
def test_nothing_that_points_elsewhere_is_opened(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    with pytest.raises(ApiError) as caught:
        waveform(data, max_seconds=5.0, param="file")
    assert caught.value.status == 400 and time.monotonic() - start < 2


def strange_chat(rng: random.Random) -> Any:
    """A body with some of its places filled with what does not belong there."""
    part = {"type": "input_audio", "input_audio": {"data": b64(wav(0.2)), "format": "wav"}}
    body: dict[str, Any] = {
        "model": "one",
        "messages": [{"role": "user", "content": [part, {"type": "text", "text": "in"}]}],
        "max_tokens": 1,
    }
    options = (
        "stream",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "n",
        "max_completion_tokens",
        "stream_options",
        "user",
        "tools",
    )
    for _ in range(rng.randint(1, 3)):
        value = rng.choice(STRANGE)
        match rng.randrange(8):
            case 0:
                body[rng.choice(["model", "messages", "max_tokens", *options])] = value
            case 1:
                body["messages"] = [{"role": rng.choice(["user", "system", value]), "content": value}]
            case 2:
                part["input_audio"] = rng.choice([value, {"data": value, "format": value}])
            case 3:
                part["input_audio"] = {"data": b64(mangled(rng, wav(0.2)))[: rng.randint(0, 9000)], "format": "mp3"}
            case 4:
                part["type"] = value
            case 5:
                if isinstance(body["messages"], list):
                    body["messages"] = body["messages"] * rng.choice([0, 2, 600])
            case 6:
                body.pop(rng.choice(list(body)), None)
            case _:
                return value
        if "messages" not in body or "model" not in body:
            break
    return body


def garbled_json(rng: random.Random) -> bytes:
    text = json.dumps({"model": "one", "messages": [{"role": "user", "content": "in"}], "max_tokens": 1}).encode()
    kinds: list[Callable[[], bytes]] = [
        lambda: text[: rng.randrange(len(text))],
        lambda: mangled(rng, text),
        lambda: b"[" * 200_000,
        lambda: b'{"a":' * 50_000,
        lambda: rng.randbytes(rng.randint(0, 300)),
        lambda: text.replace(b'"in"', b'"\\ud800"'),
        lambda: text.replace(b"1}", b"1" * 5000 + b"}"),
        lambda: text.replace(b"1}", b"NaN}"),
        lambda: text.replace(b"1}", b"1e999}"),
    ]
    return rng.choice(kinds)()


def test_strange_chat_bodies(server: Server) -> None:
    rng, wire = random.Random(SEED + 1), Wire(server)
    for _ in range(500):
        if rng.random() < 0.4:
            body = garbled_json(rng)
        else:
            body = json.dumps(strange_chat(rng)).encode()
        kind = rng.choice(["application/json", "application/json", "application/json; charset=utf-7", "text/plain", ""])
        assert_clear(*wire.post("/v1/chat/completions", body, kind))
    assert_alive(server)


def multipart(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A form whose names, headers and borders are often wrong."""
    border = rng.choice(["xyz", "a" * 70, "--", "x y", "\xe4"])
    names = ["../../../etc/passwd", "a.wav", 'a"; evil="', "\0", "x" * 5000, "con", "%00", "..\\..\\boot.ini"]
    lines: list[bytes] = []

    def field(name: str, value: bytes, extra: str = "") -> None:
        lines.append(
            f'--{border}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + value + b"\r\n"
        )

    field("file", data, f'; filename="{rng.choice(names)}"\r\nContent-Type: {rng.choice(["audio/wav", "x" * 300, ""])}')
    field("model", rng.choice([b"one", b"one", b"two", b"", b"\xff\xfe", b"x" * 70_000]))
    for _ in range(rng.choice([0, 0, 1, 2, 40])):
        name = rng.choice(
            [
                "response_format",
                "prompt",
                "language",
                "temperature",
                "timestamp_granularities[]",
                "model",
                "file",
                "stream",
                "evil",
            ]
        )
        field(name, str(rng.choice(STRANGE)).encode("utf-8", "replace")[: rng.choice([10, 100_000])])
    rng.shuffle(lines)
    body = b"".join(lines) + rng.choice([f"--{border}--\r\n".encode(), b"", b"--", f"--{border}\r\n".encode()])
    if rng.random() < 0.4:
        body = mangled(rng, body)
    kind = rng.choice(
        [f"multipart/form-data; boundary={border}"] * 4
        + ["multipart/form-data", "multipart/form-data; boundary=", "multipart/mixed; boundary=xyz"]
    )
    return body, kind


def test_strange_forms(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aura.serve.transcription.WINDOW_TOKENS", 2)
    rng, wire = random.Random(SEED + 2), Wire(server)
    good = [wav(0.3, form=form) for form in FORMS]
    for _ in range(400):
        data = rng.choice([rng.choice(good), mangled(rng, rng.choice(good)), lying_wav(rng), b""])
        body, kind = multipart(rng, data)
        path = rng.choice(["/v1/audio/transcriptions", "/v1/audio/translations"])
        assert_clear(*wire.post(path, body, kind.encode("latin-1", "replace").decode("latin-1")))
    assert_alive(server)


def test_strange_frames_on_the_socket(server: Server) -> None:
    rng = random.Random(SEED + 3)
    kinds = ["session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "input_audio_buffer.clear"]
    kinds += ["conversation.item.create", "conversation.item.delete", "response.create", "response.cancel", "x"]
    url = server.url.replace("http", "ws") + "/v1/realtime"

    def message() -> str | bytes:
        if rng.random() < 0.15:
            return rng.choice([rng.randbytes(rng.randint(0, 200)), "{", "[" * 50_000, "\x00", '"\\ud800"'])
        event: dict[str, Any] = {"type": rng.choice(kinds)}
        for name in rng.sample(["audio", "item", "session", "response", "event_id", "item_id", "x"], rng.randint(0, 3)):
            event[name] = rng.choice([v for v in STRANGE if not isinstance(v, int) or abs(v) < 10**40])
        if rng.random() < 0.4:
            event = {
                "type": "input_audio_buffer.append",
                "audio": b64(rng.randbytes(rng.choice([2, 1000, 1001, 9600]))),
            }
        return json.dumps(event)

    for _ in range(12):
        with connect(url, max_size=None) as socket:
            socket.recv(timeout=10)
            try:
                for _ in range(60):
                    socket.send(message())
                socket.send(json.dumps({"type": "session.update", "session": {"instructions": "done"}}))
                while True:
                    event = json.loads(socket.recv(timeout=20))
                    if event["type"] == "error":
                        assert event["error"]["type"] == "invalid_request_error", event
                    if event["type"] == "session.updated" and event["session"]["instructions"] == "done":
                        break
            except ConnectionClosed as closed:
                assert closed.rcvd is not None and closed.rcvd.code != 1011, closed
    assert until(lambda: server.service.sessions == 0)
    assert_alive(server)


def test_strange_paths_and_methods(server: Server) -> None:
    rng, wire = random.Random(SEED + 4), Wire(server)
    paths = [
        "/v1/models/..%2f..%2fetc",
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page//etc/passwd",
        "/v1/",
        "/%00",
        "/v1/models/" + "x" * 3000,
    ]
    for path in paths:
        for method in ("GET", "DELETE", "PUT", "PATCH", "OPTIONS", "BREW"):
            try:
                wire.connection.request(method, path, headers={"X": "y" * rng.randint(0, 3000)})
                response = wire.connection.getresponse()
                status, body = response.status, response.read()
            except (http.client.HTTPException, ConnectionError):
                wire.connection.close()
                continue
            assert 400 <= status < 500 and b"def create_app" not in body
            if body.startswith(b"{"):
                assert_clear(status, body)


def assert_alive(server: Server) -> None:
    """It answers as before, and nothing is left behind."""
    status, body = Wire(server).post(
        "/v1/chat/completions",
        json.dumps({"model": "one", "messages": [{"role": "user", "content": "in"}], "max_tokens": 2}).encode(),
        "application/json",
    )
    assert status == 200 and json.loads(body)["choices"]
    assert until(lambda: server.service.in_work == 0 and server.service.scheduler.waiting == 0)


@pytest.mark.slow
def test_schemathesis_finds_nothing_against_the_schema(server: Server) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checked = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(
            max_examples=40,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        def check(case: Any) -> None:
            response = case.call(timeout=20)
            assert response.status_code < 500, response.text
            case.validate_response(
                response, excluded_checks=[schemathesis.checks.CHECKS.get_one(name) for name in EXCLUDED]
            )

        check()
        checked += 1
    assert checked >= 7


# A schema cannot say that a string is base64 of a recording or the name of a model that is loaded.
EXCLUDED = ("positive_data_acceptance",)
