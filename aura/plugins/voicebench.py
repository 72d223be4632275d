"""aura as a `VoiceAssistant` of VoiceBench; usable without VoiceBench installed.

VoiceBench builds its models without arguments, from a table in `src/models/__init__.py`:

    model_cls_mapping["aura"] = functools.partial(AuraAssistant, "runs/demo/checkpoint")
"""

from __future__ import annotations

import os
import time
from typing import Any

from aura.batch.collate import Example
from aura.batch.prompt import Message, user_message
from aura.inference.engine import Engine, load
from aura.plugins.audio import load_handed

MAX_NEW_TOKENS = 2048  # VoiceBench's default


class AuraAssistant:
    """A checkpoint that VoiceBench can ask. Greedy; an item that cannot be answered raises.

    Args:
        checkpoint: folder or Hub id, or an `Engine`.
        system: a system turn in front of every question; none by default.
        prompt: text behind the audio; none by default: in VoiceBench the recording is the question.
        llm, dtype, device: see `aura.load`.

    Raises:
        AuraError: the checkpoint cannot be loaded.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | Engine,
        *,
        system: str | None = None,
        prompt: str | None = None,
        llm: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
    ) -> None:
        if not isinstance(checkpoint, Engine):
            checkpoint = load(checkpoint, llm=llm, dtype=dtype, device=device)
        self.engine = checkpoint
        self.system = system
        self.prompt = prompt

    def generate_audio(self, audio: Any, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """The answer to a spoken question.

        Args:
            audio: `{"array", "sampling_rate"}`, or another form that `load_handed` takes.

        Raises:
            PromptError, AudioError: it cannot be heard, is too long, or does not fit.
        """
        limit = self.engine.model.config.max_seconds
        wave_N = load_handed(audio, max_seconds=limit, place="the question")
        return self._answer(
            Example(id="the question", messages=self._turns(self.prompt, 1), waveforms=[wave_N]), max_new_tokens
        )

    def generate_text(self, text: str, max_new_tokens: int = MAX_NEW_TOKENS) -> str:
        """The answer to a written question: VoiceBench's upper bound.

        Raises:
            PromptError: it cannot be rendered, or does not fit.
        """
        return self._answer(Example(id="the question", messages=self._turns(text, 0), waveforms=[]), max_new_tokens)

    def generate_ttft(self, audio: Any) -> float:
        """Seconds from the end of a spoken question to the first token of the answer."""
        start = time.perf_counter()
        self.generate_audio(audio, max_new_tokens=1)
        return time.perf_counter() - start

    def _turns(self, text: str | None, audio_parts: int) -> list[Message]:
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, user_message(text, audio_parts)]

    def _answer(self, example: Example, max_new_tokens: int) -> str:
        [answer] = self.engine.generate([example], max_new_tokens=max_new_tokens)
        return answer.text
