"""CTC at audio positions: the loss of all alignments, rows without transcripts, and what it teaches."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from aura.batch.collate import Example, collate
from aura.batch.prompt import user_message
from aura.distill.ctc import SpellingLoss
from aura.training.loop import train

BLANK = 0


def scores_of(loss: SpellingLoss, hidden_PD: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """log p (P, 1 + tokens) as the loss sees them."""
    table = loss._table[0]
    directions = torch.nn.functional.normalize(table[[BLANK, *tokens]] - loss.mean_D, dim=-1)
    standard = (hidden_PD - hidden_PD.mean(0)) / (hidden_PD.var(0, unbiased=False) + 1e-5).sqrt()
    return (20.0 * torch.nn.functional.normalize(standard, dim=-1) @ directions.T).log_softmax(-1)


def spelled_by(path: tuple[int, ...]) -> list[int]:
    return [number for number, _ in itertools.groupby(path) if number]


def test_it_is_the_sum_over_all_alignments() -> None:
    torch.manual_seed(0)
    loss = SpellingLoss(torch.randn(20, 8), blank=BLANK, layer=1)
    hidden = torch.randn(2, 6, 8)
    is_audio = torch.tensor([[False, True, True, True, True, False], [True, True, True, False, False, False]])
    found, count = loss(hidden, is_audio, [(7, 5), (5,)])
    log_p = scores_of(loss, torch.cat([hidden[0, 1:5], hidden[1, :3]]), [5, 7])
    expected = 0.0
    for rows, target in ((log_p[:4], [2, 1]), (log_p[4:], [1])):
        paths = [p for p in itertools.product(range(3), repeat=len(rows)) if spelled_by(p) == target]
        chances = [float(sum(rows[at, number] for at, number in enumerate(path))) for path in paths]
        expected -= float(torch.logsumexp(torch.tensor(chances), 0))
    assert count == 3
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_rows_without_a_transcript_or_too_short_for_it_count_nothing() -> None:
    torch.manual_seed(0)
    loss = SpellingLoss(torch.randn(20, 8), blank=BLANK, layer=1)
    hidden = torch.randn(2, 4, 8)
    is_audio = torch.ones(2, 4, dtype=torch.bool)
    assert loss(hidden, is_audio, [None, None]) == (0.0, 0)
    assert loss(hidden, is_audio, [tuple(range(1, 9)), None])[0] == 0.0
    both, count = loss(hidden, is_audio, [(), (5,)])  # nothing is said in the first, and known to be
    log_p = scores_of(loss, hidden.reshape(8, 8), [5])
    silent = -log_p[:4, 0].sum()
    said = [path for path in itertools.product(range(2), repeat=4) if spelled_by(path) == [1]]
    spoken = -torch.stack([sum(log_p[4 + at, n] for at, n in enumerate(path)) for path in said]).logsumexp(0)  # type: ignore[misc]
    assert count == 1
    assert float(both) == pytest.approx(float(silent + spoken), rel=1e-4)


def test_positions_learn_to_spell() -> None:
    torch.manual_seed(0)
    loss = SpellingLoss(torch.randn(30, 16), blank=BLANK, layer=1)
    hidden = torch.nn.Parameter(torch.randn(1, 10, 16))
    optimizer = torch.optim.Adam([hidden], lr=0.1)
    is_audio = torch.ones(1, 10, dtype=torch.bool)
    for _ in range(150):
        optimizer.zero_grad()
        total, _ = loss(hidden, is_audio, [(9, 4, 9)])
        total.backward()
        optimizer.step()
    path = scores_of(loss, hidden[0].detach(), [4, 9]).argmax(-1).tolist()
    assert spelled_by(tuple(path)) == [2, 1, 2]


def test_a_batch_carries_the_tokens_of_its_transcripts() -> None:
    _, processor = tiny.tiny_student("llama")
    wave = tiny.tiny_speech(0.5, seed=0)
    known = Example(id="a", messages=[user_message(None)], waveforms=[wave], transcripts=["the house"])
    unknown = Example(id="b", messages=[user_message(None)], waveforms=[wave])
    batch = collate(processor, [known, unknown], answer=False, spell=True)
    ids: Any = processor.tokenizer("the house", add_special_tokens=False)["input_ids"]
    assert batch.spelled == (tuple(ids), None)
    assert collate(processor, [known], answer=False).spelled == ()


def test_a_run_trains_with_it_and_reports_it(tmp_path: Path) -> None:
    valid = [str(tmp_path / "data" / "valid.jsonl")]
    fields = {"run.out": str(tmp_path / "run"), "run.steps": 3, "run.eval_every": 3, "distill.ctc": 0.5}
    train(tiny.tiny_recipe(tmp_path, {**fields, "data.valid": valid}))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["ctc"] for row in rows if row["kind"] == "valid"]
