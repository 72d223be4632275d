"""Running the application: its socket, its signals, its end."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

import uvicorn

from aura.errors import AuraError
from aura.serve.app import create_app
from aura.serve.service import Service

LAST_WORDS = 10.0  # s after the drain in which answers that were cut off say so
SOCKET_BYTES = 4 * 1024 * 1024  # largest WebSocket message: 30 s of 24 kHz audio are 2 MB in base64


class Server(uvicorn.Server):
    """Stops taking requests at SIGTERM or Ctrl-C, lets the running ones end, then ends itself with status 0.

    Args:
        service: what is served.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        options = service.options
        super().__init__(
            uvicorn.Config(
                create_app(service),
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(options.drain + LAST_WORDS) + 1,
                ws_max_size=SOCKET_BYTES,
                ws_max_queue=8,
                lifespan="on",
            )
        )
        self.socket = listen(options.host, options.port)

    @property
    def url(self) -> str:
        host, port = self.socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def run_until_stopped(self) -> None:
        """Serve until a signal, or until `stop`."""
        try:
            self.run(sockets=[self.socket])
        finally:
            self.socket.close()

    def stop(self) -> None:
        """As SIGTERM does; from any thread."""
        self.service.draining = True
        self.should_exit = True
        if self.service.options.drain < 1e6:
            timer = threading.Timer(self.service.options.drain, lambda: self.service.scheduler.close(seconds=0))
            timer.daemon = True
            timer.start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:  # asked twice: at once
            self.force_exit = True
        self.stop()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again at the end; a drained server has ended well."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        AuraError: no such address, or another program has the port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(1024)  # who comes before the loop runs waits
    except OSError as error:
        found.close()
        raise AuraError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another with --port (0: any free one)"
        ) from error
    found.set_inheritable(True)
    return found
