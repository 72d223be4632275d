"""Recipe -> the models a run works with: student, teacher, heads."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aura.audio.patches import SAMPLE_RATE, PatchGrid
from aura.batch.collate import Example, collate
from aura.batch.loader import load_example
from aura.config import Recipe
from aura.data.utterance import Utterance
from aura.distill.ctc import SpellingLoss
from aura.distill.layer_map import layer_pairs
from aura.distill.loss import DistillHeads
from aura.errors import AudioError, DataError, RecipeError
from aura.references import resolve
from aura.student.checkpoint import new_bridge, new_processor, new_student
from aura.student.gate import decoder_layers
from aura.student.llm import load_llm, load_tokenizer
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor
from aura.teacher.encoder import Teacher
from aura.training.objective import Objective
from aura.training.start import Start
from aura.training.targets import TargetMaker

CALIBRATION_BATCH = 32  # utterances heard at once in the calibration pass


@dataclass(frozen=True, kw_only=True)
class Station:
    """Models of a run."""

    student: AuraForConditionalGeneration
    processor: AuraProcessor
    objective: Objective
    targets: TargetMaker | None
    notes: tuple[str, ...] = ()  # what to say of the weights it starts from


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch; data order and augmentation have seeds of their own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def build_station(
    recipe: Recipe,
    train: Any,
    *,
    calibrate: bool = True,
    start: Start | None = None,
    device: torch.device | str = "cpu",
) -> Station:
    """Stock LLM, fresh student, teacher and heads, all from the recipe's seed.

    Args:
        train: utterances for the calibration pass.
        calibrate: False when the statistics come from a saved state.
        start: weights in place of fresh ones, see `find_start`.

    Raises:
        ModelError: models that do not fit each other; the message names the recipe fields.
    """
    seed_everything(recipe.run.seed)
    reference = recipe.student.llm
    llm = load_llm(reference, dtype=recipe.student.dtype, attention=recipe.student.attention_implementation)
    if recipe.run.route == "bridge":
        student, processor = _build_bridge(recipe, llm)
        _place(student, recipe, device, start)
        return _undistilled(student, processor, recipe)
    processor = new_processor(load_tokenizer(reference), recipe.audio)
    seed_everything(recipe.run.seed)  # loading may have drawn random numbers
    student = new_student(
        llm, processor, base=reference, audio=recipe.audio, lora=recipe.lora, prompt=recipe.data.prompt
    )
    _place(student, recipe, device, start)
    if recipe.teacher.encoder is None:
        return _undistilled(student, processor, recipe)
    teacher = Teacher.load(
        resolve(recipe.teacher.encoder), dtype=torch.float32, device=device, pad_to_30s=recipe.teacher.pad_to_30s
    )
    if teacher.spec.max_seconds is not None:
        check_window(recipe, train, teacher.spec.max_seconds)
    front_end = teacher.front_end()
    if recipe.audio.stem == "conv" and front_end is not None and start is None:
        student.audio_embedding.warm_start({name: t for name, t in front_end.items() if isinstance(t, torch.Tensor)})
    if recipe.distill.weight == 0 and not recipe.distill.final_weight:
        # The warm start stays: "without distillation" is one change, not two.
        return _undistilled(student, processor, recipe)
    pairs = layer_pairs(
        teacher_layers=teacher.spec.layers,
        llm_layers=len(decoder_layers(llm)),
        student_layers=recipe.distill.student_layers,
        explicit=recipe.distill.layer_map,
    )
    targets = TargetMaker(teacher, pairs, processor.feature_extractor.grid, recipe.distill.frame_map)
    width = llm.config.hidden_size
    mean, std = targets.raw_statistics()
    seed_everything(recipe.run.seed + 1)
    heads = DistillHeads(pairs=len(pairs), width=width, target_width=targets.width, mean=mean, std=std).to(device)
    objective = Objective(
        student,
        pairs,
        heads,
        sampled_vocabulary=recipe.optim.sampled_vocabulary,
        spelling=_spelling(student, processor, recipe),
    )
    anew = start.fill_heads(objective, recipe) if start is not None else None
    if calibrate and (start is None or anew is not None):
        calibrate_heads(objective, targets, _speech(recipe, train), processor, recipe)
    notes = (f"the distillation heads start from a calibration pass: {anew}",) if anew is not None else ()
    return Station(student=student, processor=processor, objective=objective, targets=targets, notes=notes)


def _undistilled(student: AuraForConditionalGeneration, processor: AuraProcessor, recipe: Recipe) -> Station:
    """Nothing but the answer's loss."""
    objective = Objective(
        student,
        sampled_vocabulary=recipe.optim.sampled_vocabulary,
        spelling=_spelling(student, processor, recipe),
    )
    return Station(student=student, processor=processor, objective=objective, targets=None)


def _spelling(student: AuraForConditionalGeneration, processor: AuraProcessor, recipe: Recipe) -> SpellingLoss | None:
    if not recipe.distill.ctc:
        return None
    layers = len(decoder_layers(student.language_model))
    table: Any = student.get_input_embeddings().weight
    return SpellingLoss(
        table,
        blank=int(processor.tokenizer.eos_token_id),
        layer=recipe.distill.student_layers or max(1, round(layers * 2 / 3)),
    )


