"""Inspection: measures that give what they must on planted data, splits that share nothing, and the verb end to end."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
import torch

from aura.batch.collate import Batch, Example, collate
from aura.batch.prompt import user_message
from aura.cli import main
from aura.cli_inspect import load_teacher
from aura.data.manifest import read_utterances
from aura.data.utterance import AudioRef, Utterance
from aura.errors import AuraError, DataError
from aura.inspection import heads, resample
from aura.inspection.cka import cka_matrix, linear_cka, u_centred_gram
from aura.inspection.ctc import CtcReader, patch_task
from aura.inspection.items import Clip, Origin, pick_clips, read_origin
from aura.inspection.labels import LeftOut, Task, clip_tasks
from aura.inspection.probes import run_probe
from aura.inspection.ridge import PENALTIES, Ridge, Standardiser, choose_penalties
from aura.inspection.splits import grouped_folds, halves, stratified_folds
from aura.inspection.states import STOCK, STUDENT, TEACHER, UNTRAINED, Hearers, TeacherHearer, untrained_embedding
from aura.inspection.store import Shape, StateStore
from aura.student.checkpoint import save_checkpoint
from aura.teacher.encoder import Teacher

CPU = torch.device("cpu")


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clips(
    count: int = 40, *, speakers: int | None = 4, words: Sequence[str] = ("one", "two"), trained: Any = None
) -> list[Clip]:
    """Clips without audio: `count` of them, speakers and words in turn."""
    made = []
    for n in range(count):
        part = AudioRef(source=f"{n}.wav", seconds=0.5)
        utterance = Utterance(
            id=f"clip{n}",
            audio=(part,),
            messages=(user_message(None),),
            transcript=words[(n // max(1, speakers or 1)) % len(words)],
            speaker=None if speakers is None else f"speaker{n % speakers}",
        )
        made.append(Clip(utterance=utterance, trained_on=trained(n) if trained else None))
    return made


# --- CKA ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [64, 1000])
def test_cka_is_1_for_the_same_and_for_rotated_or_scaled_states(batch: int) -> None:
    states = noise(300, 20)
    rotation = torch.linalg.qr(noise(20, 20, seed=1)).Q
    for other in (states, states @ rotation, 7.0 * states + 3.0):
        assert linear_cka(states, other, batch=batch) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("batch", [100, 1000])
def test_cka_of_independent_noise_is_0_even_with_more_channels_than_positions(batch: int) -> None:
    ours, theirs = noise(200, 600), noise(200, 500, seed=1)
    centred = [states - states.mean(0) for states in (ours, theirs)]
    grams = [(states @ states.T).flatten() for states in centred]
    biased = float(torch.nn.functional.cosine_similarity(grams[0], grams[1], dim=0))
    assert biased > 0.5  # what a plain estimate says of noise
    assert abs(linear_cka(ours, theirs, batch=batch)) < 0.03


def test_cka_lies_between_for_states_that_share_a_part() -> None:
    shared = noise(400, 10)
    some = linear_cka(torch.cat([shared, noise(400, 10, seed=1)], 1), torch.cat([shared, noise(400, 10, seed=2)], 1))
    assert 0.3 < some < 0.7


def test_unbiased_hsic_is_that_of_its_paper() -> None:
    """Song et al. 2012, equation 5, written out."""
    states = [noise(12, 5), noise(12, 7, seed=1)]
    grams = [((s - s.mean(0)) @ (s - s.mean(0)).T).double().fill_diagonal_(0) for s in states]
    n, one = 12, torch.ones(12, dtype=torch.float64)
    k, other = grams
    written = (
        (k @ other).trace()
        + (one @ k @ one) * (one @ other @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ other @ one)
    ) / (n * (n - 3))
    ours = (u_centred_gram(states[0]) * u_centred_gram(states[1])).sum() / (n * (n - 3))
    assert float(ours) == pytest.approx(float(written), rel=1e-5)


def test_cka_of_a_layer_that_does_not_vary_is_not_a_number() -> None:
    flat = [lambda rows: torch.ones(len(rows), 4)]
    moving = [lambda rows: noise(40, 4)[torch.from_numpy(rows)]]
    assert np.isnan(cka_matrix(flat, moving, 40, seed=0)).all()
    with pytest.raises(ValueError, match="at least 8"):
        cka_matrix(moving, moving, 7, seed=0)


# --- ridge, intervals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_ridge_is_the_closed_form(shape: tuple[int, int]) -> None:
    inputs, targets = noise(*shape).double(), noise(shape[0], 3, seed=1).double()
    penalty = 0.3 * float(inputs.square().sum()) / shape[1]
    expected = torch.linalg.solve(inputs.T @ inputs + penalty * torch.eye(shape[1]).double(), inputs.T @ targets)
    ridge, unseen = Ridge(inputs), noise(5, shape[1], seed=2).double()
    assert torch.allclose(ridge.project(unseen) @ ridge.coefficients(targets, 0.3), unseen @ expected)


def test_the_penalty_follows_the_noise() -> None:
    inputs, groups = noise(100, 60), np.arange(100)
    clean, drowned = inputs @ noise(60, 4, seed=1), noise(100, 4, seed=2)
    assert choose_penalties(inputs, clean, groups, seed=0)[0] in PENALTIES[:2]
    assert choose_penalties(inputs, drowned, groups, seed=0)[0] >= 10.0


def test_channels_that_do_not_vary_stay_quiet() -> None:
    states = noise(30, 4)
    states[:, 0] = 5.0
    assert torch.isfinite(Standardiser(states)(states + 1e-4)).all()


def test_auc_and_its_draws() -> None:
    scores, present = np.array([0.1, 0.4, 0.4, 0.8, 0.9]), np.array([0, 1, 0, 1, 0])
    pairs = [(p, n) for p in (1, 3) for n in (0, 2, 4)]
    by_hand = np.mean([(scores[p] > scores[n]) + 0.5 * (scores[p] == scores[n]) for p, n in pairs])
    weights = np.array([[1, 1, 1, 1, 1], [2, 1, 0, 1, 0], [1, 0, 1, 0, 1]], float)
    found = resample.weighted_auc(scores, present, weights)
    assert found[:2] == pytest.approx([by_hand, 1.0]) and np.isnan(found[2])


def test_draws_keep_groups_whole_and_intervals_cover() -> None:
    groups = np.repeat(np.arange(20), 5)
    draws = resample.draws(groups, seed=0)
    assert (draws.reshape(-1, 20, 5) == draws.reshape(-1, 20, 5)[:, :, :1]).all()
    right = (np.random.default_rng(0).random(100) < 0.7).astype(float)[None]
    low, high = resample.interval(resample.ratios(draws, right, np.ones_like(right)))
    assert low[0] < right.mean() < high[0] and 0.1 < high[0] - low[0] < 0.3


# --- splits: nothing on both sides --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("speakers", [2, 3, 7, 19])
def test_halves_share_no_speaker_and_no_clip(speakers: int, seed: int) -> None:
    given = clips(60, speakers=speakers)
    split = halves(given, seed=seed)
    assert split.unit == "speaker" and not split.note
    assert sorted([*split.fit, *split.measure]) == list(range(60))
    sides = [{given[i].utterance.speaker for i in side} for side in (split.fit, split.measure)]
    assert not sides[0] & sides[1] and min(len(split.fit), len(split.measure)) >= 12


def test_halves_by_clip_say_why() -> None:
    alone, unknown = halves(clips(20, speakers=1), seed=0), halves(clips(20, speakers=None), seed=0)
    assert alone.unit == unknown.unit == "clip" and len(alone.fit) == len(alone.measure) == 10
    assert "one speaker, speaker0" in alone.note and "20 of 20 clips name no speaker" in unknown.note
    lopsided = [c for n, c in enumerate(clips(60, speakers=2)) if n % 2 == 0 or n < 4]
    assert "too unequal" in halves(lopsided, seed=0).note


def test_what_the_student_was_trained_on_is_fitted_not_measured() -> None:
    split = halves(clips(40, speakers=4, trained=lambda n: n % 4 in (0, 1)), seed=0)
    assert {int(i) % 4 for i in split.fit} == {0, 1} and not split.note
    everything = halves(clips(40, speakers=4, trained=lambda n: True), seed=0)
    assert "20 of the 20 clips that are measured were in the student's training data" in everything.note


@pytest.mark.parametrize("seed", range(3))
def test_folds_of_content_share_no_speaker_and_those_of_speakers_no_clip(seed: int) -> None:
    groups = np.arange(60) % 7
    folds = grouped_folds(groups, folds=5, seed=seed)
    assert all(len(set(folds[groups == group])) == 1 for group in range(7)) and set(folds) == set(range(5))
    dealt = stratified_folds(groups, folds=5, seed=seed)
    assert all(set(dealt[groups == group]) == set(range(5)) for group in range(7))


def test_tasks_keep_apart_what_they_say() -> None:
    given = clips(60, speakers=6)
    text, characters, words, speaker = clip_tasks(given, seed=0)
    assert isinstance(text, Task) and isinstance(characters, Task) and isinstance(words, LeftOut)
    assert characters.classes == ("e", "n", "t", "w")  # not the o, which is in both words
    assert text.classes == ("one", "two") and text.split == "speakers" and "one word" in words.reason
    for fold in range(5):
        inside, outside = (
            {given[i].utterance.speaker for i in np.flatnonzero((text.folds == fold) == w)} for w in (1, 0)
        )
        assert inside and not inside & outside
    assert isinstance(speaker, Task) and len(speaker.classes) == 6
    assert all(len(set(np.argmax(speaker.targets[speaker.folds != fold], 1))) == 6 for fold in range(5))


def test_probes_that_cannot_be_run_say_why() -> None:
    *_, speaker = clip_tasks(clips(40, speakers=None), seed=0)
    assert isinstance(speaker, LeftOut) and "0 speaker(s) named" in speaker.reason
    *_, speaker = clip_tasks(clips(40, speakers=1), seed=0)
    assert isinstance(speaker, LeftOut) and "expected 2" in speaker.reason
    text, *_ = clip_tasks(clips(40, words=[f"text {n}" for n in range(40)], speakers=1), seed=0)
    assert isinstance(text, LeftOut) and "40 different transcripts" in text.reason


def test_open_texts_are_probed_for_characters_and_words() -> None:
    said = ["the cat sat", "a dog ran", "the bird flew", "my cat ran", "our dog sat", "no bird sang"]
    given = clips(90, speakers=None, words=[f"{s} {chr(97 + n)}x{n}" for n in range(15) for s in said])
    text, characters, words, _ = clip_tasks(given, seed=0)
    assert isinstance(text, LeftOut) and isinstance(characters, Task) and isinstance(words, Task)
    assert "the" in words.classes and "'" not in characters.classes
    row = [given[i].utterance.transcript or "" for i in words.members]
    assert [bool(x) for x in words.targets[:, words.classes.index("the")]] == ["the" in r.split() for r in row]


# --- probes -------------------------------------------------------------------------------------------------


def planted(strength: float) -> Callable[[str, int], torch.Tensor]:
    """States of 200 clips with 64 channels; layer 1 of a model carries the text along a hidden direction."""
    given = clips(200, speakers=10)
    truth = torch.tensor([1.0 if c.utterance.transcript == "two" else -1.0 for c in given])

    def read(name: str, layer: int) -> torch.Tensor:
        states = noise(200, 64, seed=10 * layer + len(name))
        return states + layer * strength * truth[:, None] * noise(64, seed=99)

    return read


def probe_of(task: Task, read: Callable[[str, int], torch.Tensor], unseen: np.ndarray | None = None) -> Any:
    ticks: list[int] = []
    n = len(task.members)
    found = run_probe(
        task, read, {STUDENT: 2}, unseen=unseen, owners=task.groups, clips=np.arange(n), seed=0, device=CPU,
        progress=lambda: ticks.append(1),
    )  # fmt: skip
    assert len(ticks) == 2
    return found


def test_a_probe_finds_what_is_there_and_reports_chance_where_nothing_is() -> None:
    text = clip_tasks(clips(200, speakers=10), seed=0)[0]
    assert isinstance(text, Task)
    found = probe_of(text, planted(0.5), unseen=np.arange(200) % 10 < 5)
    curve = found.curves[STUDENT]
    assert curve.score[1] > 0.95 and curve.low[1] > 0.9
    assert abs(curve.score[0] - 0.5) < 0.12 and curve.low[0] < 0.5 < curve.high[0]
    assert found.chance == 0.5 and found.majority <= 0.5 and found.drawn == "speakers"
    assert found.unseen_clips == 100 and curve.unseen[1] > 0.9


def test_a_presence_probe_too() -> None:
    targets = (np.random.default_rng(0).random((200, 3)) < 0.4).astype(float)
    groups = np.arange(200) % 10
    task = Task(
        name="characters", kind="presence", question="?", members=np.arange(200), targets=targets, classes=("a", "b", "c"),
        folds=grouped_folds(groups, folds=5, seed=0), groups=groups, split="speakers",
    )  # fmt: skip
    directions = noise(3, 64, seed=5)
    mixed = torch.from_numpy(targets).float() @ directions
    found = probe_of(task, lambda name, layer: noise(200, 64, seed=layer) + layer * mixed)
    low, high = found.curves[STUDENT].score
    assert found.metric == "auc" and abs(low - 0.5) < 0.07 and high > 0.95


def test_a_probe_learns_nothing_from_the_clips_it_is_tested_on() -> None:
    """States that only name their clip: a probe that saw it would be right, one that did not cannot be."""
    text = clip_tasks(clips(100, speakers=10), seed=0)[0]
    assert isinstance(text, Task)
    found = probe_of(text, lambda name, layer: torch.eye(100) * 10)
    assert max(found.curves[STUDENT].score) < 0.65


# --- heads --------------------------------------------------------------------------------------------------


def filled_store(folder: Path, states: dict[str, torch.Tensor], per_clip: int) -> StateStore:
    """A store of given states (layers, positions, channels), `per_clip` positions of each clip."""
    count = next(iter(states.values())).shape[1]
    shapes = {n: Shape(layers=len(s), width=s.shape[2], mean_width=s.shape[2]) for n, s in states.items()}
    store = StateStore(folder, shapes, positions=count, clips=count // per_clip, seed=0)
    owner, places = np.repeat(np.arange(count // per_clip), per_clip), np.tile(np.arange(per_clip), count // per_clip)
    rows, which = store.place(owner, places)
    for name, layers in states.items():
        store.write(name, layers, rows, which)
    store.finish()
    return store


def test_heads_find_a_linear_map_and_nothing_in_noise(tmp_path: Path) -> None:
    hidden = torch.nn.functional.rms_norm(noise(400, 12), (12,))
    teacher = torch.stack([hidden @ noise(12, 6, seed=1), noise(400, 6, seed=2)])
    store = filled_store(tmp_path, {TEACHER: teacher, STUDENT: torch.stack([noise(400, 12, seed=3), hidden])}, 10)
    given = clips(40)
    split = halves(given, seed=0)
    groups = np.arange(40) % 4
    found = heads.fit_and_measure(
        store, split, groups, [STUDENT], seed=0, device=CPU, progress=lambda: None
    )[STUDENT]  # fmt: skip
    assert found.mean[1, 0] > 0.99 and np.abs(found.mean[[0, 0, 1], [0, 1, 1]]).max() < 0.2
    assert found.clips.tolist() == split.measure.tolist() and found.counts.sum() == 200


def test_heads_are_measured_on_what_they_were_not_fitted_on(tmp_path: Path) -> None:
    """The map holds on the fitted half only: nothing of it may show."""
    given = clips(40)
    split = halves(given, seed=0)
    hidden = torch.nn.functional.rms_norm(noise(400, 12), (12,))
    teacher = hidden @ noise(12, 6, seed=1)
    measured = np.isin(np.repeat(np.arange(40), 10), split.measure)
    teacher[measured] = noise(int(measured.sum()), 6, seed=4)
    store = filled_store(tmp_path, {TEACHER: teacher[None], STUDENT: hidden[None]}, 10)
    found = heads.fit_and_measure(
        store, split, np.arange(40) % 4, [STUDENT], seed=0, device=CPU, progress=lambda: None
    )[STUDENT]  # fmt: skip
    assert abs(found.mean[0, 0]) < 0.2


# --- the store ----------------------------------------------------------------------------------------------


def test_the_sample_does_not_depend_on_batches(tmp_path: Path) -> None:
    lengths = [7, 30, 12, 25, 3]
    states = [noise(2, length, 4, seed=n) for n, length in enumerate(lengths)]
    found = []
    for name, batches in (("a", [[0, 1, 2, 3, 4]]), ("b", [[3], [1, 4], [0], [2]])):
        (tmp_path / name).mkdir()
        shape = {"student": Shape(layers=2, width=4, mean_width=4)}
        store = StateStore(tmp_path / name, shape, positions=20, clips=5, seed=3)
        for members in batches:
            owner = np.repeat(members, [lengths[i] for i in members])
            places = np.concatenate([np.arange(lengths[i]) for i in members])
            rows, which = store.place(owner, places)
            store.write("student", torch.cat([states[i] for i in members], 1), rows, which)
        store.finish()
        assert store.seen == sum(lengths) and len(store) == 20
        expected = torch.stack([states[c][1, p] for c, p in zip(store.clips, store.places)])
        assert torch.equal(store.positions("student", 1), expected)
        found.append((store.clips.tolist(), store.places.tolist()))
    assert found[0] == found[1]


def test_a_disk_too_small_is_said_before_it_is_full(tmp_path: Path) -> None:
    with pytest.raises(AuraError, match="--positions"):
        StateStore(tmp_path, {"x": Shape(layers=1000, width=10**6, mean_width=1)}, positions=10**6, clips=1, seed=0)
    assert not list(tmp_path.iterdir())


# --- hidden states ------------------------------------------------------------------------------------------


def heard(processor: Any, lengths: Sequence[float] = (0.5, 0.9, 0.7)) -> Batch:
    examples = [
        Example(id=str(n), messages=[user_message(None)], waveforms=[tiny.tiny_speech(s, seed=n)])
        for n, s in enumerate(lengths)
    ]
    return collate(processor, examples, answer=False, padding_side="right", keep_waveforms=True)


@pytest.mark.parametrize("gate", ["audio", "all"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_a_fresh_adapter_is_the_stock_llm_everywhere_bitwise(family: str, gate: str) -> None:
    fresh, processor = tiny.tiny_student(family, gate=gate, train_like=False)
    states = Hearers(fresh, None)(heard(processor))
    assert torch.equal(states[STUDENT], states[STOCK]) and states[STUDENT].shape[0] == 5
    trained, _ = tiny.tiny_student(family, gate=gate)
    states = Hearers(trained, None)(heard(processor))
    assert torch.equal(states[STUDENT][0], states[STOCK][0])  # the same audio embedding
    assert all(not torch.equal(states[STUDENT][n], states[STOCK][n]) for n in range(1, 5))


def test_states_are_raw_layer_outputs_of_the_stock_llm() -> None:
    student, processor = tiny.tiny_student("gemma3")
    batch = heard(processor)
    states = Hearers(student, None)(batch)[STOCK]
    embeds, is_audio = student.embed(batch.input_ids, batch.input_features, batch.input_features_mask)
    inputs = student.decoder_inputs(embeds, is_audio, batch.attention_mask)
    inputs.pop("audio_gate")
    stock = tiny.tiny_llm("gemma3")  # never had an adapter
    with torch.no_grad():
        outputs = stock.model(**inputs, use_cache=False, output_hidden_states=True)
    for layer in range(4):
        assert torch.allclose(states[layer], outputs.hidden_states[layer][is_audio], atol=1e-4)
    assert torch.allclose(stock.model.norm(states[4]), outputs.last_hidden_state[is_audio], atol=1e-4)
    assert not torch.allclose(states[4], outputs.last_hidden_state[is_audio], atol=1e-2)


def test_a_batch_hears_what_single_clips_hear(tmp_path: Path) -> None:
    student, processor = tiny.tiny_student("llama")
    teacher = Teacher.load(str(tiny.tiny_whisper(tmp_path / "whisper")))
    hearers = Hearers(student, untrained_embedding(student, teacher, seed=0))
    listener = TeacherHearer(teacher, processor.feature_extractor.grid, "stack")
    together, taught = hearers(heard(processor)), listener(heard(processor))
    assert taught.patches_LPK.shape == (3, together[STUDENT].shape[1], 64) and taught.pooled_LPE.shape[2] == 16
    start = 0
    for n, seconds in enumerate((0.5, 0.9, 0.7)):
        example = Example(id="x", messages=[user_message(None)], waveforms=[tiny.tiny_speech(seconds, seed=n)])
        batch = collate(processor, [example], answer=False, padding_side="right", keep_waveforms=True)
        alone = hearers(batch)
        end = start + alone[STUDENT].shape[1]
        for name in (STUDENT, STOCK, UNTRAINED):
            assert torch.allclose(alone[name], together[name][:, start:end], atol=2e-4), name
        assert torch.allclose(listener(batch).patches_LPK, taught.patches_LPK[:, start:end], atol=1e-4)
        start = end


def test_the_untrained_embedding_starts_as_training_does(tmp_path: Path) -> None:
    from dataclasses import replace

    from aura.config import AudioConfig, LoraConfig
    from aura.student.checkpoint import new_processor, new_student

    audio = replace(AudioConfig(), stem_width=16)
    processor = new_processor(tiny.tiny_tokenizer(), audio)
    student = new_student(tiny.tiny_llm("llama"), processor, base="tiny", audio=audio, lora=LoraConfig(rank=2))
    before = student.audio_embedding.project.weight.clone()
    teacher = Teacher.load(str(tiny.tiny_whisper(tmp_path / "whisper")))
    drawn = torch.get_rng_state()
    fresh = untrained_embedding(student, teacher, seed=1)
    assert torch.equal(torch.get_rng_state(), drawn)
    front_end = teacher.front_end()
    assert front_end is not None and torch.equal(fresh.conv1.weight, front_end["conv1.weight"])
    assert torch.equal(student.audio_embedding.project.weight, before) and not torch.equal(fresh.project.weight, before)


# --- clips --------------------------------------------------------------------------------------------------


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    path = speech(tmp_path, count=12)
    rows = list(read_utterances(path))
    two = Utterance(id="two", audio=rows[0].audio + rows[1].audio, messages=rows[0].messages)
    long = Utterance(id="long", audio=(AudioRef(source="l.wav", seconds=31.0),), messages=rows[0].messages)
    found, left_out = pick_clips([[*rows, two, long, rows[3]]], per_source=None, max_seconds=30, origin=Origin())
    assert len(found) == 12 and set(left_out.values()) == {1}
    assert set(left_out) == {"several audio parts", "longer than 30 s", "the same recording again"}
    spread, _ = pick_clips([rows, rows], per_source=8, max_seconds=30, origin=Origin())
    assert len(spread) == 8 and spread[0].utterance.id == rows[0].id and spread[-1].utterance.id == rows[-1].id
    with pytest.raises(DataError, match=r"7 clip\(s\).*at least 8"):
        pick_clips([rows], per_source=7, max_seconds=30, origin=Origin())


def test_a_clip_ends_with_the_turn_of_its_audio(tmp_path: Path) -> None:
    [row] = list(read_utterances(speech(tmp_path, count=1)))
    assert [m["role"] for m in row.messages] == ["user", "assistant"]
    example = Clip(utterance=row, trained_on=None).example()
    assert [m["role"] for m in example.messages] == ["user"] and len(example.waveforms) == 1


# --- CTC ----------------------------------------------------------------------------------------------------


def tiny_ctc(folder: Path) -> Path:
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7,
        feat_extract_norm="layer", do_stable_layer_norm=True, num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, vocab_size=8, pad_token_id=0,
    )  # fmt: skip
    model = Wav2Vec2ForCTC(config)
    tiny.randomize(model)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({c: n for n, c in enumerate(["<pad>", "<unk>", "|", *"ABCDE"])}))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def test_a_ctc_teacher_labels_its_patches(tmp_path: Path) -> None:
    teacher, reader = load_teacher(str(tiny_ctc(tmp_path / "ctc")), Origin(), CPU)
    assert isinstance(reader, CtcReader) and teacher is reader.teacher and reader.characters == list("abcde")
    waveforms = [tiny.tiny_speech(1280 * n / 16_000, seed=n) for n in (5, 9)]
    together = reader(waveforms, 4)
    assert together.shape == (14,) and together.min() >= -1 and together.max() <= 4
    assert (reader(waveforms[1:], 4) == together[5:]).all()
    whisper, none = load_teacher(str(tiny.tiny_whisper(tmp_path / "whisper")), Origin(), CPU)
    assert none is None and whisper.spec.layers == 3


def test_the_patch_probe_leaves_rare_characters_out() -> None:
    labels = np.array([0] * 30 + [1] * 40 + [2] * 5 + [-1] * 25)
    owners = np.arange(100) % 10
    task = patch_task(labels, owners, np.arange(10) // 2, "abc", split="speakers", seed=0)
    assert isinstance(task, Task) and task.classes == ("a", "b") and len(task.members) == 70
    speakers = owners[task.members] // 2
    assert all(len(set(task.folds[speakers == s])) == 1 for s in range(5))
    assert isinstance(patch_task(labels[:30], owners[:30], np.arange(10), "abc", split="clips", seed=0), LeftOut)


# --- the verb -----------------------------------------------------------------------------------------------


def speech(folder: Path, *, count: int, name: str = "held_out", speakers: int = 4) -> Path:
    """A manifest of noise whose loudness pattern is its word; speakers and words in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for n in range(count):
        wave = tiny.tiny_speech(0.3 + 0.02 * (n % 5), seed=n)
        if (n // speakers) % 2:
            wave[: len(wave) // 2] *= 0.02
        soundfile.write(folder / f"{name}{n}.wav", wave, 16_000)
        word = ("one", "two")[(n // speakers) % 2]
        rows.append({"id": f"{name}{n}", "audio": f"{name}{n}.wav", "transcript": word, "speaker": f"s{n % speakers}"})
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / f"{name}.jsonl"


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its recipe (teacher, training manifest), held-out speech and training speech."""
    here = tmp_path_factory.mktemp("station")
    tiny.tiny_llm_folder("llama", here / "llm")
    tiny.tiny_whisper(here / "whisper")
    speech(here / "data", count=40)
    train = speech(here / "data", count=16, name="train", speakers=2)
    recipe = f"""
teacher: {{encoder: {here / "whisper"}}}
distill: {{weight: 1.0, student_layers: 3}}
data: {{train: [{train}]}}
"""
    model = tiny.tiny_student("llama", base=str(here / "llm"))
    save_checkpoint(here / "checkpoint", *model, extra={"recipe.yaml": recipe})
    save_checkpoint(here / "bare", *model)
    return here


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    status = main(["inspect", *(str(word) for word in argv)])
    return status, *capsys.readouterr()


@functools.cache
def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_verb_end_to_end(capsys: pytest.CaptureFixture[str], station: Path) -> None:
    data, out = station / "data", station / "out"
    arguments = (station / "checkpoint", "--manifest", data / "held_out.jsonl", data / "train.jsonl", "--out", out)
    status, printed, _ = run(capsys, *arguments, "--positions", "150")
    assert status == 0 and "cosine to teacher layer 1..3" in printed and str(out / "inspect.json") in printed
    files = {"inspect.json", "inspect.md", "cosine.png", "cosine_matrix.png", "cka.png", "probes.png"}
    assert {path.name for path in out.iterdir()} == files  # no hidden states left behind
    report = loaded(out / "inspect.json")
    assert report["clips"]["used"] == 56 and report["clips"]["trained_on"] == 16
    assert report["positions"]["sampled"] == 150 < report["positions"]["heard"]
    split = report["cosine"]["split"]
    assert split["measured_trained_on"] == 0 and split["kept_apart"] == "speakers"
    for name in ("student", "stock", "untrained"):
        matrix, low, high = (np.array(report["cosine"][name][key]) for key in ("matrix", "low", "high"))
        assert matrix.shape == (5, 3) and (low <= matrix + 1e-9).all() and (matrix <= high + 1e-9).all()
        assert np.array(report["cka"][name]).shape == (5, 3)
    pairs = report["cosine"]["trained_pairs"]
    assert [(p["teacher"], p["student_layer"]) for p in pairs] == [(1, 1), (2, 2), (3, 3)]
    assert pairs[0]["student"] == report["cosine"]["student"]["matrix"][1][0]
    probes = report["probes"]
    assert {n for n, p in probes.items() if "left_out" not in p} == {"text", "characters", "speaker"}
    assert {name: len(c["score"]) for name, c in probes["text"]["curves"].items()} == {
        "teacher": 3, "student": 5, "stock": 5, "untrained": 5,
    }  # fmt: skip
    assert max(probes["text"]["curves"]["teacher"]["score"]) > 0.8  # loudness is in the log-mel
    assert report["settings"]["teacher"].endswith("whisper") and report["settings"]["positions"] == 150
    assert {"torch", "aura"} <= set(report["versions"]) and "Internalisation" in (out / "inspect.md").read_text()


def test_the_same_seed_gives_the_same_numbers(capsys: pytest.CaptureFixture[str], station: Path) -> None:
    held_out = station / "data" / "held_out.jsonl"
    found = []
    for name, tokens in (("first", "1024"), ("again", "20")):
        out = station / name
        options = ("--skip-untrained", "--items", "20", "--batch-tokens", tokens)
        assert run(capsys, station / "checkpoint", "--manifest", held_out, "--out", out, *options)[0] == 0
        found.append(loaded(out / "inspect.json"))
    assert "untrained" not in found[0]["cka"] and found[0]["clips"]["used"] == 20
    assert np.allclose(found[0]["cosine"]["student"]["matrix"], found[1]["cosine"]["student"]["matrix"], atol=1e-3)
    assert np.allclose(found[0]["cka"]["stock"], found[1]["cka"]["stock"], atol=1e-3)


def test_an_interrupt_leaves_no_states_behind(
    capsys: pytest.CaptureFixture[str], station: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        assert [path.name.startswith(".states-") for path in tmp_path.iterdir()] == [True]
        raise KeyboardInterrupt

    monkeypatch.setattr(Hearers, "__call__", interrupt)
    manifest = station / "data" / "held_out.jsonl"
    assert run(capsys, station / "checkpoint", "--manifest", manifest, "--out", tmp_path)[0] == 130
    assert not list(tmp_path.iterdir())


def test_origin_knows_its_training_recordings(station: Path, tmp_path: Path) -> None:
    origin = read_origin(station / "checkpoint")
    assert origin.heard is not None and len(origin.heard) == 16
    assert read_origin(station / "bare") == Origin()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({0: "nowhere"}, "no folder"),
        ({0: "bare"}, "--teacher REF"),
        ({2: "none.jsonl"}, "none.jsonl"),
        ({5: "--items", 6: "0"}, "--items is 0"),
        ({5: "--items", 6: "3"}, "at least 8"),
        ({5: "--teacher", 6: "llm"}, "'llama' is not supported"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], station: Path, tmp_path: Path, change: dict[int, str], part: str
) -> None:
    words = ["checkpoint", "--manifest", "data/held_out.jsonl", "--out", "", "--seed", "0"]
    for place, word in change.items():
        words[place] = word
    paths = {0, 2} | ({6} if words[5] == "--teacher" else set())
    argv = [str(station / word) if place in paths else word for place, word in enumerate(words)]
    argv[4] = str(tmp_path / "out")
    status, out, err = run(capsys, *argv)
    assert status == 2 and out == "" and err.count("\n") == 1 and part in err, err


def test_nothing_but_the_command_line_imports_it() -> None:
    from test_public_surface import MODULES, imported_by

    users = {m for m in MODULES if any(n.startswith("aura.inspection") for n in imported_by(m))}
    assert {m for m in users if not m.startswith("aura.inspection")} == {"aura.cli_inspect"}
    rooms = {n.split(".")[1] for m in users for n in imported_by(m) if m.startswith("aura.inspection")}
    assert not rooms & {"training", "serve", "bridge"}
