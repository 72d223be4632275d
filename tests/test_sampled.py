"""Sampled softmax: the loss over part of the vocabulary stands for the loss over all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from aura.errors import RecipeError
from aura.recipes import read_recipe
from aura.training.sampled import candidates, sampled_cross_entropy

VOCABULARY, WIDTH = 4000, 24


class Head:
    """The part of a student that the loss needs."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def get_output_embeddings(self) -> nn.Linear:
        return self.output

    def logits(self, hidden: torch.Tensor, tokens: torch.Tensor | None = None) -> torch.Tensor:
        weight = self.output.weight if tokens is None else self.output.weight[tokens]
        return nn.functional.linear(hidden, weight)


@torch.no_grad()
def losses(head: Any, size: int, seed: int) -> tuple[float, float]:
    """(whole, sampled) cross entropy per token of 16 random labels."""
    generator = torch.Generator().manual_seed(seed)
    hidden = 3.0 * torch.randn(16, WIDTH, generator=generator)
    labels = torch.randint(VOCABULARY, (16,), generator=generator)
    whole = nn.functional.cross_entropy(head.logits(hidden), labels, reduction="mean")
    return float(whole), float(sampled_cross_entropy(head, hidden, labels, size=size)) / 16


def test_the_sampled_loss_is_the_whole_one_on_average() -> None:
    head = Head()
    pairs = [losses(head, 400, seed) for seed in range(60)]
    whole, sampled = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
    assert sampled == pytest.approx(whole, abs=0.03)
    assert all(abs(w - s) < 0.5 for w, s in pairs)


def test_without_the_correction_it_would_be_too_low() -> None:
    head = Head()
    generator = torch.Generator().manual_seed(1)
    hidden, labels = torch.randn(16, WIDTH, generator=generator), torch.randint(VOCABULARY, (16,), generator=generator)
    tokens, correction = candidates(labels, VOCABULARY, 400)
    bare = nn.functional.cross_entropy(
        head.logits(hidden, tokens), torch.searchsorted(tokens, labels), reduction="mean"
    )
    whole = nn.functional.cross_entropy(head.logits(hidden), labels, reduction="mean")
    assert float(correction.max()) > 2.0
    assert float(whole - bare) > 1.0


def test_candidates_hold_every_label_and_the_lowest_ids_uncorrected() -> None:
    labels = torch.tensor([3999, 17, 2500, 17])
    tokens, correction = candidates(labels, VOCABULARY, 200)
    assert tokens.tolist() == sorted(set(tokens.tolist()))
    known = dict(zip(tokens.tolist(), correction.tolist(), strict=True))
    assert all(known[token] == 0.0 for token in [*range(100), 3999, 2500])
    drawn = [token for token in known if known[token]]
    assert 50 < len(drawn) <= 100
    # what was drawn stands for all that could have been
    assert len(drawn) * torch.tensor(known[drawn[0]]).exp().item() == pytest.approx(VOCABULARY - 102, rel=1e-4)


def test_the_same_labels_draw_the_same_tokens() -> None:
    labels = torch.tensor([3, 900, 3999])
    assert torch.equal(candidates(labels, VOCABULARY, 200)[0], candidates(labels, VOCABULARY, 200)[0])
    assert not torch.equal(candidates(labels, VOCABULARY, 200)[0], candidates(labels - 2, VOCABULARY, 200)[0])


def test_a_size_beyond_the_vocabulary_is_the_whole_loss() -> None:
    head: Any = Head()
    hidden, labels = torch.randn(4, WIDTH), torch.tensor([1, 2, 3, 3999])
    whole = nn.functional.cross_entropy(head.logits(hidden), labels, reduction="sum")
    assert torch.equal(sampled_cross_entropy(head, hidden, labels, size=VOCABULARY), whole)


def test_it_does_not_go_with_a_loss_on_whole_vocabularies() -> None:
    with pytest.raises(RecipeError, match=r"optim\.sampled_vocabulary is 100 with distill\.response_kl 1"):
        read_recipe(None, {"optim.sampled_vocabulary": 100, "distill.response_kl": 1.0})
