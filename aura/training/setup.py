"""Recipe -> everything a run works with: data, student, teacher, heads."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from aura.config import DataConfig, Recipe
from aura.data.manifest import read_utterances
from aura.data.utterance import Utterance
from aura.distill.layer_map import LayerPair, layer_pairs
from aura.distill.loss import DistillHeads
from aura.errors import DataError, RecipeError
from aura.references import resolve
from aura.student.checkpoint import new_processor, new_student
from aura.student.gate import decoder_layers
from aura.student.llm import load_llm, load_tokenizer
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor
from aura.teacher.encoder import Teacher
from aura.training.objective import Objective
from aura.training.targets import TargetMaker


@dataclass(frozen=True, kw_only=True)
class Data:
    """Utterances of a run.

    Args:
        train: a list, or a `Stream`.
        valid: held-out utterances; may be empty.
        dropped: why rows were left out, with counts.
    """

    train: Any
    valid: Sequence[Utterance]
    dropped: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Station:
    """Models of a run."""

    student: AuraForConditionalGeneration
    processor: AuraProcessor
    objective: Objective
    targets: TargetMaker | None


class Stream:
    """A streaming source that can be iterated anew for each epoch."""

    def __init__(self, config: DataConfig) -> None:
        self.config = config

    def __iter__(self) -> Iterator[Utterance]:
        for source in self.config.train:
            for utterance in _read(self.config, source, streaming=True):
                if self.config.min_seconds <= utterance.seconds <= self.config.max_seconds:
                    yield utterance


def seed_everything(seed: int) -> None:
    """Python, NumPy and torch; data order and augmentation have seeds of their own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def read_data(recipe: Recipe) -> Data:
    """Train and valid utterances within the recipe's lengths.

    Raises:
        RecipeError: no training data named.
        DataError: nothing left, or bad rows without `data.skip_bad`.
    """
    config = recipe.data
    if not config.train:
        raise RecipeError("data.train is empty; name at least one manifest, e.g. --data.train train.jsonl")
    dropped: dict[str, int] = {}
    valid = [u for source in config.valid for u in _kept(config, _read(config, source), dropped, f"valid {source}")]
    if config.streaming:
        return Data(train=Stream(config), valid=valid, dropped=dropped)
    train = [u for source in config.train for u in _kept(config, _read(config, source), dropped, f"train {source}")]
    if not train:
        raise DataError(
            f"no utterance of {', '.join(config.train)} lies between {config.min_seconds} and {config.max_seconds} s; "
            "change data.min_seconds or data.max_seconds"
        )
    return Data(train=train, valid=valid, dropped=dropped)


def _read(config: DataConfig, source: str, *, streaming: bool = False) -> Any:
    return read_utterances(
        source,
        data_root=config.root,
        prompt=config.prompt,
        columns=config.columns,
        split=config.split,
        streaming=streaming,
        limit=config.limit,
        skip_bad=config.skip_bad,
    )


def _kept(config: DataConfig, utterances: Any, dropped: dict[str, int], name: str) -> Iterator[Utterance]:
    for reason in getattr(utterances, "skipped", ()):
        dropped[f"{name}: unreadable"] = dropped.get(f"{name}: unreadable", 0) + bool(reason)
    for utterance in utterances:
        if utterance.seconds > config.max_seconds:
            key = f"{name}: longer than {config.max_seconds:g} s"
        elif utterance.seconds < config.min_seconds:
            key = f"{name}: shorter than {config.min_seconds:g} s"
        elif not utterance.answer:
            key = f"{name}: no answer to learn"
        else:
            yield utterance
            continue
        dropped[key] = dropped.get(key, 0) + 1


def build_station(recipe: Recipe, train: Any, *, calibrate: bool = True, device: torch.device | str = "cpu") -> Station:
    """Stock LLM, fresh student, teacher and heads, all from the recipe's seed.

    Args:
        train: utterances for the calibration pass.
        calibrate: False when the statistics come from a saved state.

    Raises:
        ModelError: models that do not fit each other; the message names the recipe fields.
    """
    seed_everything(recipe.run.seed)
    reference = recipe.student.llm
    llm = load_llm(reference, dtype=recipe.student.dtype, attention=recipe.student.attention_implementation)
    processor = new_processor(load_tokenizer(reference), recipe.audio)
    seed_everything(recipe.run.seed)  # loading may have drawn random numbers
    student = new_student(
        llm, processor, base=reference, audio=recipe.audio, lora=recipe.lora, prompt=recipe.data.prompt
    )
    if recipe.student.gradient_checkpointing:
        student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    student.to(device)
    if recipe.teacher.encoder is None:
        return Station(student=student, processor=processor, objective=Objective(student), targets=None)
    teacher = Teacher.load(
        resolve(recipe.teacher.encoder), dtype=torch.float32, device=device, pad_to_30s=recipe.teacher.pad_to_30s
    )
    front_end = teacher.front_end()
    if recipe.audio.stem == "conv" and front_end is not None:
        student.audio_embedding.warm_start({name: t for name, t in front_end.items() if isinstance(t, torch.Tensor)})
    if recipe.distill.weight == 0 and not recipe.distill.final_weight:
        # The warm start stays: "without distillation" is one change, not two.
        return Station(student=student, processor=processor, objective=Objective(student), targets=None)
    pairs = layer_pairs(
        teacher_layers=teacher.spec.layers,
        llm_layers=len(decoder_layers(llm)),
        student_layers=recipe.distill.student_layers,
        explicit=recipe.distill.layer_map,
    )
    targets = TargetMaker(teacher, pairs, processor.feature_extractor.grid, recipe.distill.frame_map)
    width = llm.config.hidden_size
    heads = _heads(recipe, targets, pairs, train, processor, width=width, calibrate=calibrate)
    heads.to(device)
    return Station(student=student, processor=processor, objective=Objective(student, pairs, heads), targets=targets)


def _heads(
    recipe: Recipe,
    targets: TargetMaker,
    pairs: Sequence[LayerPair],
    train: Any,
    processor: AuraProcessor,
    *,
    width: int,
    calibrate: bool,
) -> DistillHeads:
    if recipe.distill.targets == "standardised" and calibrate:
        mean, std = targets.calibrate(_waveforms(recipe, train, processor), recipe.distill.calibration_seconds)
    else:
        mean, std = targets.raw_statistics()
    seed_everything(recipe.run.seed + 1)
    return DistillHeads(pairs=len(pairs), width=width, target_width=targets.width, mean=mean, std=std)


def _waveforms(recipe: Recipe, train: Any, processor: AuraProcessor) -> Iterator[np.ndarray]:
    """Training audio in a seeded order, for the calibration pass."""
    utterances: Any = train
    if isinstance(train, Sequence):
        order = np.random.default_rng(recipe.run.seed).permutation(len(train))
        utterances = (train[index] for index in order)
    for utterance in utterances:
        for part in utterance.audio:
            yield processor.feature_extractor.grid.pad(part.load())
