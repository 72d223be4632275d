"""How sure a model is of what it wrote: two passes over prompts and answers behind the decoding, four where the audio is short.

Greedy decoding by way of `ScreenedArgmax` never sees a probability, and most callers ask for none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from aura.audio.resample import change_tempo_and_pitch, telephone_band
from aura.audio.waveform import SAMPLE_RATE
from aura.batch.collate import Example, collate
from aura.inference.generate import Generation, end_tokens, plan_batches, prompt_length
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor

# Our choice (dev/LOG.md): of words in other languages that are taken for English, the hearing adapter is seldom as sure with a
# pause around them, played faster, and by telephone; of English ones it mostly is. Played slower, it is unsure of both.
HEARD_AGAIN = (
    3.0  # seconds: audio shorter than this is heard again in each way of HEARINGS, longer audio in those of HEARD_TWICE
)
HEARD_TWICE = (
    "paused",
)  # sentences that orders are invented for seldom stay as sure; of orders the other ways lose too many
PAUSE = 0.3  # seconds of silence before and behind it then
FASTER = 1.12
HEARINGS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "paused": lambda wave_N: wave_N,
    "faster": lambda wave_N: change_tempo_and_pitch(wave_N, FASTER),
    "by telephone": telephone_band,
}
# Our choice too: a word of another language that sounds like one of ours is by itself, and nothing beside it gives it away.
LONE_WORD = 2.0  # how many times the doubt in a word counts that is the whole answer
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")  # Thai to Chinese


def is_lone_word(text: str) -> bool:
    """Whether a text is one word; never so in a script without blanks between words."""
    return len(text.split()) == 1 and not _UNSPACED.search(text)


def sureness(text: str, avg_logprob: float) -> float:
    """What is held to a bound on the mean log-probability of a text's tokens: the mean, and `LONE_WORD` times that of one word."""
    return LONE_WORD * avg_logprob if is_lone_word(text) else avg_logprob


def confidence(
    model: AuraForConditionalGeneration,
    processor: AuraProcessor,
    examples: Sequence[Example],
    generations: Sequence[Generation],
    *,
    batch_tokens: int = 2048,
) -> list[float]:
    """How sure the model is of each answer: `average_log_probs`, the lowest of two hearings, of short audio of four.

    Once as it is, and with `PAUSE` seconds of silence on either side: in each way of `HEARINGS`, or in those of `HEARD_TWICE`
    where it takes `HEARD_AGAIN` seconds or more. What would become too long for the model is heard once.

    Args:
        examples, generations, batch_tokens: see `average_log_probs`.

    Raises:
        PromptError: see `prompt_length`.
    """
    found = average_log_probs(model, processor, examples, generations, batch_tokens=batch_tokens)
    ways = [_hearings(example, model.config.max_seconds) for example in examples]
    for name, way in HEARINGS.items():
        again = [i for i, names in enumerate(ways) if name in names]
        answered = [generations[i] for i in again]
        otherwise = [_paused(examples[i], way) for i in again]
        heard = average_log_probs(model, processor, otherwise, answered, batch_tokens=batch_tokens)
        for index, value in zip(again, heard, strict=True):
            found[index] = min(found[index], value)
    return found


def _hearings(example: Example, max_seconds: float) -> tuple[str, ...]:
    """The ways in which it is heard again."""
    seconds = [len(wave_N) / SAMPLE_RATE for wave_N in example.waveforms]
    if not seconds or max(seconds) + 2 * PAUSE > max_seconds:
        return ()
    return tuple(HEARINGS) if sum(seconds) < HEARD_AGAIN else HEARD_TWICE


def _paused(example: Example, way: Callable[[np.ndarray], np.ndarray]) -> Example:
    pause = round(PAUSE * SAMPLE_RATE)
    return replace(example, waveforms=[np.pad(way(wave_N), pause) for wave_N in example.waveforms])


