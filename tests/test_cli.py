"""The command line: light help, one clear line for bad input, and the verbs on a tiny checkpoint."""

from __future__ import annotations

import io
import json
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
import yaml

import aura.cli
from aura.cli import main
from aura.cli_chat import Conversation, audio_path
from aura.cli_speech import LoadOptions, output_names
from aura.cli_train import parse_overrides, recipe_text
from aura.config import Recipe
from aura.errors import AudioError, CheckpointError, PromptError, RecipeError
from aura.inference.engine import Engine
from aura.recipes import read_recipe
from aura.student.checkpoint import save_checkpoint
from aura.typed_tree import as_tree

RATE = 16_000
VERBS = (
    *("transcribe", "ask", "chat", "serve", "evaluate", "report", "retention", "inspect"),
    *("train", "recipe", "bundle", "unbundle", "data"),
)
HEAVY = ("torch", "transformers", "datasets", "peft", "numpy")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `llm`, another LLM (`other`) and a `checkpoint`."""
    here = tmp_path_factory.mktemp("models")
    tiny.tiny_llm_folder("llama", here / "llm")
    tiny.tiny_llm_folder("llama", here / "other", seed=1)
    save_checkpoint(here / "checkpoint", *tiny.tiny_student("llama", gate="all", base=str(here / "llm")))
    return here


@pytest.fixture(scope="module")
def checkpoint(models: Path) -> str:
    return str(models / "checkpoint")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good clips, and every kind of bad one."""
    here = tmp_path_factory.mktemp("clips")
    good = tiny.tiny_speech(1.0)
    soundfile.write(here / "good.wav", good, RATE)
    soundfile.write(here / "good2.flac", tiny.tiny_speech(1.5, seed=2), RATE)
    (here / "empty.wav").write_bytes(b"")
    whole = (here / "good2.flac").read_bytes()
    (here / "truncated.flac").write_bytes(whole[: len(whole) // 2])
    (here / "text.wav").write_text("This is a letter, not a recording.\n" * 20)
    nan = good.copy()
    nan[5000] = np.nan
    soundfile.write(here / "nan.wav", nan, RATE, subtype="FLOAT")
    soundfile.write(here / "zero.wav", good[:0], RATE)
    soundfile.write(here / "short.wav", good[: RATE // 20], RATE)
    size = 3 * 3600 * RATE * 2
    with open(here / "night.wav", "wb") as file:  # 3 h of silence that take no room on the disk
        file.write(
            b"RIFF"
            + struct.pack("<I", 36 + size)
            + b"WAVEfmt "
            + struct.pack("<IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
        )
        file.write(b"data" + struct.pack("<I", size))
        file.truncate(44 + size)
    return here


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    status = main([str(word) for word in argv])
    return status, *capsys.readouterr()


def assert_one_error(status: int, out: str, err: str, *parts: str) -> None:
    assert status == 2 and out == ""
    assert err.startswith("aura: error: ") and err.count("\n") == 1, err
    for part in parts:
        assert part in err


# --- light and quiet ----------------------------------------------------------------------------------------


def test_no_help_imports_anything_heavy() -> None:
    code = f"""
import sys, aura.cli
for verb in {VERBS!r}:
    assert aura.cli.main([verb, "--help"]) == 0
for tokens in (["--help"], [], ["data", "check", "--help"], ["--version"], ["transcrib"]):
    aura.cli.main(tokens)
print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    for verb in VERBS:
        assert f"Usage: aura {verb}" in done.stdout


def test_recipe_does_without_torch() -> None:
    code = "import sys, aura.cli; aura.cli.main(['recipe']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_reader_that_leaves_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "aura", "recipe"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()  # type: ignore[union-attr]
        assert process.stderr.read() == b""  # type: ignore[union-attr]
        assert process.wait() == 0


@pytest.mark.parametrize(
    ("tokens", "parts"),
    [
        (["transcrib"], ["transcrib", 'Did you mean "transcribe"']),
        (["transcribe", "ck", "a.wav", "--jsno"], ["--jsno", "Did you mean --json"]),
        (["transcribe"], ["checkpoint"]),
        (["ask", "ck", "a.wav"], ["question"]),
        (["evaluate", "ck", "--manifest", "x.jsonl"], ["--out"]),
        (["evaluate", "ck", "--manifest", "x.jsonl", "--out", "o", "--task", "sing"], ["sing", "intent"]),
        (["evaluate", "ck", "--manifest", "x.jsonl", "--out", "o", "--limit", "many"], ["many"]),
        (["data", "chek"], ["chek"]),
        (["train"], ["--recipe"]),
    ],
)
def test_wrong_usage_is_one_line(capsys: pytest.CaptureFixture[str], tokens: list[str], parts: list[str]) -> None:
    status, out, err = run(capsys, *tokens)
    assert_one_error(status, out, err)
    assert all(part.lower() in err.lower() for part in parts), err


def test_an_interrupt_ends_with_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LoadOptions, "load", interrupted)
    assert run(capsys, "ask", "ck", "a.wav", "What?") == (130, "", "aura: interrupted\n")


def test_bugs_and_debug_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(CheckpointError, match="is no folder"):
        main(["ask", "/nowhere/at/all", "a.wav", "What?", "--debug"])
    monkeypatch.setenv("AURA_DEBUG", "1")
    with pytest.raises(CheckpointError, match="is no folder"):
        main(["ask", "/nowhere/at/all", "a.wav", "What?"])
    monkeypatch.delenv("AURA_DEBUG")
    monkeypatch.setattr(LoadOptions, "load", bug)
    with pytest.raises(ZeroDivisionError):
        main(["ask", "ck", "a.wav", "What?"])


# --- bad input ----------------------------------------------------------------------------------------------

BAD_CLIPS = [
    ("missing.wav", "no such file"),
    ("empty.wav", "0 bytes"),
    ("truncated.flac", "truncated.flac"),
    ("text.wav", "text.wav"),
    ("nan.wav", "NaN"),
    ("zero.wav", "no audio samples"),
    ("short.wav", "0.050 s of audio"),
    (".", "is a folder"),
]


@pytest.mark.parametrize(("name", "part"), [*BAD_CLIPS, ("night.wav", "10800.0 s long; expected at most 300 s")])
def test_ask_names_a_bad_clip_in_one_line(
    capsys: pytest.CaptureFixture[str], checkpoint: str, clips: Path, name: str, part: str
) -> None:
    assert_one_error(*run(capsys, "ask", checkpoint, clips / name, "What?"), part)


@pytest.mark.parametrize(("name", "part"), BAD_CLIPS)
def test_transcribe_names_a_bad_clip_and_does_the_others(
    capsys: pytest.CaptureFixture[str], checkpoint: str, clips: Path, name: str, part: str
) -> None:
    assert_one_error(*run(capsys, "transcribe", checkpoint, clips / name), part)
    status, out, err = run(
        capsys,
        "transcribe",
        checkpoint,
        clips / "good.wav",
        clips / name,
        clips / "good2.flac",
        "--max-new-tokens",
        "3",
    )
    assert status == 2 and part in err and err.count("\n") == 1
    assert [Path(line.split(": ")[0]).name for line in out.splitlines()] == ["good.wav", "good2.flac"]


def test_checkpoints_that_are_none(
    capsys: pytest.CaptureFixture[str], models: Path, clips: Path, tmp_path: Path
) -> None:
    clip = clips / "good.wav"
    assert_one_error(*run(capsys, "ask", tmp_path / "nowhere", clip, "What?"), "nowhere", "is no folder")
    assert_one_error(*run(capsys, "ask", models / "llm", clip, "What?"), "is no aura checkpoint")
    checkpoint = models / "checkpoint"
    other = run(capsys, "ask", checkpoint, clip, "What?", "--llm", models / "other")
    assert_one_error(*other, "trained on another LLM")
    assert_one_error(*run(capsys, "ask", checkpoint, clip, "What?", "--llm", tmp_path / "no-llm"), "no-llm")
    assert_one_error(*run(capsys, "ask", checkpoint, clip, "What?", "--device", "tpu"), "tpu")


def test_evaluate_names_a_bad_manifest_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    evaluate = ("evaluate", tmp_path / "no-checkpoint", "--out", tmp_path / "out", "--manifest")
    assert_one_error(*run(capsys, *evaluate, tmp_path / "no.jsonl"), "no.jsonl", "no such file")
    (tmp_path / "bad.jsonl").write_text('{"transcript": "no audio here"}\n{"audio": "a.wav"}\n')
    assert_one_error(*run(capsys, *evaluate, tmp_path / "bad.jsonl"), "line 1: no 'audio'")


def test_a_bad_recipe_names_all_problems(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("lora: {rnak: 3, alpha: many}\n")
    status, out, err = run(capsys, "train", "--recipe", tmp_path / "r.yaml", "--run.steps", "-1", "--nonsense.x", "1")
    assert status == 2 and out == ""
    assert all(part in err for part in ("lora.rnak", "lora.rank", "lora.alpha", "nonsense"))
    assert "Traceback" not in err
    assert_one_error(*run(capsys, "train", "--recipe", tmp_path / "no.yaml"), "no.yaml does not exist")


# --- the verbs ----------------------------------------------------------------------------------------------


def test_transcribe_in_its_three_forms(capsys: pytest.CaptureFixture[str], checkpoint: str, clips: Path) -> None:
    transcribe = ("transcribe", checkpoint, clips / "good.wav", "--max-new-tokens", "5")
    status, text, err = run(capsys, *transcribe)
    assert (status, err) == (0, "") and text.strip()
    found = json.loads(run(capsys, *transcribe, "--json")[1])
    assert found["text"] == text.strip() and found["file"].endswith("good.wav") and found["seconds"] == 1.0
    assert found["segments"] == [{"start": 0.0, "end": 1.0, "text": found["text"]}]
    assert run(capsys, *transcribe, "--srt")[1] == f"1\n00:00:00,000 --> 00:00:01,000\n{found['text']}\n\n"
    status, text, err = run(capsys, *transcribe, "--min-avg-logprob", "-0.0001")
    assert status == 0 and not text.strip() and "the words of 1 window(s) were left out" in err
    assert_one_error(*run(capsys, "transcribe", checkpoint), "no audio files")
    assert_one_error(*run(capsys, *transcribe, "--srt", "--json"), "one of them")
    assert_one_error(*run(capsys, *transcribe, clips / "good2.flac", "--srt"), "--out")
    assert_one_error(*run(capsys, *transcribe, "--window", "1000"), "window is 1000 s")


def test_transcribe_without_naming_a_checkpoint(
    capsys: pytest.CaptureFixture[str], checkpoint: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = run(capsys, "transcribe", checkpoint, clips / "good.wav", "--max-new-tokens", "3")
    monkeypatch.setenv("AURA_CHECKPOINT", checkpoint)
    status, out, err = run(capsys, "transcribe", clips / "good.wav", "--max-new-tokens", "3")
    assert (status, out) == named[:2] and checkpoint in err
    monkeypatch.delenv("AURA_CHECKPOINT")
    monkeypatch.setattr("aura.student.files.SHIPPED", tmp_path / "none")
    assert_one_error(*run(capsys, "transcribe", clips / "good.wav"), "AURA_CHECKPOINT")
    assert_one_error(*run(capsys, "transcribe"), "no audio files")


def test_transcribe_into_a_folder(
    capsys: pytest.CaptureFixture[str], checkpoint: str, clips: Path, tmp_path: Path
) -> None:
    files = (clips / "good.wav", clips / "good2.flac", clips / "good.wav")
    status, out, err = run(
        capsys,
        "transcribe",
        checkpoint,
        *files,
        "--srt",
        "--out",
        tmp_path / "texts",
        "--max-new-tokens",
        "3",
    )
    assert (status, out, err) == (0, "", "")
    assert sorted(p.name for p in (tmp_path / "texts").iterdir()) == ["good-2.srt", "good.srt", "good2.srt"]


def test_three_hours_of_silence_are_transcribed(
    capsys: pytest.CaptureFixture[str], checkpoint: str, clips: Path
) -> None:
    status, out, err = run(capsys, "transcribe", checkpoint, clips / "night.wav", "--json")
    found = json.loads(out)
    assert (status, err) == (0, "") and (found["seconds"], found["text"]) == (10800.0, "")


def test_output_names() -> None:
    assert output_names(("a/x.wav", "b/x.flac", "y.wav"), "txt") == ["x.txt", "x-2.txt", "y.txt"]


def test_ask_prints_the_answer(capsys: pytest.CaptureFixture[str], checkpoint: str, models: Path, clips: Path) -> None:
    status, out, err = run(capsys, "ask", checkpoint, clips / "good.wav", "What?", "--max-new-tokens", "8")
    engine = aura.load(checkpoint, device="cpu")
    assert (status, err) == (0, "")
    assert out.strip() == engine.ask(clips / "good.wav", "What?", max_new_tokens=8)


def test_evaluate_writes_a_report_with_the_command(
    capsys: pytest.CaptureFixture[str],
    checkpoint: str,
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = tmp_path / "rows.jsonl"
    lines = [{"audio": name, "transcript": "hello"} for name in ("good.wav", "good2.flac", "nan.wav")]
    manifest.write_text("\n".join(json.dumps(line) for line in lines))
    argv = ["evaluate", checkpoint, "--manifest", str(manifest), "--data-root", str(clips)]
    argv += ["--out", str(tmp_path / "out"), "--max-new-tokens", "3"]
    monkeypatch.setattr(sys, "argv", ["aura", *argv])
    status, out, err = run(capsys, *argv)
    assert status == 0 and "accuracy" in out and "1 of 3 items failed" in out
    assert err.startswith("aura: failed: nan.wav: ") and err.count("\n") == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["command"] == shlex.join(["aura", *argv]) and report["metrics"]["accuracy"] == 0.0
    assert_one_error(*run(capsys, *argv[:-1], "4"), "other settings", "max_new_tokens")
    assert run(capsys, *argv[:-1], "4", "--restart")[0] == 0
    broken = ["evaluate", checkpoint, "--manifest", manifest, "--limit", "1", "--out", tmp_path / "none"]
    assert run(capsys, *broken)[0] == 2  # not one item could be answered


def test_data_check_and_from_csv(capsys: pytest.CaptureFixture[str], clips: Path, tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    table.write_text(f"file,words\n{clips / 'good.wav'},hello\n{clips / 'good2.flac'},bye\n")
    columns = ("--columns.audio", "file", "--columns.transcript", "words")
    out = tmp_path / "clips.jsonl"
    assert run(capsys, "data", "from-csv", table, "--out", out, *columns)[0] == 0
    status, text, _ = run(capsys, "data", "check", out)
    assert status == 0 and "2 of 2 rows" in text
    with open(out, "a") as file:
        file.write(json.dumps({"audio": str(clips / "empty.wav"), "transcript": "x"}) + "\n")
    status, text, _ = run(capsys, "data", "check", out, "--json", "--out", tmp_path / "check.json")
    assert status == 1 and json.loads(text)["bad"][0]["place"] == "line 3"
    assert json.loads((tmp_path / "check.json").read_text()) == json.loads(text)


def test_data_from_librispeech(capsys: pytest.CaptureFixture[str], clips: Path, tmp_path: Path) -> None:
    chapter = tmp_path / "LibriSpeech" / "7" / "8"
    chapter.mkdir(parents=True)
    (chapter / "7-8-0000.flac").write_bytes((clips / "good2.flac").read_bytes())
    (chapter / "7-8.trans.txt").write_text("7-8-0000 HELLO\n")
    status, out, _ = run(capsys, "data", "from-librispeech", tmp_path / "LibriSpeech", "--out", tmp_path / "l.jsonl")
    assert status == 0 and out.startswith("1 rows written")
    assert_one_error(*run(capsys, "data", "from-librispeech", clips, "--out", tmp_path / "m.jsonl"), "trans.txt")


# --- recipes ------------------------------------------------------------------------------------------------


def test_the_printed_recipe_is_the_default_with_help(tmp_path: Path) -> None:
    text = recipe_text()
    (tmp_path / "r.yaml").write_text(text)
    assert as_tree(read_recipe(tmp_path / "r.yaml")) == as_tree(Recipe())
    assert yaml.safe_load(text) == yaml.safe_load(yaml.safe_dump(as_tree(Recipe())))
    for line in text.splitlines():
        assert not line.strip() or line.endswith(":") or "#" in line, f"no help: {line}"


def test_overrides_are_yaml() -> None:
    tokens = "--lora.rank 16 --run.name=x=y --data.train [a.jsonl,b.jsonl] --audio.floor -5.5 --lora.layers null"
    assert parse_overrides(tokens.split()) == {
        "lora.rank": 16,
        "run.name": "x=y",
        "data.train": ["a.jsonl", "b.jsonl"],
        "audio.floor": -5.5,
        "lora.layers": None,
    }
    several = "--data.train a.jsonl b.jsonl --lora.rank 3 --data.train c.jsonl --lora.rank 4"
    assert parse_overrides(several.split()) == {"data.train": ["a.jsonl", "b.jsonl", "c.jsonl"], "lora.rank": [3, 4]}
    with pytest.raises(RecipeError, match=r"lora\.rank"):  # two ranks are no rank; the later one does not quietly win
        read_recipe(None, parse_overrides(several.split()))
    assert parse_overrides(["--student.llm", "pip:gemma", "--run.name", "@home"]) == {
        "student.llm": "pip:gemma",
        "run.name": "@home",
    }


@pytest.mark.parametrize(
    ("tokens", "match"),
    [
        (["--resum"], "Did you mean --resume"),
        (["rank"], "rank is no option"),
        (["--lora.rank"], "without a value"),
        (["--lora.rank", "--run.steps", "3"], "without a value"),
    ],
)
def test_overrides_that_are_none(tokens: list[str], match: str) -> None:
    with pytest.raises(RecipeError, match=match):
        parse_overrides(tokens)


def test_train_hands_the_recipe_over(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = pytest.importorskip("aura.training.loop")
    calls: list[Any] = []

    def train(recipe: Any, **options: Any) -> SimpleNamespace:
        calls.append((recipe, options))
        return SimpleNamespace(signal=None)

    monkeypatch.setattr(loop, "train", train)
    (tmp_path / "r.yaml").write_text("lora: {rank: 8}\nrun: {steps: 7}\n")
    assert run(capsys, "train", "--recipe", tmp_path / "r.yaml", "--resume", "--lora.rank", "4")[0] == 0
    [(recipe, options)] = calls
    assert (recipe.lora.rank, recipe.run.steps) == (4, 7) and options == {"resume": True, "overwrite": False}


# --- chat ---------------------------------------------------------------------------------------------------


class Talker(Engine):
    """Answers with what it was given."""

    def __init__(self) -> None:
        super().__init__(*tiny.tiny_student("llama"))
        self.given: list[Any] = []

    def chat(self, messages: Any, *, max_new_tokens: int = 0, stream: Callable[[str], None] | None = None) -> str:
        if messages[-1]["content"] == "fail":
            raise PromptError("it does not fit")
        self.given = list(messages)
        if stream:
            stream(f"answer {len(messages)}")
        return f"answer {len(messages)}"


def talk(lines: list[str]) -> tuple[Talker, Conversation, str]:
    talker, written = Talker(), io.StringIO()
    conversation = Conversation(talker, system=None, max_new_tokens=9)
    for line in lines:
        conversation.take(line, written.write)
    return talker, conversation, written.getvalue()


def test_chat_keeps_the_conversation(clips: Path) -> None:
    talker, _, written = talk(["hello", str(clips / "good.wav"), f"/audio '{clips / 'good2.flac'}'", "what was that?"])
    assert written.startswith("answer 1\n(1.0 s of audio added") and written.endswith("answer 3\n")
    hello, answer, heard = talker.given
    assert hello == {"role": "user", "content": "hello"} and answer == {
        "role": "assistant",
        "content": "answer 1",
    }
    assert [part["type"] for part in heard["content"]] == ["audio", "audio", "text"]


def test_chat_sends_audio_alone_and_forgets(clips: Path) -> None:
    talker, conversation, _ = talk([str(clips / "good.wav"), ""])
    assert [part["type"] for part in talker.given[0]["content"]] == ["audio"]
    assert len(conversation.messages) == 2
    conversation.take("/reset", lambda _: None)
    assert conversation.messages == []
    conversation.take("", lambda _: None)
    assert conversation.messages == []


def test_a_failed_turn_leaves_the_chat_as_it_was(clips: Path) -> None:
    _, conversation, _ = talk(["hello"])
    with pytest.raises(PromptError):
        conversation.take("fail", lambda _: None)
    with pytest.raises(AudioError):
        conversation.take("/audio nowhere.wav", lambda _: None)
    assert len(conversation.messages) == 2 and conversation.waiting == []


def test_audio_path(clips: Path) -> None:
    good = str(clips / "good.wav")
    assert audio_path(good) == audio_path(f"'{good}'") == audio_path(f"/audio {good}") == good
    assert audio_path("/audio nowhere.wav") == "nowhere.wav"
    for text in ("hello", "nowhere.wav", "/audio", "x" * 5000, ""):
        assert audio_path(text) is None


def test_chat_in_the_terminal(
    capsys: pytest.CaptureFixture[str], checkpoint: str, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = f"/audio {clips / 'good.wav'}\nWhat?\n/audio {clips / 'empty.wav'}\nAnd now?\n/quit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    status, out, err = run(capsys, "chat", checkpoint, "--max-new-tokens", "4")
    assert status == 0 and "audio added" in out
    assert err.startswith("aura: error: ") and "0 bytes" in err and err.count("\n") == 1


# --- docs ---------------------------------------------------------------------------------------------------


def test_the_commands_of_the_docs_parse() -> None:
    text = (Path(__file__).parent.parent / "docs" / "inference.md").read_text()
    commands = [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("aura ")]
    assert len(commands) >= 6
    for tokens in commands:
        command, *_ = aura.cli.app.parse_args(tokens, exit_on_error=False, print_error=False)
        assert command.__name__ == tokens[0]
