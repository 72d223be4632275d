"""Messages -> token ids with one placeholder per patch, and labels on the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from aura.errors import PromptError
from aura.student.processor import AuraProcessor

IGNORE = -100  # label of positions without loss, PyTorch's default

Message = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One conversation as the LLM reads it.

    Args:
        input_ids: S token ids, the audio token at audio positions.
        labels: S ids, `IGNORE` except on answers (and on their end of turn).
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]


def user_message(text: str | None, audio_parts: int = 1) -> dict[str, Any]:
    """A user turn: audio first, then the text, if any."""
    parts: list[dict[str, str]] = [{"type": "audio"} for _ in range(audio_parts)]
    if text:
        parts.append({"type": "text", "text": text})
    return {"role": "user", "content": parts}


def count_audio(messages: Sequence[Message]) -> int:
    """Audio parts in all turns."""
    return sum(
        part.get("type") == "audio" for m in messages if not isinstance(m["content"], str) for part in m["content"]
    )


def replace_audio(messages: Sequence[Message], texts: Sequence[str]) -> list[dict[str, Any]]:
    """The same conversation with each audio part written out: what the text teacher and the text ceiling read."""
    remaining = iter(texts)
    return [
        {**m, "content": m["content"] if isinstance(m["content"], str) else _written_out(m["content"], remaining)}
        for m in messages
    ]


def _written_out(parts: Sequence[Mapping[str, str]], texts: Iterator[str]) -> str:
    # A written-out transcript stands on its own line; audio parts itself from its neighbours by being audio.
    whole, after_audio = "", False
    for part in parts:
        is_audio = part["type"] == "audio"
        text = next(texts) if is_audio else part["text"]
        parted = not whole or not text or whole[-1].isspace() or text[0].isspace()
        whole += text if parted or not (is_audio or after_audio) else f"\n{text}"
        after_audio = is_audio
    return whole


def build_prompt(
    processor: AuraProcessor, messages: Sequence[Message], patches: Sequence[int] = (), *, answer: bool
) -> Prompt:
    """Render, tokenise and expand a conversation.

    Each span between answers and each answer is tokenised on its own, so that training sees exactly the ids that
    generation starts from.

    Args:
        messages: turns; content is text or parts of `{"type": "text"}` and `{"type": "audio"}`.
        patches: audio positions of each audio part, in reading order.
        answer: True when the last turn is the assistant's (training, scoring); False adds the generation prompt.

    Raises:
        PromptError: no turns, roles or parts that are not understood, audio parts and `patches` differ in number, the
            audio token inside text, or a chat template that rewrites earlier turns.
    """
    _check(processor, messages, patches, answer=answer)
    pieces = _pieces(processor, messages, answer=answer)
    remaining = iter(patches)
    input_ids: list[int] = []
    labels: list[int] = []
    for text, is_answer in pieces:
        ids = processor.tokenizer.encode(text, add_special_tokens=False)
        if is_answer:
            kept = _until_end_of_turn(processor, ids)
            labels += ids[:kept] + [IGNORE] * (len(ids) - kept)
            input_ids += ids
            continue
        for token in ids:
            input_ids += [token] * (next(remaining) if token == processor.audio_token_id else 1)
        labels += [IGNORE] * (len(input_ids) - len(labels))
    return Prompt(input_ids=tuple(input_ids), labels=tuple(labels))


def _check(processor: AuraProcessor, messages: Sequence[Message], patches: Sequence[int], *, answer: bool) -> None:
    if not messages:
        raise PromptError("the conversation holds no messages; expected at least one user turn")
    for number, message in enumerate(messages, 1):
        fields = message if isinstance(message, Mapping) else {}
        content, role = fields.get("content"), fields.get("role")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, (list, tuple)) or role not in ("system", "user", "assistant"):
            raise PromptError(
                f"message {number} is {message!r:.120}; expected a role (system, user or assistant) and content as text "
                'or as parts such as {"type": "audio"} and {"type": "text", "text": "..."}'
            )
        for part in parts:
            kind = part.get("type") if isinstance(part, Mapping) else None
            is_text = kind == "text" and isinstance(part.get("text"), str)
            if not is_text and kind != "audio":
                raise PromptError(
                    f"message {number} holds the part {part!r:.120}; expected type 'text' (with text) or 'audio'"
                )
            if is_text and processor.audio_token in part["text"]:
                raise PromptError(
                    f"message {number} holds the text {processor.audio_token!r}, which stands for audio; leave it out"
                )
            if kind == "audio" and role == "assistant":
                raise PromptError(f"message {number} is the assistant's and holds audio; it answers in text only")
    if answer and messages[-1]["role"] != "assistant":
        raise PromptError(
            f"the last message is the {messages[-1]['role']}'s; training needs the assistant's answer last"
        )
    found = count_audio(messages)
    if found != len(patches):
        raise PromptError(f"the messages hold {found} audio part(s) but {len(patches)} audio(s) were given")


def _pieces(processor: AuraProcessor, messages: Sequence[Message], *, answer: bool) -> list[tuple[str, bool]]:
    """The rendered conversation cut into (text, is an answer)."""
    pieces: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or (not answer and index == len(messages) - 1):
            continue
        before = _render(processor, messages[:index], generation_prompt=True)
        after = _render(processor, messages[: index + 1], generation_prompt=False)
        if not before.startswith(done) or not after.startswith(before):
            raise PromptError(
                "the LLM's chat template rewrites earlier turns, so the answers of this conversation cannot be located; "
                "split it into rows with one assistant turn each"
            )
        pieces += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    if not answer:
        whole = _render(processor, messages, generation_prompt=True)
        if not whole.startswith(done):
            pieces, done = [], ""
        pieces.append((whole[len(done) :], False))
    return pieces


def _render(processor: AuraProcessor, messages: Sequence[Message], *, generation_prompt: bool) -> str:
    try:
        return processor.tokenizer.apply_chat_template(
            [dict(m) for m in messages],
            chat_template=processor.chat_template,
            add_generation_prompt=generation_prompt,
            tokenize=False,
        )
    except TemplateError as error:  # e.g. Gemma's raises on two user turns in a row
        raise PromptError(f"the LLM's chat template refuses this conversation: {error}") from error


def _until_end_of_turn(processor: AuraProcessor, ids: list[int]) -> int:
    """Length up to and with the last special token: what generation must produce, without the template's line break."""
    special = _special_ids(processor.tokenizer)
    for length in range(len(ids), 0, -1):
        if ids[length - 1] in special:
            return length
    return len(ids)


@lru_cache(maxsize=8)
def _special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    # all_special_ids alone lacks an end of turn that is nobody's EOS, such as Gemma 3's <end_of_turn>.
    marked = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset((*tokenizer.all_special_ids, *marked))
