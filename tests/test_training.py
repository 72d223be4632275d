"""What is minimised, what learns from it, and what a step does: on tiny models of real architectures.

`AURA_WRITE_GOLDEN=1 python -m pytest tests/test_training.py -k golden` writes the golden losses anew.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from aura.batch.collate import Batch
from aura.batch.loader import BatchLoader
from aura.batch.plan import PlannedItem
from aura.config import DistillConfig, OptimConfig
from aura.data.utterance import Utterance
from aura.errors import DataError, TrainingError
from aura.student.gate import decoder_layers
from aura.training import loop
from aura.training.data import Data, read_data
from aura.training.loop import train
from aura.training.objective import Losses, Objective, Weights
from aura.training.schedule import answer_weight, distill_weight, make_optimizer, rate_factor, set_rate
from aura.training.setup import Station, build_station
from aura.training.state import read_log, step_folders

GOLDEN = Path(__file__).parent / "golden" / "losses_tiny.json"
LAYERS = 4  # of the tiny LLMs
SUMS = {"distill": 1.0, "kl": 0.0, "answer_tokens": 1, "patches": 1}  # losses as they are summed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and clips, shared by the tests of this file."""
    return tmp_path_factory.mktemp("training")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "plot_run", lambda run: [])  # tests/test_run_folder.py looks at them


def build(folder: Path, overrides: dict[str, Any] | None = None, **models: str) -> tuple[Station, Data]:
    recipe = tiny.tiny_recipe(folder, overrides, **models)
    data = read_data(recipe)
    return build_station(recipe, data.train), data


def batch_of(station: Station, utterances: list[Utterance], *, text_teacher: bool = False) -> Batch:
    loader = BatchLoader(station.processor, augment=None, seed=0, text_teacher=text_teacher)
    return loader.load([PlannedItem(utterance=u, epoch=0, index=n) for n, u in enumerate(utterances)])


def losses_of(station: Station, batch: Batch, **weights: Any) -> Losses:
    targets, heads = station.targets, station.objective.heads
    made = targets(batch.waveforms, heads) if targets is not None and heads is not None else None
    return station.objective(batch, made, Weights(**{**SUMS, **weights}))


def gradients(objective: Objective) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in objective.trainable().items() if p.grad is not None}
    objective.zero_grad(set_to_none=True)
    return found


def moved_names(station: Station, utterances: list[Utterance], *, steps: int = 2) -> set[str]:
    """Names of all weights and buffers, frozen ones and the teacher's included, that changed in some steps."""
    assert station.targets is not None
    everything = {**station.objective.state_dict(keep_vars=True)}
    everything |= {f"teacher.{k}": v for k, v in station.targets.teacher.encoder.state_dict(keep_vars=True).items()}
    before = {name: tensor.detach().clone() for name, tensor in everything.items()}
    optimizer = make_optimizer(station.objective.trainable(), OptimConfig())
    station.objective.train()
    for _ in range(steps):
        losses_of(station, batch_of(station, utterances), answer_tokens=10, patches=10).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, tensor in everything.items() if not torch.equal(tensor, before[name])}


# --- cross entropy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma3", "qwen3", "gemma2", "granite"])  # the last two reshape their logits
@pytest.mark.parametrize("gate", ["audio", "all"])
def test_cross_entropy_is_hugging_faces_loss_on_the_labels(folder: Path, family: str, gate: str) -> None:
    student, processor = tiny.tiny_student(family, gate=gate)
    station = Station(student=student, processor=processor, objective=Objective(student), targets=None)
    batch = batch_of(station, list(read_data(tiny.tiny_recipe(folder)).train)[:4])
    with torch.no_grad():
        expected = student(**batch.model_inputs(), labels=batch.labels).loss
        ours = losses_of(station, batch).cross_entropy / batch.answer_tokens
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


