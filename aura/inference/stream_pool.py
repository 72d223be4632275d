"""Many sessions in one process: one model, one worker thread, turns taken in a circle."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from aura.errors import ModelError
from aura.inference.pooled_session import PooledSession
from aura.inference.stream import Listener

# Our choice.
MAX_SESSIONS = 64
QUEUE_SECONDS = 5.0  # s of audio that may wait for one session: what a hiccup of the network brings at once


class StreamPool:
    """Serves its sessions by turns of one pass of the LLM, so that no speaker waits for another's whole answer.

    A session whose speaker has stopped goes before the others until its first token is out; each session has one such
    token, so nobody starves. As a context manager the pool closes itself.

    Args:
        engine: model and processor.
        max_sessions: open at once.
        queue_seconds: audio that may wait for each session; beyond, `feed` waits or refuses.
    """

    def __init__(
        self, engine: Listener, *, max_sessions: int = MAX_SESSIONS, queue_seconds: float = QUEUE_SECONDS
    ) -> None:
        self.engine = engine
        self.max_sessions = max_sessions
        self.queue_seconds = queue_seconds
        self.changed = threading.Condition()  # guards the circle, and jobs and counts of every session
        self._circle: deque[PooledSession] = deque()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="aura-stream-pool", daemon=True)
        self._worker.start()

    def __len__(self) -> int:
        """Open sessions."""
        return len(self._circle)

    def open(self, **options: Any) -> PooledSession:
        """A new session; its conversation is prefilled before this returns.

        Args:
            options: of `StreamSession`.

        Raises:
            ModelError: too many sessions, or the pool is closed.
            AuraError: as `StreamSession`.
        """
        with self.changed:
            if self._closed:
                raise ModelError("the pool of sessions is closed; open a new StreamPool")
            if len(self._circle) >= self.max_sessions:
                raise ModelError(
                    f"{len(self._circle)} sessions are open; expected at most {self.max_sessions}. Finish or cancel one, or "
                    "raise max_sessions"
                )
            session = PooledSession(self.engine, self.changed, self.queue_seconds)
            self._circle.append(session)
        session.open(options)
        return session

    def close(self) -> None:
        """Cancel every session and stop the worker."""
        with self.changed:
            self._closed = True
            for session in list(self._circle):
                session.cancel()
            self.changed.notify_all()
        self._worker.join()

    def __enter__(self) -> StreamPool:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _work(self) -> None:
        while True:
            with self.changed:
                while (session := self._next()) is None:
                    if self._closed:
                        return
                    self.changed.wait()
            session.take_turn()
            with self.changed:
                if session.over:
                    self._circle.remove(session)
                self.changed.notify_all()

    def _next(self) -> PooledSession | None:
        """Whose turn it is; that session goes to the end of the circle."""
        busy = [session for session in self._circle if session.has_work]
        if not busy:
            return None
        session = next((session for session in busy if session.is_urgent), busy[0])
        self._circle.remove(session)
        self._circle.append(session)
        return session
