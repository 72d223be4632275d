"""What a recipe would cost, without loading weights: parameters, memory, FLOPs, the first batch's shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from aura.audio.patches import HOP, SAMPLE_RATE, PatchGrid
from aura.batch.plan import CHARACTERS_PER_TOKEN, LengthEstimate, plan_batches
from aura.bridge.encoder import check_family
from aura.config import AudioConfig, Recipe
from aura.distill.layer_map import LayerPair, layer_pairs
from aura.errors import AuraError, RecipeError
from aura.references import explain_load_error, resolve
from aura.references.known import KNOWN_SHAPES
from aura.student.configuration import AuraConfig
from aura.student.gate import decoder_layers
from aura.student.llm import load_tokenizer
from aura.student.lora import attach_lora
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraFeatureExtractor, AuraProcessor
from aura.training.cost import memory_estimate, step_cost
from aura.training.data import read_data
from aura.training.setup import check_bins

NOMINAL_SECONDS = 10.0  # clips assumed where the recipe's data is not at hand
NOMINAL_ANSWER = 30  # tokens of their answers


@dataclass(frozen=True, kw_only=True)
class FirstBatch:
    """Shapes of the first micro-batch."""

    items: int
    length: int
    answers: int
    patches: int
    seconds: float
    note: str


def dry_run(recipe: Recipe) -> dict[str, Any]:
    """Everything `aura train --dry-run` prints, as a dict.

    Raises:
        AuraError: models or data that do not fit the recipe.
    """
    text_config, llm_note = _config(recipe.student.llm)
    teacher, teacher_config, teacher_note = _teacher(recipe.teacher.encoder)
    is_bridge = recipe.run.route == "bridge"
    _check_front_end(recipe, teacher_config)
    student = _student(recipe, text_config, teacher if is_bridge else None)
    trained = {
        "LoRA": sum(p.numel() for n, p in student.named_parameters() if ".lora_" in n),
        "projector" if is_bridge else "audio embedding": sum(p.numel() for p in student.audio_embedding.parameters()),
    }
    learnt = sum(trained.values())  # of the checkpoint: without the heads
    encoder = sum(p.numel() for p in student.speech_encoder.parameters()) if student.speech_encoder is not None else 0
    pairs: tuple[LayerPair, ...] = ()
    target_width, frame_samples = 0, HOP * 2
    if teacher is not None and not is_bridge:
        frame_samples = _frame_samples(teacher_config)
        pairs = layer_pairs(
            teacher_layers=_encoder_layers(teacher_config),
            llm_layers=len(decoder_layers(student.language_model)),
            student_layers=recipe.distill.student_layers,
            explicit=recipe.distill.layer_map,
        )
        stacked = PatchGrid(patch_frames=recipe.audio.patch_frames).teacher_frames(frame_samples)
        target_width = _encoder_width(teacher_config) * (stacked if recipe.distill.frame_map == "stack" else 1)
        trained["distillation heads"] = len(pairs) * text_config.hidden_size * (target_width + 1)
    batch = _first_batch(recipe)
    cost = step_cost(student, teacher=teacher, target_width=target_width, pairs=len(pairs))
    positions = batch.items * batch.length
    student_flops = (
        cost.student(positions=positions, length=batch.length, answers=batch.answers, patches=batch.patches)
        * recipe.batch.micro_batches
    )
    frames = int(batch.seconds * SAMPLE_RATE / frame_samples)
    if is_bridge:  # one window each; longer parts have more
        longest = batch.items * teacher_config.max_source_positions
        silence = round(recipe.bridge.silence_seconds * SAMPLE_RATE / frame_samples)
        frames = max(frames, min(longest, frames + batch.items * silence))
    teacher_flops = cost.teacher(frames) * recipe.batch.micro_batches
    dtype = "float32" if recipe.student.dtype == "float32" else "bfloat16"
    memory = memory_estimate(
        student,
        trained=sum(trained.values()),
        dtype=dtype,
        teacher_bytes=4 * sum(p.numel() for p in teacher.parameters()) if teacher is not None and not encoder else 0,
        positions=positions,
        answers=batch.answers,
        checkpointing=recipe.student.gradient_checkpointing,
    )
    total = sum(p.numel() for p in student.parameters())
    heard = max(1e-9, batch.seconds * recipe.batch.micro_batches)
    listener = (
        f"{recipe.teacher.encoder}: {_millions(sum(p.numel() for p in teacher.parameters()))} weights{teacher_note}"
        if teacher is not None
        else "none"
    )
    return {
        "llm": f"{recipe.student.llm}: {_millions(total - learnt - encoder)} weights{llm_note}",
        "speech encoder" if is_bridge else "teacher": listener,
        "layer pairs": ", ".join(f"{p.teacher}->{p.student}" for p in pairs) or "none",
        "trainable": ", ".join(f"{name} {_millions(count)}" for name, count in trained.items()),
        "trainable share": f"{sum(trained.values()) / (total + trained.get('distillation heads', 0)):.2%}",
        "at run time": f"{_millions(learnt + encoder)} weights beside the LLM, {(learnt + encoder) * 4 / 1e6:.0f} MB in float32"
        + (f"; {_millions(encoder)} of them the speech encoder" if encoder else ""),
        "audio": f"{100 / recipe.audio.patch_frames:g} positions a second of audio",
        "first batch": f"{batch.items} x {batch.length} positions, {batch.patches} patches, mel "
        f"{batch.items} x {recipe.audio.n_mels} x {-(-batch.patches // max(1, batch.items)) * recipe.audio.patch_frames} (mean), "
        f"{batch.answers} answer tokens, {batch.seconds:.0f} s of audio{batch.note}",
        "FLOP per step": f"{(student_flops + teacher_flops) / 1e12:.3g} TFLOP ({student_flops / 1e12:.3g} student, "
        f"{teacher_flops / 1e12:.3g} {'speech encoder' if is_bridge else 'teacher'}), {recipe.batch.micro_batches} micro-batch(es)",
        "FLOP per second of audio": f"{(student_flops + teacher_flops) / heard / 1e9:.3g} GFLOP",
        "memory": f"{memory.total / 2**30:.1f} GiB (LLM {memory.weights / 2**30:.1f}, trained x4 {memory.trained / 2**30:.1f}, "
        f"teacher {memory.teacher / 2**30:.1f}, activations ~{memory.activations / 2**30:.1f}, logits {memory.logits / 2**30:.1f})",
    }


def _config(reference: str) -> tuple[Any, str]:
    """Config of a model, from where it lives or, without asking the Hub, from the shapes known here."""
    try:
        return AutoConfig.from_pretrained(resolve(reference), local_files_only=reference in KNOWN_SHAPES), ""
    except (OSError, ValueError) as error:
        if reference not in KNOWN_SHAPES:
            raise explain_load_error(reference, error) from error
        shapes = dict(KNOWN_SHAPES[reference])
        return AutoConfig.for_model(shapes.pop("model_type"), **shapes), " (published shapes; not downloaded)"


def _teacher(reference: str | None) -> tuple[torch.nn.Module | None, Any, str]:
    if reference is None:
        return None, None, ""
    config, note = _config(reference)
    with torch.device("meta"):
        if config.model_type == "whisper":
            return WhisperEncoder(config), config, note
        from transformers import AutoModel

        return AutoModel.from_config(config), config, note


def _encoder_layers(config: Any) -> int:
    return int(config.encoder_layers if config.model_type == "whisper" else config.num_hidden_layers)


def _encoder_width(config: Any) -> int:
    return int(config.d_model if config.model_type == "whisper" else config.hidden_size)


def _frame_samples(config: Any) -> int:
    if config.model_type == "whisper":
        return 2 * HOP
    product = 1
    for stride in config.conv_stride:
        product *= stride
    return product


def _check_front_end(recipe: Recipe, teacher_config: Any) -> None:
    if recipe.run.route == "bridge":
        assert recipe.teacher.encoder is not None  # validated with the recipe
        check_family(recipe.teacher.encoder, teacher_config)
        check_bins(recipe, teacher_config)
        return
    if recipe.audio.stem != "conv" or teacher_config is None or teacher_config.model_type != "whisper":
        return
    wanted = (teacher_config.num_mel_bins, teacher_config.d_model)
    if (recipe.audio.n_mels, recipe.audio.stem_width) != wanted:
        raise RecipeError(
            f"the conv stem has {recipe.audio.n_mels} mel bins and {recipe.audio.stem_width} channels, the teacher {wanted[0]} and "
            f"{wanted[1]}; set audio.n_mels: {wanted[0]} and audio.stem_width: {wanted[1]}, or audio.stem: linear"
        )


def _student(recipe: Recipe, text_config: Any, encoder: torch.nn.Module | None) -> AuraForConditionalGeneration:
    audio: AudioConfig = recipe.audio
    config = AuraConfig(
        text_config=text_config,
        stem=audio.stem if encoder is None else "encoder",
        n_mels=audio.n_mels,
        patch_frames=audio.patch_frames,
        stem_width=audio.stem_width if encoder is None else int(encoder.config.d_model),  # type: ignore[union-attr, arg-type]
        attention=audio.attention,
        gate=recipe.lora.gate,
        projector_width=recipe.bridge.projector_width,
    )
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(text_config)
        llm.requires_grad_(False)
        if encoder is not None and not recipe.bridge.lora:
            return AuraForConditionalGeneration(config, llm, encoder)
        attach_lora(
            llm,
            rank=recipe.lora.rank,
            alpha=recipe.lora.alpha,
            rslora=recipe.lora.rslora,
            dropout=recipe.lora.dropout,
            layers=recipe.lora.layers,
            modules=recipe.lora.modules,
            base=recipe.student.llm,
            gate=recipe.lora.gate,
        )
        return AuraForConditionalGeneration(config, llm, encoder)


def _first_batch(recipe: Recipe) -> FirstBatch:
    """From the recipe's data where it is at hand, nominal clips otherwise."""
    grid = PatchGrid(patch_frames=recipe.audio.patch_frames)
    try:
        data = read_data(recipe)
        length_of: Any = _length_estimate(recipe, grid)
        planned = next(
            plan_batches(
                data.train,
                length_of,
                tokens=recipe.batch.tokens,
                max_items=recipe.batch.max_items,
                seed=recipe.run.seed,
                buffer=recipe.data.shuffle_buffer if recipe.data.streaming else None,
            )
        )
    except AuraError as error:
        length = grid.count_seconds(NOMINAL_SECONDS) + 2 * NOMINAL_ANSWER
        items = max(1, min(recipe.batch.max_items, recipe.batch.tokens // length))
        return FirstBatch(
            items=items,
            length=length,
            answers=items * NOMINAL_ANSWER,
            patches=items * grid.count_seconds(NOMINAL_SECONDS),
            seconds=items * NOMINAL_SECONDS,
            note=f" (nominal clips of {NOMINAL_SECONDS:g} s, since: {' '.join(str(error).split())})",
        )
    utterances = [item.utterance for item in planned]
    return FirstBatch(
        items=len(utterances),
        length=max(length_of(u) for u in utterances),
        answers=sum(int(len(u.answer) / CHARACTERS_PER_TOKEN) + 1 for u in utterances),
        patches=sum(grid.count_seconds(part.measure()) for u in utterances for part in u.audio),
        seconds=sum(u.seconds for u in utterances),
        note=" (text lengths from characters)",
    )


def _length_estimate(recipe: Recipe, grid: PatchGrid) -> Any:
    if recipe.student.llm in KNOWN_SHAPES:  # its tokenizer may be a download away

        def roughly(utterance: Any) -> int:
            text = "".join(str(message["content"]) for message in utterance.messages)
            return grid.count_seconds(utterance.seconds) + int(len(text) / CHARACTERS_PER_TOKEN)

        return roughly
    tokenizer = load_tokenizer(recipe.student.llm)
    extractor = AuraFeatureExtractor(feature_size=recipe.audio.n_mels, patch_frames=recipe.audio.patch_frames)
    return LengthEstimate(AuraProcessor(extractor, tokenizer))


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"
