"""A greedy loop of our own: prefill through the model, then lean steps; rows that are done leave the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from transformers import DynamicCache

from aura.errors import ModelError
from aura.inference.lean_pass import LeanPass
from aura.inference.lean_step import LeanStep, StepCache
from aura.inference.matvec import PRECISIONS, Precision
from aura.inference.prefix import PrefixStore
from aura.inference.screened import ScreenedArgmax, first_largest
from aura.student.cache_key import CACHE_KEY

Decode = Literal["auto", "generate", "lean", "float32", "float16", "int8"]
DECODES = ("auto", "generate", "lean", *PRECISIONS)
"""`generate`: transformers' own loop. `lean`: our loop over the LLM's own weights. A precision: our loop over copies of
the weights in it. `auto`: `lean` where it can run, else `generate`."""

LEAVE_SHARE = 0.25  # of a batch that must be done before it is made smaller: the cache is copied for it. Our choice
LONGEST = (
    2048  # positions of a lean pass: its masks grow with the square, the LLM's own code needs none for text. Our choice
)
MAX_DIFFERENCE = 1e-3  # of the check's logits, relative to the largest: float32 sums differ by 1e-5


class GreedyDecoder:
    """Answers of one model.

    Args:
        model: an aura student in eval mode, float32 on CPU. Its weights must stay as they are.
        precision: of the decode steps' copies of the weights, prefill stays as it is; None for no copies.
        screen: the output layer's argmax, instead of all logits; int8 keeps its own output layer behind the first token.

    Raises:
        ModelError: the LLM has no lean step; the message says what to choose instead.
    """

    def __init__(self, model: Any, precision: Precision | None = None, *, screen: ScreenedArgmax | None = None) -> None:
        self.model = model
        check_step(model, LeanStep(model, None))
        self.screen = screen
        self._screens_steps = screen is not None and precision != "int8"
        self.step = LeanStep(model, precision, own_head=self._screens_steps)
        self.prefixes = PrefixStore(model)
        self.own_pass = _open_pass(model, self.step if precision == "float32" else None)

    @torch.no_grad()
    def generate(
        self,
        inputs: dict[str, Any],
        *,
        max_new_tokens: int,
        ends: Sequence[int],
        take: Callable[[int, int], bool] | None = None,
        between: Callable[[], None] | None = None,
    ) -> list[list[int]]:
        """Greedy token ids of each row, its end token included.

        Args:
            inputs: `Batch.model_inputs()`, left-padded.
            max_new_tokens: of each row.
            ends: tokens that end a row.
            take: called with (row, token) for each token as it comes; True ends the row there.
            between: called after each step's tokens.
        """
        token_B, cache = self._prefill(inputs)
        mask_BS = inputs["attention_mask"]
        state = StepCache(cache, mask_BS, max_new_tokens)
        del cache
        self.step.prepare(mask_BS.shape[1] + max_new_tokens)
        position_B = mask_BS.sum(dim=1)
        answers: list[list[int]] = [[] for _ in token_B]
        rows, done = list(range(len(token_B))), [False] * len(token_B)  # of the batch as it is now
        ending = frozenset(ends)
        for count in range(max_new_tokens):
            for at, token in enumerate(token_B.tolist()):
                if not done[at]:
                    answers[rows[at]].append(token)
                    is_over = take is not None and take(rows[at], token)
                    done[at] = is_over or token in ending
            if between is not None:
                between()
            if all(done) or count + 1 == max_new_tokens:
                break
            if sum(done) >= LEAVE_SHARE * len(done):
                kept = torch.tensor([at for at, is_done in enumerate(done) if not is_done])
                state.keep(kept)
                token_B, position_B = token_B[kept], position_B[kept]
                rows, done = [rows[at] for at in kept.tolist()], [False] * len(kept)
            token_B = self.next_tokens(token_B, position_B, state)
            position_B = position_B + 1
        return answers

    def next_tokens(self, token_B: torch.Tensor, position_B: torch.Tensor, state: StepCache) -> torch.Tensor:
        """One step: tokens (B,) at their positions -> the tokens behind them."""
        hidden_BK = self.step(token_B, position_B, state)
        if self.screen is not None and self._screens_steps:
            return self.screen(hidden_BK)
        return first_largest(self.step.logits(hidden_BK))

    def _prefill(self, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
        """First token of each row (B,), and the cache."""
        ids_BS, mask_BS = inputs["input_ids"], inputs["attention_mask"]
        rest, known = dict(inputs), 0
        cache: DynamicCache | None = None
        if len(ids_BS) == 1 and bool(mask_BS.all()):
            cache, known = self.prefixes.start(ids_BS[0].tolist())
            rest["input_ids"] = ids_BS[:, known:]
            if rest.get("position_ids") is not None:
                rest["position_ids"] = rest["position_ids"][:, known:]
        audio = rest.get("input_features"), rest.get("input_features_mask")
        embeds_BSD, is_audio_BS = self.model.embed(rest["input_ids"], *audio)
        if cache is None:
            cache = DynamicCache(config=self.model.language_model.config)
        passed = self.model.decoder_inputs(embeds_BSD, is_audio_BS, mask_BS, rest.get("position_ids"), cache)
        hidden_BSK = self.states(passed, is_padded=not bool(mask_BS.all()))
        last_BK = hidden_BSK[:, -1].contiguous()  # strided rows cost the output layer a tenth
        return pick_tokens(self.model, self.screen, last_BK), cache

    def states(self, passed: dict[str, Any], *, is_padded: bool = False) -> torch.Tensor:
        """Final hidden states (B, S, K) of further positions, which the cache in `passed` then holds.

        Args:
            passed: of `decoder_inputs`.
            is_padded: the LLM's own code is left to mask the padding.
        """
        if self.own_pass is not None and not is_padded and passed["inputs_embeds"].shape[1] <= LONGEST:
            return self.own_pass(passed)
        hidden_BSK: torch.Tensor = self.model.get_decoder()(**passed, use_cache=True).last_hidden_state
        return hidden_BSK


def pick_tokens(model: Any, screen: ScreenedArgmax | None, hidden_BK: torch.Tensor) -> torch.Tensor:
    """Greedy tokens (B,) of final hidden states."""
    return model.logits(hidden_BK).float().argmax(dim=-1) if screen is None else screen(hidden_BK)


def open_decoder(model: Any, decode: str, *, screen: ScreenedArgmax | None = None) -> GreedyDecoder | None:
    """The decoder of a name in `DECODES`; None for transformers' own loop.

    Args:
        screen: see `GreedyDecoder`.

    Raises:
        ModelError: no such name, or the LLM cannot run it.
    """
    if decode not in DECODES:
        raise ModelError(f"decode is {decode!r}; expected one of {', '.join(DECODES)}")
    if decode == "generate":
        return None
    if decode in PRECISIONS:
        return GreedyDecoder(model, decode, screen=screen)  # type: ignore[arg-type]  # checked above
    try:
        return GreedyDecoder(model, screen=screen)
    except ModelError:
        if decode == "lean":
            raise
        return None


@torch.no_grad()
def _open_pass(model: Any, step: LeanStep | None) -> LeanPass | None:
    """The lean pass, where it computes what the LLM's own does on a few positions of text and audio; else None."""
    try:
        own = LeanPass(model, step)
    except ModelError:
        return None
    width = model.get_input_embeddings().weight.shape[1]
    embeds = torch.randn(1, 12, width, generator=torch.Generator().manual_seed(0)) * model.config.embedding_scale
    is_audio = torch.zeros(1, 12, dtype=torch.bool)
    is_audio[:, 4:10] = True
    found = []
    for run in (own, lambda passed: model.get_decoder()(**passed, use_cache=True).last_hidden_state):
        cache = DynamicCache(config=model.language_model.config)
        positions = torch.arange(12)[None]
        run(model.decoder_inputs(embeds[:, :8], is_audio[:, :8], None, positions[:, :8], cache))
        found.append(run(model.decoder_inputs(embeds[:, 8:], is_audio[:, 8:], None, positions[:, 8:], cache)))
    lean, plain = found
    return own if bool((lean - plain).abs().max() <= MAX_DIFFERENCE * plain.abs().max()) else None


@torch.no_grad()
def check_step(model: Any, step: LeanStep) -> None:
    """Compare two lean steps with the LLM's own passes, on a few of its tokens.

    Raises:
        ModelError: the LLM computes something else, as another version of its code may.
    """
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.linspace(0, vocabulary - 1, 12).long().unsqueeze(0)
    ids[ids == model.config.audio_token_id] = 0
    own = model(input_ids=ids, use_cache=False, logits_to_keep=2).logits[0].float()
    cache = model(input_ids=ids[:, :-2], use_cache=True, logits_to_keep=1)[CACHE_KEY]
    state = StepCache(cache, torch.ones(1, ids.shape[1] - 2), 2)
    step.prepare(ids.shape[1])
    for at in (-2, -1):
        position = torch.tensor([ids.shape[1] + at])
        found = step.logits(step(ids[:, at], position, state))[0]
        expected = own[at]
        if (found - expected).abs().max() > MAX_DIFFERENCE * expected.abs().max():
            raise ModelError(
                f"the lean decode step of {model.language_model.config.model_type} does not give what the LLM's own code of "
                "this transformers version gives; expected decode='generate' here"
            )
