"""The teacher: any family, real length, raw layer outputs, exact batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor, AutoModel, WhisperForConditionalGeneration, WhisperModel

from aura.errors import AuraError, DataError, ModelError, ModelReferenceError, RecipeError
from aura.teacher.encoder import Teacher
from aura.teacher.states import group_by_length
from aura.teacher.wav2vec2 import receptive_field

FRAME = 320  # samples, 20 ms: every tiny teacher, as the real ones
ALL = (1, 2, 3)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "whisper": lambda folder: tiny.tiny_whisper(folder),
    "wav2vec2-group": lambda folder: tiny.tiny_wav2vec2(folder, norm="group"),
    "wav2vec2-layer": lambda folder: tiny.tiny_wav2vec2(folder, norm="layer"),
    "hubert-group": lambda folder: tiny.tiny_hubert(folder, norm="group"),
    "hubert-layer": lambda folder: tiny.tiny_hubert(folder, norm="layer"),
    "hubert-batchnorm": lambda folder: tiny.tiny_hubert(folder, norm="layer", conv_pos_batch_norm=True),
    "wavlm-group": lambda folder: tiny.tiny_wavlm(folder, norm="group"),
    "wavlm-layer": lambda folder: tiny.tiny_wavlm(folder, norm="layer"),
    "data2vec": lambda folder: tiny.tiny_wav2vec2(folder, family="data2vec-audio"),
    "conformer": lambda folder: tiny.tiny_wav2vec2(folder, family="wav2vec2-conformer"),
}


def clip(frames: int, seed: int = 0, frame: int = FRAME) -> np.ndarray:
    """Noise under a slow envelope, with an offset that normalisation has to remove."""
    rng = np.random.default_rng(seed)
    envelope = np.sin(np.linspace(0.1, 9.0, frames * frame)) * 0.2
    return (rng.standard_normal(frames * frame) * envelope + 0.01).astype(np.float32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = FAMILIES[family](tmp_path_factory.mktemp(family))
        return made[family]

    return folder


@pytest.fixture(params=FAMILIES)
def teacher(request: pytest.FixtureRequest, folders: Callable[[str], Path]) -> Teacher:
    return Teacher.load(str(folders(request.param)))


@pytest.fixture
def whisper(folders: Callable[[str], Path]) -> Path:
    return folders("whisper")


# --- every family -----------------------------------------------------------------------------------------


def test_spec_is_read_from_the_model(teacher: Teacher) -> None:
    is_whisper = teacher.encoder.config.model_type == "whisper"
    assert (teacher.spec.layers, teacher.spec.width, teacher.spec.frame_samples) == (3, 16, FRAME)
    assert teacher.spec.max_seconds == (30.0 if is_whisper else None)


def test_batch_equals_single_items(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the limits of a CPU, everything that may be padded together is.
    monkeypatch.setattr("aura.teacher.encoder.CPU_PADDING_SHARE", 1.0)
    waveforms = [clip(frames, seed) for seed, frames in enumerate((9, 40, 1, 40, 23))]
    batch = teacher(waveforms, ALL)
    assert batch.frames == (9, 40, 1, 40, 23)
    assert batch.hidden_LFE.shape == (3, sum(batch.frames), 16)
    for waveform, states in zip(waveforms, batch.hidden_LFE.split(batch.frames, dim=1)):
        torch.testing.assert_close(states, teacher([waveform], ALL).hidden_LFE, **TOLERANCE)


def test_batch_equals_single_items_with_the_groups_of_a_cpu(teacher: Teacher) -> None:
    waveforms = [clip(frames, frames) for frames in (33, 12, 32, 12)]
    batch = teacher(waveforms, [3])
    for waveform, states in zip(waveforms, batch.hidden_LFE.split(batch.frames, dim=1)):
        torch.testing.assert_close(states, teacher([waveform], [3]).hidden_LFE, **TOLERANCE)


def test_frames_are_exactly_the_length_over_a_frame(teacher: Teacher) -> None:
    lengths = (*range(1, 12), 17, 49, 50, 51, 100)
    states = teacher([clip(frames) for frames in lengths], [1])
    assert states.frames == lengths
    assert states.hidden_LFE.shape[1] == sum(lengths)
    assert torch.isfinite(states.hidden_LFE).all()


def test_layers_come_in_the_order_asked_for(teacher: Teacher) -> None:
    waveform = [clip(7)]
    in_order = teacher(waveform, ALL).hidden_LFE
    torch.testing.assert_close(teacher(waveform, (3, 1, 3)).hidden_LFE, in_order[[2, 0, 2]], rtol=0, atol=0)
    assert (in_order[0] - in_order[2]).abs().max() > 0.1


def test_nothing_can_be_trained(teacher: Teacher) -> None:
    assert not teacher.encoder.training
    assert not any(parameter.requires_grad for parameter in teacher.encoder.parameters())
    assert not teacher([clip(4)], [3]).hidden_LFE.requires_grad
    assert not any(module._forward_hooks for module in teacher.encoder.modules()), "a hook was left behind"


def test_a_length_that_is_no_multiple_of_a_frame(teacher: Teacher) -> None:
    for samples in (0, 319, 321):
        with pytest.raises(DataError, match=rf"{samples} samples; .* 320"):
            teacher([clip(3), np.zeros(samples, np.float32)], [1])


@pytest.mark.parametrize("layers", [(0,), (1, 4), (-1,), ()])
def test_a_layer_that_does_not_exist(teacher: Teacher, layers: tuple[int, ...]) -> None:
    with pytest.raises(RecipeError, match=r"to 3 \(output of the last\)"):
        teacher([clip(3)], layers)


def test_an_empty_batch_has_no_frames(teacher: Teacher) -> None:
    states = teacher([], [1, 2])
    assert states.frames == () and states.hidden_LFE.shape == (2, 0, 16)


def test_dtype(whisper: Path, folders: Callable[[str], Path]) -> None:
    for folder in (whisper, folders("hubert-layer"), folders("wavlm-layer")):
        full = Teacher.load(str(folder))([clip(20), clip(11)], [3]).hidden_LFE
        half = Teacher.load(str(folder), dtype=torch.bfloat16)([clip(20), clip(11)], [3]).hidden_LFE
        assert (full.dtype, half.dtype) == (torch.float32, torch.bfloat16)
        assert torch.nn.functional.cosine_similarity(full, half.float(), dim=-1).min() > 0.99


# --- Whisper ----------------------------------------------------------------------------------------------


def huggingface_states(folder: Path, waveform: np.ndarray) -> tuple[Any, Any]:
    """The encoder as Hugging Face runs it on 30 s, and its output."""
    encoder = WhisperModel.from_pretrained(folder).eval().get_encoder()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    features = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        return encoder, encoder(features, output_hidden_states=True)


def test_padded_to_30_s_equals_huggingface(whisper: Path) -> None:
    teacher = Teacher.load(str(whisper), pad_to_30s=True)
    waveforms = [clip(77), clip(120, 1)]
    states = teacher(waveforms, ALL)
    for waveform, ours_LTE in zip(waveforms, states.hidden_LFE.split(states.frames, dim=1)):
        frames = len(waveform) // FRAME
        encoder, theirs = huggingface_states(whisper, waveform)
        for layer in (1, 2):
            torch.testing.assert_close(ours_LTE[layer - 1], theirs.hidden_states[layer][0, :frames], **TOLERANCE)
        last = encoder.layer_norm(ours_LTE[2])
        torch.testing.assert_close(last, theirs.last_hidden_state[0, :frames], **TOLERANCE)


def test_a_full_window_equals_huggingface_at_real_length(whisper: Path) -> None:
    waveform = clip(1500)
    ours = Teacher.load(str(whisper))([waveform], ALL).hidden_LFE
    encoder, theirs = huggingface_states(whisper, waveform)
    torch.testing.assert_close(ours[1], theirs.hidden_states[2][0], **TOLERANCE)
    torch.testing.assert_close(encoder.layer_norm(ours[2]), theirs.last_hidden_state[0], **TOLERANCE)


def test_real_length_does_the_work_of_the_real_length_only(whisper: Path) -> None:
    teacher = Teacher.load(str(whisper))
    seen: list[torch.Size] = []
    teacher.encoder.layers[0].register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape))
    teacher([clip(50), clip(10)], [1])
    assert sum(shape[0] * shape[1] for shape in seen) == 60  # a CPU gets no padding to compute at all


def test_the_last_layer_is_raw(whisper: Path, folders: Callable[[str], Path]) -> None:
    for folder, norm in ((whisper, "layer_norm"), (folders("wav2vec2-layer"), "encoder.layer_norm")):
        teacher = Teacher.load(str(folder))
        last = teacher([clip(30)], [3]).hidden_LFE
        normed = teacher.encoder.get_submodule(norm)(last)
        assert (last - normed).abs().max() > 0.1, "the final norm was applied already, or does nothing"


def test_only_the_encoder_of_a_full_checkpoint_is_loaded(tmp_path: Path, whisper: Path) -> None:
    encoder = Teacher.load(str(whisper)).encoder
    assert not any("decoder" in name or "proj_out" in name for name, _ in encoder.named_parameters())
    full = WhisperForConditionalGeneration.from_pretrained(whisper)
    for name, parameter in full.model.encoder.named_parameters():
        torch.testing.assert_close(encoder.get_parameter(name), parameter, rtol=0, atol=0)
    # The same from a checkpoint without a language head, and from models in memory.
    bare = Teacher.load(str(tiny.tiny_whisper(tmp_path, full=False)))
    assert bare.spec == Teacher.load(str(whisper)).spec
    in_memory = Teacher(full, AutoFeatureExtractor.from_pretrained(whisper))
    waveform = [clip(12)]
    expected = Teacher.load(str(whisper))(waveform, ALL).hidden_LFE
    torch.testing.assert_close(in_memory(waveform, ALL).hidden_LFE, expected, rtol=0, atol=0)


def test_longer_than_the_window_says_what_to_do(tmp_path: Path) -> None:
    teacher = Teacher.load(str(tiny.tiny_whisper(tmp_path, positions=100)))
    assert teacher.spec.max_seconds == 2.0
    assert teacher([clip(100)], [3]).frames == (100,)
    with pytest.raises(DataError, match=r"2\.02 s .* at most 2 s.* `--data\.max_seconds 2`"):
        teacher([clip(101)], [3])


def test_front_end_gives_copies_of_both_convolutions(whisper: Path, folders: Callable[[str], Path]) -> None:
    teacher = Teacher.load(str(whisper))
    front = teacher.front_end()
    assert front is not None and front.pop("n_mels") == 80
    assert set(front) == {"conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias"}
    for name, tensor in front.items():
        own = teacher.encoder.get_parameter(name)
        assert torch.equal(tensor, own) and tensor.data_ptr() != own.data_ptr() and not tensor.requires_grad
    assert Teacher.load(str(folders("hubert-group"))).front_end() is None


# --- wav2vec 2.0 and its line -----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["wav2vec2-group", "hubert-layer", "wavlm-layer"])
def test_states_are_those_of_huggingface(family: str, folders: Callable[[str], Path]) -> None:
    folder, waveform = folders(family), clip(31)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    values = extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_values
    values = torch.nn.functional.pad(values, (0, 80))  # 400 - 320 samples: the 31st frame
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        theirs = model(values, output_hidden_states=True)
    ours = Teacher.load(str(folder))([waveform], ALL).hidden_LFE
    for layer in (1, 2):
        torch.testing.assert_close(ours[layer - 1], theirs.hidden_states[layer][0], **TOLERANCE)
    last = ours[2] if family == "wav2vec2-group" else model.encoder.layer_norm(ours[2])
    torch.testing.assert_close(last, theirs.last_hidden_state[0], **TOLERANCE)


def test_other_strides_are_read_from_the_configuration(tmp_path: Path) -> None:
    kernel, stride = (10, 3, 2), (5, 4, 2)
    teacher = Teacher.load(str(tiny.tiny_wav2vec2(tmp_path, conv_kernel=kernel, conv_stride=stride, conv_dim=(8,) * 3)))
    assert teacher.spec.frame_samples == 40
    lengths = tuple(range(1, 30))
    assert teacher([clip(frames, frame=40) for frames in lengths], [2]).frames == lengths


def test_receptive_field_of_the_real_stack() -> None:
    assert receptive_field((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)) == 400


def test_pad_to_30s_is_for_whisper(folders: Callable[[str], Path]) -> None:
    with pytest.raises(ModelError, match="pad_to_30s"):
        Teacher.load(str(folders("hubert-group")), pad_to_30s=True)


# --- groups -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 300), max_size=40), st.sampled_from([0.0, 0.06, 0.5, 1.0]), st.integers(1, 1000))
def test_groups_hold_every_item_once_and_keep_their_limits(frames: list[int], share: float, limit: int) -> None:
    groups = group_by_length(frames, padding_share=share, max_frames=limit)
    assert sorted(i for group in groups for i in group) == list(range(len(frames)))
    for group in groups:
        padded = max(frames[i] for i in group) * len(group)
        assert padded <= limit or len(group) == 1
        assert padded - sum(frames[i] for i in group) <= share * padded


# --- what cannot be a teacher -----------------------------------------------------------------------------


def test_an_unknown_architecture_names_the_families(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"'bert' is not supported; expected one of: Whisper, wav2vec 2\.0"):
        Teacher.load(str(tmp_path))
    with pytest.raises(ModelError, match="'bert' is not supported"):
        Teacher(BertModel(config), _Extractor())
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    with pytest.raises(ModelError, match="no-such-model"):
        Teacher.load(str(tmp_path))


class _Extractor:
    sampling_rate = 16_000


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelReferenceError, match="not found"):
        Teacher.load(str(tmp_path / "nothing"))


def test_a_checkpoint_without_feature_extractor(tmp_path: Path) -> None:
    tiny.tiny_whisper(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        Teacher.load(str(tmp_path))


def test_a_checkpoint_that_lacks_a_tensor(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny.tiny_whisper(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.encoder.layers.1.fc1.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensors .*layers\.1\.fc1\.weight"):
        Teacher.load(str(tmp_path))


def test_weights_that_were_cut_off(tmp_path: Path) -> None:
    weights = tiny.tiny_whisper(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        Teacher.load(str(tmp_path))


def test_an_extractor_of_another_model(tmp_path: Path) -> None:
    tiny.tiny_whisper(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"feature_size": 128}))
    with pytest.raises(ModelError, match=r"128 mel bins.*80"):
        Teacher.load(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings | {"sampling_rate": 8000}))
    with pytest.raises(AuraError, match="8000 Hz"):
        Teacher.load(str(tmp_path))
