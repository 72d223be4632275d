"""Many speakers in one process: each gets what it would get alone, in fair turns, from a bounded queue."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny

from aura.errors import AudioError, ModelError, RecipeError
from aura.inference.engine import Engine
from aura.inference.pooled_session import PooledSession
from aura.inference.stream import StreamSession
from aura.inference.stream_pool import StreamPool

SPEECH = tiny.tiny_speech(8.0, seed=5)
OPTIONS: dict[str, Any] = {"prompt": "Why?", "max_new_tokens": 8}


@functools.cache
def engine() -> Engine:
    return Engine(*tiny.tiny_student("gemma3"))


def alone(wave: np.ndarray, **options: Any) -> StreamSession:
    session = engine().stream(**{**OPTIONS, **options})
    session.feed(wave)
    list(session.finish())
    return session


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for the worker, on however slow a machine."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.005)


class Held:
    """An engine whose lock the test holds, so that the worker waits in its next pass."""

    def __init__(self) -> None:
        self.model, self.processor, self.lock = engine().model, engine().processor, threading.RLock()
        self.decoder, self.screen = engine().decoder, engine().screen


def test_speakers_at_once_get_what_each_would_get_alone() -> None:
    waves = [SPEECH[n * 8000 : n * 8000 + 9000 + 8000 * n] for n in range(5)]
    expected = [alone(wave) for wave in waves]
    found: dict[int, tuple[str, PooledSession]] = {}
    partials: dict[int, str] = {}

    def speak(n: int) -> None:
        with pool.open(**OPTIONS) as session:
            buffer = np.empty(1600, np.float32)  # one buffer for all chunks, as a recorder has it
            for first in range(0, len(waves[n]), 1600):
                chunk = waves[n][first : first + 1600]
                buffer[: len(chunk)] = chunk
                session.feed(buffer[: len(chunk)])
            buffer[:] = 9.0
            partials[n] = session.partial(prompt="Why?", max_new_tokens=8)
            found[n] = "".join(session.finish()), session

    with StreamPool(engine(), queue_seconds=0.3) as pool:
        threads = [threading.Thread(target=speak, args=(n,)) for n in range(len(waves))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        until(lambda: len(pool) == 0)
    for n, single in enumerate(expected):
        text, session = found[n]
        assert text == single.text == partials[n]
        assert (session.token_ids, session.text, session.finished) == (single.token_ids, text, single.finished)
        assert session.first_token_seconds is not None and session.seconds == len(waves[n]) / 16_000
    assert len({single.token_ids for single in expected}) > 1


def test_a_full_queue_refuses_or_waits() -> None:
    held = Held()
    with StreamPool(held, queue_seconds=1.0) as pool:
        session = pool.open(**OPTIONS)
        with held.lock:  # the worker cannot do a pass
            session.feed(SPEECH[:16_000], timeout=0)
            with pytest.raises(AudioError, match=r"of audio wait in this session's queue.*expected at most 1 s"):
                session.feed(SPEECH[16_000:32_000], timeout=0.05)
            with pytest.raises(AudioError, match="wait in this session's queue"):
                session.feed(SPEECH[16_000:32_000], timeout=0)
            assert session.seconds == 1.0, "nothing of the refused samples was taken"
            waiting = threading.Thread(target=session.feed, args=(SPEECH[16_000:32_000],))
            waiting.start()
            time.sleep(0.05)
            assert waiting.is_alive()
        waiting.join(60)
        assert not waiting.is_alive()
        session.feed(SPEECH[32_000:64_000])  # longer than the queue: waits until it is empty
        assert "".join(session.finish()) == alone(SPEECH[:64_000]).text


def test_turns_go_round_and_a_first_token_goes_before_other_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = alone(SPEECH[:9000]).text
    order: list[Any] = []
    original = StreamSession._forward

    def recorded(self: StreamSession, side: Any) -> Any:
        order.append(self)
        return original(self, side)

    monkeypatch.setattr(StreamSession, "_forward", recorded)
    held = Held()
    with StreamPool(held, queue_seconds=10) as pool:
        first, second, third = (pool.open(**OPTIONS) for _ in range(3))
        names = {id(session._session): name for session, name in ((first, "a"), (second, "b"), (third, "c"))}
        third.feed(SPEECH[:9000])
        until(lambda: third.waiting_seconds == 0)
        del order[:]
        backlog = SPEECH[: 12 * 10_240 + 200]  # twelve blocks: 3, 4, 4 and 1 a turn, as a block ends 200 samples late
        with held.lock:
            first.feed(backlog)
            until(lambda: len(order) == 1)  # the worker waits in the first pass of a
            second.feed(backlog)
            answer = third.finish()
        assert "".join(answer) == expected
        until(lambda: first.waiting_seconds == second.waiting_seconds == 0)
    turns = "".join(names[id(session)] for session in order)
    assert turns[:2] == "ac", turns
    listening = turns.replace("c", "")
    assert sorted(listening) == list("aaaabbbb") and "aaa" not in listening[1:] and "bbb" not in listening, turns


def test_cancel_drops_what_waits_and_frees_the_place() -> None:
    held = Held()
    with StreamPool(held, queue_seconds=10, max_sessions=2) as pool:
        session, other = pool.open(**OPTIONS), pool.open(**OPTIONS)
        with pytest.raises(ModelError, match="2 sessions are open; expected at most 2"):
            pool.open()
        with held.lock:
            session.feed(SPEECH)
            answer = session.finish()
            session.cancel()
        assert list(answer) == [] and session.token_ids == ()
        until(lambda: len(pool) == 1)
        assert session.waiting_seconds == 0
        for call in (lambda: session.feed(SPEECH[:100]), session.partial, session.finish):
            with pytest.raises(AudioError, match="was cancelled"):
                call()
        other.feed(SPEECH[:20_000])
        assert "".join(other.finish()) == alone(SPEECH[:20_000]).text


def test_barge_in_stops_the_answer() -> None:
    with StreamPool(engine()) as pool:
        session = pool.open(prompt="Why?", max_new_tokens=400)
        session.feed(SPEECH[:20_000])
        answer = session.finish()
        next(answer)
        session.cancel()
        until(lambda: len(pool) == 0)
        assert 1 <= len(session.token_ids) < 400 and not session.finished


def test_errors_reach_the_caller_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with StreamPool(engine()) as pool:
        with pytest.raises(RecipeError, match="max_new_tokens is 0"):
            pool.open(max_new_tokens=0)
        good, bad = pool.open(**OPTIONS), pool.open(**OPTIONS, max_seconds=1.0)
        with pytest.raises(AudioError, match="expected at most 1 s in all"):
            bad.feed(SPEECH)
        with pytest.raises(AudioError, match="expected a NumPy array"):
            bad.feed([0.0])  # type: ignore[arg-type]
        with pytest.raises(AudioError, match=r"expected at least 0\.1 s of speech"):
            "".join(bad.finish())
        broken = pool.open(**OPTIONS)
        monkeypatch.setattr(broken._session, "hear", lambda samples: 1 / 0)
        broken.feed(SPEECH[:100])
        with pytest.raises(ZeroDivisionError):
            until(lambda: broken.over)
            broken.feed(SPEECH[:100])
        good.feed(SPEECH[:20_000])
        assert "".join(good.finish()) == alone(SPEECH[:20_000]).text
        with pytest.raises(AudioError, match=r"ended its listening with finish\(\)"):
            good.feed(SPEECH[:100])
        until(lambda: len(pool) == 0)


def test_a_closed_pool_lets_everybody_go() -> None:
    held = Held()
    pool = StreamPool(held, queue_seconds=10)
    session = pool.open(**OPTIONS)
    with held.lock:
        session.feed(SPEECH)
        answer = session.finish()
        closing = threading.Thread(target=pool.close)
        closing.start()
        until(lambda: session._cancelled)
    closing.join(60)
    assert not closing.is_alive() and list(answer) == [] and len(pool) == 0
    with pytest.raises(ModelError, match="pool of sessions is closed"):
        pool.open()
