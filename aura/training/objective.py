"""What is minimised: cross entropy on the answer + lambda * layer-wise cosine distance + weight * response KL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aura.batch.collate import Batch
from aura.batch.prompt import IGNORE
from aura.distill.ctc import SpellingLoss
from aura.distill.layer_map import LayerPair
from aura.distill.loss import DistillHeads, response_kl
from aura.student.gate import GATE_KEY, decoder_layers
from aura.student.model import AuraForConditionalGeneration
from aura.training.sampled import sampled_cross_entropy


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights of the three terms at one step, and the counts they are divided by.

    Args:
        distill: lambda.
        kl: weight of the response KL.
        answer: weight of the answer's cross entropy (and of the KL), 0 while the distillation has its head start.
        ctc: weight of the spelling; micro_batches: of the step, each of which counts alike there.
        answer_tokens, patches: of the whole optimiser step, over all micro-batches and processes.
    """

    distill: float
    kl: float
    answer_tokens: int
    patches: int
    answer: float = 1.0
    ctc: float = 0.0
    micro_batches: int = 1


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Sums over one micro-batch.

    Args:
        total: scalar to call backward on, already divided by the counts of the step.
        cross_entropy: scalar, nats summed over answer tokens.
        distances: (pairs,) 1 - cosine summed over patches; empty without distillation.
        kl: scalar, summed over answer tokens.
        ctc: scalar, summed over the `spelled` tokens of transcripts.
    """

    total: torch.Tensor
    cross_entropy: torch.Tensor
    distances: torch.Tensor
    kl: torch.Tensor
    ctc: torch.Tensor
    spelled: int


class Objective(nn.Module):
    """Student and heads as one module, so that a distributed wrapper sees every trainable weight.

    Args:
        student: the model that learns.
        pairs: which student layers are compared; empty without distillation.
        heads: one per pair; None without distillation.
        sampled_vocabulary: tokens that a right one is told from while training; all of them when None.
        spelling: CTC at audio positions; None without.
    """

    def __init__(
        self,
        student: AuraForConditionalGeneration,
        pairs: Sequence[LayerPair] = (),
        heads: DistillHeads | None = None,
        *,
        sampled_vocabulary: int | None = None,
        spelling: SpellingLoss | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.pairs = tuple(pairs)
        self.heads = heads
        self.sampled_vocabulary = sampled_vocabulary
        self.spelling = spelling

    def trainable(self) -> dict[str, nn.Parameter]:
        """Names and weights that learn: LoRA, audio embedding, heads; nothing else."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def forward(self, batch: Batch, targets_LPK: torch.Tensor | None, weights: Weights) -> Losses:
        """Losses of one micro-batch.

        Args:
            batch: with labels.
            targets_LPK: (pairs, patches, K) teacher targets; None without distillation.
            weights: of this step.
        """
        layers = [pair.student for pair in self.pairs] if targets_LPK is not None else []
        spelling = self.spelling if weights.ctc and batch.spelled else None
        wanted = {*layers, *([spelling.layer] if spelling is not None else [])}
        hidden_BSD, is_audio_BS, captured = self._decode(batch, sorted(wanted))
        zero = hidden_BSD.new_zeros((), dtype=torch.float32)
        logits_NV = None
        if self.sampled_vocabulary and self.training:
            cross_entropy = sampled_cross_entropy(
                self.student, *self._answered(hidden_BSD, batch), size=self.sampled_vocabulary
            )
        else:
            logits_NV, labels_N = self._answers(hidden_BSD, batch)
            cross_entropy = nn.functional.cross_entropy(logits_NV.float(), labels_N, reduction="sum")
        total = weights.answer * cross_entropy / weights.answer_tokens
        distances = zero.new_zeros(len(layers))
        if targets_LPK is not None and self.heads is not None:
            distances = self.heads([captured[layer][is_audio_BS] for layer in layers], targets_LPK)
            total = total + weights.distill * distances.mean() / weights.patches
        ctc, spelled = zero, 0
        if spelling is not None:
            ctc, spelled = spelling(captured[spelling.layer], is_audio_BS, batch.spelled)
            total = total + weights.ctc * ctc / max(1, spelled) / weights.micro_batches
        kl = zero
        if weights.kl and batch.text is not None:
            assert logits_NV is not None  # a recipe that samples the vocabulary has no KL
            kl = response_kl(logits_NV, self._text_teacher(batch.text))
            total = total + weights.answer * weights.kl * kl / weights.answer_tokens
        if not bool(is_audio_BS.any()):
            # Nothing of the adapter took part; a distributed wrapper still waits for every gradient.
            total = total + 0.0 * sum(parameter.sum() for parameter in self.trainable().values())
        return Losses(
            total=total,
            cross_entropy=cross_entropy.detach(),
            distances=distances.detach(),
            kl=kl.detach(),
            ctc=ctc.detach(),
            spelled=spelled,
        )

    @torch.no_grad()
    def audio_states(self, batch: Batch) -> list[torch.Tensor]:
        """Hidden states at audio positions, one (P, D) per layer pair; for the calibration of the heads."""
        layers = [pair.student for pair in self.pairs]
        _, is_audio_BS, captured = self._decode(batch, layers)
        return [captured[layer][is_audio_BS] for layer in layers]

    def _decode(
        self, batch: Batch, layers: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]:
        """Final hidden states (B, S, D), where audio is (B, S), and the raw outputs of `layers`."""
        student = self.student
        embeds_BSD, is_audio_BS = student.embed(batch.input_ids, batch.input_features, batch.input_features_mask)
        inputs = student.decoder_inputs(embeds_BSD, is_audio_BS, batch.attention_mask)
        with captured_outputs(student.language_model, layers) as captured:
            hidden_BSD = student.get_decoder()(**inputs, use_cache=False).last_hidden_state
        return hidden_BSD, is_audio_BS, captured

    def _answers(self, hidden_BSD: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, V) where a label follows, and those N labels; a large vocabulary elsewhere is wasted."""
        hidden_ND, labels_N = self._answered(hidden_BSD, batch)
        return self.student.logits(hidden_ND), labels_N

    @staticmethod
    def _answered(hidden_BSD: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Final states (N, D) where a label follows, and those N labels."""
        following = batch.labels[:, 1:]
        answered = following != IGNORE
        return hidden_BSD[:, :-1][answered], following[answered]

    @torch.no_grad()
    def _text_teacher(self, text: Batch) -> torch.Tensor:
        """Logits (N, V) of the stock LLM at the same answers, reading the transcript."""
        embeds, is_audio = self.student.embed(text.input_ids)
        inputs: dict[str, Any] = self.student.decoder_inputs(embeds, is_audio, text.attention_mask)
        inputs[GATE_KEY] = "off"
        hidden = self.student.get_decoder()(**inputs, use_cache=False).last_hidden_state
        return self._answers(hidden, text)[0]


@contextlib.contextmanager
def captured_outputs(language_model: nn.Module, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Raw outputs of decoder layers (1-based) during the block.

    `output_hidden_states` would give the last layer after the final norm only.
    """
    captured: dict[int, torch.Tensor] = {}
    modules = decoder_layers(language_model)

    def keep(number: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            captured[number] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [modules[number - 1].register_forward_hook(keep(number)) for number in layers]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
