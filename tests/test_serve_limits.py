"""The server's limits: keys, origins, sizes, the queue, time, clients that leave, and its own end."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
import torch
from serving import KEY, audio_message, b64, checkpoints, load_all, serving, until, wav

import aura.serve.chat
import aura.serve.guard
import aura.serve.scheduler
from aura.cli import main
from aura.cli_serve import read_keys
from aura.errors import RecipeError
from aura.serve.decode import decode_batch
from aura.serve.guard import hosts_of
from aura.serve.jobs import Piece, Sampling
from aura.serve.listen import audio_of_base64
from aura.serve.logs import JsonLines
from aura.serve.options import ServeOptions
from aura.serve.rows import Row
from aura.serve.server import Server


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return checkpoints(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def models(specs: dict[str, str]) -> Any:
    return load_all(specs)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Models that stop after their first token until the event is set, then take 20 ms a token."""
    go = threading.Event()

    def decode(engine: Any, jobs: Any, *, between: Any) -> None:
        def wait() -> None:
            while not go.is_set() and not all(job.cancelled or job.expired or job.over for job in jobs):
                time.sleep(0.01)
            time.sleep(0.02)
            between()

        decode_batch(engine, jobs, between=wait)

    monkeypatch.setattr(aura.serve.scheduler, "decode_batch", decode)
    yield go
    go.set()


def client_of(server: Server, key: str = "unused", **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, **{"max_retries": 0, **options})


TURN = audio_message(wav(), "the one")  # the random model answers it with whole characters from the first token on


def ask(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "one", "messages": [TURN], "max_tokens": 8, **options})


def raw(
    server: Server, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], Any]:
    connection = http.client.HTTPConnection(*server.socket.getsockname()[:2], timeout=20)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        text = response.read()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(text) if text else None
    finally:
        connection.close()


def assert_error(body: Any, code: str) -> None:
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code, body


# --- who may come in ----------------------------------------------------------------------------------------


def test_keys(models: Any) -> None:
    with serving(models, api_keys=(KEY, "another-key")) as server:
        for key in (KEY, "another-key"):
            assert [m.id for m in client_of(server, key).models.list()] == ["one", "two"]
        for key in ("wrong", KEY + "x", KEY[:-1], "ü"):
            with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)) as caught:
                ask(client_of(server, key))
            assert getattr(caught.value, "code", "invalid_api_key") == "invalid_api_key"
        status, headers, body = raw(server, "GET", "/v1/models")
        assert status == 401 and headers["www-authenticate"] == "Bearer"
        assert_error(body, "invalid_api_key")
        assert raw(server, "GET", "/metrics")[0] == 401
        assert raw(server, "GET", "/health")[0] == raw(server, "GET", "/ready")[0] == 200


def test_keys_of_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# mine\nfirst-key-1\n\nsecond-key\n")
    monkeypatch.setenv("AURA_API_KEYS", "third-key-3, ")
    assert read_keys(file) == ("third-key-3", "first-key-1", "second-key")
    file.write_text("# none\n")
    with pytest.raises(RecipeError, match="holds no key"):
        read_keys(file)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_keys(tmp_path / "missing")
    with pytest.raises(RecipeError, match="at least 8") as caught:
        ServeOptions(api_keys=("short",), port=-1)
    assert "port -1" in str(caught.value)


def test_pages_of_other_origins_are_kept_out(models: Any) -> None:
    with serving(models, cors=("https://friend.example",)) as server:
        status, _, body = raw(server, "GET", "/v1/models", headers={"Origin": "https://evil.example"})
        assert status == 403
        assert_error(body, "origin")
        status, headers, _ = raw(server, "GET", "/v1/models", headers={"Origin": "https://friend.example"})
        assert status == 200 and headers["access-control-allow-origin"] == "https://friend.example"
        assert raw(server, "GET", "/v1/models", headers={"Origin": server.url})[0] == 200
    with serving(models) as server:
        _, headers, _ = raw(server, "GET", "/v1/models", headers={"Origin": server.url})
        assert "access-control-allow-origin" not in headers


def test_foreign_names_of_this_machine_are_refused(models: Any) -> None:
    def call(server: Server, host: str) -> tuple[int, Any]:
        port = server.socket.getsockname()[1]
        host = host.replace("PORT", str(port))
        status, _, body = raw(server, "GET", "/v1/models", headers={"Host": host, "Origin": f"http://{host}"})
        return status, body

    with serving(models, cors=("https://friend.example:8443",), hosts=("mine.example",)) as server:
        for host in ("localhost:PORT", "LOCALHOST", "127.0.0.1:1", "[::1]:PORT", "friend.example", "mine.example:PORT"):
            assert call(server, host)[0] == 200, host
        for host in (
            "evil.example:PORT",
            "evil.example",
            "localhost.evil.example",
            "x@localhost",
            "[::1].evil",
            "::1",
            "",
        ):
            status, body = call(server, host)
            assert status == 403, host
            assert_error(body, "host")
    assert hosts_of(ServeOptions(host="0.0.0.0")) is None and hosts_of(ServeOptions(cors=("*",))) is None
    assert "127.0.0.2" in (hosts_of(ServeOptions(host="127.0.0.2")) or ())


