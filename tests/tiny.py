"""Tiny, seeded, random models of the real architectures, saved as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def tiny_whisper(folder: Path, *, layers: int = 3, full: bool = True, positions: int = 1500) -> Path:
    """A Whisper checkpoint (encoder and decoder unless `full` is off) with its feature extractor.

    `positions` shortens the 30 s window (50 positions a second), for tests that run it.
    """
    from transformers import (
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperModel,
    )

    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=layers,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=80,
        max_source_positions=positions,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config) if full else WhisperModel(config)
    randomize(model)
    model.save_pretrained(folder)
    WhisperFeatureExtractor(chunk_length=positions // 50).save_pretrained(folder)
    return Path(folder)


def tiny_wav2vec2(
    folder: Path, *, norm: str = "layer", family: str = "wav2vec2", layers: int = 3, **options: Any
) -> Path:
    """A checkpoint of the wav2vec 2.0 line: 320 samples a frame, receptive field 400, as the real ones.

    Args:
        folder: where to save it.
        norm: "group" (as the base models) or "layer" (as the large ones, with a final norm after the layers).
        family: any model type of that line, e.g. "wav2vec2", "hubert", "wavlm", "data2vec-audio".
        layers: transformer layers.
        options: more fields of the configuration.
    """
    from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": (8,) * 7,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer",
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "vocab_size": 8,
    }
    model = AutoModel.from_config(AutoConfig.for_model(family, **settings | options))
    randomize(model)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return Path(folder)


def tiny_hubert(folder: Path, *, norm: str = "layer", **options: Any) -> Path:
    """A HuBERT checkpoint; see `tiny_wav2vec2`."""
    return tiny_wav2vec2(folder, norm=norm, family="hubert", **options)


def tiny_wavlm(folder: Path, *, norm: str = "layer", **options: Any) -> Path:
    """A WavLM checkpoint; see `tiny_wav2vec2`."""
    return tiny_wav2vec2(folder, norm=norm, family="wavlm", **options)


@torch.no_grad()
def randomize(model: torch.nn.Module, *, scale: float = 0.15) -> None:
    """Give every vector parameter (norms, biases) noise, so that none is inert and a forgotten one shows."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter) * scale)
        elif parameter.std() < 0.1:
            # The usual initialisation (std 0.02) leaves such small models nearly linear: layers look alike.
            parameter.mul_(5.0)


# --- LLMs, tokenizers and students ------------------------------------------------------------------------

LLM_FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3")
"""Families of the proofs. All but llama have sliding-window layers of 8 positions next to full ones."""

MORE_FAMILIES = ("mistral", "granite", "phi3")
"""Further ones for single proofs: every layer sliding, scaled logits, fused projections."""

WINDOW = 8  # positions a sliding-window layer looks back, itself included
VOCABULARY = 300  # rows of the tiny embedding tables; the tiny tokenizers have as many tokens

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A string-only template, as most LLMs bring one: content that is a list of parts breaks it."""


def tiny_tokenizer(*, chat_template: str | None = CHATML, reserved: bool = True, adds_bos: bool = False) -> Any:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens, built in memory.

    Args:
        chat_template: the LLM's own template; None for an LLM without one.
        reserved: whether it keeps `<unused0>` free; without, an audio token is added behind the table.
        adds_bos: put `<s>` before any text it is given, as Llama's and Gemma's do.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<unused0>" if reserved else "<other>"]
    special.append("<|endoftext|>")  # the Qwen tokenizer class adds it where it is missing
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("o", "n"), ("e", "r"), ("Ċ", "Ċ")]
    words = special + sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    words += [f"<filler{n}>" for n in range(VOCABULARY - len(words))]
    tokenizer = Tokenizer(models.BPE(vocab={word: n for n, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>" if chat_template == CHATML else "</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", special[5]],
        chat_template=chat_template,
    )


def tiny_llm_config(family: str) -> Any:
    """Config of a four-layer LLM of that family, 32 wide."""
    from transformers import AutoConfig

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 4,
        "tie_word_embeddings": family.startswith("gemma"),
    }
    mixed = ["sliding_attention", "full_attention"] * 2
    settings |= {
        "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": mixed},
        "qwen3": {"use_sliding_window": True, "sliding_window": WINDOW, "layer_types": mixed},
        "gemma2": {
            "sliding_window": WINDOW,
            "layer_types": mixed,
            "final_logit_softcapping": 5.0,
            "query_pre_attn_scalar": 8,
        },
        "gemma3": {"sliding_window": WINDOW, "layer_types": mixed, "query_pre_attn_scalar": 8},
        "smollm3": {
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "layer_types": mixed,
            "no_rope_layers": [1, 0] * 2,
        },
        "mistral": {"sliding_window": WINDOW},
        "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
        "phi3": {"sliding_window": WINDOW, "rope_theta": 10_000.0},
    }.get(family, {})
    return AutoConfig.for_model("gemma3_text" if family == "gemma3" else family, **settings)


def tiny_llm(family: str, *, seed: int = 0, attn: str = "sdpa") -> Any:
    """A seeded random LLM in eval mode, its weights large enough to be told apart."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    if family == "gemma2":
        attn = "eager"  # soft-capped attention scores: Hugging Face has no other kernel for them
    model = AutoModelForCausalLM.from_config(tiny_llm_config(family), attn_implementation=attn)
    randomize(model)
    return model.requires_grad_(False).eval()


