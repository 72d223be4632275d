"""Many clients on one server: every answer checked against the one a single client gets, times, memory, 429, a restart.

    python benchmarks/serve_load.py CHECKPOINT --clips FOLDER [--clients 16] [--seconds 300] [--out FOLDER]

Starts `aura serve` itself. First each request is asked alone; then CLIENTS threads draw from the same requests (chat,
stream and transcription over clips of mixed lengths) for SECONDS; then more come at once than the server takes; at last
it is killed and started again. Prints a table and writes `serve_load.json`. Exits 1 if an answer was lost or wrong.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
SEED = 6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--clips", type=Path, required=True, help="folder with recordings of mixed lengths")
    parser.add_argument("--requests", type=int, default=24, help="different requests")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--max-requests", type=int, default=32, help="of the server")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--serve", nargs=argparse.REMAINDER, default=[], help="further options of aura serve")
    options = parser.parse_args()
    requests = make_requests(options)
    with serving(options) as server:
        alone = [ask(server.port, request) for request in requests]
        load = run_load(server, requests, [text for _, text, _ in alone], options)
        crowd = run_crowd(server, requests, options)
    restart = run_restart(requests, options)
    result = {"settings": {k: str(v) for k, v in vars(options).items()}, "alone": times([s for *_, s in alone])}
    result |= {"load": load, "beyond_the_limit": crowd, "restart": restart}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "serve_load.json").write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    return 1 if load["wrong"] or load["failed"] or crowd["other"] or not restart["same_answer"] else 0


# --- the server -----------------------------------------------------------------------------------------------


@dataclass
class Started:
    """A running `aura serve`."""

    process: subprocess.Popen[str]
    port: int
    seconds: float

    def memory(self) -> float:
        """MiB resident; 0 where the system does not say."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) / 1024
        return 0.0


def start(options: argparse.Namespace, port: int = 0) -> Started:
    begin = time.monotonic()
    command = [sys.executable, "-m", "aura", "serve", f"load={options.checkpoint}", "--port", str(port)]
    command += ["--max-requests", str(options.max_requests), *options.serve]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = process.stdout.readline() if process.stdout else ""
    if "http://" not in line:
        raise SystemExit(f"the server did not start; try: {' '.join(command[1:])}")
    return Started(
        process, int(line.split("http://")[1].split("/")[0].split(":")[1].split()[0]), time.monotonic() - begin
    )


@contextlib.contextmanager
def serving(options: argparse.Namespace) -> Iterator[Started]:
    server = start(options)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.wait(60)


# --- requests -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """One thing to ask."""

    kind: str
    path: str
    body: bytes
    content_type: str


