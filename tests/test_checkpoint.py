"""Checkpoint folders: whole or not at all, nothing of the LLM in them, refused on another LLM."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import aura.student.files
import aura.student.lora
from aura.errors import CheckpointError, ModelError, ModelReferenceError
from aura.student.checkpoint import load_checkpoint, save_checkpoint
from aura.student.files import whole_folder
from aura.student.llm import load_llm
from aura.student.lora import lora_parameters

ADAPTER = "adapter_model.safetensors"
EMBEDDING = "audio_embedding.safetensors"
MODEL_FILES = {"config.json", "adapter_config.json", ADAPTER, EMBEDDING}
PROCESSOR_FILES = {"processor_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}
AUDIO = 5  # id of the tiny tokenizer's audio token
IDS = torch.tensor([[7, 8, *[AUDIO] * 12, 9, 10]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `llm`, another one of its shape (`other`), and `checkpoint`."""
    here = tmp_path_factory.mktemp("models")
    tiny.tiny_llm_folder("gemma3", here / "llm")
    tiny.tiny_llm_folder("gemma3", here / "other", seed=1)
    tiny.tiny_llm_folder("llama", here / "llama")
    model, processor = tiny.tiny_student("gemma3", base=str(here / "llm"))
    save_checkpoint(here / "checkpoint", model, processor, extra={"recipe.yaml": "run: {}\n", "README.md": "# card\n"})
    return here


@pytest.fixture
def checkpoint(folder: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(folder / "checkpoint", tmp_path / "checkpoint"))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    features = torch.randn(1, 80, 96, generator=torch.Generator().manual_seed(0))
    return model(input_ids=IDS, input_features=features).logits


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("family", tiny.LLM_FAMILIES)
@pytest.mark.parametrize("stem", ["conv", "linear"])
def test_round_trip(family: str, stem: str, tmp_path: Path) -> None:
    base = str(tiny.tiny_llm_folder(family, tmp_path / "llm"))
    model, processor = tiny.tiny_student(family, stem=stem, base=base)
    again, processor_again = load_checkpoint(save_checkpoint(tmp_path / "checkpoint", model, processor))
    assert torch.equal(logits(again), logits(model))
    assert not again.training
    ours, theirs = model.config.to_dict(), again.config.to_dict()
    for name in (
        "base_model",
        "base_fingerprint",
        "audio_token_id",
        "stem",
        "gate",
        "attention",
        "embedding_scale",
        "text_config",
    ):
        assert ours[name] == theirs[name], name
    assert processor_again.chat_template == processor.chat_template
    assert processor_again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    again.save_pretrained(tmp_path / "again")
    for name in (ADAPTER, EMBEDDING):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "checkpoint" / name).read_bytes()


def test_files_are_what_was_learnt_and_no_pickle(folder: Path) -> None:
    found = {path.name for path in (folder / "checkpoint").iterdir()}
    assert found == MODEL_FILES | PROCESSOR_FILES | {"recipe.yaml", "README.md"}
    for name in (ADAPTER, EMBEDDING):
        names = load_file(folder / "checkpoint" / name).keys()
        assert all(".lora_" in n for n in names) if name == ADAPTER else not any("lora" in n for n in names)
    assert not [path for path in (folder / "checkpoint").rglob("*") if path.read_bytes()[:2] == b"\x80\x02"]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # PEFT's own call
def test_stock_peft_loads_the_adapter(folder: Path) -> None:
    model, _ = load_checkpoint(folder / "checkpoint")
    stock = peft.PeftModel.from_pretrained(tiny.tiny_llm("gemma3"), str(folder / "checkpoint"))
    ours, theirs = dict(lora_parameters(model.language_model)), dict(lora_parameters(stock))
    assert {f"base_model.model.{name}" for name in ours} == theirs.keys()
    assert all(torch.equal(ours[name], theirs[f"base_model.model.{name}"]) for name in ours)
    model.config.gate = "all"
    text = torch.tensor([[7, 8, 9, 10]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=text).logits, stock(input_ids=text).logits)


