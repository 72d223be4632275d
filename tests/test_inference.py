"""Listening and chatting: a batch equals single items, no word of a long file is lost, no teacher is here."""

from __future__ import annotations

import ast
import functools
import io
import itertools
import subprocess
import sys
import tracemalloc
import wave
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
import torch

import aura
from aura.audio.patches import PatchGrid
from aura.batch.collate import Example
from aura.batch.prompt import user_message
from aura.errors import AudioError, AuraError, ModelError, PromptError, RecipeError
from aura.inference.engine import Engine, pick_device
from aura.inference.generate import Generation, end_tokens, generate_texts, plan_batches
from aura.inference.stitch import drop_overlap
from aura.inference.transcribe import Segment, Transcript, to_srt, transcribe_each
from aura.inference.windows import quiet_place, read_windows
from aura.student.checkpoint import save_checkpoint

RATE = 16_000
FORBIDDEN = ("aura.teacher", "aura.distill", "aura.training")
RUN_TIME = ("aura.inference", "aura.student", "aura.batch", "aura.audio", "aura.references")


@functools.cache
def student(family: str = "gemma3") -> tuple[Any, Any]:
    return tiny.tiny_student(family)


@functools.cache
def engine() -> Engine:
    return Engine(*student())


def question(seconds: float, text: str | None = "What?", seed: int = 0) -> Example:
    return Example(id=f"{seconds} s", messages=[user_message(text)], waveforms=[tiny.tiny_speech(seconds, seed=seed)])


def as_audio(wave_N: np.ndarray) -> dict[str, Any]:
    return {"array": wave_N, "sampling_rate": RATE}


# --- generate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
def test_a_batch_answers_as_single_items_do(family: str) -> None:
    model, processor = student(family)
    examples = [
        question(s, t, seed=i) for i, (s, t) in enumerate([(0.3, None), (2.0, "Why?"), (0.9, "What was said?")])
    ]
    examples.append(Example(id="text", messages=[{"role": "user", "content": "Hello"}], waveforms=[]))
    together = generate_texts(model, processor, examples, max_new_tokens=16)
    alone = [generate_texts(model, processor, [example], max_new_tokens=16)[0] for example in examples]
    assert together == alone
    assert len({answer.token_ids for answer in together}) == len(examples)


def test_batches_come_back_in_order_and_are_reported() -> None:
    model, processor = student()
    examples = [question(seconds, seed=i) for i, seconds in enumerate((0.2, 1.5, 0.4, 1.0))]
    done: list[int] = []
    small = generate_texts(model, processor, examples, max_new_tokens=4, batch_tokens=60, progress=done.append)
    assert small == generate_texts(model, processor, examples, max_new_tokens=4)
    assert sum(done) == len(examples) and len(done) > 1


def test_plan_batches_bounds_padding_and_takes_a_longer_item_alone() -> None:
    lengths = [10, 500, 30, 28, 12]
    batches = list(plan_batches(lengths, max_new_tokens=10, batch_tokens=100))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert batches[0] == [1]
    for batch in batches[1:]:
        assert len(batch) * (max(lengths[i] for i in batch) + 10) <= 100
    assert list(plan_batches([], max_new_tokens=1, batch_tokens=1)) == []


def test_an_end_token_ends_the_answer_and_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("gemma3", "llama", "qwen2", "qwen3"):  # one whose random weights do not repeat a single token
        model, processor = tiny.tiny_student(family)
        [cut] = generate_texts(model, processor, [question(1.0)], max_new_tokens=8)
        if len(cut.token_ids) == 8 and len(set(cut.token_ids)) > 1:
            break
    assert not cut.finished and len(set(cut.token_ids)) > 1
    end = next(token for token in cut.token_ids if token != cut.token_ids[0])
    monkeypatch.setattr(model.generation_config, "eos_token_id", [end])
    [ended] = generate_texts(model, processor, [question(1.0)], max_new_tokens=8)
    assert ended.finished and ended.token_ids == cut.token_ids[: cut.token_ids.index(end)]
    text = processor.tokenizer.decode(ended.token_ids, skip_special_tokens=True).strip()
    assert ended.text == text


def test_end_tokens_are_the_models_the_tokenizers_and_the_chat_templates() -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=7))
    tokenizer = tiny.tiny_tokenizer(chat_template=None)  # ends texts with </s>, and knows <|im_end|>
    vocabulary = tokenizer.get_vocab()
    assert set(end_tokens(model, tokenizer)) == {7, vocabulary["</s>"], vocabulary["<|im_end|>"]}  # type: ignore[arg-type]
    model.generation_config.eos_token_id = None
    assert 7 not in end_tokens(model, tokenizer)  # type: ignore[arg-type]