def _build_bridge(recipe: Recipe, llm: Any) -> tuple[AuraForConditionalGeneration, AuraProcessor]:
    """The recipe's teacher as the speech encoder, a fresh projector, the LLM."""
    from aura.bridge.encoder import load_encoder

    encoder = recipe.teacher.encoder
    assert encoder is not None  # validated with the recipe
    speech_encoder = load_encoder(encoder, dtype=recipe.student.dtype)
    check_bins(recipe, speech_encoder.config)
    tokenizer = load_tokenizer(recipe.student.llm)
    processor = new_processor(tokenizer, recipe.audio, floor=recipe.bridge.floor)
    seed_everything(recipe.run.seed)  # loading may have drawn random numbers
    student = new_bridge(
        llm,
        speech_encoder,
        processor,
        base=recipe.student.llm,
        encoder=encoder,
        audio=recipe.audio,
        bridge=recipe.bridge,
        lora=recipe.lora,
        prompt=recipe.data.prompt,
    )
    return student, processor


def check_bins(recipe: Recipe, encoder_config: Any) -> None:
    """Raises `RecipeError` where a bridge's encoder takes other log-mel than the recipe makes."""
    bins = encoder_config.num_mel_bins
    if bins != recipe.audio.n_mels:
        raise RecipeError(
            f"audio.n_mels is {recipe.audio.n_mels}, but the speech encoder {recipe.teacher.encoder} takes {bins}; set "
            f"--audio.n_mels {bins}"
        )


def _place(
    student: AuraForConditionalGeneration, recipe: Recipe, device: torch.device | str, start: Start | None
) -> None:
    """On its device, with the weights it starts from."""
    if start is not None:
        start.fill(student)
    if recipe.student.gradient_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    student.to(device)  # type: ignore[arg-type]  # transformers wraps `to` without its types


def check_window(recipe: Recipe, train: Any, limit: float) -> None:
    """Refuse, before the first step, rows that the teacher could not hear in a later one.

    Args:
        train: utterances; a stream is taken to hold rows of up to `data.max_seconds`.
        limit: seconds the teacher hears at most.

    Raises:
        DataError: naming the longest row, its length, slowed down and padded where augmentation does so, and the window.
    """
    name, longest = "data.max_seconds", recipe.data.max_seconds
    if isinstance(train, Sequence):
        name, longest = max(((u.id, part.measure()) for u in train for part in u.audio), key=lambda found: found[1])
    grid = PatchGrid(patch_frames=recipe.audio.patch_frames)
    slowest = min(1.0, recipe.augment.speed[0]) if recipe.augment.speed_probability else 1.0
    pause = 2 * recipe.augment.silence[1]
    heard = grid.count_seconds(longest / slowest + pause) * grid.patch_samples / SAMPLE_RATE
    if heard > limit:
        patches = int(limit * grid.patches_per_second) - (slowest < 1.0 or pause > 0.0)
        allowed = int((patches / grid.patches_per_second - pause) * slowest * 10) / 10
        causes = [f"at the lowest augment.speed, {slowest:g}"] * (slowest < 1.0) + ["with augment.silence"] * (
            pause > 0.0
        )
        slowed = f" ({heard:.1f} s {' and '.join(causes)})" if causes else ""
        raise DataError(
            f"{name} lasts {longest:.1f} s{slowed}; the teacher hears at most {limit:g} s. Split the row, or drop rows that "
            f"long with --data.max_seconds {allowed:g}"
        )


@torch.no_grad()
def calibrate_heads(
    objective: Objective,
    targets: TargetMaker,
    utterances: Iterator[Utterance],
    processor: AuraProcessor,
    recipe: Recipe,
) -> None:
    """One pass over some training speech: statistics of the targets, then the heads' start from the untrained student."""
    examples: list[Example] = []
    heard = 0.0
    for utterance in utterances:
        try:
            example = load_example(utterance)
        except AudioError:
            if not recipe.data.skip_bad:
                raise
            continue
        if example.waveforms:
            examples.append(example)
            heard += sum(len(w) for w in example.waveforms) / SAMPLE_RATE
        if heard >= recipe.distill.calibration_seconds:
            break
    examples.sort(key=lambda example: sum(len(w) for w in example.waveforms))
    heads = objective.heads
    assert heads is not None
    batches = [
        collate(processor, examples[i : i + CALIBRATION_BATCH], answer=True, keep_waveforms=True)
        for i in range(0, len(examples), CALIBRATION_BATCH)
    ]
    if recipe.distill.targets == "standardised":
        mean, std = targets.statistics(batch.waveforms for batch in batches)
        heads.mean.copy_(mean)
        heads.std.copy_(std)
    hidden: list[list[torch.Tensor]] = [[] for _ in objective.pairs]
    made = []
    for batch in batches:
        made.append(targets(batch.waveforms, heads))
        for kept, states in zip(hidden, objective.audio_states(batch.to(heads.mean.device)), strict=True):
            kept.append(states)
    heads.calibrate([torch.cat(states) for states in hidden], torch.cat([t for t in made if t is not None], dim=1))


def _speech(recipe: Recipe, train: Any) -> Iterator[Utterance]:
    """Training utterances in a seeded order, for the calibration pass."""
    if not isinstance(train, Sequence):
        yield from train
        return
    for index in np.random.default_rng(recipe.run.seed).permutation(len(train)):
        yield train[int(index)]
