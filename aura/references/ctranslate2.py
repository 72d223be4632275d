"""A Whisper model in CTranslate2's binary format -> a Hugging Face folder.

The format (CTranslate2 `model_spec.py`, binary version 6), little endian, strings as a uint16 length that
counts a closing zero byte:

    uint32 binary version, string spec name, uint32 spec revision
    uint32 number of variables, each:  string name, uint8 rank, uint32 dimension x rank,
                                       uint8 dtype, uint32 bytes, the numbers in C order
    uint32 number of aliases, each:    string alias, string variable
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aura.errors import ModelError
from aura.references.packages import SplitModel, find_distribution, join_parts, located_file

_BFLOAT16 = 5
_DTYPES = {0: "<f4", 1: "<i1", 2: "<i2", 3: "<i4", 4: "<f2", _BFLOAT16: "<u2"}
_VERSIONS = (5, 6)  # the variable records are the same in both


@dataclass(frozen=True, kw_only=True)
class Ctranslate2Model:
    """What a `model.bin` holds."""

    spec: str
    revision: int
    variables: dict[str, np.ndarray]  # aliases included


class _Reader:
    def __init__(self, data: bytes):
        self.data = memoryview(data)
        self.at = 0

    def take(self, count: int) -> memoryview:
        if self.at + count > len(self.data):
            raise ModelError(
                f"The CTranslate2 model file ends early: {len(self.data)} bytes, expected at least "
                f"{self.at + count}. Reinstall the package it came from."
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode("utf-8")


def read_model(data: bytes) -> Ctranslate2Model:
    """Parse a `model.bin`.

    Raises:
        ModelError: it is no CTranslate2 file, of a binary version we do not know, or ends early.
    """
    reader = _Reader(data)
    version = reader.number("I")
    if version not in _VERSIONS:
        raise ModelError(
            f"The CTranslate2 model file has binary version {version}; expected one of {_VERSIONS}. "
            "Convert the model again with a current ct2-transformers-converter."
        )
    spec, revision = reader.string(), reader.number("I")
    variables = dict(_read_variable(reader) for _ in range(reader.number("I")))
    for _ in range(reader.number("I")):
        alias, name = reader.string(), reader.string()
        variables[alias] = variables[name]
    return Ctranslate2Model(spec=spec, revision=revision, variables=variables)


def _read_variable(reader: _Reader) -> tuple[str, np.ndarray]:
    name = reader.string()
    shape = [reader.number("I") for _ in range(reader.number("B"))]
    dtype = reader.number("B")
    raw = reader.take(reader.number("I"))
    if dtype not in _DTYPES:
        raise ModelError(f"The CTranslate2 variable '{name}' has the unknown dtype {dtype}; expected 0 to 5.")
    values = np.frombuffer(raw, dtype=_DTYPES[dtype])
    if dtype == _BFLOAT16:  # the upper half of a float32
        values = (values.astype("<u4") << 16).view("<f4")
    if values.size != int(np.prod(shape)):
        raise ModelError(f"The CTranslate2 variable '{name}' has {values.size} numbers; expected shape {shape}.")
    return name, values.reshape(shape)


def write_huggingface_folder(model: SplitModel, folder: Path) -> None:
    """Write a Whisper model as config, float32 weights, tokenizer, feature extractor and generation config.

    Raises:
        ModelError: the file is damaged, or not a float Whisper model.
    """
    from safetensors.numpy import save_file

    joined = io.BytesIO()
    join_parts(model, joined)
    parsed = read_model(joined.getvalue())
    if parsed.spec != "WhisperSpec":
        raise ModelError(f"'{model.name}' holds a CTranslate2 {parsed.spec}; only WhisperSpec is understood.")
    weights = whisper_weights(parsed.variables)
    first = model.parts[0].distribution
    paths = {n: located_file(find_distribution(first), first, f"{model.folder}/{n}") for n in model.small_files}
    vocabulary = paths["vocabulary.txt"].read_text(encoding="utf-8").rstrip("\n").split("\n")
    hints = json.loads(paths["config.json"].read_text(encoding="utf-8"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_configs(parsed.variables, vocabulary, hints, folder)
    _write_tokenizer(paths["tokenizer.json"], vocabulary, folder)


def whisper_weights(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """CTranslate2's names and fused matrices -> those of `WhisperForConditionalGeneration`, in float32."""
    weights: dict[str, np.ndarray] = {}
    for name in ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"):
        weights[f"model.encoder.{name}"] = _float(variables, f"encoder/{name.replace('.', '/')}")
    # proj_out is tied to it
    weights["model.decoder.embed_tokens.weight"] = _float(variables, "decoder/embeddings/weight")
    for side in ("encoder", "decoder"):
        here = f"model.{side}"
        weights[f"{here}.embed_positions.weight"] = _float(variables, f"{side}/position_encodings/encodings")
        _norm(weights, f"{here}.layer_norm", variables, f"{side}/layer_norm")
        for index in range(count_layers(variables, side)):
            layer, source = f"{here}.layers.{index}", f"{side}/layer_{index}"
            _self_attention(weights, f"{layer}.self_attn", variables, f"{source}/self_attention")
            if side == "decoder":
                _cross_attention(weights, f"{layer}.encoder_attn", variables, f"{source}/attention")
            _norm(weights, f"{layer}.final_layer_norm", variables, f"{source}/ffn/layer_norm")
            _linear(weights, f"{layer}.fc1", variables, f"{source}/ffn/linear_0")
            _linear(weights, f"{layer}.fc2", variables, f"{source}/ffn/linear_1")
    return weights


