"""A session that listens while somebody speaks: audio goes through the LLM as it arrives, so the answer starts at once.

The text in front of the audio is prefilled when the session opens, and each complete block of audio when it has been
heard. At the end of speech only the last partial block, the text behind the audio and the first step of decoding remain,
however long the speech was. The result is that of the whole recording: the same token ids, as every position is computed
from the same numbers under the same mask, up to the order of floating-point sums.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch

from aura.audio.patches import SAMPLE_RATE
from aura.audio.pcm import to_float32
from aura.audio.waveform import MIN_SECONDS
from aura.batch.prompt import Message
from aura.errors import AudioError, ModelError, PromptError, RecipeError
from aura.inference.generate import end_tokens
from aura.inference.greedy import GreedyDecoder, pick_tokens
from aura.inference.lean_step import StepCache
from aura.inference.live_prompt import LivePrompt, Side
from aura.inference.patch_stream import PatchStream
from aura.inference.screened import ScreenedArgmax
from aura.inference.stream_cache import StreamCache
from aura.inference.text_so_far import TextSoFar
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor

MAX_BLOCKS = 16  # complete blocks in one pass of the LLM at most: bounds the memory of a large chunk. Our choice
MAX_NEW_TOKENS = 256
PARTIAL_TOKENS = 32


class Listener(Protocol):
    """What a session needs of an engine."""

    model: AuraForConditionalGeneration
    processor: AuraProcessor

    @property
    def lock(self) -> AbstractContextManager[Any]: ...

    @property
    def decoder(self) -> GreedyDecoder | None: ...

    @property
    def screen(self) -> ScreenedArgmax | None: ...


class StreamSession:
    """One turn of one speaker.

    A session belongs to one thread at a time; `cancel` alone may come from another. Several sessions share a model: each
    pass holds the engine's lock, for the gate of a decoder layer is state of the model.

    Args:
        engine: model and processor; its attention pattern over audio is `block` or `causal`.
        messages: the conversation so far, as for `Engine.chat`. Its last turn may hold the live audio itself, as a part
            `{"type": "audio"}` without a source; otherwise a user turn with the live audio and `prompt` is added.
        prompt: text behind the live audio; None for what training used, `""` for the audio alone.
        max_new_tokens: upper bound of the answer.
        max_seconds: longest speech; the checkpoint's own limit when None.

    Raises:
        ModelError: pattern `full`, or a front-end that looks at whole recordings.
        PromptError: messages that cannot be rendered, or that fill the LLM's context.
        AudioError: audio in `messages` that cannot be heard.
        RecipeError: an impossible `max_new_tokens` or `max_seconds`.
    """

    def __init__(
        self,
        engine: Listener,
        *,
        messages: Sequence[Message] = (),
        prompt: str | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        max_seconds: float | None = None,
    ) -> None:
        self._model, self._processor, self._lock = engine.model, engine.processor, engine.lock
        # What they need is made while somebody speaks, not when they have stopped.
        self._decoder, self._screen = engine.decoder, engine.screen
        if self._screen is not None:
            self._screen.prepare()
        self.max_seconds = _check(self._model, max_new_tokens, max_seconds)
        self.max_new_tokens = max_new_tokens
        self._audio = PatchStream(self._model, self._processor)
        self._ends = frozenset(end_tokens(self._model, self._processor.tokenizer))
        self._prompt = LivePrompt(self._model, self._processor, messages, prompt)
        self._cache = StreamCache(self._model.language_model.config)
        self._ready: list[torch.Tensor] = []  # final patches that wait for their block to be complete
        self._state = "listening"
        self._cancelled = threading.Event()
        self._answer = TextSoFar(self._processor)
        self.finished = False
        self.first_token_seconds: float | None = None
        taken = len(self._prompt.before) + len(self._prompt.behind)
        self._room = self._model.config.context_length - taken - 1
        if self._room < 1:
            raise PromptError(
                f"the conversation fills {taken} positions, but the LLM has {self._model.config.context_length} and must hear "
                "and answer as well. Shorten the conversation"
            )
        if len(self._prompt.before):
            self._forward(self._prompt.before)

    # --- listening --------------------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Heard so far."""
        return self._audio.seconds

    @property
    def block_seconds(self) -> float:
        """Speech that one block holds: what `push` must be faster than."""
        return self._model.config.block_patches / self._audio.grid.patches_per_second

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Of the answer so far, the end-of-turn token left out."""
        return tuple(self._answer.ids)

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._answer.whole

    def feed(self, samples: np.ndarray) -> None:
        """Take more of the speech; complete blocks go through the LLM before this returns.

        Args:
            samples: (n,) mono at 16 kHz, floats in [-1, 1] or integer PCM; any n from 1 up.

        Raises:
            AudioError: not such samples, more than `max_seconds` in all, or the session is over. What was heard before
                stands, and `finish` still answers it.
            PromptError: more than the LLM's context holds.
        """
        self.hear(samples)
        while self.push(MAX_BLOCKS):
            pass

    def hear(self, samples: np.ndarray) -> None:
        """The first half of `feed`: take samples and embed what is final of them."""
        self._require_listening()
        block = self._model.config.block_patches
        waiting = sum(len(patches) for patches in self._ready)
        patches = self._audio.feed(self.check(samples), least=block - waiting % block)
        if len(patches):
            self._ready.append(patches.to(self._prompt.before.embeds.dtype))

    def push(self, blocks: int = 1) -> bool:
        """The second half of `feed`: one pass of the LLM over up to `blocks` complete blocks; False when there was none."""
        self._require_listening()
        size = self._model.config.block_patches
        count = min(blocks, sum(len(patches) for patches in self._ready) // size) * size
        if not count:
            return False
        waiting = torch.cat(self._ready)
        is_audio = torch.ones(1, count, dtype=torch.bool, device=waiting.device)
        self._forward(Side(embeds=waiting[None, :count], is_audio=is_audio))
        self._ready = [waiting[count:]]
        return True

    # --- answering --------------------------------------------------------------------------------------------

    def partial(self, *, prompt: str | None = None, max_new_tokens: int = PARTIAL_TOKENS) -> str:
        """What the model writes down of the speech so far; the session goes on as if nothing had been asked.

        Args:
            prompt: text behind the audio; None for what training used, as in `Engine.transcribe`. (Where the live audio
                stands in `messages`, the text around it is kept instead.)
            max_new_tokens: upper bound; each costs a step of decoding.

        Raises:
            AudioError: the session is over.
        """
        text = ""
        for text in self.partial_steps(prompt=prompt, max_new_tokens=max_new_tokens):  # noqa: B007  # the last one counts
            pass
        return text

    def partial_steps(self, *, prompt: str | None = None, max_new_tokens: int = PARTIAL_TOKENS) -> Iterator[str]:
        """`partial` token by token: the text so far. Until it is exhausted or closed, nothing may be fed."""
        self._require_listening()
        if self.seconds < MIN_SECONDS:
            return
        behind = self._prompt.behind_with(prompt)
        text = TextSoFar(self._processor)
        memory = self._cache.remember()
        try:
            for token in self._decode(behind, max_new_tokens):
                if token in self._ends:
                    break
                text.add(token)
                yield text.whole
        finally:
            self._cache.restore(memory)

    def finish(self) -> Iterator[str]:
        """End of speech: the answer, piece by piece; joined, the pieces are `Engine.chat`'s answer.

        The work is done while the pieces are taken. Afterwards `token_ids`, `text`, `finished` (the model ended its turn
        by itself) and `first_token_seconds` (from this call on) say what came of it.

        Raises:
            AudioError: less than `MIN_SECONDS` were heard, or the session is over.
        """
        return filter(None, self.finish_steps())

    def finish_steps(self, *, called_at: float | None = None) -> Iterator[str]:
        """`finish` token by token: a piece of text, often empty, for each.

        Args:
            called_at: `time.perf_counter()` of the end of speech, where that lies before this call.
        """
        start = time.perf_counter() if called_at is None else called_at
        self._require_listening()
        if self.seconds < MIN_SECONDS:
            raise AudioError(
                f"the session heard {self.seconds:.3f} s; expected at least {MIN_SECONDS} s of speech. Feed some, or cancel()"
            )
        self._state = "answering"
        return self._answer_steps(start)

    def cancel(self) -> None:
        """Barge-in: `finish` stops before its next token, and the session is over. From any thread."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def _answer_steps(self, start: float) -> Iterator[str]:
        try:
            for token in self._decode(self._prompt.behind, self.max_new_tokens):
                if self.first_token_seconds is None:
                    self.first_token_seconds = time.perf_counter() - start
                if token in self._ends:
                    self.finished = True
                    break
                yield self._answer.add(token)
            if rest := self._answer.flush():
                yield rest
        finally:
            self._state = "over"
            self._cache.clear()
            self._ready = []

    @torch.no_grad()
    def _decode(self, behind: Side, limit: int) -> Iterator[int]:
        """Greedy token ids, the end token included."""
        patches = torch.cat([*self._ready, self._audio.rest().to(behind.embeds.dtype)])
        step = Side(
            embeds=torch.cat([patches[None], behind.embeds], dim=1),
            is_audio=torch.nn.functional.pad(behind.is_audio, (len(patches), 0), value=True),
        )
        limit = min(limit, self._model.config.context_length - self._cache.length - len(step))
        if limit < 1 or self._cancelled.is_set():
            return
        token_B = pick_tokens(self._model, self._screen, self._forward(step)[:, -1])
        yield int(token_B)
        following = self._plain_steps(token_B) if self._decoder is None else self._lean_steps(token_B, limit)
        yield from itertools.islice(following, limit - 1)

    def _plain_steps(self, token_B: torch.Tensor) -> Iterator[int]:
        """The tokens behind one."""
        while not self._cancelled.is_set():
            token_11 = token_B[None]
            embeds = self._model.get_input_embeddings()(token_11)
            hidden = self._forward(Side(embeds=embeds, is_audio=torch.zeros_like(token_11).bool()))
            token_B = pick_tokens(self._model, self._screen, hidden[:, -1])
            yield int(token_B)

    def _lean_steps(self, token_B: torch.Tensor, limit: int) -> Iterator[int]:
        """The same by the engine's own loop, on a copy of the cache."""
        assert self._decoder is not None
        past = self._cache.length
        state = StepCache(self._cache, torch.ones(1, past), limit)
        with self._lock:
            self._decoder.step.prepare(past + limit)
        for position in range(past, past + limit):
            if self._cancelled.is_set():
                return
            with self._lock:
                token_B = self._decoder.next_tokens(token_B, torch.tensor([position]), state)
            yield int(token_B)

    @torch.no_grad()
    def _forward(self, side: Side) -> torch.Tensor:
        """The decoder on the next positions, behind what the cache holds; no logits, which cost more than a block."""
        past = self._cache.length
        position_ids = torch.arange(past, past + len(side), device=side.embeds.device)[None]
        with self._lock:
            inputs = self._model.decoder_inputs(side.embeds, side.is_audio, None, position_ids, self._cache)
            if self._decoder is not None:
                return self._decoder.states(inputs)
            return self._model.get_decoder()(**inputs, use_cache=True).last_hidden_state

    # --- checks -----------------------------------------------------------------------------------------------

    def _require_listening(self) -> None:
        if self._cancelled.is_set():
            raise AudioError("the session was cancelled; start a new one with engine.stream()")
        if self._state != "listening":
            raise AudioError("the session has ended its listening with finish(); start a new one with engine.stream()")

    def check(self, samples: np.ndarray, *, heard: int | None = None) -> np.ndarray:
        """Samples as `feed` takes them, as float32.

        Args:
            heard: samples in front of them, where some have not been fed yet.

        Raises:
            AudioError, PromptError: see `feed`.
        """
        if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype.kind not in "fiu":
            shown = f"{samples.dtype} of shape {samples.shape}" if isinstance(samples, np.ndarray) else type(samples)
            raise AudioError(f"a session was fed {shown}; expected a NumPy array (n,) of mono samples at 16 kHz")
        samples = to_float32(samples)
        if not np.isfinite(samples).all():
            raise AudioError("a session was fed NaN or infinite samples; expected finite ones. Check the recorder")
        heard = self._audio.samples if heard is None else heard
        total = heard + len(samples)
        if total > round(self.max_seconds * SAMPLE_RATE):
            raise AudioError(
                f"the session heard {heard / SAMPLE_RATE:.2f} s and was fed {len(samples) / SAMPLE_RATE:.2f} s more; expected "
                f"at most {self.max_seconds:g} s in all. Call finish(), and go on in a new session"
            )
        if total and self._audio.grid.count(total) > self._room:
            raise PromptError(
                f"{total / SAMPLE_RATE:.1f} s of speech fill {self._audio.grid.count(total)} positions, but the LLM's context "
                f"has {self._room} left behind the conversation. Call finish(), or shorten the conversation"
            )
        return samples


def _check(model: AuraForConditionalGeneration, max_new_tokens: int, max_seconds: float | None) -> float:
    """The session's longest speech in seconds."""
    config = model.config
    if config.attention == "full":
        raise ModelError(
            "this checkpoint was trained with audio.attention: full, where every patch sees the whole recording, so nothing "
            "can be computed before its end; expected block or causal. Use engine.ask, or train with audio.attention: block"
        )
    if max_new_tokens < 1:
        raise RecipeError(f"max_new_tokens is {max_new_tokens}; expected at least 1")
    if max_seconds is not None and not MIN_SECONDS <= max_seconds <= config.max_seconds:
        raise RecipeError(
            f"max_seconds is {max_seconds:g}; expected {MIN_SECONDS} to {config.max_seconds:g}, the longest audio this "
            "checkpoint takes at once"
        )
    return config.max_seconds if max_seconds is None else max_seconds
