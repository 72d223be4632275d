"""`aura.load(checkpoint)`: one model that transcribes, answers and chats."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch

from aura.batch.collate import Example
from aura.batch.prompt import Message, user_message
from aura.errors import AuraError, ModelError
from aura.inference.confidence import confidence
from aura.inference.generate import Generation, Progress, generate_texts
from aura.inference.greedy import DECODES, PRECISIONS, GreedyDecoder, open_decoder
from aura.inference.messages import example_from_messages, load_limited
from aura.inference.screened import open_screen
from aura.inference.stream import StreamSession
from aura.inference.transcribe import MAX_NEW_TOKENS, Transcript, transcribe_each
from aura.student.checkpoint import load_checkpoint
from aura.student.lora import lora_parameters
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor

DTYPES = ("float32", "bfloat16", "float16")


class Engine:
    """A checkpoint in memory.

    Args:
        model: on its device.
        processor: of the same checkpoint.
        checkpoint: where it came from, for reports.
        decode: how answers are decoded, see `aura.inference.greedy.DECODES`.
        screen: read the output layer through an 8-bit copy where that gives the same tokens, see `ScreenedArgmax`. Its byte a
            weight is taken when a session opens, or after about a hundred tokens.
    """

    def __init__(
        self,
        model: AuraForConditionalGeneration,
        processor: AuraProcessor,
        *,
        checkpoint: str = "a model in memory",
        decode: str = "auto",
        screen: bool = True,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.checkpoint = checkpoint
        self.decode = decode
        # One pass at a time: the gate of a decoder layer is state of the model.
        self.lock = threading.RLock()
        self.screen = open_screen(self.model) if screen else None  # one for all; its copy is made later

    @cached_property
    def digest(self) -> str:
        """Hash of what was learnt (adapter and audio embedding): the same for equal checkpoints anywhere."""
        learnt = lora_parameters(self.model.language_model) + list(self.model.audio_embedding.named_parameters())
        sha = hashlib.sha256()
        for name, parameter in learnt:
            sha.update(name.encode() + parameter.detach().float().cpu().numpy().tobytes())
        return sha.hexdigest()[:16]

    @cached_property
    def decoder(self) -> GreedyDecoder | None:
        """The decode loop, made at first use; None for transformers' own.

        Raises:
            ModelError: this LLM or machine cannot decode so.
        """
        with self.lock:
            return open_decoder(self.model, self.decode, screen=self.screen)

    def warm(self) -> None:
        """Make what decoding needs now, not while somebody waits.

        Raises:
            ModelError: see `decoder`.
        """
        _ = self.decoder
        if self.screen is not None:
            self.screen.prepare()

    def transcribe(
        self,
        source: Any,
        *,
        prompt: str | None = None,
        window: float | None = None,
        overlap: float | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_tokens: int = 2048,
        min_avg_logprob: float | None = None,
        lone_words: bool | None = None,
        scores: bool = False,
    ) -> Transcript | list[Transcript]:
        """What is said, in recordings of any length.

        Args:
            source: path, bytes, file object or Hugging Face audio dict (an array comes as
                `{"array", "sampling_rate"}`), or a list of them; the windows of all are batched together.
            prompt: text behind the audio; None for what training used, `""` for the audio alone.
            window: seconds heard at once, at most; 30 by default.
            overlap: seconds that two windows share where no pause lies near their border; 2 by default.
            max_new_tokens: per window.
            batch_tokens: see `generate_texts`.
            min_avg_logprob, lone_words, scores: leave out what the model is unsure of; see `transcribe_each`.

        Returns:
            a `Transcript`, or a list of them for a list.

        Raises:
            AudioError: a recording that cannot be heard.
        """
        sources = list(source) if isinstance(source, (list, tuple)) else [source]
        found: dict[int, Transcript] = {}
        for index, result in transcribe_each(
            self,
            sources,
            prompt=prompt,
            window=window,
            overlap=overlap,
            max_new_tokens=max_new_tokens,
            batch_tokens=batch_tokens,
            min_avg_logprob=min_avg_logprob,
            lone_words=lone_words,
            scores=scores,
        ):
            if isinstance(result, AuraError):
                raise result
            found[index] = result
        return [found[i] for i in range(len(sources))] if isinstance(source, (list, tuple)) else found[0]

    def ask(
        self,
        audio: Any,
        question: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        stream: Callable[[str], None] | None = None,
    ) -> str:
        """The answer to a question about a recording (or a list of them, heard in order).

        Raises:
            AudioError: audio that cannot be heard, or longer than the checkpoint takes at once.
            PromptError: it does not fit into the LLM's context.
        """
        sources = list(audio) if isinstance(audio, (list, tuple)) else [audio]
        waveforms = [load_limited(source, max_seconds=self.model.config.max_seconds) for source in sources]
        example = Example(id="the question", messages=[user_message(question, len(sources))], waveforms=waveforms)
        return self._one(example, max_new_tokens, stream)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        stream: Callable[[str], None] | None = None,
    ) -> str:
        """The assistant's next turn.

        Args:
            messages: turns of `{"role", "content"}`; content is text or parts such as
                `{"type": "text", "text": ...}` and `{"type": "audio", "audio": path, bytes or array}`, an
                array with `"sampling_rate"`.
            stream: called with each piece of the answer as it comes.

        Raises:
            PromptError: messages that cannot be rendered, or do not fit into the LLM's context.
            AudioError: audio that cannot be heard, or longer than the checkpoint takes at once.
        """
        example = example_from_messages(messages, max_seconds=self.model.config.max_seconds)
        return self._one(example, max_new_tokens, stream)

    def stream(self, **options: Any) -> StreamSession:
        """A session that is fed audio while somebody speaks, and answers when they stop.

        Args:
            options: of `StreamSession`: messages, prompt, max_new_tokens, max_seconds.

        Raises:
            ModelError: a checkpoint that cannot stream (attention pattern `full`, or a bridge).
            PromptError, AudioError: as `chat`.
        """
        return StreamSession(self, **options)

    def generate(
        self,
        examples: Sequence[Example],
        *,
        max_new_tokens: int,
        batch_tokens: int = 2048,
        progress: Progress | None = None,
    ) -> list[Generation]:
        """Greedy answers to decoded conversations; see `generate_texts`."""
        with self.lock:
            return generate_texts(
                self.model,
                self.processor,
                examples,
                max_new_tokens=max_new_tokens,
                batch_tokens=batch_tokens,
                progress=progress,
                decoder=self.decoder,
            )

    def confidence(
        self, examples: Sequence[Example], generations: Sequence[Generation], *, batch_tokens: int = 2048
    ) -> list[float]:
        """How sure the model is of answers that it gave; see `aura.inference.confidence`."""
        with self.lock:
            return confidence(self.model, self.processor, examples, generations, batch_tokens=batch_tokens)

    def _one(self, example: Example, max_new_tokens: int, stream: Callable[[str], None] | None) -> str:
        with self.lock:
            [answer] = generate_texts(
                self.model,
                self.processor,
                [example],
                max_new_tokens=max_new_tokens,
                stream=stream,
                decoder=self.decoder,
            )
        return answer.text


def load(
    checkpoint: str | os.PathLike[str],
    *,
    llm: str | None = None,
    encoder: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    attn_implementation: str = "sdpa",
    decode: str = "auto",
    screen: bool = True,
) -> Engine:
    """Checkpoint folder or Hub id -> `Engine`. No speech encoder is loaded: only a bridge, the baseline, has one.

    Args:
        llm: reference to load the LLM from, instead of the one named in the checkpoint.
        encoder: the same for the speech encoder of a bridge.
        dtype: of the LLM's weights: float32, bfloat16 or float16.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1` ...
        attn_implementation: `sdpa` or `eager`.
        decode: on CPU in float32: `lean` (the LLM's own weights), or a copy of the weights that decodes faster: `float32`,
            `float16`, `int8`; `generate` is transformers' own loop, `auto` is `lean` where that can run.
        screen: see `Engine`; the tokens are the same without.

    Raises:
        CheckpointError: no checkpoint, or one of another LLM.
        ModelReferenceError: the LLM cannot be found.
        ModelError: no such device, dtype or way to decode.
    """
    if decode not in DECODES:
        raise ModelError(f"decode is {decode!r}; expected one of {', '.join(DECODES)}")
    if dtype not in DTYPES:
        raise ModelError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    place = pick_device(device)
    model, processor = load_checkpoint(
        checkpoint, llm=llm, encoder=encoder, dtype=dtype, attn_implementation=attn_implementation
    )
    model.to(place)  # type: ignore[arg-type]  # its decorator hides the signature
    engine = Engine(model, processor, checkpoint=os.fspath(checkpoint), decode=decode, screen=screen)
    if decode in PRECISIONS:
        engine.warm()
    return engine


def pick_device(device: str) -> torch.device:
    """Device by name, `auto` for a GPU where there is one.

    Raises:
        ModelError: unknown, or not on this machine.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device is {device!r}; expected auto, cpu, cuda or cuda:<number>") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ModelError(
            f"device is {device}; this machine has {torch.cuda.device_count()} CUDA device(s). Use --device cpu"
        )
    return place
