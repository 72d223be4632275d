"""`aura serve`: adapters behind an OpenAI-compatible API and a page."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from aura.cli_speech import LoadOptions
from aura.errors import RecipeError, require

KEYS = "AURA_API_KEYS"


def serve(
    *checkpoints: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_file: Path | None = None,
    cors: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    max_requests: int = 64,
    max_sessions: int = 8,
    max_bytes: int = 25 * 1024 * 1024,
    max_recording_seconds: float = 1500.0,
    max_audio_parts: int = 16,
    max_new_tokens: int = 2048,
    timeout: float = 300.0,
    batch_tokens: int = 4096,
    drain: float = 30.0,
    log_text: bool = False,
    options: LoadOptions = LoadOptions(),  # noqa: B008  # frozen
) -> None:
    """Serve adapters: OpenAI's HTTP API, a realtime socket, and a page to talk to.

    Keys come from --api-key-file or, separated by commas, from the environment's AURA_API_KEYS.

    Args:
        checkpoints: folders of trained adapters or Hub ids, each as CKPT or NAME=CKPT; those on one LLM share it.
        host: address to listen on; by default only this machine can reach it, 0.0.0.0 is every network.
        port: 0 picks a free one.
        api_key_file: a file with one API key a line; lines that begin with # are comments.
        cors: origins whose pages may call the API, e.g. --cors https://example.org.
        hosts: further names by which clients call the server, e.g. that of a proxy in front of it.
        max_requests: requests in work or waiting; further ones get 429.
        max_sessions: realtime sessions at once.
        max_bytes: largest body of a request.
        max_recording_seconds: longest recording to transcribe, and all recordings of a chat together.
        max_audio_parts: recordings of one chat.
        max_new_tokens: largest max_tokens that a client may ask for.
        timeout: seconds a request may take.
        batch_tokens: positions per batch.
        drain: seconds that running answers get to finish after SIGTERM.
        log_text: write prompts and answers to the log, too.
    """
    for module in ("fastapi", "uvicorn", "python_multipart", "websockets", "prometheus_client"):
        require(module, extra="serve", purpose="aura serve")
    from aura.serve.logs import configure
    from aura.serve.models import load_models, parse_specs
    from aura.serve.options import ServeOptions
    from aura.serve.server import Server
    from aura.serve.service import Service

    specs = parse_specs(checkpoints)
    settings = ServeOptions(
        host=host,
        port=port,
        api_keys=read_keys(api_key_file),
        cors=cors,
        hosts=hosts,
        max_requests=max_requests,
        max_sessions=max_sessions,
        max_bytes=max_bytes,
        max_recording_seconds=max_recording_seconds,
        max_audio_parts=max_audio_parts,
        max_new_tokens=max_new_tokens,
        default_new_tokens=min(ServeOptions.default_new_tokens, max_new_tokens),
        timeout=timeout,
        batch_tokens=batch_tokens,
        drain=drain,
        log_text=log_text,
    )
    models = load_models(specs, load_engine=options.load, device=options.device)
    server = Server(Service(models, settings))
    configure()
    if not settings.api_keys and host not in ("127.0.0.1", "::1", "localhost"):
        print(f"aura: warning: {host} can be reached by others, and no API key is set ({KEYS})", file=sys.stderr)
    print(f"aura: {', '.join(models)} at {server.url} (the page: {server.url}/, the API: {server.url}/v1)", flush=True)
    server.run_until_stopped()


def read_keys(file: Path | None) -> tuple[str, ...]:
    """API keys of the environment and of a file.

    Raises:
        RecipeError: the file cannot be read, or holds no key.
    """
    keys = [key.strip() for key in os.environ.get(KEYS, "").split(",")]
    if file is not None:
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"--api-key-file {file} cannot be read ({error}); expected one key a line") from error
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            # An empty file must not open the server to everybody.
            raise RecipeError(f"--api-key-file {file} holds no key; expected one key a line")
        keys += found
    return tuple(key for key in keys if key)