# --- what learns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "teacher"), [("llama", "whisper"), ("gemma3", "wav2vec2"), ("qwen3", "hubert")])
@pytest.mark.parametrize("gate", ["audio", "all"])
def test_trainable_is_the_declared_set_and_all_of_it_moves(folder: Path, family: str, teacher: str, gate: str) -> None:
    fields: dict[str, Any] = {"lora.gate": gate}
    if teacher != "whisper":
        fields |= {"audio.stem": "linear"}
    station, data = build(folder, fields, family=family, teacher=teacher)
    trainable = station.objective.trainable()
    declared = {
        name
        for name, _ in station.objective.named_parameters()
        if ".lora_A." in name or ".lora_B." in name or "audio_embedding." in name or name.startswith("heads.")
    }
    assert set(trainable) == declared
    # Every linear module of every layer; with gate `audio`, of the last one only what later positions read.
    modules = 7 * LAYERS if gate == "all" else 7 * (LAYERS - 1) + 2
    assert sum(".lora_A." in n for n in declared) == sum(".lora_B." in n for n in declared) == modules
    # All of it moves; the LLM, the standardisation and the teacher stay as they are, bit for bit.
    assert moved_names(station, list(data.train)[:3]) == declared


def test_only_the_named_layers_and_modules_learn(folder: Path) -> None:
    station, _ = build(folder, {"lora.layers": 2, "lora.modules": ["q_proj", "v_proj"]})
    found = {name.split("layers.")[1].split(".lora_")[0] for name in station.objective.trainable() if ".lora_" in name}
    assert found == {f"{layer}.self_attn.{module}" for layer in (0, 1) for module in ("q_proj", "v_proj")}


# --- distillation -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("teacher", ["whisper", "wav2vec2"])
def test_the_teachers_last_layer_is_compared(folder: Path, teacher: str) -> None:
    fields = {} if teacher == "whisper" else {"audio.stem": "linear"}
    station, data = build(folder, fields, teacher=teacher)
    assert station.targets is not None
    encoder = station.targets.teacher.encoder
    assert station.objective.pairs[-1].teacher == station.targets.teacher.spec.layers
    batch = batch_of(station, list(data.train)[:3])
    before = losses_of(station, batch).distances
    layers = encoder.layers if teacher == "whisper" else encoder.encoder.layers
    with torch.no_grad():
        for parameter in layers[-1].parameters():
            parameter.add_(torch.randn_like(parameter))
    after = losses_of(station, batch).distances
    assert torch.equal(before[:-1], after[:-1]) and abs(before[-1] - after[-1]) > 1e-3


def test_student_layers_are_compared_by_their_own_output(folder: Path) -> None:
    """The last layer's raw output too, before the final norm."""
    station, data = build(folder, {"distill.student_layers": LAYERS})
    captured = {}
    handles = [
        layer.register_forward_hook(
            lambda m, a, out, n=n: captured.update({n + 1: out[0] if isinstance(out, tuple) else out})
        )
        for n, layer in enumerate(decoder_layers(station.student.language_model))
    ]
    batch = batch_of(station, list(data.train)[:3])
    seen: list[Any] = []
    heads: Any = station.objective.heads
    heads.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    losses_of(station, batch)
    for handle in handles:
        handle.remove()
    is_audio = batch.input_ids == station.processor.audio_token_id
    for pair, hidden in zip(station.objective.pairs, seen[0], strict=True):
        assert torch.equal(hidden, captured[pair.student][is_audio])


def test_without_distillation_there_are_no_heads_but_the_warm_start(folder: Path) -> None:
    with_teacher, _ = build(folder)
    without, data = build(folder, {"distill.weight": 0.0})
    alone, _ = build(folder, {"teacher.encoder": None})
    assert (
        without.targets is None
        and alone.targets is None
        and not any("heads" in n for n in without.objective.trainable())
    )
    warm, cold = (s.student.audio_embedding.conv1.weight for s in (without, alone))
    assert torch.equal(warm, with_teacher.student.audio_embedding.conv1.weight) and not torch.equal(warm, cold)
    losses = losses_of(without, batch_of(without, list(data.train)[:2]))
    assert len(losses.distances) == 0 and losses.total == losses.cross_entropy


