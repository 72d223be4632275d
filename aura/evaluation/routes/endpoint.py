"""The endpoint route: any OpenAI-compatible server whose chat completions take `input_audio`."""

from __future__ import annotations

import base64
import io
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from aura.audio.patches import SAMPLE_RATE
from aura.errors import AuraError, ModelError, PromptError, RecipeError, require
from aura.evaluation.routes.answering import failed
from aura.evaluation.routes.route import Progress, Question, Reply, RouteFacts


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """How a server is asked.

    Args:
        url: base, up to and with `/v1`.
        model: its name there; the only one that the server lists when None.
        api_key: None takes it from the environment's OPENAI_API_KEY, and sends a placeholder where there is none.
        concurrency: requests under way at once.
        timeout: seconds for one request.
        retries: after a failed connection, a time-out, 408, 409, 429 or 5xx; the client waits longer each time.
        limit_field: how the server calls the bound on new tokens: `max_tokens` nearly everywhere,
            `max_completion_tokens` at OpenAI.
    """

    url: str
    model: str | None = None
    api_key: str | None = None
    concurrency: int = 4
    timeout: float = 120.0
    retries: int = 4
    limit_field: str = "max_tokens"

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise RecipeError(f"the endpoint is {self.url!r}; expected a URL such as http://localhost:8000/v1")
        if self.concurrency < 1 or self.timeout <= 0 or self.retries < 0:
            raise RecipeError(
                f"concurrency is {self.concurrency}, timeout {self.timeout:g} s and retries {self.retries}; expected at "
                "least 1, more than 0 and at least 0"
            )


class EndpointRoute:
    """A server's model as a route. What it does inside, nobody here can tell: no parameters, no likelihoods.

    Raises:
        MissingExtraError: the `openai` client is not installed.
        ModelError: the server cannot be reached, or lists several models and none was chosen.
    """

    def __init__(self, options: EndpointOptions, *, name: str = "endpoint") -> None:
        self._openai = require("openai", extra="eval", purpose="the endpoint route")
        self.options = options
        self.client: Any = self._openai.OpenAI(
            base_url=options.url,
            api_key=options.api_key or os.environ.get("OPENAI_API_KEY") or "none",
            timeout=options.timeout,
            max_retries=options.retries,
        )
        self.model = options.model or self._only_model()
        self.facts = RouteFacts(
            name=name,
            kind="endpoint",
            settings={"url": options.url, "model": self.model, "temperature": 0.0, "audio": "wav, 16 bit, 16 kHz"},
            parameters=None,
            bytes_on_disk=None,
        )

    def answer(
        self, questions: Sequence[Question], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        start = time.perf_counter()
        replies: dict[int, Reply] = {}
        with ThreadPoolExecutor(max_workers=self.options.concurrency) as pool:
            asked = {pool.submit(self._ask, question, max_new_tokens): at for at, question in enumerate(questions)}
            try:
                for future in as_completed(asked):
                    replies[asked[future]] = future.result()
                    if progress is not None:
                        progress(1)
            except BaseException:  # Ctrl-C: what has not begun never begins
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        # Requests run side by side: their shares add up to what passed on the clock.
        waited = sum(reply.wall_seconds for reply in replies.values())
        share = (time.perf_counter() - start) / waited if waited else 0.0
        return [replace(replies[at], wall_seconds=replies[at].wall_seconds * share) for at in range(len(questions))]

    def first_token(self, question: Question) -> float:
        start = time.perf_counter()
        try:
            with self._request(question, max_new_tokens=8, stream=True) as chunks:
                for chunk in chunks:
                    if chunk.choices and chunk.choices[0].delta.content:
                        return time.perf_counter() - start
        except AuraError:
            raise
        except Exception as error:  # a stream that breaks off shows as an error of the client's HTTP library
            raise self._explained(error) from error
        raise ModelError(f"{self.options.url} ended its stream for {question.id} without a word")

    def score(self, question: Question, options: Sequence[str]) -> list[float]:
        raise ModelError(
            f"{self.options.url} gives no likelihood of a given answer; score options with a route that runs here, or "
            "let the endpoint answer with the option's name"
        )

    def _ask(self, question: Question, max_new_tokens: int) -> Reply:
        start = time.perf_counter()
        try:
            completion = self._request(question, max_new_tokens=max_new_tokens, stream=False)
            text, finished = _content(completion)
        except AuraError as error:
            return failed(error, seconds=time.perf_counter() - start)
        except Exception as error:  # whatever a server sends back, it is this question's failure
            return failed(self._explained(error), seconds=time.perf_counter() - start)
        usage = getattr(completion, "usage", None)
        return Reply(
            text=text,
            finished=finished,
            new_tokens=getattr(usage, "completion_tokens", None) or 0,
            wall_seconds=time.perf_counter() - start,
        )

    def _request(self, question: Question, *, max_new_tokens: int, stream: bool) -> Any:
        return self.client.chat.completions.create(
            model=self.model,
            messages=with_audio(question),
            temperature=0.0,
            stream=stream,
            extra_body={self.options.limit_field: max_new_tokens},
        )

    def _only_model(self) -> str:
        try:
            names = [model.id for model in self.client.models.list()]
        except self._openai.OpenAIError as error:
            raise self._explained(error) from error
        if len(names) != 1:
            raise ModelError(
                f"{self.options.url} lists {len(names)} models ({', '.join(names[:5])}); expected one. Name the model"
            )
        return str(names[0])

    def _explained(self, error: Exception) -> ModelError:
        line = " ".join(str(error).split())[:300]
        return ModelError(f"{self.options.url} failed: {type(error).__name__}: {line}")


def with_audio(question: Question) -> list[dict[str, Any]]:
    """The conversation in OpenAI's form, its audio parts as base64 wav.

    Raises:
        PromptError: audio parts and waveforms differ in number.
    """
    remaining = iter(question.waveforms)
    messages: list[dict[str, Any]] = []
    used = 0
    for message in question.messages:
        content = message["content"]
        if not isinstance(content, str):
            parts: list[dict[str, Any]] = []
            for part in content:
                if part["type"] != "audio":
                    parts.append({"type": "text", "text": part["text"]})
                    continue
                used += 1
                if used <= len(question.waveforms):
                    parts.append(
                        {"type": "input_audio", "input_audio": {"data": wav_base64(next(remaining)), "format": "wav"}}
                    )
            content = parts
        messages.append({"role": message["role"], "content": content})
    if used != len(question.waveforms):
        raise PromptError(
            f"{question.id} holds {used} audio part(s) but {len(question.waveforms)} waveform(s); expected one for each"
        )
    return messages


def wav_base64(wave_N: np.ndarray) -> str:
    """Mono float32 at 16 kHz -> a 16-bit wav file in base64; louder than full scale is cut."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(wave_N, -1.0, 1.0), SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _content(completion: Any) -> tuple[str, bool]:
    """Text of a completion, and whether the model ended it by itself."""
    choices = getattr(completion, "choices", None) or []
    text = choices[0].message.content if choices else None
    if not isinstance(text, str):
        why = choices[0].finish_reason if choices else "no choices"
        raise ModelError(f"the endpoint answered without a text ({why})")
    return text.strip(), choices[0].finish_reason == "stop"
