"""Text retention: exactly nothing with gate `audio`, something with gate `all`, and the engine is left as it was."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from aura.batch.prompt import build_prompt
from aura.cli import main
from aura.errors import DataError
from aura.evaluation.retention import TextChoice, read_retention, stock_weights, text_retention
from aura.evaluation.retention_texts import CHOICES, TEXTS
from aura.inference.engine import Engine
from aura.student.checkpoint import save_checkpoint

SHORT = ("the one in the other", "on four then no one")
ASKED = (
    TextChoice(question="one or two", options=("one", "the two"), answer=0),
    TextChoice(question="on", options=("in", "on", "no"), answer=1),
)


@functools.cache
def engine(gate: str, family: str = "gemma3") -> Engine:
    model, processor = tiny.tiny_student(family, gate=gate)
    return Engine(model, processor, checkpoint="tiny")


@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen3"])
def test_with_the_gate_on_audio_not_one_bit_of_text_changes(family: str) -> None:
    score = text_retention(engine("audio", family), SHORT, ASKED)
    assert score.max_difference == 0.0 and score.mean_kl == 0.0
    assert score.perplexity == score.stock_perplexity and score.same_choices == 1.0
    assert (score.items, score.questions, score.gate) == (4, 2, "audio")


def test_with_the_gate_everywhere_the_stock_llm_is_another() -> None:
    score = text_retention(engine("all"), SHORT, ASKED)
    assert score.max_difference > 1e-3 and score.mean_kl > 0.0
    assert score.perplexity != score.stock_perplexity
    fresh, processor = tiny.tiny_student("gemma3", gate="all", train_like=False)  # an update of zero, the same LLM
    stock = text_retention(Engine(fresh, processor), SHORT, ASKED)
    assert stock.perplexity == pytest.approx(score.stock_perplexity, rel=1e-6)
    assert stock.max_difference == pytest.approx(0.0, abs=1e-5)


def test_the_figures_are_those_of_the_tokens() -> None:
    one = engine("audio")
    tokenizer = one.processor.tokenizer
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.encode(SHORT[0], add_special_tokens=False)]])
    logs = one.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].log_softmax(-1)
    expected = logs.gather(1, ids[0, 1:, None]).double().mean()
    score = text_retention(one, SHORT[:1])
    assert score.tokens == ids.shape[1] - 1
    assert score.perplexity == pytest.approx(math.exp(-float(expected)), rel=1e-5)
    assert (score.questions, score.choice_accuracy, score.same_choices) == (0, None, None)


def test_an_option_is_scored_as_the_whole_answer_without_its_end() -> None:
    one = engine("audio")
    score = text_retention(one, (), ASKED[:1])
    turns: list[Any] = [{"role": "user", "content": "one or two"}, {"role": "assistant", "content": "the two"}]
    prompt = build_prompt(one.processor, turns, answer=True)
    ids = torch.tensor([prompt.input_ids])
    logs = one.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1].log_softmax(-1)
    answer = one.processor.tokenizer.encode("the two", add_special_tokens=False)
    start = next(i for i, label in enumerate(prompt.labels) if label != -100)
    expected = sum(float(logs[start + k - 1, token]) for k, token in enumerate(answer))
    assert score.rows[0].checkpoint[1] == pytest.approx(expected, rel=1e-5)
    assert score.perplexity is None and score.choice_accuracy in (0.0, 1.0)


def test_windows_cut_a_text_and_lose_no_token() -> None:
    text = " ".join(SHORT * 4)
    whole, cut = (text_retention(engine("audio"), [text], window=window) for window in (256, 8))
    assert whole.tokens == cut.tokens == len(engine("audio").processor.tokenizer.encode(text, add_special_tokens=False))
    assert cut.perplexity != whole.perplexity


def test_the_adapters_are_put_back(tmp_path: Path) -> None:
    one = engine("all")
    ids = torch.tensor([[7, 8, 9, 10]])
    before = one.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    grads = [parameter.requires_grad for parameter in one.model.parameters()]
    with pytest.raises(KeyboardInterrupt), stock_weights(one.model):
        assert not torch.equal(one.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, before)
        raise KeyboardInterrupt
    assert torch.equal(one.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, before)
    assert [parameter.requires_grad for parameter in one.model.parameters()] == grads


def test_sets_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    rows = [
        {"text": "a b"},
        {"question": "q", "options": ["x", "y"], "answer": "y"},
        {"question": "q", "options": ["x", "y"], "answer": 0},
    ]
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    texts, choices = read_retention(path)
    assert texts == ["a b"] and [choice.answer for choice in choices] == [1, 0]
    path.write_text('{"question": "q", "options": ["x", "y"], "answer": "z"}')
    with pytest.raises(DataError, match="line 1"):
        read_retention(path)
    with pytest.raises(DataError, match="No such file"):
        read_retention(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match="the index of the right one"):
        TextChoice(question="q", options=("x",), answer=0)
    with pytest.raises(DataError, match="expected some"):
        text_retention(engine("audio"))
    with pytest.raises(DataError, match="at least 2 tokens"):
        text_retention(engine("audio"), ["a b"], window=1)


def test_the_set_that_comes_along() -> None:
    assert len(TEXTS) >= 8 and len(CHOICES) >= 16
    assert len({choice.question for choice in CHOICES}) == len(CHOICES)
    assert all(len(set(choice.options)) == len(choice.options) for choice in CHOICES)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.tiny_llm_folder("llama", tmp_path / "llm")
    save_checkpoint(tmp_path / "checkpoint", *tiny.tiny_student("llama", base=str(tmp_path / "llm")))
    own = tmp_path / "own.jsonl"
    own.write_text(
        json.dumps({"text": SHORT[0]})
        + "\n"
        + json.dumps({"question": "on", "options": ["in", "on"], "answer": 1})
        + "\n"
    )
    argv = ["retention", str(tmp_path / "checkpoint"), "--texts", str(own), "--out", str(tmp_path / "out")]
    assert main([*argv, "--device", "cpu"]) == 0
    assert "max_difference" in capsys.readouterr().out
    report: Any = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["metrics"]["max_difference"] == 0.0 and report["counts"]["items"] == 2
    assert main(["retention", str(tmp_path / "checkpoint"), "--texts", str(tmp_path / "absent.jsonl")]) == 2