def test_an_llms_own_sampling_and_penalties_do_not_leak_in(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = student()
    plain = generate_texts(model, processor, [question(1.0)], max_new_tokens=12)
    for name, value in {
        "do_sample": True,
        "temperature": 5.0,
        "repetition_penalty": 9.0,
        "top_k": 64,
    }.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert generate_texts(model, processor, [question(1.0)], max_new_tokens=12) == plain


def test_the_models_mode_is_put_back() -> None:
    model, processor = tiny.tiny_student("llama")
    model.train()
    generate_texts(model, processor, [question(0.3)], max_new_tokens=2)
    assert model.training
    model.eval()
    generate_texts(model, processor, [question(0.3)], max_new_tokens=2)
    assert not model.training


def test_streamed_pieces_are_the_answer() -> None:
    model, processor = student()
    pieces: list[str] = []
    [answer] = generate_texts(model, processor, [question(1.0)], max_new_tokens=24, stream=pieces.append)
    assert "".join(pieces).strip() == answer.text
    with pytest.raises(PromptError, match="2 conversations"):
        generate_texts(model, processor, [question(1.0)] * 2, max_new_tokens=2, stream=pieces.append)


def test_a_prompt_beyond_the_llms_context_is_refused_and_one_at_its_edge_is_cut() -> None:
    model, processor = student()  # 512 positions
    with pytest.raises(PromptError, match=r"fills 6\d\d positions \(625 of them audio, 12.5 a second\).*has 512"):
        generate_texts(model, processor, [question(50.0)], max_new_tokens=4)
    text = "x" * 470
    [answer] = generate_texts(
        model,
        processor,
        [Example(id="edge", messages=[user_message(text, 0)], waveforms=[])],
        max_new_tokens=64,
    )
    assert 0 < len(answer.token_ids) < 64


# --- windows ------------------------------------------------------------------------------------------------


def test_windows_are_cut_at_pauses() -> None:
    wave_N = tiny.tiny_speech(70.0)
    for pause in (17.0, 27.5, 53.0):
        wave_N[round(pause * RATE) : round((pause + 0.4) * RATE)] *= 1e-3
    windows = list(read_windows(as_audio(wave_N)))
    assert [w.start for w in windows[1:]] == pytest.approx([27.7, 53.2], abs=0.15)
    assert not any(w.overlaps for w in windows)
    np.testing.assert_array_equal(np.concatenate([w.wave_N for w in windows]), wave_N)


def test_windows_overlap_where_there_is_no_pause() -> None:
    windows = list(read_windows(as_audio(tiny.tiny_speech(70.0)), overlap=2.0))
    assert [(w.start, w.end, w.overlaps) for w in windows] == [(0, 30, False), (28, 58, True), (56, 70, True)]


@pytest.mark.parametrize("seconds", [29.99, 30.0, 30.02, 30.1, 59.5, 60.05])
@pytest.mark.parametrize("overlap", [0.0, 2.0])
def test_windows_cover_everything_and_none_is_tiny(seconds: float, overlap: float) -> None:
    windows = list(read_windows(as_audio(tiny.tiny_speech(seconds)), overlap=overlap))
    assert windows[0].start == 0 and windows[-1].end == pytest.approx(seconds, abs=1e-3)
    for before, after in itertools.pairwise(windows):
        assert before.end - overlap - 1e-6 <= after.start <= before.end + 1e-6
    assert all(0.9 < w.end - w.start <= 30.0 for w in windows)


def test_quiet_place_needs_a_real_pause() -> None:
    wave_N = tiny.tiny_speech(10.0)
    assert quiet_place(wave_N, 5 * RATE, 10 * RATE) is None
    wave_N[7 * RATE : 7 * RATE + 3200] = 0
    place = quiet_place(wave_N, 5 * RATE, 10 * RATE)
    assert place == pytest.approx(7 * RATE + 1600, abs=320)
    assert quiet_place(wave_N, 8 * RATE, 10 * RATE) is None


def long_silence(path: Path, hours: float) -> Path:
    """A wav of digital silence that takes no room on the disk."""
    frames = round(hours * 3600 * RATE)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.setnframes(frames)
        file.writeframes(b"")
    header = bytearray(path.read_bytes())
    header[4:8] = (36 + 2 * frames).to_bytes(4, "little")
    header[40:44] = (2 * frames).to_bytes(4, "little")
    with open(path, "wb") as file:
        file.write(header)
        file.truncate(44 + 2 * frames)
    return path


def test_three_hours_are_read_window_by_window(tmp_path: Path) -> None:
    path = long_silence(tmp_path / "night.wav", 3.0)
    tracemalloc.start()
    windows = [(w.start, w.end, w.is_silent) for w in read_windows(str(path))]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert windows[-1][1] == 3 * 3600 and len(windows) >= 360
    assert all(silent for _, _, silent in windows)
    assert peak < 32e6  # bytes; the whole would be 690 MB


# --- transcribe ---------------------------------------------------------------------------------------------


class CountingEngine:
    """Hears slots of constant level: level k / 1000 is the word `w<k>`; one cut short is a misheard `hm`."""

    def __init__(self, slot: int = RATE) -> None:
        self.slot = slot
        self.model = SimpleNamespace(config=SimpleNamespace(max_seconds=300.0, prompt=None, min_avg_logprob=None))
        self.processor = SimpleNamespace(feature_extractor=SimpleNamespace(grid=PatchGrid()))
        self.heard: list[float] = []

    def generate(self, examples: Sequence[Example], **_: Any) -> list[Generation]:
        return [Generation(text=self._hear(e.waveforms[0]), token_ids=(), finished=True) for e in examples]

    def _hear(self, wave_N: np.ndarray) -> str:
        self.heard.append(len(wave_N) / RATE)
        levels = np.round(wave_N * 1000).astype(int)
        borders = np.flatnonzero(np.diff(levels)) + 1
        runs = [run for run in np.split(levels, borders) if run[0] > 0]
        return " ".join(f"w{run[0]}" if len(run) >= 0.95 * self.slot else "hm" for run in runs)


def words_and_audio(count: int, *, slot: float, pause: float) -> tuple[str, np.ndarray]:
    levels = np.arange(1, count + 1) / 1000
    parts = [np.concatenate([np.full(round(slot * RATE), v), np.zeros(round(pause * RATE))]) for v in levels]
    return " ".join(f"w{k}" for k in range(1, count + 1)), np.concatenate(parts).astype(np.float32)


@pytest.mark.parametrize(("slot", "pause"), [(0.7, 0.3), (0.4, 0.0), (0.31, 0.02), (1.3, 0.25)])
def test_no_word_of_a_long_recording_is_lost_or_written_twice(slot: float, pause: float) -> None:
    expected, wave_N = words_and_audio(round(100 / (slot + pause)), slot=slot, pause=pause)
    listener = CountingEngine(round(slot * RATE))
    [(_, found)] = transcribe_each(listener, [as_audio(wave_N)])  # type: ignore[arg-type]
    assert isinstance(found, Transcript)
    assert found.text == expected
    assert max(listener.heard) <= 30.0
    assert found.seconds == pytest.approx(len(wave_N) / RATE, abs=1e-3)
    starts = [s.start for s in found.segments]
    assert starts == sorted(starts) and all(s.start < s.end for s in found.segments)


def test_files_are_done_together_and_a_bad_one_alone_fails(tmp_path: Path) -> None:
    expected, wave_N = words_and_audio(50, slot=0.7, pause=0.3)
    (tmp_path / "no.wav").write_text("this is no audio at all")
    sources = [as_audio(wave_N), str(tmp_path / "no.wav"), as_audio(wave_N[: RATE * 10])]
    results = dict(transcribe_each(CountingEngine(round(0.7 * RATE)), sources))  # type: ignore[arg-type]
    assert sorted(results) == [0, 1, 2]
    assert isinstance(results[1], AudioError) and "no.wav" in str(results[1])
    assert results[0].text == expected and results[2].text == " ".join(expected.split()[:10])  # type: ignore[union-attr]


def test_damage_far_into_a_file_fails_that_file_only() -> None:
    _, wave_N = words_and_audio(100, slot=0.7, pause=0.3)
    wave_N[80 * RATE] = np.nan
    results = dict(transcribe_each(CountingEngine(), [as_audio(wave_N), as_audio(wave_N[: 5 * RATE])]))  # type: ignore[arg-type]
    assert isinstance(results[0], AudioError) and isinstance(results[1], Transcript)


def test_a_window_in_which_the_model_hears_no_speech_is_left_out() -> None:
    class Deaf(CountingEngine):
        def _hear(self, wave_N: np.ndarray) -> str:
            return "..." if len(self.heard) else super()._hear(wave_N)  # all but the first

    _, wave_N = words_and_audio(50, slot=0.7, pause=0.3)
    [(_, found)] = transcribe_each(Deaf(round(0.7 * RATE)), [as_audio(wave_N)])  # type: ignore[arg-type]
    assert isinstance(found, Transcript) and len(found.segments) == 1
    assert found.text.startswith("w1 w2") and "..." not in found.text


def test_silence_asks_no_model() -> None:
    listener = CountingEngine()
    [(_, found)] = transcribe_each(listener, [as_audio(np.zeros(RATE * 40, np.float32))])  # type: ignore[arg-type]
    assert found == Transcript(text="", segments=(), seconds=40.0) and listener.heard == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"window": 0.5}, "window is 0.5 s"),
        ({"window": 1000.0}, "expected 2 s to 300 s"),
        ({"overlap": 20.0}, "overlap is 20 s"),
    ],
)
def test_impossible_windows_are_refused(options: dict[str, float], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        list(transcribe_each(CountingEngine(), [as_audio(tiny.tiny_speech(1.0))], **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "joined"),
    [
        ("a b c d e", "d e f g", "a b c d e f g"),
        ("a b c d e eek", "see d e f g", "a b c d e f g"),  # words cut at the border were misheard
        ("one two three", "three four five", "one two three four five"),  # one word, right at the border
        (
            "one two three",
            "four three five",
            "one two three four three five",
        ),  # one word elsewhere: by chance
        ("Hello there, World!", "there world and all", "Hello there, World! and all"),
        ("", "a b", "a b"),
        ("a b", "", "a b"),
        ("no no no no", "no no yes", "no no no no yes"),
    ],
)
def test_overlapping_texts_are_joined(before: str, after: str, joined: str) -> None:
    assert " ".join(part for part in drop_overlap(before, after, seconds=2.0) if part) == joined


def test_srt() -> None:
    segments = (Segment(start=0.0, end=29.5, text="one"), Segment(start=3661.25, end=3662.0, text="two"))
    assert to_srt(Transcript(text="one two", segments=segments, seconds=4000.0)) == (
        "1\n00:00:00,000 --> 00:00:29,500\none\n\n2\n01:01:01,250 --> 01:01:02,000\ntwo\n"
    )


# --- engine -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("inference")
    model, processor = tiny.tiny_student("llama", base=str(tiny.tiny_llm_folder("llama", here / "llm")))
    model.config.prompt = "Transcribe."
    return save_checkpoint(here / "checkpoint", model, processor)


def test_load_gives_the_same_answers_as_the_model_that_was_saved(checkpoint: Path) -> None:
    model, processor = tiny.tiny_student("llama")
    clip = as_audio(tiny.tiny_speech(1.2))
    loaded, saved = aura.load(checkpoint, device="cpu"), Engine(model, processor)
    assert loaded.ask(clip, "What?", max_new_tokens=12) == saved.ask(clip, "What?", max_new_tokens=12)
    assert loaded.digest == aura.load(checkpoint).digest
    with torch.no_grad():
        next(model.audio_embedding.parameters()).add_(1.0)
    assert Engine(model, processor).digest != loaded.digest


def test_bfloat16_runs(checkpoint: Path) -> None:
    loaded = aura.load(checkpoint, dtype="bfloat16", device="cpu")
    assert loaded.model.language_model.dtype == torch.bfloat16
    assert isinstance(loaded.ask(as_audio(tiny.tiny_speech(1.0)), "What?", max_new_tokens=4), str)


def test_transcribe_asks_what_training_asked(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = aura.load(checkpoint)
    clip = as_audio(tiny.tiny_speech(1.2))
    asked: list[Any] = []
    generate = loaded.generate
    monkeypatch.setattr(loaded, "generate", lambda e, **k: asked.extend(x.messages for x in e) or generate(e, **k))
    default = loaded.transcribe(clip, max_new_tokens=12)
    loaded.transcribe(clip, prompt="Write it down.", max_new_tokens=12)
    loaded.transcribe(clip, prompt="", max_new_tokens=12)
    assert asked == [[user_message("Transcribe.")], [user_message("Write it down.")], [user_message(None)]]
    assert isinstance(default, Transcript) and default.truncated and default.seconds == pytest.approx(1.2)
    assert loaded.transcribe([clip, clip], max_new_tokens=12) == [default, default]


def test_every_form_of_audio_is_heard_alike(tmp_path: Path) -> None:
    wave_N = tiny.tiny_speech(1.0)
    path = tmp_path / "clip.wav"
    soundfile.write(path, wave_N, RATE, subtype="FLOAT")
    forms: list[dict[str, Any]] = [
        {"audio": str(path)},
        {"path": path},
        {"audio": path.read_bytes()},
        {"audio": io.BytesIO(path.read_bytes())},
        {"audio": wave_N, "sampling_rate": RATE},
        {"audio": as_audio(wave_N)},
    ]
    text = {"type": "text", "text": "What?"}
    answers = {
        engine().chat([{"role": "user", "content": [{"type": "audio", **form}, text]}], max_new_tokens=8)
        for form in forms
    }
    assert answers == {engine().ask(str(path), "What?", max_new_tokens=8)}
    with open(path, "rb") as file:
        assert {engine().transcribe(file, prompt="What?", max_new_tokens=8).text} == {" ".join(answers.pop().split())}  # type: ignore[union-attr]


def test_chat_over_several_turns_with_several_recordings() -> None:
    first = {"type": "audio", "audio": tiny.tiny_speech(0.5), "sampling_rate": RATE}
    second = {"type": "audio", "audio": tiny.tiny_speech(0.7, seed=3), "sampling_rate": RATE}
    turns: list[dict[str, Any]] = [{"role": "user", "content": [first, {"type": "text", "text": "A?"}]}]
    turns.append({"role": "assistant", "content": "yes"})
    turns.append({"role": "user", "content": [{"type": "text", "text": "and"}, second]})
    answer = engine().chat(turns, max_new_tokens=12)
    swapped = [{**turns[0], "content": [second, {"type": "text", "text": "A?"}]}, *turns[1:]]
    assert answer != engine().chat(swapped, max_new_tokens=12)


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ("hello", "expected a list of messages"),
        ([], "no messages"),
        ([{"role": "user"}], "message 1"),
        ([{"role": "user", "content": 3}], "message 1"),
        ([{"role": "user", "content": ["hello"]}], "message 1"),
        ([{"role": "robot", "content": "hello"}], "message 1"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "found: none"),
        (
            [{"role": "user", "content": [{"type": "audio", "audio": "a.wav", "path": "b.wav"}]}],
            "audio and path",
        ),
        (
            [{"role": "user", "content": [{"type": "audio", "url": "https://example.com/a.wav"}]}],
            "Download it first",
        ),
        ([{"role": "user", "content": [{"type": "audio", "audio": np.zeros(99)}]}], "sampling_rate"),
        ([{"role": "user", "content": [{"type": "image", "image": "a.png"}]}], "expected type 'text'"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "nowhere.wav"}]}], "no such file"),
    ],
)
def test_messages_that_are_not_understood(messages: Any, match: str) -> None:
    with pytest.raises(AuraError, match=match) as caught:
        engine().chat(messages, max_new_tokens=2)
    assert "\n" not in str(caught.value)


