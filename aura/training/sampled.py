"""Sampled softmax: the answer's loss over part of a large vocabulary.

With 262k tokens the output layer costs a small LLM a quarter of its training. The right tokens are told from the other
right tokens of the batch, from the lowest ids (byte-pair vocabularies number their pieces in the order of merging, so
these are the frequent ones), and from random others, whose share of the sum is scaled up to stand for all that were left
out (Jean et al., 2015, "On Using Very Large Target Vocabulary for Neural Machine Translation"). Training only: what is
validated and generated sees the whole vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from aura.student.model import AuraForConditionalGeneration


def sampled_cross_entropy(
    student: AuraForConditionalGeneration, hidden_ND: torch.Tensor, labels_N: torch.Tensor, *, size: int
) -> torch.Tensor:
    """Cross entropy summed over N answer tokens, in nats.

    The estimate of the softmax's sum is unbiased; the loss itself is too low by no more than that sum's variance. Which
    tokens are drawn depends on the labels alone, so a resumed run draws the same ones.

    Args:
        hidden_ND: final states in front of each label.
        labels_N: token ids.
        size: tokens to compare with, half of them the lowest ids; the labels of the batch come on top.
    """
    head: Any = student.get_output_embeddings()
    vocabulary = int(head.weight.shape[0])
    if not len(labels_N) or size + len(labels_N) >= vocabulary:
        return nn.functional.cross_entropy(student.logits(hidden_ND).float(), labels_N, reduction="sum")
    tokens_C, correction_C = candidates(labels_N, vocabulary, size)
    logits_NC = student.logits(hidden_ND, tokens_C).float() + correction_C
    return nn.functional.cross_entropy(logits_NC, torch.searchsorted(tokens_C, labels_N), reduction="sum")


def candidates(labels_N: torch.Tensor, vocabulary: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids to compare with, (C,) ascending, and what is added to the logit of each, (C,) in nats: 0 for those that
    are always there, log(left out and drawn / drawn) for the random ones."""
    device = labels_N.device
    always = torch.zeros(vocabulary, dtype=torch.bool, device=device)
    always[: size // 2] = True
    always[labels_N] = True
    others = (~always).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(int(labels_N.sum()) * 31 + len(labels_N))
    places = torch.randint(len(others), (size - size // 2,), generator=generator).unique()
    drawn = others[places.to(device)]
    correction = torch.zeros(vocabulary, device=device)
    correction[drawn] = math.log(len(others) / len(drawn))
    always[drawn] = True
    tokens_C = always.nonzero()[:, 0]
    return tokens_C, correction[tokens_C]
