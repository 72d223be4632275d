"""Servers on tiny random models for tests: started in a thread on a free port of this machine, always stopped."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile
import tiny

from aura.inference.engine import Engine, load
from aura.serve.models import load_models
from aura.serve.options import ServeOptions
from aura.serve.server import Server
from aura.serve.service import Service
from aura.student.checkpoint import save_checkpoint

RATE = 16_000
KEY = "a-key-for-tests"


def checkpoints(here: Path) -> dict[str, str]:
    """Two adapters, `one` and `two`, on one LLM."""
    tiny.tiny_llm_folder("llama", here / "llm")
    for name, gate, seed in (("one", "all", 0), ("two", "audio", 0)):
        model, processor = tiny.tiny_student("llama", gate=gate, base=str(here / "llm"), seed=seed)
        if name == "two":
            tiny.train_adapter(model, scale=0.4)
        save_checkpoint(here / name, model, processor)
    return {name: str(here / name) for name in ("one", "two")}


@contextlib.contextmanager
def serving(models: Any, **options: Any) -> Iterator[Server]:
    """A running server."""
    server = Server(Service(models, ServeOptions(port=0, drain=options.pop("drain", 0.2), **options)))
    thread = threading.Thread(target=server.run_until_stopped, daemon=True)
    thread.start()
    for _ in range(200):
        if server.started or not thread.is_alive():
            break
        time.sleep(0.05)
    assert server.started
    try:
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def load_all(specs: dict[str, str]) -> Any:
    return load_models(specs, load_engine=lambda checkpoint: load(checkpoint, device="cpu"), device="cpu")


def wav(seconds: float = 1.0, *, seed: int = 0, form: str = "WAV") -> bytes:
    """A clip of noise as a file's bytes."""
    file = io.BytesIO()
    soundfile.write(file, tiny.tiny_speech(seconds, seed=seed), RATE, format=form)
    return file.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def audio_message(data: bytes, text: str | None = None, form: str = "wav") -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "input_audio", "input_audio": {"data": b64(data), "format": form}}]
    if text:
        parts.append({"type": "text", "text": text})
    return {"role": "user", "content": parts}


def engine_of(server: Server, name: str = "one") -> Engine:
    return server.service.models[name].engine


def until(condition: Any, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False