def test_targets_are_standardised_over_the_calibration_pass(folder: Path) -> None:
    many = {"distill.calibration_seconds": 100.0}
    station, data = build(folder, many)
    raw, _ = build(folder, {**many, "distill.targets": "raw"})
    assert station.targets is not None and station.objective.heads is not None and raw.objective.heads is not None
    waveforms = batch_of(station, list(data.train)).waveforms  # everything the pass has heard
    frames = station.targets.teacher(waveforms, station.targets.layers).hidden_LFE
    standard = station.objective.heads.standardise(frames)
    torch.testing.assert_close(standard.mean(1), torch.zeros_like(standard[:, 0]), rtol=0, atol=1e-4)
    torch.testing.assert_close(standard.std(1, unbiased=False), torch.ones_like(standard[:, 0]), rtol=1e-3, atol=0)
    assert torch.equal(raw.objective.heads.standardise(frames), frames)
    assert frames.std(1).max() > 1.2 * frames.std(1).min()  # so that the two differ


def test_weight_of_the_distillation_over_the_steps() -> None:
    constant, falling = DistillConfig(weight=0.7), DistillConfig(weight=1.0, final_weight=0.0)
    assert [distill_weight(step, 5, constant) for step in range(5)] == [0.7] * 5
    assert [distill_weight(step, 5, falling) for step in range(6)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert [answer_weight(step, 8, constant) for step in (0, 7)] == [1.0, 1.0]
    late = DistillConfig(head_start=0.25)
    assert [answer_weight(step, 8, late) for step in range(6)] == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]


