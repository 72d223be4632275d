"""Hearing while somebody speaks: what `aura.inference` offers for it, under one name.

    session = engine.stream(prompt="Answer the question.")   # a StreamSession
    session.feed(samples)                                    # as they arrive
    for piece in session.finish(): ...                       # the first token is one short block away

`StreamPool` serves many sessions in one process, `Endpointer` hears when the speaker stops (extra `stream`).
"""

from __future__ import annotations

from aura.inference.endpoint import Endpointer
from aura.inference.stream import StreamSession
from aura.inference.stream_pool import StreamPool

__all__ = ["Endpointer", "StreamPool", "StreamSession"]
