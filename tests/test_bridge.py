"""The bridge baseline: the encoder stays frozen and whole, the rest behaves as an aura student does."""

from __future__ import annotations

import ast
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import aura
from aura.audio.logmel import log_mel
from aura.batch.collate import Example, collate
from aura.batch.loader import BatchLoader
from aura.batch.plan import PlannedItem
from aura.batch.prompt import user_message
from aura.bridge.encoder import FrozenEncoder, load_encoder
from aura.cli import main
from aura.config import BRIDGE_RUN, OptimConfig, Recipe
from aura.errors import CheckpointError, ModelError, RecipeError
from aura.inference.engine import Engine
from aura.recipes import read_recipe
from aura.student.checkpoint import save_checkpoint
from aura.student.llm import embedding_rms, load_llm
from aura.teacher.encoder import Teacher
from aura.training import loop
from aura.training.data import read_data
from aura.training.dryrun import dry_run
from aura.training.loop import train
from aura.training.objective import Weights
from aura.training.schedule import make_optimizer
from aura.training.setup import Station, build_station
from aura.training.state import read_log, step_folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, clips and runs, shared by the tests of this file."""
    return tmp_path_factory.mktemp("bridge")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "plot_run", lambda run: [])


def recipe_for(folder: Path, overrides: dict[str, Any] | None = None, **models: str) -> Recipe:
    return tiny.tiny_recipe(folder, {**BRIDGE_RUN, "bridge.projector_width": 24, **(overrides or {})}, **models)


def station_of(folder: Path, overrides: dict[str, Any] | None = None, **models: str) -> Station:
    recipe = recipe_for(folder, overrides, **models)
    return build_station(recipe, read_data(recipe).train)


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """An uninterrupted run with everything a bridge can have."""
    out = folder / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "plot_run", lambda run: [])
        assert train(recipe_for(folder, {"run.out": str(out), **RICH})).finished
    return out


RICH: dict[str, Any] = {
    **{"lora.dropout": 0.2, "lora.gate": "all", "distill.response_kl": 0.5, "augment.noise_probability": 0.7},
    **{"augment.time_masks": 1, "batch.micro_batches": 2, "optim.average": 0.9},
}


def frozen(folder: Path, *, silence: float = 0.0, patch_frames: int = 8, positions: int = 1500) -> FrozenEncoder:
    path = folder / f"whisper-{positions}"
    if not path.is_dir():
        tiny.tiny_whisper(path, positions=positions)
    return FrozenEncoder(load_encoder(str(path)), patch_frames=patch_frames, silence_seconds=silence)


def mel_of(*seconds: float, seed: int = 0, silence: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, list[np.ndarray]]:
    """Whisper's log-mel of noise, NaN behind each item's end; frames; waveforms of whole patches."""
    waves = [tiny.tiny_speech(s, seed=seed + n) for n, s in enumerate(seconds)]
    for wave in waves:
        wave[len(wave) - round(silence * 16_000) :] = 0.0
    mels = [log_mel(torch.from_numpy(wave), floor="clip") for wave in waves]
    frames = torch.tensor([mel.shape[1] for mel in mels])
    padded = torch.full((len(mels), 80, int(frames.max())), float("nan"))
    for row, mel in zip(padded, mels):
        row[:, : mel.shape[1]] = mel
    return padded, frames, waves


def example(seconds: float, seed: int = 0, text: str = "the") -> Example:
    return Example(id=f"{seconds} s", messages=[user_message(text)], waveforms=[tiny.tiny_speech(seconds, seed=seed)])


def texts(engine: Engine, examples: list[Example], **options: Any) -> list[str]:
    return [g.text for g in engine.generate(examples, max_new_tokens=6, **options)]


# --- the frozen encoder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("silence", [0.0, 0.6, 30.0])
def test_padded_batch_equals_single_items(folder: Path, silence: float) -> None:
    encoder = frozen(folder, silence=silence, positions=100)
    mel, frames, _ = mel_of(0.32, 1.6, 0.8, 0.88)
    together = encoder(mel, frames)
    assert together.shape == (int(frames.sum()) // 2, 16) and together.isfinite().all()
    alone = [encoder(mel[i : i + 1, :, : frames[i]], frames[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_real_length_equals_the_teachers_last_layer(folder: Path) -> None:
    encoder = frozen(folder)
    mel, frames, waves = mel_of(0.8, 1.6)
    teacher = Teacher.load(str(folder / "whisper-1500"))
    expected = encoder.encoder.layer_norm(teacher(waves, [3]).hidden_LFE[0])
    torch.testing.assert_close(encoder(mel, frames), expected, rtol=1e-3, atol=1e-4)


def test_padded_to_the_window_equals_hugging_faces_encoder(folder: Path) -> None:
    from transformers import AutoFeatureExtractor

    encoder = frozen(folder, silence=30.0, positions=100)  # a window of 2 s
    mel, frames, [wave] = mel_of(1.2, silence=0.08)
    extractor = AutoFeatureExtractor.from_pretrained(folder / "whisper-100")
    features = extractor(wave, sampling_rate=16_000, return_tensors="pt")["input_features"]
    assert features.shape[-1] == 200
    with torch.no_grad():
        expected = encoder.encoder(features).last_hidden_state[0, :60]
    torch.testing.assert_close(encoder(mel, frames), expected, rtol=1e-3, atol=1e-4)


def test_some_silence_lies_between_real_length_and_the_whole_window(folder: Path) -> None:
    mel, frames, _ = mel_of(0.8)
    [none, some, more, whole] = [frozen(folder, silence=s, positions=100)(mel, frames) for s in (0.0, 0.4, 1.2, 30.0)]
    assert none.shape == some.shape == whole.shape
    assert torch.equal(more, whole)  # 0.8 s + 1.2 s is the window of 2 s
    distances = [(found - whole).norm().item() for found in (none, some)]
    assert distances[0] > 0.1 and distances[1] > 0.1


@pytest.mark.parametrize("silence", [0.0, 2.0, 30.0])
def test_forty_seconds_are_heard_in_two_windows_to_the_end(folder: Path, silence: float) -> None:
    encoder = frozen(folder, silence=silence)
    mel, frames, _ = mel_of(40.0)
    whole = encoder(mel, frames)
    assert whole.shape[0] == 2000
    if not silence:  # what silence is depends on the whole clip
        for first, last in ((0, 3000), (3000, 4000)):
            alone = encoder(mel[:, :, first:last], torch.tensor([last - first]))
            torch.testing.assert_close(whole[first // 2 : last // 2], alone, rtol=1e-4, atol=1e-5)
    mel[:, :, -50:] += 1.0
    later = encoder(mel, frames)
    torch.testing.assert_close(later[:1500], whole[:1500], rtol=1e-4, atol=1e-5)
    assert (later[-25:] - whole[-25:]).abs().mean() > 0.01


def test_a_window_holds_whole_patches(folder: Path) -> None:
    encoder = frozen(folder, patch_frames=16, positions=100)  # 200 mel frames: 12.5 patches
    assert encoder.window == 192
    mel, frames, _ = mel_of(4.0)
    assert encoder(mel, frames).shape[0] == 200


def test_an_encoder_never_trains(folder: Path) -> None:
    encoder = frozen(folder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


# --- what learns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [True, False])
def test_a_step_moves_what_was_declared_and_nothing_else(folder: Path, lora: bool) -> None:
    station = station_of(folder, {"bridge.lora": lora})
    objective, before = station.objective, {}
    everything = objective.state_dict(keep_vars=True)
    assert any("speech_encoder" in name for name in everything)
    before = {name: tensor.detach().clone() for name, tensor in everything.items()}
    optimizer = make_optimizer(objective.trainable(), OptimConfig(), is_bridge=True)
    utterances = read_data(recipe_for(folder)).train[:4]
    loader = BatchLoader(station.processor, augment=None, seed=0)
    objective.train()
    for _ in range(2):  # a fresh LoRA A moves once B has
        batch = loader.load([PlannedItem(utterance=u, epoch=0, index=n) for n, u in enumerate(utterances)])
        objective(batch, None, Weights(distill=0.0, kl=0.0, answer_tokens=10, patches=10)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name for name, tensor in everything.items() if not torch.equal(tensor, before[name])}
    assert moved == set(objective.trainable())
    learnt = {name.split(".")[1] for name in moved}
    assert learnt == ({"audio_embedding", "language_model"} if lora else {"audio_embedding"})
    assert all(".lora_" in name or "audio_embedding" in name for name in moved)


def test_the_projector_has_its_own_rate(folder: Path) -> None:
    objective = station_of(folder).objective
    config = OptimConfig(learning_rate=1.0, embedding_learning_rate=2.0, projector_learning_rate=3.0)
    rates = {
        name: group["peak"]
        for group in make_optimizer(objective.trainable(), config, is_bridge=True).param_groups
        for name, parameter in objective.trainable().items()
        if any(parameter is p for p in group["params"])
    }
    assert {rate for name, rate in rates.items() if "audio_embedding" in name} == {3.0}
    assert {rate for name, rate in rates.items() if ".lora_" in name} == {1.0}


@pytest.mark.parametrize(("scale", "expected"), [(None, 5.0), (2.0, 2.0)])
def test_audio_positions_start_at_the_scale_of_token_embeddings(folder: Path, scale: Any, expected: float) -> None:
    station = station_of(folder, {"audio.scale": 5.0, "bridge.scale": scale})
    student, batch = station.student, collate(station.processor, [example(1.6)], answer=False)
    assert student.config.embedding_scale == pytest.approx(expected * embedding_rms(student.language_model))
    patches = student.get_audio_features(batch.input_features, batch.input_features_mask).pooler_output
    assert patches.shape == (20, 32)
    assert patches.pow(2).mean().sqrt().item() == pytest.approx(student.config.embedding_scale, rel=1e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_text_only_equals_stock_without_lora(folder: Path, family: str) -> None:
    station = station_of(folder, {"bridge.lora": False}, family=family)
    stock = load_llm(str(folder / family))
    ids = torch.tensor([[7, 8, 9, 10, 11, 12, 13, 14, 15, 16]])
    with torch.no_grad():
        assert torch.equal(station.student.eval()(input_ids=ids).logits, stock(input_ids=ids).logits)
    assert not [name for name, _ in station.student.named_parameters() if "lora" in name]


# --- runs -------------------------------------------------------------------------------------------------


def test_resumed_equals_uninterrupted(folder: Path, run: Path, tmp_path: Path) -> None:
    recipe = recipe_for(folder, {"run.out": str(tmp_path / "run"), **RICH})
    take = loop._Run._step

    def interrupted(self: Any, *args: Any) -> None:
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        take(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop._Run, "_step", interrupted)
        assert not train(recipe).finished
    assert train(recipe, resume=True).finished
    found = tmp_path / "run"
    for file in ("checkpoint/adapter_model.safetensors", "checkpoint/audio_embedding.safetensors"):
        ours, theirs = load_file(found / file), load_file(run / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    last, whole = step_folders(found)[-1], step_folders(run)[-1]
    ours, theirs = load_file(last / "training.safetensors"), load_file(whole / "training.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not [name for name in ours if "speech_encoder" in name]
    losses = [[(row["loss"], row["kl"]) for row in read_log(path / "log.jsonl")] for path in (found, run)]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_a_bridge_does_not_go_on_as_another_run(folder: Path, run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run\.route bridge -> aura"):
        train(tiny.tiny_recipe(folder, {"run.out": str(out), "run.steps": 8}), resume=True)
    changed = {"run.out": str(out), "run.steps": 8, **RICH}
    with pytest.raises(CheckpointError, match=r"bridge\.silence_seconds 2\.0 -> 30\.0"):
        train(recipe_for(folder, {**changed, "bridge.silence_seconds": 30.0}), resume=True)
    with pytest.raises(CheckpointError, match=r"another speech encoder.*layers 3 expected, 2 found"):
        train(recipe_for(folder, {**changed, "teacher.encoder": str(other_encoder(folder))}), resume=True)


def other_encoder(folder: Path, layers: int = 2) -> Path:
    path = folder / f"other-{layers}"
    return path if path.is_dir() else tiny.tiny_whisper(path, layers=layers)


def test_the_saved_recipe_says_what_ran(run: Path) -> None:
    saved = read_recipe(run / "recipe.yaml")  # and is valid as it stands
    assert saved.run.route == "bridge" and saved.distill.weight == 0 and saved.bridge.floor == "clip"
    card = (run / "checkpoint" / "README.md").read_text()
    assert "A bridge from the frozen speech encoder" in card and "no speech encoder" not in card


@pytest.mark.parametrize("floor", ["clip", -5.0])
def test_round_trip_gives_identical_generations(folder: Path, tmp_path: Path, floor: Any) -> None:
    options = {
        "bridge.lora": floor == "clip",
        "bridge.floor": floor,
        "bridge.silence_seconds": 1.0 if floor == "clip" else 30.0,
    }
    recipe = recipe_for(folder, options)
    station = build_station(recipe, read_data(recipe).train)
    tiny.train_adapter(station.student)
    save_checkpoint(tmp_path / "checkpoint", station.student, station.processor)
    files = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert ({"adapter_config.json", "adapter_model.safetensors"} & files != set()) == (floor == "clip")
    names = load_file(tmp_path / "checkpoint" / "audio_embedding.safetensors")
    assert {name.split(".")[0] for name in names} == {"stack_norm", "up", "down", "norm"}
    before = Engine(station.student, station.processor)
    after = aura.load(tmp_path / "checkpoint")
    assert (after.model.config.is_bridge, after.model.config.floor) == (True, floor)
    assert after.processor.feature_extractor.floor == floor
    asked = [example(1.2), example(0.4, seed=1, text="")]
    assert texts(after, asked) == texts(before, asked)
    assert after.digest == before.digest
    with torch.no_grad():
        inputs = collate(after.processor, asked, answer=False).model_inputs()
        assert torch.equal(after.model(**inputs).logits, before.model(**inputs).logits)


def test_a_batch_answers_as_its_items_alone(run: Path) -> None:
    engine = aura.load(run / "checkpoint")
    asked = [example(0.3 + 0.5 * n, seed=n, text=("the", "in")[n % 2]) for n in range(5)]
    alone = [texts(engine, [one])[0] for one in asked]
    assert texts(engine, asked, batch_tokens=10_000) == alone


def test_cached_generation_equals_full_forward(run: Path) -> None:
    engine = aura.load(run / "checkpoint")
    [answer] = engine.generate([example(0.9)], max_new_tokens=5)
    inputs = collate(engine.processor, [example(0.9)], answer=False).model_inputs()
    ids = inputs.pop("input_ids")
    inputs.pop("attention_mask")
    with torch.no_grad():
        for token in answer.token_ids:
            assert engine.model(input_ids=ids, **inputs).logits[0, -1].argmax().item() == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


def test_forty_seconds_are_asked_about_and_transcribed(folder: Path) -> None:
    station = station_of(folder, {"audio.patch_frames": 16})  # 250 positions: the tiny LLM has 512
    engine = Engine(station.student, station.processor)
    sound = {"array": tiny.tiny_speech(40.0), "sampling_rate": 16_000}
    [answer] = engine.generate([example(40.0)], max_new_tokens=2)
    assert len(answer.token_ids) <= 2 and engine.ask(sound, "the", max_new_tokens=2) == answer.text
    assert engine.transcribe(sound, max_new_tokens=2).seconds == 40.0


# --- dry run ----------------------------------------------------------------------------------------------


def test_the_dry_run_counts_the_encoder(folder: Path) -> None:
    student = station_of(folder).student
    encoder = sum(p.numel() for p in student.speech_encoder.parameters())
    learnt = sum(p.numel() for p in student.parameters() if p.requires_grad)
    figures = dry_run(recipe_for(folder))
    assert f"{(encoder + learnt) * 4 / 1e6:.0f} MB" in figures["at run time"]
    assert f"{encoder / 1e6:.1f}M of them the speech encoder" in figures["at run time"]
    assert "teacher" not in figures and figures["layer pairs"] == "none" and "heads" not in figures["trainable"]
    assert "projector" in figures["trainable"]
    assert dry_run(recipe_for(folder, {"bridge.lora": False}))["trainable"].startswith("LoRA 0.0M")


def test_the_dry_run_of_a_large_bridge_needs_no_weights() -> None:
    paper = Path(__file__).parent.parent / "recipes" / "qwen2.5-7b-whisper-large-v3.yaml"
    figures = dry_run(read_recipe(paper, BRIDGE_RUN))
    assert "637" in figures["speech encoder"] and "7.62B" in figures["llm"]


# --- what cannot work is said -----------------------------------------------------------------------------


def test_a_missing_encoder_is_one_clear_error(folder: Path, run: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(run / "checkpoint", tmp_path / "checkpoint")
    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(config.replace(str(folder / "whisper"), str(tmp_path / "gone")))
    with pytest.raises(CheckpointError, match=r"cannot hear without its speech encoder '.*gone'.*encoder=") as error:
        aura.load(checkpoint)
    assert "\n" not in str(error.value)
    engine = aura.load(checkpoint, encoder=str(folder / "whisper"))
    assert texts(engine, [example(0.5)]) == texts(aura.load(run / "checkpoint"), [example(0.5)])


def test_another_encoder_is_refused(folder: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"another speech encoder.*layers 3 expected, 2 found"):
        aura.load(run / "checkpoint", encoder=str(other_encoder(folder)))
    changed = shutil.copytree(folder / "whisper", tmp_path / "changed")
    tensors = load_file(changed / "model.safetensors")
    tensors["model.encoder.conv1.weight"] += 0.1
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="its front end differs"):
        aura.load(run / "checkpoint", encoder=str(changed))


def test_a_torn_projector_is_refused(run: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(run / "checkpoint", tmp_path / "checkpoint")
    config = (checkpoint / "config.json").read_text()
    (checkpoint / "config.json").write_text(config.replace('"projector_width": 24', '"projector_width": 25'))
    with pytest.raises(CheckpointError, match=r"audio_embedding\.safetensors.*size mismatch"):
        aura.load(checkpoint)


@pytest.mark.parametrize("do", [dry_run, lambda recipe: build_station(recipe, [])])
def test_models_that_do_not_fit(folder: Path, do: Any) -> None:
    with pytest.raises(ModelError, match="is a wav2vec2 model; a bridge takes encoders of the Whisper family"):
        do(recipe_for(folder, teacher="wav2vec2"))
    with pytest.raises(RecipeError, match=r"audio\.n_mels is 64.*takes 80; set --audio\.n_mels 80"):
        do(recipe_for(folder, {"audio.n_mels": 64}))


def test_an_encoder_without_all_its_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tiny.tiny_whisper(tmp_path / "whisper", layers=2), tmp_path / "broken")
    config = (broken / "config.json").read_text()
    (broken / "config.json").write_text(config.replace('"encoder_layers": 2', '"encoder_layers": 3'))
    with pytest.raises(ModelError, match=r"lacks .* of its weights"):
        load_encoder(str(broken))
    (broken / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_encoder(str(broken))


def test_impossible_patches_and_log_mels(folder: Path) -> None:
    encoder = frozen(folder)
    with pytest.raises(ModelError, match=r"set audio\.n_mels: 80"):
        encoder(torch.zeros(1, 64, 80), torch.tensor([80]))
    with pytest.raises(ModelError, match=r"audio\.patch_frames as a multiple of 2"):
        FrozenEncoder(encoder.encoder, patch_frames=7)


def test_recipes_that_a_bridge_cannot_follow() -> None:
    with pytest.raises(
        RecipeError, match=r"(?s)3 problem.*distill\.weight is 1\.0.*head_start is 0\.2.*encoder is null"
    ):
        read_recipe(None, {"run.route": "bridge", "distill.head_start": 0.2, "teacher.encoder": None})
    with pytest.raises(RecipeError, match=r"bridge\.floor is 'max'; expected 'clip' or a number"):
        read_recipe(None, {"bridge.floor": "max"})


# --- the command, and the rule ----------------------------------------------------------------------------


def test_the_route_is_a_flag_of_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen: list[Recipe] = []

    def train(recipe: Recipe, **options: Any) -> SimpleNamespace:
        seen.append(recipe)
        return SimpleNamespace(signal=None)

    monkeypatch.setattr(loop, "train", train)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("distill: {weight: 3.0, head_start: 0.1}\n")
    assert main(["train", "--recipe", str(recipe), "--route", "bridge", "--bridge.lora", "false"]) == 0
    assert main(["train", "--recipe", str(recipe)]) == 0
    assert [r.run.route for r in seen] == ["bridge", "aura"]
    assert (seen[0].distill.weight, seen[0].distill.head_start, seen[0].bridge.lora) == (0.0, 0.0, False)
    assert main(["train", "--recipe", str(recipe), "--route", "bridge", "--distill.weight", "1"]) == 2
    assert "distill.weight is 1.0 with run.route bridge" in capsys.readouterr().err


def test_nothing_of_the_bridge_is_imported_until_a_checkpoint_needs_it() -> None:
    package = Path(aura.__file__).parent
    files = [file for room in ("student", "batch", "inference") for file in (package / room).glob("*.py")]
    assert len(files) > 15
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                assert "aura.bridge" not in ast.unparse(node), file