def test_audio_longer_than_the_model_takes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = long_silence(tmp_path / "night.wav", 3.0)
    with pytest.raises(AudioError, match=r"10800.0 s long; expected at most 300 s.*aura transcribe"):
        engine().ask(path, "What?")


@pytest.mark.parametrize(("device", "match"), [("tpu9", "expected auto, cpu"), ("cuda:99", "CUDA device")])
def test_unknown_devices(device: str, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        pick_device(device)


def test_unknown_dtype(checkpoint: Path) -> None:
    with pytest.raises(ModelError, match="float8"):
        aura.load(checkpoint, dtype="float8")


# --- the import rule: the teacher is not there at run time --------------------------------------------------


def imports_of(file: Path, module: str) -> set[str]:
    """Every aura module named in an import anywhere in a file, inside functions too."""
    found: set[str] = set()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] == "aura"}


@functools.cache
def import_graph() -> dict[str, set[str]]:
    root = Path(aura.__file__).parent
    files = {}
    for file in root.rglob("*.py"):
        parts = file.relative_to(root.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return {module: imports_of(file, module) & set(files) for module, file in files.items()}


def reachable(roots: Sequence[str]) -> set[str]:
    seen, waiting = set(roots), list(roots)
    while waiting:
        for name in import_graph()[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def test_the_run_time_imports_no_teacher_code_not_even_in_functions() -> None:
    roots = [name for name in import_graph() if name.startswith(RUN_TIME)]
    assert len(roots) > 20
    assert sorted(name for name in reachable(roots) if name.startswith(FORBIDDEN)) == []
    assert any(name.startswith("aura.teacher") for name in import_graph())  # the rule still names what is there


def test_loading_the_engine_loads_no_teacher_code() -> None:
    code = f"import sys, aura.inference.engine; print([m for m in sys.modules if m.startswith({FORBIDDEN!r})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