def test_loopback_is_the_default_and_a_taken_port_is_one_line(
    specs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ServeOptions().host == "127.0.0.1" and not ServeOptions().cors
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", specs["one"], "--port", str(taken.getsockname()[1]), "--device", "cpu"]) == 2
    assert "choose another with --port" in capsys.readouterr().err


# --- how much -----------------------------------------------------------------------------------------------


def test_bodies_have_a_limit_announced_or_not(models: Any) -> None:
    with serving(models, max_bytes=20_000) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client_of(server), messages=[audio_message(wav(1.0))])
        assert caught.value.status_code == 413 and caught.value.code == "too_large"

        def pieces() -> Iterator[bytes]:
            for _ in range(8):
                yield b" " * 5_000

        connection = http.client.HTTPConnection(*server.socket.getsockname()[:2], timeout=20)
        connection.request(
            "POST", "/v1/chat/completions", pieces(), {"Content-Type": "application/json"}, encode_chunked=True
        )
        response = connection.getresponse()
        assert response.status == 413
        assert_error(json.loads(response.read()), "too_large")
        connection.close()
        assert ask(client_of(server), messages=[{"role": "user", "content": "in"}]).choices


def bomb(seconds: float, form: str) -> bytes:
    """Hours of silence in few bytes."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 16_000, 1, format=form) as out:
        for _ in range(int(seconds / 10)):
            out.write(np.zeros(160_000, np.float32))
    return file.getvalue()


@pytest.mark.parametrize("form", ["FLAC", "OGG", "MP3"])
def test_decompression_bombs_end_at_the_limit(models: Any, form: str) -> None:
    data = bomb(100, form)
    with serving(models, max_recording_seconds=5.0) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            client_of(server).audio.transcriptions.create(model="one", file=("a", data))
        assert caught.value.status_code == 413 and caught.value.code == "audio_too_long"


def test_an_hour_of_silence_in_a_chat_ends_at_the_limit(models: Any) -> None:
    data = bomb(3600, "FLAC")
    assert len(data) < 500_000
    with serving(models) as server:
        start = time.monotonic()
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client_of(server), messages=[audio_message(data)])
        assert caught.value.status_code == 413 and caught.value.code == "audio_too_long"
        assert time.monotonic() - start < 10


def test_many_recordings_share_one_limit_and_are_counted(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[float] = []

    def counting(text: str, *, max_seconds: float, param: str) -> Any:
        decoded.append(max_seconds)
        return audio_of_base64(text, max_seconds=max_seconds, param=param)

    monkeypatch.setattr(aura.serve.chat, "audio_of_base64", counting)
    [part] = audio_message(bomb(20, "FLAC"), form="flac")["content"]
    with serving(models, max_recording_seconds=50.0, max_audio_parts=4) as server:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(
                client_of(server),
                messages=[{"role": "user", "content": [part] * 2}, {"role": "user", "content": [part]}],
            )
        assert caught.value.status_code == 413 and caught.value.code == "audio_too_long"
        assert "together longer than 50 s" in caught.value.message
        assert decoded[-2:] == [30.0, 10.0]
        decoded.clear()
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client_of(server), messages=[{"role": "user", "content": [part] * 5}])
        assert refused.value.code == "too_many_recordings" and not decoded
        assert ask(client_of(server), messages=[audio_message(wav())]).choices


def test_a_body_that_trickles_in_gives_its_seat_back(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aura.serve.guard, "BODY_SECONDS", 0.6)
    with serving(models) as server, socket.create_connection(server.socket.getsockname()[:2], timeout=5) as slow:
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n"
        )
        start, slow_answer = time.monotonic(), b""
        slow.settimeout(0.1)
        while not slow_answer and time.monotonic() < start + 5:
            slow.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                slow_answer = slow.recv(100)
        assert b" 408 " in slow_answer and time.monotonic() - start < 3
        assert until(lambda: server.service.in_work == 0)


def test_a_bomb_behind_a_lying_header_ends_at_the_limit(models: Any) -> None:
    from aura.serve.failures import ApiError
    from aura.serve.listen import Upload, checked_source

    honest = bytearray(bomb(600, "FLAC"))
    # STREAMINFO: the 36 bits behind rate, channels and depth are the number of samples. Claim one second.
    fields = int.from_bytes(honest[18:26], "big")
    honest[18:26] = ((fields >> 36 << 36) | 16_000).to_bytes(8, "big")
    for data in (bytes(honest), bytes(honest[:4000]) + b"\xff" * 50 + bytes(honest[4050:])):
        try:
            source = checked_source(data, max_seconds=30.0, param="file")
        except ApiError as error:
            assert error.status in (400, 413)
        else:
            assert isinstance(source, Upload), "what libsndfile reads within its one second"
    unknown = bytearray(bomb(600, "FLAC"))
    unknown[18:26] = (fields >> 36 << 36).to_bytes(8, "big")  # length not stated, as a pipe writes it: ffmpeg's
    with pytest.raises(ApiError) as caught:
        checked_source(bytes(unknown), max_seconds=30.0, param="file")
    assert caught.value.status == 413


def test_beyond_the_queue_is_429_with_a_time(models: Any, slow: threading.Event) -> None:
    with serving(models, max_requests=2) as server:
        client = client_of(server)
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(ask(client))) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert until(lambda: server.service.in_work == 2)
        with pytest.raises(openai.RateLimitError) as caught:
            ask(client)
        assert caught.value.code == "queue_full" and int(caught.value.response.headers["retry-after"]) >= 1
        assert raw(server, "GET", "/health")[0] == 200, "probes are not counted"
        patient = threading.Thread(target=lambda: found.append(ask(client_of(server, max_retries=5))))
        patient.start()
        time.sleep(0.3)
        slow.set()
        for thread in (*threads, patient):
            thread.join(30)
        assert len(found) == 3 and len({reply.choices[0].message.content for reply in found}) == 1
        assert until(lambda: server.service.in_work == 0)


def test_time_is_up(models: Any, slow: threading.Event) -> None:
    with serving(models, timeout=1.5) as server:
        client = client_of(server)
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client)
        assert caught.value.status_code == 504 and caught.value.code == "timeout"
        with pytest.raises(openai.APIError, match="no whole answer within"):  # its status has been sent before
            list(ask(client, stream=True, max_tokens=400))
        with pytest.raises(openai.APIStatusError) as caught:
            client.audio.transcriptions.create(model="one", file=("a.wav", wav()))
        assert caught.value.status_code == 504
        slow.set()
        assert ask(client, max_tokens=2).choices, "the next one is answered"


# --- clients that leave ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_work(models: Any, slow: threading.Event, stream: bool) -> None:
    with serving(models) as server:
        jobs: list[Any] = []
        submit = server.service.scheduler.submit
        server.service.scheduler.submit = lambda job: (jobs.append(job), submit(job))[0]  # type: ignore[method-assign]
        body = json.dumps({"model": "one", "messages": [TURN], "max_tokens": 400, "stream": stream})
        connection = http.client.HTTPConnection(*server.socket.getsockname()[:2], timeout=20)
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        if stream:
            response = connection.getresponse()
            assert b"assistant" in response.readline()
            response.close()
        else:
            assert until(lambda: jobs and jobs[0].started)
        connection.close()
        assert until(lambda: jobs[0].cancelled is not None, 5)
        assert until(lambda: server.service.in_work == 0, 5)
        slow.set()
        assert ask(client_of(server)).choices
        assert jobs[0].over


def test_a_transcription_whose_client_leaves_ends(models: Any, slow: threading.Event) -> None:
    with serving(models) as server:
        impatient = client_of(server, timeout=0.5)
        with pytest.raises(openai.APITimeoutError):
            impatient.audio.transcriptions.create(model="one", file=("a.flac", wav(70.0, form="FLAC")))
        assert until(lambda: server.service.in_work == 0, 5)
        assert until(lambda: server.service.scheduler.waiting == 0, 5)


# --- what the model does wrong --------------------------------------------------------------------------------


def test_a_failing_batch_is_one_500_and_the_next_one_runs(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a secret path")

    with serving(models) as server:
        client = client_of(server)
        with monkeypatch.context() as patch:
            patch.setattr(aura.serve.scheduler, "decode_batch", broken)
            with pytest.raises(openai.InternalServerError) as caught:
                ask(client)
        assert caught.value.code == "internal_error" and "secret" not in caught.value.message
        assert ask(client).choices


def test_one_row_that_breaks_a_batch_does_not_break_the_others(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def decode(engine: Any, jobs: Any, *, between: Any) -> None:
        sizes.append(len(jobs))
        if any(job.sampling.seed == 13 for job in jobs):
            raise RuntimeError("probability tensor contains inf")
        if len(jobs) == 2:  # fails on its way, when the first of them has been read already
            jobs[0].emit(Piece(text="x"))
            jobs[0].heard_of = True
            raise RuntimeError("later")
        decode_batch(engine, jobs, between=between)

    def together(server: Server, *seeds: int) -> dict[int, Any]:
        found: dict[int, Any] = {}

        def one(seed: int) -> None:
            try:
                found[seed] = ask(client_of(server), seed=seed, temperature=0.5)
            except openai.APIStatusError as error:
                found[seed] = error.status_code

        threads = [threading.Thread(target=one, args=(seed,)) for seed in seeds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return found

    monkeypatch.setattr(aura.serve.scheduler, "decode_batch", decode)
    with serving(models, batch_window=1.0) as server:
        found = together(server, 1, 13, 2)
        assert sizes == [3, 1, 1, 1]
        assert found[13] == 500 and found[1].choices and found[2].choices
        sizes.clear()
        found = together(server, 1, 2)
        assert sizes == [2, 1] and sorted(map(str, found.values()))[0] == "500", "what was read cannot begin again"
        assert sum(reply != 500 for reply in found.values()) == 1


@pytest.mark.parametrize("temperature", [1e-4, 1e-5, 1e-40, 1e-300])
def test_hardly_any_temperature_takes_the_likeliest(models: Any, temperature: float) -> None:
    with serving(models) as server:
        greedy = ask(client_of(server)).choices[0].message.content
        for top_p in (1.0, 1e-300):
            assert ask(client_of(server), temperature=temperature, top_p=top_p).choices[0].message.content == greedy


def test_scores_that_are_no_numbers_still_choose() -> None:
    job: Any = SimpleNamespace(max_new_tokens=4, sampling=Sampling(temperature=0.5, top_p=0.9, seed=0))
    row = Row(job, None, (), 10)
    assert row.choose(torch.tensor([0.0, float("inf"), 1.0])) == 1
    assert row.choose(torch.tensor([0.0, float("nan"), 1.0])) == 2
    assert row.choose(torch.tensor([float("nan")] * 3)) in range(3)


@pytest.mark.parametrize("peak", [1e30, 1001.0, float("inf")])
def test_absurdly_loud_audio_is_refused(models: Any, peak: float) -> None:
    file = io.BytesIO()
    samples = np.full(16_000, 0.1, np.float32)
    samples[9_000] = -peak
    soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
    with serving(models) as server:
        client = client_of(server)
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client, messages=[audio_message(file.getvalue())])
        assert caught.value.code == "invalid_audio"
        with pytest.raises(openai.BadRequestError) as caught:
            client.audio.transcriptions.create(model="one", file=("a.wav", file.getvalue()))
        assert caught.value.code == "invalid_audio"


# --- the end --------------------------------------------------------------------------------------------------


def test_answers_cut_off_at_the_end_say_so(models: Any, slow: threading.Event) -> None:
    with serving(models, drain=0.3) as server:
        stream = ask(client_of(server), stream=True, max_tokens=400)
        next(stream)
        server.stop()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)


@pytest.fixture
def process(specs: dict[str, str]) -> Iterator[Any]:
    """`aura serve` as it is started by hand, and its address."""
    command = [sys.executable, "-m", "aura", "serve", f"one={specs['one']}", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as found:
        try:
            line = found.stdout.readline()  # type: ignore[union-attr]
            assert line.startswith("aura: one at http://127.0.0.1:"), line
            found.url = line.split()[3]  # type: ignore[attr-defined]
            yield found
        finally:
            found.kill()


def test_sigterm_lets_answers_end_and_logs_hold_no_text(process: Any) -> None:
    client = openai.OpenAI(base_url=f"{process.url}/v1", api_key="unused", max_retries=0)
    message = audio_message(wav(), "the one")
    whole = ask(client, messages=[message], max_tokens=300)
    assert whole.usage.completion_tokens > 100, "too short an answer to be interrupted"
    stream = ask(client, messages=[message], max_tokens=300, stream=True)
    pieces = [next(stream), next(stream)]
    process.send_signal(signal.SIGTERM)
    pieces += list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in pieces) == whole.choices[0].message.content
    assert process.wait(20) == 0
    with pytest.raises(openai.APIConnectionError):
        client.models.list()
    lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    answered = [line for line in lines if line.get("path") == "/v1/chat/completions"]
    assert [line["status"] for line in answered] == [200, 200]
    assert answered[0]["completion_tokens"] == whole.usage.completion_tokens and answered[0]["model"] == "one"
    log = json.dumps(lines)
    assert "the one" not in log and "content" not in log and b64(wav())[:40] not in log


def test_log_lines_are_json_whatever_is_in_them() -> None:
    record = logging.LogRecord("aura.serve", logging.INFO, "", 0, "a\nb", (), None)
    record.fields = {"path": "\ud800\n", "object": object()}
    line = JsonLines().format(record)
    assert "\n" not in line and json.loads(line)["event"] == "a\nb"
