"""The Hugging Face side: Auto classes, chat template, processor call, pipeline."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
    pipeline,
)

from aura.batch.collate import Example, collate
from aura.errors import AudioError, CheckpointError
from aura.student.checkpoint import new_processor, save_checkpoint
from aura.student.configuration import AuraConfig
from aura.student.model import AUDIO_TYPE_ID, AuraForConditionalGeneration
from aura.student.processor import AuraFeatureExtractor, AuraProcessor

CLIP = tiny.tiny_speech(0.73)
OTHER = tiny.tiny_speech(1.5, seed=1)
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "text", "text": "the first: "}, {"type": "audio", "audio": CLIP}]},
    {"role": "assistant", "content": "on"},
    {"role": "user", "content": [{"type": "audio", "audio": OTHER}, {"type": "text", "text": "and then?"}]},
]
TOKENIZERS = {
    "chatml": lambda: tiny.tiny_tokenizer(),
    "no template": lambda: tiny.tiny_tokenizer(chat_template=None),
    "adds bos": lambda: tiny.tiny_tokenizer(adds_bos=True),
    "bos in the template": lambda: tiny.tiny_tokenizer(chat_template="{{ bos_token }}" + tiny.CHATML, adds_bos=True),
    "no reserved token": lambda: tiny.tiny_tokenizer(reserved=False),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Path]:
    here = tmp_path_factory.mktemp("hf")
    model, processor = tiny.tiny_student("qwen3", base=str(tiny.tiny_llm_folder("qwen3", here / "llm")))
    save_checkpoint(here / "checkpoint", model, processor)
    return model, processor, here / "checkpoint"


@pytest.fixture(params=TOKENIZERS)
def processor(request: pytest.FixtureRequest) -> AuraProcessor:
    from aura.config import AudioConfig

    return new_processor(TOKENIZERS[request.param](), AudioConfig())


def templated(processor: AuraProcessor, messages: list[dict[str, Any]] = MESSAGES, **options: Any) -> Any:
    return processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, **options
    )


# --- Auto classes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("auto", [AutoModel, AutoModelForMultimodalLM, AuraForConditionalGeneration])
def test_auto_model(built: tuple[Any, Any, Path], auto: Any) -> None:
    model, processor, folder = built
    again = auto.from_pretrained(folder)
    assert type(again) is AuraForConditionalGeneration and not again.training
    with torch.no_grad():
        inputs = templated(processor)
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_auto_config(built: tuple[Any, Any, Path]) -> None:
    model, _, folder = built
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is AuraConfig
    assert type(config.text_config) is type(model.language_model.config)
    assert config.get_text_config() is config.text_config
    shown = {k: v for k, v in config.to_dict().items() if k not in ("transformers_version", "_name_or_path")}
    assert AuraConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert shown["audio_token_id"] == model.config.audio_token_id and shown["base_model"] == model.config.base_model


def test_auto_processor(built: tuple[Any, Any, Path]) -> None:
    _, processor, folder = built
    again = AutoProcessor.from_pretrained(folder)
    assert type(again) is AuraProcessor
    assert type(AutoFeatureExtractor.from_pretrained(folder)) is AuraFeatureExtractor
    expected, found = templated(processor), templated(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_auto_model_names_a_torn_config(built: tuple[Any, Any, Path], tmp_path: Path) -> None:
    for path in built[2].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "aura", ')
    with pytest.raises(CheckpointError, match=r"config.json cannot be read"):
        AuraForConditionalGeneration.from_pretrained(tmp_path)


def test_model_from_a_config_alone() -> None:
    config = AuraConfig(text_config=tiny.tiny_llm_config("llama"), audio_token_id=5, stem_width=8)
    model = AutoModelForMultimodalLM.from_config(config)
    assert type(model) is AuraForConditionalGeneration
    assert model.get_decoder() is model.language_model.get_decoder()


def test_save_pretrained_round_trip(built: tuple[Any, Any, Path], tmp_path: Path) -> None:
    model, processor, _ = built
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        inputs = templated(AutoProcessor.from_pretrained(tmp_path / "saved"))
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_pipeline(built: tuple[Any, Any, Path], tmp_path: Path) -> None:
    model, processor, folder = built
    inputs = templated(processor, MESSAGES[2:])
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = processor.decode(ids, skip_special_tokens=True)
    assert expected
    soundfile.write(tmp_path / "clip.wav", OTHER, 16_000, subtype="FLOAT")
    from_file = [
        {
            "role": "user",
            "content": [{"type": "audio", "path": str(tmp_path / "clip.wav")}, MESSAGES[2]["content"][1]],
        }
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = pipeline("any-to-any", model=str(folder), processor=AutoProcessor.from_pretrained(folder))
        options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
        outputs = [pipe(text=messages, **options) for messages in (MESSAGES[2:], from_file)]
    assert [output[0]["generated_text"] for output in outputs] == [expected] * 2


# --- processor --------------------------------------------------------------------------------------------


def test_chat_template_equals_collate(processor: AuraProcessor) -> None:
    found = templated(processor)
    batch = collate(processor, [Example(id="a", messages=MESSAGES, waveforms=[CLIP, OTHER])], answer=False)
    for name, value in batch.model_inputs().items():
        assert torch.equal(found[name], value), name
    is_audio = found["input_ids"] == processor.audio_token_id
    assert int(is_audio.sum()) == 10 + 19
    assert torch.equal(found["mm_token_type_ids"] == AUDIO_TYPE_ID, is_audio)


def test_batched_chat_template_equals_collate(processor: AuraProcessor) -> None:
    found = templated(processor, [MESSAGES, MESSAGES[2:]], processor_kwargs={"padding": True})  # type: ignore[list-item]
    examples = [
        Example(id="a", messages=MESSAGES, waveforms=[CLIP, OTHER]),
        Example(id="b", messages=MESSAGES[2:], waveforms=[OTHER]),
    ]
    for name, value in collate(processor, examples, answer=False).model_inputs().items():
        assert torch.equal(found[name], value), name


def test_call_equals_collate(processor: AuraProcessor) -> None:
    text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    assert text.count(processor.audio_token) == 2
    found = processor(text=[text], audio=[CLIP, OTHER], return_tensors="pt")
    batch = collate(processor, [Example(id="a", messages=MESSAGES, waveforms=[CLIP, OTHER])], answer=False)
    for name, value in batch.model_inputs().items():
        assert torch.equal(found[name], value), name


def test_text_alone(processor: AuraProcessor) -> None:
    messages = [{"role": "user", "content": "the thing"}]
    found = templated(processor, messages)
    assert "input_features" not in found
    batch = collate(processor, [Example(id="a", messages=messages, waveforms=[])], answer=False)
    assert torch.equal(found["input_ids"], batch.input_ids)


def test_audio_token_behind_the_embedding_table() -> None:
    model, processor = tiny.tiny_student("llama", tokenizer=tiny.tiny_tokenizer(reserved=False))
    assert processor.audio_token_id == tiny.VOCABULARY == model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        assert model(**templated(processor)).logits.isfinite().all()
        assert model.generate(**templated(processor), max_new_tokens=3).shape[0] == 1


def test_audio_token_survives_saving(processor: AuraProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = AuraProcessor.from_pretrained(tmp_path)
    assert (again.audio_token, again.audio_token_id) == (processor.audio_token, processor.audio_token_id)
    assert again.chat_template == processor.chat_template
    assert torch.equal(templated(again)["input_ids"], templated(processor)["input_ids"])


@pytest.mark.parametrize("kind", [np.float32, np.float64, list])
def test_feature_extractor_takes_arrays_and_lists(kind: Any) -> None:
    extractor = AuraFeatureExtractor()
    given = CLIP.tolist() if kind is list else CLIP.astype(kind)
    expected = extractor([CLIP])
    for found in (extractor(given, sampling_rate=16_000), extractor([given])):
        torch.testing.assert_close(found["input_features"], expected["input_features"])
        assert torch.equal(found["input_features_mask"], expected["input_features_mask"])
    assert expected["input_features"].shape == (1, 80, 80)


def test_feature_extractor_refuses_another_rate() -> None:
    with pytest.raises(AudioError, match=r"audio at 8000 Hz was given, 16000 Hz expected; .*load_waveform"):
        AuraFeatureExtractor()(CLIP, sampling_rate=8000)


def test_counts_for_serving_engines(processor: AuraProcessor) -> None:
    found = processor._get_num_multimodal_tokens(audio_lengths=[len(CLIP), len(OTHER), 1])
    assert found["num_audio_tokens"] == [10, 19, 1]