def count_layers(variables: dict[str, np.ndarray], side: str) -> int:
    """Layers of the encoder or the decoder."""
    prefix = f"{side}/layer_"  # `layer_norm` shares it
    numbers = {name[len(prefix) :].split("/")[0] for name in variables if name.startswith(prefix)}
    return len(numbers - {"norm"})


def _float(variables: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in variables:
        raise ModelError(f"The CTranslate2 model lacks the variable '{name}'; expected a Whisper model.")
    if variables[name].dtype.kind != "f":
        raise ModelError(f"The CTranslate2 variable '{name}' is {variables[name].dtype}; expected a float model.")
    return np.ascontiguousarray(variables[name], dtype=np.float32)


def _norm(weights: dict, target: str, variables: dict, source: str) -> None:
    weights[f"{target}.weight"] = _float(variables, f"{source}/gamma")
    weights[f"{target}.bias"] = _float(variables, f"{source}/beta")


def _linear(weights: dict, target: str, variables: dict, source: str) -> None:
    weights[f"{target}.weight"] = _float(variables, f"{source}/weight")
    weights[f"{target}.bias"] = _float(variables, f"{source}/bias")


def _fused(weights: dict, target: str, variables: dict, source: str, names: tuple[str, ...]) -> None:
    """Cut one stacked matrix into the projections `names`; Whisper's keys have no bias."""
    matrices = np.split(_float(variables, f"{source}/weight"), len(names))
    biases = np.split(_float(variables, f"{source}/bias"), len(names))
    for name, matrix, bias in zip(names, matrices, biases, strict=True):
        weights[f"{target}.{name}.weight"] = np.ascontiguousarray(matrix)
        if name != "k_proj":
            weights[f"{target}.{name}.bias"] = np.ascontiguousarray(bias)
        elif np.any(bias):
            raise ModelError(f"'{source}' has a bias on its keys; Whisper has none.")


def _self_attention(weights: dict, target: str, variables: dict, source: str) -> None:
    _fused(weights, target, variables, f"{source}/linear_0", ("q_proj", "k_proj", "v_proj"))
    _linear(weights, f"{target}.out_proj", variables, f"{source}/linear_1")
    _norm(weights, f"{target}_layer_norm", variables, f"{source}/layer_norm")


def _cross_attention(weights: dict, target: str, variables: dict, source: str) -> None:
    _linear(weights, f"{target}.q_proj", variables, f"{source}/linear_0")
    _fused(weights, target, variables, f"{source}/linear_1", ("k_proj", "v_proj"))
    _linear(weights, f"{target}.out_proj", variables, f"{source}/linear_2")
    _norm(weights, f"{target}_layer_norm", variables, f"{source}/layer_norm")


def _write_configs(variables: dict, vocabulary: list[str], hints: dict, folder: Path) -> None:
    """`config.json`, `generation_config.json`, `preprocessor_config.json`, from shapes and token names."""
    from transformers import GenerationConfig, WhisperConfig, WhisperFeatureExtractor

    ids = {token: index for index, token in enumerate(vocabulary)}
    width, mels, _ = variables["encoder/conv1/weight"].shape
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    shared: dict[str, Any] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
    }
    WhisperConfig(
        vocab_size=variables["decoder/embeddings/weight"].shape[0],
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=count_layers(variables, "encoder"),
        decoder_layers=count_layers(variables, "decoder"),
        encoder_attention_heads=int(variables["encoder/num_heads"]),
        decoder_attention_heads=int(variables["decoder/num_heads"]),
        encoder_ffn_dim=variables["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=variables["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=variables["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=variables["decoder/position_encodings/encodings"].shape[0],
        architectures=["WhisperForConditionalGeneration"],
        dtype="float32",
        begin_suppress_tokens=hints["suppress_ids_begin"],
        **shared,
    ).save_pretrained(folder)
    GenerationConfig(
        **shared,
        suppress_tokens=hints["suppress_ids"],
        begin_suppress_tokens=hints["suppress_ids_begin"],
        max_length=variables["decoder/position_encodings/encodings"].shape[0],
        is_multilingual=True,
        # without a task in the prompt, generate() leaves it out, and Whisper repeats one word for ever
        task="transcribe",
        lang_to_id={vocabulary[index]: index for index in hints["lang_ids"]},
        task_to_id={"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        max_initial_timestamp_index=50,  # 1 s in steps of 20 ms, as OpenAI's decoder
        return_timestamps=False,
        alignment_heads=hints["alignment_heads"],
    ).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=mels).save_pretrained(folder)


def _write_tokenizer(tokenizer_json: Path, vocabulary: list[str], folder: Path) -> None:
    """The tokenizer, with the timestamp tokens that the package's `tokenizer.json` leaves out."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import WhisperTokenizer

    backend = Tokenizer.from_file(str(tokenizer_json))
    special = [token.content for _, token in sorted(backend.get_added_tokens_decoder().items())]
    missing = vocabulary[backend.get_vocab_size() :]
    backend.add_tokens([AddedToken(token, normalized=False) for token in missing])
    # Whisper's decoding takes the id after the last special token for that of <|0.00|>: name them all.
    WhisperTokenizer(tokenizer_object=backend, pad_token="<|endoftext|>", extra_special_tokens=special).save_pretrained(
        folder
    )
