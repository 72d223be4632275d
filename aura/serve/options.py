"""What a server allows: addresses, keys and every limit. All defaults are our choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from aura.errors import RecipeError

SHORTEST_KEY = 8  # characters; anything shorter is a slip of the keyboard


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Settings of one server.

    Args:
        host: address to listen on; the default is reachable from this machine only.
        port: 0 picks a free one.
        api_keys: any of them opens the API; without keys everybody who reaches the port may use it.
        cors: origins whose pages may call the API; none by default.
        hosts: further names by which clients may call the server; one on this machine only takes `localhost` and the
            hosts of `cors` without it.
        max_bytes: largest request body (25 MiB, as OpenAI's) and largest audio buffer of a realtime session.
        max_recording_seconds: longest recording to transcribe, and all recordings of a chat together.
        max_audio_parts: recordings of one chat.
        max_new_tokens: largest `max_tokens` a client may ask for.
        default_new_tokens: length of an answer at most where a client asks for nothing.
        max_requests: requests in work or waiting; the next one gets 429.
        max_sessions: realtime sessions at once.
        timeout: seconds from the arrival of a request to the end of its answer.
        idle: seconds without a message after which a realtime session is closed.
        batch_tokens: positions (prompt, answer and padding) of one batch.
        batch_window: seconds a batch waits for company.
        drain: seconds that answers in work get to finish after SIGTERM.
        log_text: write prompts' texts and answers to the log as well.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    max_bytes: int = 25 * 1024 * 1024
    max_recording_seconds: float = 1500.0
    max_audio_parts: int = 16
    max_new_tokens: int = 2048
    default_new_tokens: int = 512
    max_requests: int = 64
    max_sessions: int = 8
    timeout: float = 300.0
    idle: float = 600.0
    batch_tokens: int = 4096
    batch_window: float = 0.005
    drain: float = 30.0
    log_text: bool = False

    def __post_init__(self) -> None:
        bad = [f"{name} {value!r} (expected {wanted})" for name, value, wanted in self._impossible()]
        if bad:
            raise RecipeError(f"impossible settings of the server: {'; '.join(bad)}")

    def _impossible(self) -> list[tuple[str, Any, str]]:
        values: Mapping[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        found = [
            (name, value, "more than 0")
            for name, value in values.items()
            if name.startswith(("max_", "default_", "batch_tokens", "timeout", "idle")) and value <= 0
        ]
        found += [(name, values[name], "at least 0") for name in ("batch_window", "drain") if values[name] < 0]
        if not 0 <= self.port <= 65535:
            found.append(("port", self.port, "0 to 65535"))
        if self.default_new_tokens > self.max_new_tokens:
            found.append(
                ("default_new_tokens", self.default_new_tokens, f"at most max_new_tokens {self.max_new_tokens}")
            )
        if any(len(key) < SHORTEST_KEY for key in self.api_keys):
            found.append(("api_keys", "(not shown)", f"keys of at least {SHORTEST_KEY} characters"))
        return found