def tiny_llm_folder(family: str, folder: Path, *, seed: int = 0, tokenizer: Any = None) -> Path:
    """The same as a folder with its tokenizer, as `aura.student.llm.load_llm` takes it."""
    tiny_llm(family, seed=seed).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return Path(folder)


def tiny_student(
    family: str,
    *,
    gate: str = "audio",
    attention: str = "block",
    stem: str = "conv",
    attn: str = "sdpa",
    train_like: bool = True,
    base: str = "tiny",
    seed: int = 0,
    tokenizer: Any = None,
) -> tuple[Any, Any]:
    """(model, processor) on a tiny LLM, in eval mode.

    Args:
        family: of the LLM.
        gate, attention, stem: as in the recipe.
        attn: attention kernel of the LLM.
        train_like: give the adapter an update, as a trained one has; a fresh one has none.
        base: reference kept in the checkpoint, the LLM's folder where it is to be loaded again.
        seed: of the LLM; adapter and audio embedding follow.
        tokenizer: `tiny_tokenizer()` when None.
    """
    from aura.config import AudioConfig, LoraConfig
    from aura.student.checkpoint import new_processor, new_student

    audio = AudioConfig(stem=stem, stem_width=12, attention=attention)
    modules = {"phi3": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")}.get(family, LoraConfig().modules)
    lora = LoraConfig(rank=4, alpha=8.0, gate=gate, modules=modules)
    processor = new_processor(tokenizer or tiny_tokenizer(), audio)
    model = new_student(tiny_llm(family, seed=seed, attn=attn), processor, base=base, audio=audio, lora=lora)
    if train_like:
        train_adapter(model)
    return model.eval(), processor


@torch.no_grad()
def train_adapter(model: torch.nn.Module, *, scale: float = 0.2) -> None:
    """Give every LoRA B matrix an update, as training would."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.normal_(0.0, scale)


def tiny_speech(seconds: float, *, seed: int = 0) -> Any:
    """(samples,) float32 at 16 kHz: noise under a slow envelope, no two patches alike."""
    import numpy as np

    rng = np.random.default_rng(seed)
    samples = round(seconds * 16_000)
    envelope = 0.05 + 0.1 * (1 + np.sin(np.arange(samples) / 900.0 + seed))
    return (rng.standard_normal(samples) * envelope).astype(np.float32)


# --- whole runs -------------------------------------------------------------------------------------------

WORDS = ("one", "the two", "three in", "on four", "thin", "other", "no", "then the")


def tiny_manifest(folder: Path, *, count: int = 12, seed: int = 0, name: str = "train", shortest: float = 0.25) -> Path:
    """A JSONL manifest of `count` clips of noise of 0.25 to 0.8 s, each with a transcript; no two of one length."""
    import json

    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        file = f"{name}-{number}.wav"
        speech = tiny_speech(shortest + 0.55 * ((number * 7) % count) / count, seed=100 * seed + number)
        soundfile.write(folder / file, speech, 16_000)
        rows.append({"audio": file, "transcript": WORDS[(number + seed) % len(WORDS)]})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tiny_recipe(
    folder: Path, overrides: dict[str, Any] | None = None, *, family: str = "llama", teacher: str = "whisper"
) -> Any:
    """A recipe that trains a tiny student in a second; models and clips are written to `folder` once.

    Args:
        folder: shared by runs; `run.out` is `folder / "run"` unless overridden.
        overrides: dotted fields of the recipe.
        family: of the LLM.
        teacher: `whisper`, or a family that `tiny_wav2vec2` takes.
    """
    from aura.recipes import read_recipe

    llm, encoder, data = folder / family, folder / teacher, folder / "data"
    if not llm.is_dir():
        tiny_llm_folder(family, llm)
    if not encoder.is_dir():
        tiny_whisper(encoder) if teacher == "whisper" else tiny_wav2vec2(encoder, family=teacher)
    if not data.is_dir():
        tiny_manifest(data)
        tiny_manifest(data, count=3, seed=1, name="valid")
    fields = {
        "student.llm": str(llm),
        "teacher.encoder": str(encoder),
        "audio.stem_width": 16,
        "lora.rank": 4,
        "lora.alpha": 8.0,
        "distill.calibration_seconds": 2.0,
        "data.train": [str(data / "train.jsonl")],
        "batch.tokens": 120,
        "optim.learning_rate": 3e-3,
        "optim.embedding_learning_rate": 2e-3,
        "optim.head_learning_rate": 1e-3,
        "optim.warmup_steps": 2,
        "run.out": str(folder / "run"),
        "run.steps": 6,
        "run.log_every": 1,
        "run.eval_every": 0,
        "run.save_every": 0,
        "run.save_minutes": None,
        "run.max_new_tokens": 2,
    }
    return read_recipe(None, fields | (overrides or {}))