def make_requests(options: argparse.Namespace) -> list[Request]:
    files = sorted(path for path in options.clips.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise SystemExit(f"{options.clips} holds no recordings ({', '.join(SUFFIXES)})")
    rng = random.Random(SEED)
    # Mixed lengths: one from each stretch of the files sorted by size.
    files.sort(key=lambda path: path.stat().st_size)
    picked = [files[round(i * (len(files) - 1) / max(1, options.requests - 1))] for i in range(options.requests)]
    return [
        make_request(("chat", "stream", "transcription")[i % 3], path, rng, options) for i, path in enumerate(picked)
    ]


def make_request(kind: str, path: Path, rng: random.Random, options: argparse.Namespace) -> Request:
    data = path.read_bytes()
    if kind == "transcription":
        border = uuid.UUID(int=rng.getrandbits(128)).hex
        head = f'--{border}\r\nContent-Disposition: form-data; name="model"\r\n\r\nload\r\n--{border}\r\n'
        head += f'Content-Disposition: form-data; name="file"; filename="clip{path.suffix}"\r\n\r\n'
        body = head.encode() + data + f"\r\n--{border}--\r\n".encode()
        return Request(kind, "/v1/audio/transcriptions", body, f"multipart/form-data; boundary={border}")
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
    fields = {"model": "load", "messages": [{"role": "user", "content": [part]}], "stream": kind == "stream"}
    body = json.dumps({**fields, "max_tokens": rng.randint(2, options.max_tokens)}).encode()
    return Request(kind, "/v1/chat/completions", body, "application/json")


def ask(port: int, request: Request, timeout: float = 300.0) -> tuple[int, str, float]:
    """(status, text, seconds); status 0 where the connection broke."""
    begin = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("POST", request.path, request.body, {"Content-Type": request.content_type})
        response = connection.getresponse()
        raw = response.read().decode()
        text = text_of(request.kind, raw) if response.status == 200 else raw
        return response.status, text, time.monotonic() - begin
    except (OSError, http.client.HTTPException, KeyError, ValueError) as error:
        return 0, f"{type(error).__name__}: {error}", time.monotonic() - begin
    finally:
        connection.close()


def text_of(kind: str, raw: str) -> str:
    if kind == "transcription":
        return json.loads(raw)["text"]
    if kind == "chat":
        return json.loads(raw)["choices"][0]["message"]["content"]
    lines = [line.removeprefix("data: ") for line in raw.split("\n\n") if line]
    if lines[-1] != "[DONE]":
        raise ValueError("a stream that does not end")
    return "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1])


# --- what is done with them -----------------------------------------------------------------------------------


@dataclass
class Tally:
    """What the clients saw."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def run_load(
    server: Started, requests: list[Request], expected: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    tally, end = Tally(), time.monotonic() + options.seconds
    memory = [server.memory()]

    def client(number: int) -> None:
        rng = random.Random(SEED + number)
        while time.monotonic() < end:
            index = rng.randrange(len(requests))
            status, text, seconds = ask(server.port, requests[index])
            with tally.lock:
                tally.seconds.setdefault(requests[index].kind, []).append(seconds)
                if status != 200:
                    tally.failed.append(f"{status} {text[:200]}")
                elif text != expected[index]:
                    tally.wrong.append(f"request {index}: {text[:80]!r} instead of {expected[index][:80]!r}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(options.clients)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(5.0, options.seconds / 20))
        memory.append(server.memory())
        done = sum(map(len, tally.seconds.values()))
        print(f"\r{done} answers, {max(0.0, end - time.monotonic()):.0f} s left ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    third = max(1, len(memory) // 3)
    return {
        "clients": options.clients,
        "answers": sum(map(len, tally.seconds.values())),
        "wrong": tally.wrong,
        "failed": tally.failed,
        "by_kind": {kind: times(seconds) for kind, seconds in sorted(tally.seconds.items())},
        "all": times([s for seconds in tally.seconds.values() for s in seconds]),
        "memory_mib": {"first_third": max(memory[:third]), "last_third": max(memory[-third:]), "most": max(memory)},
    }


def run_crowd(server: Started, requests: list[Request], options: argparse.Namespace) -> dict[str, Any]:
    """Three times as many at once as the server takes."""
    found: Counter[str] = Counter()
    gate = threading.Barrier(3 * options.max_requests)

    def client(number: int) -> None:
        gate.wait()
        status, text, _ = ask(server.port, requests[number % len(requests)])
        shaped = status == 200 or (status == 429 and json.loads(text)["error"]["code"] == "queue_full")
        found[str(status) if shaped else f"other: {status} {text[:100]}"] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(3 * options.max_requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = {key: count for key, count in found.items() if key.startswith("other")}
    return {"requests": len(threads), "answered": found["200"], "refused_429": found["429"], "other": other}


def run_restart(requests: list[Request], options: argparse.Namespace) -> dict[str, Any]:
    """Kill it while it works, start it on the same port, ask again."""
    server = start(options)
    _, expected, _ = ask(server.port, requests[0])
    found: list[tuple[int, str, float]] = []
    threads = [threading.Thread(target=lambda r=r: found.append(ask(server.port, r, 30))) for r in requests[:8]]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    server.process.kill()
    server.process.wait()
    for thread in threads:
        thread.join()
    again = start(options, server.port)
    try:
        status, text, _ = ask(again.port, requests[0])
    finally:
        again.process.terminate()
        again.process.wait(60)
    return {
        "broken_off": sum(status == 0 for status, *_ in found),
        "answered_before": sum(status == 200 for status, *_ in found),
        "ready_again_after_s": round(again.seconds, 2),
        "same_answer": status == 200 and text == expected,
    }


def times(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds) or [0.0]
    pick = lambda share: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)  # noqa: E731
    return {"count": len(seconds), "p50": pick(0.5), "p95": pick(0.95), "most": round(ordered[-1], 3)}


def show(result: dict[str, Any]) -> None:
    load, crowd = result["load"], result["beyond_the_limit"]
    print(f"{'':<16}{'answers':>9}{'p50 s':>9}{'p95 s':>9}{'most s':>9}")
    for name, row in [("alone", result["alone"]), *load["by_kind"].items(), ("all", load["all"])]:
        print(f"{name:<16}{row['count']:>9}{row['p50']:>9.3f}{row['p95']:>9.3f}{row['most']:>9.3f}")
    print(f"wrong {len(load['wrong'])}, failed {len(load['failed'])}; memory {load['memory_mib']}")
    print(
        f"beyond the limit: {crowd['answered']} answered, {crowd['refused_429']} got 429, other {crowd['other'] or 0}"
    )
    print(f"killed and started again: {result['restart']}")


if __name__ == "__main__":
    raise SystemExit(main())
