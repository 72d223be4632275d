"""Examples -> texts: greedy, batched by length, with a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, TextStreamer

from aura.batch.collate import Example, collate
from aura.batch.prompt import build_prompt
from aura.errors import PromptError
from aura.inference.greedy import GreedyDecoder
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor

END_OF_TURN = (
    "<end_of_turn>",
    "<turn|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<|end_of_role|>",
    "<|return|>",
)
"""How chat templates end a turn: Gemma 2 and 3, Gemma 4, Qwen and SmolLM, Llama, Phi, gpt-oss."""

Progress = Callable[[int], None]  # called with the number of examples that a batch finished


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer.

    Args:
        text: decoded without special tokens, stripped.
        token_ids: as generated, the end-of-turn token left out.
        finished: the model ended its turn by itself; False where `max_new_tokens` cut it.
    """

    text: str
    token_ids: tuple[int, ...]
    finished: bool


def generate_texts(
    model: AuraForConditionalGeneration,
    processor: AuraProcessor,
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
    batch_tokens: int = 2048,
    progress: Progress | None = None,
    stream: Callable[[str], None] | None = None,
    decoder: GreedyDecoder | None = None,
) -> list[Generation]:
    """The model's greedy answers, in the order of the examples, each as if it were alone.

    Args:
        model: in any mode; its mode is put back.
        examples: conversations that end with a user turn (a last assistant turn is not hidden: leave it out).
        max_new_tokens: upper bound of each answer.
        batch_tokens: positions (prompt, answer and padding) of one batch; a single longer example still runs.
        progress: called after each batch.
        stream: called with each piece of text as it comes; for a single example.
        decoder: the decode loop; None for transformers' own.

    Raises:
        PromptError: a conversation that cannot be rendered, or that does not fit into the LLM's context.
    """
    if max_new_tokens < 1:
        raise PromptError(f"max_new_tokens is {max_new_tokens}; expected at least 1")
    if stream is not None and len(examples) != 1:
        raise PromptError(f"{len(examples)} conversations cannot share one stream; expected 1")
    lengths = [prompt_length(model, processor, example) for example in examples]
    results: dict[int, Generation] = {}
    was_training = model.training
    model.eval()
    try:
        for indices in plan_batches(lengths, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens):
            batch = [examples[index] for index in indices]
            room = model.config.context_length - max(lengths[index] for index in indices)
            generations = _generate_batch(model, processor, batch, min(max_new_tokens, room), stream, decoder)
            results.update(zip(indices, generations, strict=True))
            if progress is not None:
                progress(len(indices))
    finally:
        model.train(was_training)
    return [results[index] for index in range(len(examples))]


def prompt_length(model: AuraForConditionalGeneration, processor: AuraProcessor, example: Example) -> int:
    """Positions of an example's prompt, one per patch of audio.

    Raises:
        PromptError: it cannot be rendered, or leaves no room for an answer in the LLM's context.
    """
    grid = processor.feature_extractor.grid
    patches = [grid.count(len(waveform)) for waveform in example.waveforms]
    length = len(build_prompt(processor, example.messages, patches, answer=False).input_ids)
    if length >= model.config.context_length:
        raise PromptError(
            f"{example.id} fills {length} positions ({sum(patches)} of them audio, "
            f"{grid.patches_per_second:g} a second), but the LLM has {model.config.context_length}. Shorten the audio or "
            "the conversation; long recordings can be written down with: aura transcribe"
        )
    return length


def greedy_config(max_new_tokens: int, *, ends: list[int], pad: int | None) -> GenerationConfig:
    """Greedy, whatever the LLM's own generation_config brings for chat (sampling, penalties); a repetition penalty would even
    look the audio placeholder up in the vocabulary.

    Args:
        ends: tokens that end an answer; pad: what stands behind it.
    """
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        eos_token_id=ends,
        pad_token_id=pad,
    )


def plan_batches(lengths: Sequence[int], *, max_new_tokens: int, batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of like length, the longest first: one too large for the memory shows at once."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        widest = lengths[batch[0]] if batch else lengths[index]
        if batch and (len(batch) + 1) * (widest + max_new_tokens) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def end_tokens(model: AuraForConditionalGeneration, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every token that may end an answer: the LLM's own, the tokenizer's, and the end of a chat turn."""
    own = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = set(own if isinstance(own, (list, tuple)) else [own])
    ids.add(tokenizer.eos_token_id)
    # One by one: a dict of the whole vocabulary takes longer than a block of audio.
    for token in END_OF_TURN:
        known: Any = tokenizer.convert_tokens_to_ids(token)  # typed for lists of tokens as well
        ids.add(None if known == tokenizer.unk_token_id else known)
    return sorted(id_ for id_ in ids if id_ is not None)


@torch.no_grad()
def _generate_batch(
    model: AuraForConditionalGeneration,
    processor: AuraProcessor,
    examples: Sequence[Example],
    max_new_tokens: int,
    stream: Callable[[str], None] | None,
    decoder: GreedyDecoder | None,
) -> list[Generation]:
    tokenizer = processor.tokenizer
    inputs = collate(processor, examples, answer=False).to(model.device).model_inputs()
    ends = end_tokens(model, tokenizer)
    streamer = None if stream is None else _Stream(tokenizer, stream)
    if decoder is None:
        answers = _generate_plainly(model, inputs, max_new_tokens, ends, tokenizer.pad_token_id, streamer)
    else:
        answers = _generate_leanly(decoder, inputs, max_new_tokens, ends, streamer)
    return [_generation(tokenizer, answer, ends) for answer in answers]


def _generate_plainly(
    model: AuraForConditionalGeneration,
    inputs: dict[str, Any],
    max_new_tokens: int,
    ends: list[int],
    pad: int,
    streamer: _Stream | None,
) -> list[list[int]]:
    config = greedy_config(max_new_tokens, ends=ends, pad=pad)
    output_BS: Any = model.generate(**inputs, generation_config=config, streamer=streamer)  # type: ignore[misc]
    answers: list[list[int]] = output_BS[:, inputs["input_ids"].shape[1] :].tolist()
    return answers


def _generate_leanly(
    decoder: GreedyDecoder,
    inputs: dict[str, Any],
    max_new_tokens: int,
    ends: list[int],
    streamer: _Stream | None,
) -> list[list[int]]:
    if streamer is None:
        return decoder.generate(inputs, max_new_tokens=max_new_tokens, ends=ends)
    streamer.put(inputs["input_ids"])  # the prompt, which it skips

    def write(row: int, token: int) -> bool:
        if row == 0:
            streamer.put(torch.tensor([token]))
        return False

    answers = decoder.generate(inputs, max_new_tokens=max_new_tokens, ends=ends, take=write)
    streamer.end()
    return answers


def _generation(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], ends: Sequence[int]) -> Generation:
    length = next((index for index, token in enumerate(token_ids) if token in ends), None)
    kept = token_ids[:length]
    text = str(tokenizer.decode(kept, skip_special_tokens=True)).strip()
    return Generation(text=text, token_ids=tuple(kept), finished=length is not None)


class _Stream(TextStreamer):
    """Whole words, as they come, to a function; without the blank before the first one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write
        self.started = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if not self.started:
            text = text.lstrip()
        if text:
            self.started = True
            self.write(text)