def test_weight_scales_the_gradient_of_the_distillation_alone(folder: Path) -> None:
    station, data = build(folder)
    batch = batch_of(station, list(data.train)[:3], text_teacher=True)
    found = []
    for weight in (0.0, 1.0, 2.0):
        losses_of(station, batch, distill=weight, answer_tokens=7, patches=9).total.backward()
        found.append(gradients(station.objective))
    losses_of(station, batch, answer=0.0, kl=1.0, answer_tokens=7, patches=9).total.backward()
    found.append(gradients(station.objective))
    none, single, double, alone = found
    assert all(not none[name].any() for name in none if name.startswith("heads."))
    for name in single:
        torch.testing.assert_close(double[name] - none[name], 2 * (single[name] - none[name]), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(alone[name], single[name] - none[name], rtol=1e-4, atol=1e-6)  # its head start


# --- response KL ------------------------------------------------------------------------------------------


def kl_of(station: Station, batch: Batch) -> float:
    with torch.no_grad():
        return float(station.objective(batch, None, Weights(**{**SUMS, "kl": 1.0})).kl)


@pytest.mark.parametrize("gate", ["audio", "all"])
def test_response_kl_is_to_the_stock_llm_reading_the_transcript(folder: Path, gate: str) -> None:
    """Its teacher is the LLM with LoRA off, whatever the adapter has learnt and wherever the gate lets it work."""
    student, processor = tiny.tiny_student("llama", gate=gate)
    station = Station(student=student, processor=processor, objective=Objective(student), targets=None)
    batch = batch_of(station, list(read_data(tiny.tiny_recipe(folder)).train)[:3], text_teacher=True)
    assert batch.text is not None and kl_of(station, batch) > 0.1
    answers = batch.text.labels[:, 1:] != -100
    with torch.no_grad():
        stock = tiny.tiny_llm("llama")(input_ids=batch.text.input_ids, attention_mask=batch.text.attention_mask).logits
        teacher = station.objective._text_teacher(batch.text)
    torch.testing.assert_close(teacher, stock[:, :-1][answers], rtol=1e-5, atol=1e-5)
    texts = processor.tokenizer.batch_decode(batch.text.input_ids)
    assert all(row.transcript in text for row, text in zip(read_data(tiny.tiny_recipe(folder)).train, texts))


def test_response_kl_is_zero_where_both_read_the_transcript(folder: Path) -> None:
    utterances = list(read_data(tiny.tiny_recipe(folder)).train)[:3]
    for gate, trained, same in (("audio", True, True), ("all", False, True), ("all", True, False)):
        student, processor = tiny.tiny_student("llama", gate=gate, train_like=trained)
        station = Station(student=student, processor=processor, objective=Objective(student), targets=None)
        text = batch_of(station, utterances, text_teacher=True).text
        assert text is not None
        assert (kl_of(station, dataclasses.replace(text, text=text)) == 0.0) == same, (gate, trained)


def test_response_kl_reaches_the_student_only(folder: Path) -> None:
    station, data = build(folder, {"distill.weight": 0.0})
    batch = batch_of(station, list(data.train)[:3], text_teacher=True)
    losses_of(station, batch).total.backward()
    plain = gradients(station.objective)
    losses_of(station, batch, kl=2.0).total.backward()
    with_kl = gradients(station.objective)
    assert set(plain) == set(with_kl) and any(not torch.equal(plain[n], with_kl[n]) for n in plain)


# --- the same gradient, however it is computed ------------------------------------------------------------


def test_accumulated_micro_batches_equal_one_big_batch(folder: Path) -> None:
    station, data = build(folder, {"distill.response_kl": 0.5})
    utterances = list(data.train)[:5]
    whole = batch_of(station, utterances, text_teacher=True)
    parts = [batch_of(station, utterances[:2], text_teacher=True), batch_of(station, utterances[2:], text_teacher=True)]
    patches = int((whole.input_ids == station.processor.audio_token_id).sum())
    weights = {"answer_tokens": whole.answer_tokens, "patches": patches, "kl": 0.5}
    assert parts[0].answer_tokens != parts[1].answer_tokens  # or a mean of means would do
    big = losses_of(station, whole, **weights)
    big.total.backward()
    expected = gradients(station.objective)
    small = [losses_of(station, part, **weights) for part in parts]
    for losses in small:
        losses.total.backward()
    accumulated = gradients(station.objective)
    torch.testing.assert_close(sum(losses.total for losses in small), big.total, rtol=1e-5, atol=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(
            accumulated[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1e-6)
        )


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_gradient_checkpointing_changes_nothing(folder: Path, family: str) -> None:
    found = []
    for checkpointing in (False, True):
        station, data = build(folder, {"student.gradient_checkpointing": checkpointing}, family=family)
        tiny.train_adapter(station.student)
        station.objective.train()
        torch.manual_seed(1)
        for parameter in station.objective.trainable().values():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
        layers = decoder_layers(station.student.language_model)
        losses = losses_of(station, batch_of(station, list(data.train)[:3]), answer_tokens=5, patches=5)
        losses.total.backward()
        assert any(getattr(layer, "gradient_checkpointing", False) for layer in layers) == checkpointing
        found.append((losses.total, gradients(station.objective)))
    (plain, expected), (saved, recomputed) = found
    torch.testing.assert_close(saved, plain, rtol=1e-6, atol=0)
    assert set(expected) == set(recomputed)
    for name, gradient in expected.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)


def test_text_only_batch_gives_every_weight_a_gradient(folder: Path) -> None:
    """Where several processes train, each waits for the others' gradients of every weight."""
    station, data = build(folder)
    text = batch_of(station, list(data.train)[:2], text_teacher=True).text
    assert text is not None
    station.objective(text, None, Weights(**SUMS)).total.backward()
    found = gradients(station.objective)
    assert set(found) == set(station.objective.trainable()) and not any(g.any() for g in found.values())


# --- schedule ---------------------------------------------------------------------------------------------


def test_learning_rate_over_the_steps() -> None:
    cosine = OptimConfig(warmup_steps=2, final_ratio=0.1)
    factors = [rate_factor(step, 6, cosine) for step in range(7)]
    assert factors[:3] == [0.5, 1.0, 1.0] and factors[4] == pytest.approx(0.55) and factors[6] == pytest.approx(0.1)
    linear = OptimConfig(warmup_steps=0, final_ratio=0.0, decay="linear")
    assert [rate_factor(step, 4, linear) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert rate_factor(3, 4, OptimConfig(warmup_steps=0, decay="constant")) == 1.0


def test_parts_have_rates_of_their_own_and_vectors_no_decay(folder: Path) -> None:
    station, _ = build(folder)
    trainable = station.objective.trainable()
    rates = {"learning_rate": 1.0, "embedding_learning_rate": 0.5, "head_learning_rate": 0.25}
    optimizer = make_optimizer(trainable, OptimConfig(**rates, weight_decay=0.2))
    set_rate(optimizer, 0.1)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(trainable)
    for name, parameter in trainable.items():
        peak = 0.5 if "audio_embedding" in name else 0.25 if name.startswith("heads.") else 1.0
        assert groups[id(parameter)]["lr"] == pytest.approx(0.1 * peak)
        assert groups[id(parameter)]["weight_decay"] == (0.2 if parameter.dim() > 1 else 0.0)


# --- whole steps ------------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, *bad: int) -> list[dict[str, torch.Tensor]]:
    """Make the loss of some steps (0-based) NaN; returns the trainable weights before each step."""
    before: list[dict[str, torch.Tensor]] = []
    forward = Objective.forward

    def poisoned(self: Objective, *args: Any) -> Losses:
        if self.training:
            before.append({name: p.detach().clone() for name, p in self.trainable().items()})
        losses = forward(self, *args)
        if self.training and len(before) - 1 in bad:
            return dataclasses.replace(losses, total=losses.total * float("nan"))
        return losses

    monkeypatch.setattr(Objective, "forward", poisoned)
    return before


def test_a_poisoned_batch_is_skipped_and_counted(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = poison(monkeypatch, 2)
    result = train(tiny.tiny_recipe(folder, {"run.out": str(tmp_path)}))
    assert result.finished and result.progress.bad_steps == 1 and result.progress.step == 6
    changed = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(before)]
    assert changed == [True, True, False, True, True]
    state = load_file(step_folders(tmp_path)[-1] / "training.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert {int(v) for name, v in state.items() if name.startswith("step/")} == {5}  # the optimiser saw five
    rows = read_log(tmp_path / "log.jsonl")
    assert [(row["step"], row["bad_steps"]) for row in rows] == [(1, 0), (2, 0), (4, 1), (5, 1), (6, 1)]
    assert all(row["loss"] > 0.1 for row in rows)


def test_a_run_of_bad_steps_stops_with_the_weights_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.tiny_recipe(folder, {"run.out": str(tmp_path), "optim.max_bad_steps": 3, "run.steps": 9})
    with monkeypatch.context() as patch:
        before = poison(patch, 1, 2, 4, 5, 6)
        with pytest.raises(TrainingError, match=r"3 steps in a row .*not finite.*learning_rate.*--resume"):
            train(recipe)
    assert len(before) == 7
    saved = load_file(step_folders(tmp_path)[-1] / "training.safetensors")
    assert all(torch.equal(saved[f"weight/{name}"], tensor) for name, tensor in before[-1].items())
    assert train(recipe, resume=True).progress.step == 9


def test_micro_batches_accumulate_in_the_loop(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three micro-batches a step: one step of the optimiser, losses over all three."""
    seen: list[Batch] = []
    forward = Objective.forward

    def watched(self: Objective, batch: Batch, *args: Any) -> Losses:
        seen.append(batch)
        return forward(self, batch, *args)

    monkeypatch.setattr(Objective, "forward", watched)
    recipe = tiny.tiny_recipe(folder, {"run.out": str(tmp_path), "batch.micro_batches": 3, "run.steps": 2})
    result = train(recipe)
    assert len(seen) == 6 and result.progress.micro_batches == 6 and result.progress.step == 2
    assert result.progress.audio_seconds == pytest.approx(sum(batch.audio_seconds for batch in seen))
    station = build_station(recipe, read_data(recipe).train)
    tokens = sum(batch.answer_tokens for batch in seen[:3])
    expected = sum(float(losses_of(station, batch).cross_entropy) for batch in seen[:3]) / tokens
    assert read_log(tmp_path / "log.jsonl")[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_it_learns(folder: Path, tmp_path: Path) -> None:
    """Four clips by heart: cross entropy and distance fall."""
    fields = {"data.limit": 4, "run.steps": 60, "batch.tokens": 400, "optim.learning_rate": 1e-2, "lora.gate": "all"}
    train(tiny.tiny_recipe(folder, {"run.out": str(tmp_path), **fields}))
    rows = read_log(tmp_path / "log.jsonl")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["distance"] < 0.8 * max(row["distance"] for row in rows[:5])


def test_bfloat16_autocast_beside_a_float32_run(folder: Path, tmp_path: Path) -> None:
    losses = []
    for number, precision in enumerate(("no", "bf16", "no")):  # one process, one precision after the other
        out = tmp_path / str(number)
        train(tiny.tiny_recipe(folder, {"run.out": str(out), "run.mixed_precision": precision, "run.steps": 2}))
        losses.append([row["loss"] for row in read_log(out / "log.jsonl")])
        adapter = load_file(out / "checkpoint" / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert losses[0] == losses[2] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)


def test_no_micro_batch_is_lost_when_none_of_it_can_be_read(folder: Path, tmp_path: Path) -> None:
    """Rows that turn out broken only when they are decoded; the order of the others stays."""
    data = tmp_path / "data"
    tiny.tiny_manifest(data, count=6)
    broken = data / "train-2.wav"
    broken.write_bytes(broken.read_bytes()[:44] + b"\x00" * 40)  # a whole header, hardly a sample
    rows = [json.loads(line) | {"seconds": 0.4} for line in (data / "train.jsonl").read_text().splitlines()]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"data.train": [str(data / "train.jsonl")], "data.skip_bad": True, "batch.max_items": 1, "run.steps": 12}
    result = train(tiny.tiny_recipe(folder, {**fields, "run.out": str(tmp_path / "run")}))
    assert result.progress.bad_steps == 2 and result.progress.micro_batches == 12  # twice in two epochs
    with pytest.raises(DataError, match=r"train-2\.wav"):
        train(tiny.tiny_recipe(folder, {**fields, "data.skip_bad": False, "run.out": str(tmp_path / "strict")}))


def test_rows_beyond_the_teachers_window_are_refused_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    short = tiny.tiny_whisper(tmp_path / "short", positions=50)  # 1 s
    fields = {"teacher.encoder": str(short), "distill.calibration_seconds": 0.5}
    build(folder, fields)  # clips of up to 0.76 s
    with pytest.raises(DataError, match=r"train-5\.wav lasts 0\.8 s \(1\.1 s at the lowest .*--data\.max_seconds 0\.6"):
        build(folder, {**fields, "augment.speed_probability": 1.0, "augment.speed": [0.7, 1.0]})
    build(folder, {**fields, "augment.speed_probability": 1.0, "augment.speed": [0.7, 1.0], "data.max_seconds": 0.6})


def test_losses_are_the_golden_ones(folder: Path, tmp_path: Path) -> None:
    fields = {
        **{
            "run.steps": 5,
            "run.seed": 7,
            "batch.micro_batches": 2,
            "distill.response_kl": 0.3,
            "distill.final_weight": 0.2,
        },
        **{"lora.dropout": 0.1, "augment.gain_db": [-6, 6], "augment.noise_probability": 0.5, "augment.time_masks": 1},
    }
    train(tiny.tiny_recipe(folder, {"run.out": str(tmp_path), **fields}, family="gemma3"))
    names = ("loss", "distance", "kl", "gradient_norm")
    found = [{name: row[name] for name in names} for row in read_log(tmp_path / "log.jsonl")]
    if os.environ.get("AURA_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    for row, golden in zip(found, json.loads(GOLDEN.read_text()), strict=True):
        assert row == pytest.approx(golden, rel=1e-4)