@torch.no_grad()
def average_log_probs(
    model: AuraForConditionalGeneration,
    processor: AuraProcessor,
    examples: Sequence[Example],
    generations: Sequence[Generation],
    *,
    batch_tokens: int = 2048,
) -> list[float]:
    """Mean log-probability (nats, at most 0) of each answer's tokens.

    Unlike in Whisper's `avg_logprob`, that the turn ends there is not counted: behind a lone word it is certain, and would
    halve the doubt in the word. Of an answer without tokens it is all there is: the log-probability that the turn ends, by
    whichever token; 0 where that did not come either. `-inf` where the logits are not finite.

    Args:
        examples: what was asked.
        generations: what was answered, in the same order.
        batch_tokens: positions of one batch.

    Raises:
        PromptError: see `prompt_length`.
    """
    most = max((len(generation.token_ids) for generation in generations), default=0)
    lengths = [prompt_length(model, processor, example) for example in examples]
    ends = torch.tensor(end_tokens(model, processor.tokenizer))
    found: dict[int, float] = {}
    was_training = model.training
    model.eval()
    try:
        for indices in plan_batches(lengths, max_new_tokens=most, batch_tokens=batch_tokens):
            asked, answered = [examples[i] for i in indices], [generations[i] for i in indices]
            found.update(zip(indices, _of_batch(model, processor, asked, answered, ends), strict=True))
    finally:
        model.train(was_training)
    return [found[index] for index in range(len(examples))]


def _of_batch(
    model: AuraForConditionalGeneration,
    processor: AuraProcessor,
    examples: Sequence[Example],
    generations: Sequence[Generation],
    ends: torch.Tensor,
) -> list[float]:
    prompts = collate(processor, examples, answer=False).to(model.device).model_inputs()
    ids_BS, mask_BS = prompts["input_ids"], prompts["attention_mask"]
    longest = max(len(generation.token_ids) for generation in generations)
    answer_BL = ids_BS.new_zeros(len(examples), longest)
    known_BL = mask_BS.new_zeros(len(examples), longest)
    for row, generation in enumerate(generations):
        answer_BL[row, : len(generation.token_ids)] = torch.tensor(generation.token_ids)
        known_BL[row, : len(generation.token_ids)] = 1
    embeds_BSD, is_audio_BS = model.embed(ids_BS, prompts.get("input_features"), prompts.get("input_features_mask"))
    # What the LLM writes is text, even the token that is reserved for audio.
    embeds_BSD = torch.cat([embeds_BSD, model.get_input_embeddings()(answer_BL)], dim=1)
    is_audio_BS = torch.cat([is_audio_BS, torch.zeros_like(answer_BL, dtype=torch.bool)], dim=1)
    passed = model.decoder_inputs(embeds_BSD, is_audio_BS, torch.cat([mask_BS, known_BL], dim=1))
    hidden_BSD = model.get_decoder()(**passed, use_cache=False).last_hidden_state
    prompt = ids_BS.shape[1]  # padded on the left: all prompts end here
    return [
        _average(model, hidden_D, answer_L, generation, ends.to(model.device))
        for hidden_D, answer_L, generation in zip(hidden_BSD[:, prompt - 1 :], answer_BL, generations, strict=True)
    ]


def _average(
    model: AuraForConditionalGeneration,
    hidden_LD: torch.Tensor,
    answer_L: torch.Tensor,
    generation: Generation,
    ends: torch.Tensor,
) -> float:
    """Of one answer, row by row: logits of a whole batch would take gigabytes.

    Args:
        hidden_LD: final hidden states from the prompt's last position on.
        answer_L: the answer, with anything behind it.
    """
    count = len(generation.token_ids)
    if not count and not generation.finished:
        return 0.0
    logs_LV = model.logits(hidden_LD[: max(1, count)]).float().log_softmax(dim=-1)
    if count:
        average = float(logs_LV.gather(1, answer_L[:count, None]).double().mean())
    else:
        average = float(logs_LV[0, ends].double().logsumexp(dim=0))
    return min(0.0, average) if math.isfinite(average) else -math.inf
