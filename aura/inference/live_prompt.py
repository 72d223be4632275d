"""A conversation with one audio part still to come: what stands before it, and what behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aura.audio.patches import SAMPLE_RATE
from aura.batch.prompt import Message, build_prompt, user_message
from aura.errors import PromptError
from aura.inference.messages import AUDIO_KEYS, example_from_messages
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor


@dataclass(frozen=True, kw_only=True)
class Side:
    """Embedded positions in front of the live audio, or behind it.

    Args:
        embeds: (1, S, D).
        is_audio: (1, S) bool; other recordings of the conversation.
    """

    embeds: torch.Tensor
    is_audio: torch.Tensor

    def __len__(self) -> int:
        return self.embeds.shape[1]


class LivePrompt:
    """Renders, tokenises and embeds; the same ids as `build_prompt` gives for the finished recording.

    Args:
        messages, prompt: see `StreamSession`.

    Raises:
        PromptError, AudioError: see `example_from_messages` and `build_prompt`.
    """

    def __init__(
        self,
        model: AuraForConditionalGeneration,
        processor: AuraProcessor,
        messages: Sequence[Message],
        prompt: str | None,
    ) -> None:
        self._model, self._processor = model, processor
        conversation, self._live = _with_live_part(model, messages, prompt)
        self._example = example_from_messages(conversation, max_seconds=model.config.max_seconds)
        self._adds_turn = len(conversation) > len(messages)
        before, behind = self._ids(self._example.messages)
        self.before = self._embed(before, self._example.waveforms[: self._live])
        self.behind = self._embed(behind, self._example.waveforms[self._live + 1 :])

    def behind_with(self, prompt: str | None) -> Side:
        """What would stand behind the audio with another prompt; the same where `messages` hold the live turn."""
        if not self._adds_turn:
            return self.behind
        turn = user_message(self._model.config.prompt if prompt is None else prompt)
        _, behind = self._ids([*self._example.messages[:-1], turn])
        return self._embed(behind, [])

    def _ids(self, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        grid = self._processor.feature_extractor.grid
        patches = [grid.count(len(waveform)) for waveform in self._example.waveforms]
        patches[self._live] = 1
        ids = list(build_prompt(self._processor, messages, patches, answer=False).input_ids)
        audio = [index for index, token in enumerate(ids) if token == self._processor.audio_token_id]
        place = audio[sum(patches[: self._live])]
        return ids[:place], ids[place + 1 :]

    @torch.no_grad()
    def _embed(self, ids: list[int], waveforms: Sequence[np.ndarray]) -> Side:
        features: dict[str, Any] = {}
        if len(waveforms):
            features = dict(self._processor.feature_extractor(list(waveforms)).to(self._model.device))
        input_ids = torch.tensor([ids], dtype=torch.long, device=self._model.device)
        embeds, is_audio = self._model.embed(input_ids, **features)
        return Side(embeds=embeds, is_audio=is_audio)


def _with_live_part(
    model: AuraForConditionalGeneration, messages: Sequence[Message], prompt: str | None
) -> tuple[list[Any], int]:
    """The conversation with a stand-in for the live audio, and which of its audio parts that is."""
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence):
        raise PromptError(f"the conversation is {messages!r:.80}; expected a list of messages with role and content")
    stand_in = {"type": "audio", "array": np.zeros(SAMPLE_RATE, dtype=np.float32), "sampling_rate": SAMPLE_RATE}
    conversation: list[Any] = list(messages)
    places = [place for place in _audio_parts(conversation) if _is_live(conversation[place[0]]["content"][place[1]])]
    if not places:
        turn = user_message(model.config.prompt if prompt is None else prompt)
        conversation.append({**turn, "content": [stand_in, *turn["content"][1:]]})
        return conversation, len(_audio_parts(conversation)) - 1
    if prompt is not None:
        raise PromptError(
            f"prompt {prompt!r:.80} was given, and messages hold the live audio already; expected one of them. Write the text "
            "into the message"
        )
    number, index = places[-1]
    if len(places) > 1 or number != len(conversation) - 1:
        raise PromptError(
            f"{len(places)} audio part(s) come without a source, the first in message {places[0][0] + 1} of "
            f"{len(conversation)}; expected one at most, in the last message: it stands for the live audio"
        )
    content = list(conversation[number]["content"])
    content[index] = stand_in
    conversation[number] = {**conversation[number], "content": content}
    return conversation, _audio_parts(conversation).index((number, index))


def _audio_parts(messages: Sequence[Any]) -> list[tuple[int, int]]:
    """(message, part) of every audio part; what is malformed is left to the checks that follow."""
    return [
        (number, index)
        for number, message in enumerate(messages)
        if isinstance(message, Mapping) and isinstance(message.get("content"), (list, tuple))
        for index, part in enumerate(message["content"])
        if isinstance(part, Mapping) and part.get("type") == "audio"
    ]


def _is_live(part: Mapping[str, Any]) -> bool:
    return all(part.get(key) is None for key in AUDIO_KEYS)