def test_llm_in_memory_or_elsewhere(folder: Path, checkpoint: Path) -> None:
    expected = logits(load_checkpoint(checkpoint)[0])
    assert torch.equal(logits(load_checkpoint(checkpoint, language_model=tiny.tiny_llm("gemma3"))[0]), expected)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"base_model": str(checkpoint / "moved-away")}))
    assert torch.equal(logits(load_checkpoint(checkpoint, llm=str(folder / "llm"))[0]), expected)
    with pytest.raises(ModelReferenceError, match="moved-away"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_attention_kernel_is_chosen_at_load(folder: Path, attn: str) -> None:
    model, _ = load_checkpoint(folder / "checkpoint", attn_implementation=attn)
    assert model.language_model.config._attn_implementation == attn


def test_sdpa_falls_back_where_the_family_has_none(tmp_path: Path) -> None:
    base = str(tiny.tiny_llm_folder("gemma2", tmp_path / "llm"))
    save_checkpoint(tmp_path / "checkpoint", *tiny.tiny_student("gemma2", base=base))
    model, _ = load_checkpoint(tmp_path / "checkpoint", attn_implementation="sdpa")
    assert model.language_model.config._attn_implementation == "eager"


def test_bfloat16_llm_keeps_the_learnt_weights_exact(folder: Path) -> None:
    exact, _ = load_checkpoint(folder / "checkpoint")
    model, _ = load_checkpoint(folder / "checkpoint", dtype="bfloat16")
    assert model.language_model.dtype == torch.bfloat16
    learnt = {n: p for n, p in exact.named_parameters() if ".lora_" in n or n.startswith("audio_embedding")}
    assert all(torch.equal(dict(model.named_parameters())[name], p) for name, p in learnt.items())
    torch.testing.assert_close(logits(model).float(), logits(exact), rtol=0.1, atol=0.1)
    text = torch.tensor([[7, 8, 9, 10]])
    stock = load_llm(str(folder / "llm"), dtype="bfloat16")
    with torch.no_grad():
        assert torch.equal(model(input_ids=text).logits, stock(input_ids=text).logits)


# --- refused ----------------------------------------------------------------------------------------------


def test_another_llm_of_the_same_shape_is_refused(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"was trained on another LLM than .*other: its embeddings weights differ"
    ):
        load_checkpoint(folder / "checkpoint", llm=str(folder / "other"))


def test_another_llm_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"llama: model_type gemma3_text expected, llama found"):
        load_checkpoint(folder / "checkpoint", llm=str(folder / "llama"))


def test_adapter_of_another_shape_is_refused_without_a_fingerprint(folder: Path, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"base_fingerprint": None}))
    wide = tiny.tiny_llm_config("gemma3")
    wide.intermediate_size = 64
    llm = type(tiny.tiny_llm("gemma3"))(wide)
    with pytest.raises(CheckpointError, match="does not fit this LLM"):
        load_checkpoint(checkpoint, language_model=llm)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _rename_weight(path: Path) -> None:
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name + "x"] = tensors.pop(name)
    save_file(tensors, path)


def _reshape_weight(path: Path) -> None:
    tensors = load_file(path)
    name = next(n for n in sorted(tensors) if tensors[n].dim() == 2)
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, path)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


BREAKS: list[tuple[str, Callable[[Path], None]]] = [
    (name, harm)
    for name in sorted(MODEL_FILES | PROCESSOR_FILES - {"chat_template.jinja"})
    for harm in (_truncate, _empty, Path.unlink)
]
BREAKS += [(name, harm) for name in (ADAPTER, EMBEDDING) for harm in (_rename_weight, _reshape_weight)]


@pytest.mark.parametrize(("name", "harm"), BREAKS, ids=lambda value: getattr(value, "__name__", value))
def test_a_torn_checkpoint_is_one_clear_error(checkpoint: Path, name: str, harm: Callable[[Path], None]) -> None:
    harm(checkpoint / name)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(checkpoint)
    message = str(error.value)
    assert str(checkpoint) in message, "the message names what was given"
    assert len(message.splitlines()) == 1 and len(message) < 700


@pytest.mark.parametrize("given", ["nowhere", "./nowhere", "a/b/c"])
def test_no_such_folder(given: str) -> None:
    with pytest.raises(CheckpointError, match=r"is no folder; expected an aura checkpoint"):
        load_checkpoint(given)


def test_a_run_folder_points_to_its_checkpoint(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found nothing"):
        load_checkpoint(tmp_path)
    with pytest.raises(
        CheckpointError,
        match=r"is no aura checkpoint: config.json and .* expected, found .*Did you mean .*/checkpoint\?",
    ):
        load_checkpoint(folder)


# --- whole or not at all ----------------------------------------------------------------------------------


def _full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("module", [aura.student.files, aura.student.lora], ids=["embedding", "adapter"])
def test_a_full_disk_leaves_the_old_checkpoint(checkpoint: Path, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = load_checkpoint(checkpoint)
    before = contents(checkpoint)
    tiny.train_adapter(model)
    monkeypatch.setattr(module, "save_file", _full_disk)
    for save in (
        lambda: save_checkpoint(checkpoint, model, processor),
        lambda: model.save_pretrained(checkpoint),
    ):
        with pytest.raises(ModelError, match=r"the disk is full. Nothing there was changed; free some space"):
            save()
    assert contents(checkpoint) == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_a_full_disk_as_safetensors_reports_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the disk is full"), whole_folder(tmp_path / "new"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupt_between_the_renames_restores(
    checkpoint: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename, calls = contents(checkpoint), os.replace, []

    def interrupted(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises((KeyboardInterrupt, ModelError)), whole_folder(checkpoint) as temporary:
        (temporary / "new").write_text("x")
    assert contents(checkpoint) == before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def test_saving_again_replaces_every_file(checkpoint: Path) -> None:
    model, processor = load_checkpoint(checkpoint)
    tiny.train_adapter(model)
    save_checkpoint(checkpoint, model, processor)
    assert {path.name for path in checkpoint.iterdir()} == MODEL_FILES | PROCESSOR_FILES, "no file of the old one stays"
    assert torch.equal(logits(load_checkpoint(checkpoint)[0]), logits(model))


def test_other_errors_pass_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "new"):
        1 / 0  # noqa: B018
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(ModelError, match=r"could not write .*Nothing there was changed"),
        whole_folder(tmp_path / "file" / "ck"),
    ):
        pass
