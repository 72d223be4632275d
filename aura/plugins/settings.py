"""A task's generation settings, in the names that Hugging Face and evaluation toolkits use -> what decides a greedy answer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aura.errors import PromptError

MAX_NEW_TOKENS = 256  # where a task does not say; as most models of lmms-eval
DECODING = ("do_sample", "temperature", "top_p", "top_k", "num_beams")
READ = ("max_new_tokens", "max_gen_toks", "until", *DECODING)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides an answer.

    Args:
        max_new_tokens: upper bound of an answer.
        until: the answer ends in front of the first of these.
    """

    max_new_tokens: int
    until: tuple[str, ...]

    def cut(self, text: str) -> str:
        """The answer in front of the first stop text."""
        for end in self.until:
            text = text.split(end)[0]
        return text


def read_settings(given: Mapping[str, Any] | None, *, task: str) -> Settings:
    """A task's generation settings; what greedy decoding has no use for is warned of, once a task.

    Args:
        given: by the task, or on the toolkit's command line.
        task: its name, for messages.

    Raises:
        PromptError: a value that is not understood.
    """
    given = given or {}
    limit = given.get("max_new_tokens", given.get("max_gen_toks"))
    limit = MAX_NEW_TOKENS if limit is None else limit
    until = given.get("until")
    ends = [until] if isinstance(until, str) else list(until or ())
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or limit < 1 or limit != int(limit):
        raise PromptError(f"{task}: max_new_tokens is {limit!r}; expected a whole number from 1 on")
    if not all(isinstance(end, str) for end in ends):
        raise PromptError(f"{task}: until is {until!r}; expected a text or a list of texts")
    if _is_not_greedy(given):
        wanted = ", ".join(f"{key}={given[key]}" for key in DECODING if given.get(key) is not None)
        warnings.warn(f"{task} asks for {wanted}; aura decodes greedily instead", stacklevel=2)
    if unread := sorted(set(given) - set(READ)):
        warnings.warn(f"{task}: generation settings without effect here: {', '.join(unread)}", stacklevel=2)
    return Settings(max_new_tokens=int(limit), until=tuple(end for end in ends if end))


def _is_not_greedy(given: Mapping[str, Any]) -> bool:
    samples, temperature = given.get("do_sample"), given.get("temperature")
    if samples is None:  # as lmms-eval's own models: a temperature alone asks for sampling
        samples = bool(temperature)
    return (bool(samples) and temperature != 0) or int(given.get("num_beams") or 1) > 1
