"""Clips without English speech: what they hold, what they teach, how they are scored, and a folder that survives a kill."""

from __future__ import annotations

import functools
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny

from aura.batch.collate import Example
from aura.cli import main
from aura.cli_evaluate import summary
from aura.data.check import check_manifest
from aura.data.manifest import read_utterances, write_manifest
from aura.data.utterance import NO_SPEECH_ANSWER, build_messages, label_answer
from aura.errors import AudioError, MissingExtraError, RecipeError
from aura.evaluation.evaluate import evaluate
from aura.evaluation.metrics import silence
from aura.inference.engine import Engine
from aura.inference.generate import Generation
from aura.synthesis import commands, foreign
from aura.synthesis.engine import Prosody, Voice, split_accent
from aura.synthesis.music import DRUMS, SCALES, TIMBRES
from aura.synthesis.no_speech import (
    FLOOR_DB,
    LEVEL_DB,
    SECONDS,
    NoSpeechOptions,
    level_db,
    no_speech,
    plan_clips,
    render_clip,
)
from aura.synthesis.noises import NOISES, SILENCES

QUICK = ("silence", "noise", "music")  # made by NumPy alone
RATE = 16_000

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")


def options(clips: int = 6, **changes: Any) -> NoSpeechOptions:
    return NoSpeechOptions(**{"clips": clips, "kinds": QUICK, "format": "flac"} | changes)


def rows_of(folder: Path, name: str = "manifest.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("audio/*/*")}


def tone(path: Path, *hertz: float) -> str:
    """Equal stretches of a tone each, 1 s."""
    time_N = np.arange(RATE) / RATE
    soundfile.write(path, np.concatenate([0.3 * np.sin(2 * np.pi * f * time_N) for f in hertz]), RATE, subtype="PCM_16")
    return str(path)


# ---------------------------------------------------------------- what the clips hold


@functools.cache
def rendered(split: str, clips: int = 54) -> list[tuple[str, str, np.ndarray]]:
    chosen = options(clips, split=split, seed=7)
    made = [(clip.kind, *render_clip(clip, chosen, [])[:2]) for clip in plan_clips(chosen, versions=[])]
    return [(kind, sound, wave_N) for kind, wave_N, sound in made]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_lengths_and_levels_are_in_range_and_sounds_take_turns(split: str) -> None:
    counts: dict[tuple[str, str], int] = {}
    for kind, sound, wave_N in rendered(split):
        counts[kind, sound] = counts.get((kind, sound), 0) + 1
        assert wave_N.dtype == np.float32 and SECONDS[0] <= len(wave_N) / RATE <= SECONDS[1]
        assert np.isfinite(wave_N).all() and np.abs(wave_N).max() <= 0.981
        level = level_db(wave_N)
        if sound == "zero":
            assert level is None and not wave_N.any()
            continue
        lowest, highest = FLOOR_DB if sound.endswith("floor") else LEVEL_DB
        at_full_scale = np.abs(wave_N).max() > 0.979  # clicks cannot be as loud as noise
        assert level is not None and level <= highest + 0.1 and (level >= lowest - 0.1 or at_full_scale), (sound, level)
        assert np.std(wave_N) > 0.95 * np.sqrt(np.mean(wave_N**2)), f"{sound} is mostly a constant"
    assert {kind for kind, _ in counts} == set(QUICK)
    for kind in QUICK:
        own = [count for (name, _), count in counts.items() if name == kind]
        assert sum(own) == 18 and max(own) - min(own) <= 1
    assert len({wave_N.tobytes() for _, sound, wave_N in rendered(split) if sound != "zero"}) == sum(
        count for (_, sound), count in counts.items() if sound != "zero"
    )


def test_train_and_test_share_no_content_and_valid_has_languages_of_neither() -> None:
    for sounds in (SILENCES, NOISES, TIMBRES):
        assert set(sounds["train"]) & set(sounds["test"]) <= {"zero"}
    for table in (DRUMS, SCALES):
        assert not set(table["train"]) & set(table["test"])
    said = {split: {t for texts in languages.values() for t in texts} for split, languages in foreign.SENTENCES.items()}
    for one, other in itertools.combinations(("train", "valid", "test"), 2):
        assert not set(foreign.SENTENCES[one]) & set(foreign.SENTENCES[other]) and not said[one] & said[other]
        assert not set(foreign.THROATS[one]) & set(foreign.THROATS[other])
    heard = [{(kind, sound) for kind, sound, _ in rendered(split)} for split in ("train", "test")]
    assert heard[0] & heard[1] == {("silence", "zero"), ("music", "drums")}  # other drums


def test_each_part_hears_its_own_half_of_a_recording(tmp_path: Path) -> None:
    noise = tone(tmp_path / "noise.wav", 500.0, 2000.0)
    for split, hertz in (("train", 500.0), ("test", 2000.0)):
        chosen = options(30, kinds=("noise",), split=split, noise_files=(noise,))
        found = 0
        for clip in plan_clips(chosen, versions=[]):
            wave_N, sound, _ = render_clip(clip, chosen, [])
            if sound == "recorded":
                found += 1
                spectrum = np.abs(np.fft.rfft(wave_N))
                assert abs(spectrum.argmax() * RATE / len(wave_N) - hertz) < 5
        assert found >= 8  # two turns of seven


@needs_espeak
def test_other_languages_are_spoken_by_voices_of_their_part(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        result = no_speech(tmp_path / split, options(len(foreign.SENTENCES[split]), kinds=("language",), split=split))
        rows = rows_of(tmp_path / split)
        assert result.rows == len(foreign.SENTENCES[split]) and not result.failed
        assert {row["lang"] for row in rows} == set(foreign.SENTENCES[split])
        assert all(row["label"] == {"no_speech": "language", "sound": row["lang"]} for row in rows)
        assert {row["speaker"].partition("+")[2] for row in rows} <= {t.lstrip("+") for t in foreign.THROATS[split]}
        assert all(SECONDS[0] <= row["seconds"] <= SECONDS[1] and LEVEL_DB[0] - 1 <= row["level_db"] for row in rows)


class Accented:
    """Notes what it is to speak; a voice of English."""

    name, licence, version = "kokoro", "none", "1"

    def __init__(self) -> None:
        self.spoken: list[tuple[str, str]] = []

    def voices(self) -> list[Voice]:
        return [Voice(name="amy"), Voice(name="ben")]

    def speak(self, text: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, int]:
        self.spoken.append((text, voice))
        return np.sin(np.arange(24_000, dtype=np.float32) / 9), 24_000


def test_voices_of_english_speak_other_languages_by_their_phonemes() -> None:
    chosen = options(60, kinds=("language",), engines=("kokoro",))
    engine = Accented()
    rows = [render_clip(clip, chosen, [engine])[1:] for clip in plan_clips(chosen, versions=["1"])]
    assert [row["speaker"] for _, row in rows] == [f"kokoro:{voice}" for _, voice in engine.spoken]
    accents = {split_accent(voice, ("amy", "ben")) for _, voice in engine.spoken}
    assert {name for name, _ in accents} == {"amy", "ben"}
    assert {language for _, language in accents} == {
        foreign.espeak_voice(each, "") for each in foreign.SENTENCES["train"]
    }
    assert all(
        text in foreign.SENTENCES["train"][sound] for (sound, _), (text, _) in zip(rows, engine.spoken, strict=True)
    )
    ids = [{clip.id for clip in plan_clips(chosen, versions=[version])} for version in ("1", "2")]
    assert not ids[0] & ids[1]  # another version of the engine makes other clips


def test_a_voice_named_with_the_sign_of_an_accent_is_a_voice() -> None:
    assert split_accent("a@b", ("a@b",)) == ("a@b", None) and split_accent("a@b@fr", ("a@b",)) == ("a@b", "fr")


@needs_espeak
def test_no_word_is_read_as_english() -> None:
    """espeak-ng switches to English, and says so, where it cannot read a word of the language."""
    for languages in foreign.SENTENCES.values():
        for language, texts in languages.items():
            assert len(texts) == len(set(texts)) == 8
            voice = foreign.espeak_voice(language, "")
            done = commands._run(["espeak-ng", "-v", voice, "-q", "-x", "--stdin"], "\n".join(texts))
            assert done.stdout.strip() and b"(en" not in done.stdout, language


# ---------------------------------------------------------------- what they teach, and how they are scored


def test_a_clip_teaches_that_nothing_was_said_behind_any_prompt(tmp_path: Path) -> None:
    result = no_speech(tmp_path, options(3))
    rows = list(read_utterances(result.manifest, prompt="Write down what is said."))
    assert [row.answer for row in rows] == [NO_SPEECH_ANSWER] * 3 and [row.transcript for row in rows] == [""] * 3
    assert {row.task for row in rows} == {"transcribe"} and len({row.id for row in rows}) == 3
    assert rows[0].messages[0]["content"][-1] == {"type": "text", "text": "Write down what is said."}
    assert silence([NO_SPEECH_ANSWER]).false_transcript_rate == 0.0
    report = check_manifest(str(result.manifest))
    assert report.ok and not report.notes, "digital zero is meant here"
    write_manifest(read_utterances(result.manifest), tmp_path / "again.jsonl")
    assert [row.messages for row in read_utterances(tmp_path / "again.jsonl")] == [
        row.messages for row in read_utterances(result.manifest)
    ]


def test_an_empty_transcript_alone_still_teaches_nothing() -> None:
    [_, assistant] = build_messages(transcript="", label=None, task="transcribe")
    assert assistant["content"] == ""
    for task in ("transcribe", "answer", None):
        label = {"no_speech": "music"}
        assert build_messages(transcript="", label=label, task=task)[-1]["content"] == NO_SPEECH_ANSWER
        assert build_messages(transcript=None, label=label, task=task)[-1]["content"] == NO_SPEECH_ANSWER
    assert label_answer({"no_speech": "noise", "sound": "wind"}) == NO_SPEECH_ANSWER


class Listener(Engine):
    """Hears words in all music, and nothing elsewhere."""

    def __init__(self, music: set[str]) -> None:
        super().__init__(*tiny.tiny_student("llama"), checkpoint="tiny")
        self.music = music

    def generate(self, examples: Sequence[Example], **_: Any) -> list[Generation]:
        texts = ["la la la" if example.id in self.music else NO_SPEECH_ANSWER for example in examples]
        return [Generation(text=text, token_ids=(1,), finished=True) for text in texts]


def test_false_transcripts_are_reported_by_kind(tmp_path: Path) -> None:
    result = no_speech(tmp_path / "clips", options(9))
    rows = list(read_utterances(result.manifest))
    engine = Listener({row.id for row in rows if row.label["no_speech"] == "music"})
    found = evaluate(engine, rows, task="silence", out=tmp_path / "out", show_progress=False)
    assert found.metrics["false_transcript_rate"] == pytest.approx(1 / 3) and found.metrics["mean_words"] == 3
    cut = json.loads((tmp_path / "out" / "report.json").read_text())["tables"]
    rates = {row["no_speech"]: row["false_transcript_rate"] for row in cut["by_no_speech"]}
    assert rates == {"silence": 0.0, "noise": 0.0, "music": 1.0}
    assert {row["sound"] for row in cut["by_sound"]} >= {"music: organ", "noise: white", "silence: zero"}
    assert any(line.split()[:2] == ["music", "1.0000"] for line in summary(found).splitlines())
    as_transcripts = evaluate(engine, rows, task="transcribe", out=tmp_path / "wer", show_progress=False)
    assert as_transcripts.metrics["silent_items"] == 9 and as_transcripts.metrics["false_transcripts"] == 3
    assert as_transcripts.metrics["wer"] is None


# ---------------------------------------------------------------- the folder


def test_a_clip_depends_on_its_number_and_settings_alone(tmp_path: Path) -> None:
    no_speech(tmp_path / "six", options(6))
    no_speech(tmp_path / "nine", options(9))
    first = no_speech(tmp_path / "grown", options(6))
    grown = no_speech(tmp_path / "grown", options(9))
    assert (first.made, grown.made, grown.rows) == (6, 3, 9)
    assert rows_of(tmp_path / "nine") == rows_of(tmp_path / "grown")
    assert rows_of(tmp_path / "nine")[:6] == rows_of(tmp_path / "six")
    assert files_of(tmp_path / "nine") == files_of(tmp_path / "grown")
    music = {row["id"] for row in rows_of(tmp_path / "six") if row["label"]["no_speech"] == "music"}
    no_speech(tmp_path / "music", options(2, kinds=("music",)))
    assert {row["id"] for row in rows_of(tmp_path / "music")} == music
    ids = {row["id"] for row in rows_of(tmp_path / "six")}
    for changes in ({"seed": 1}, {"split": "test"}, {"format": "opus"}):
        assert not ids & {clip.id for clip in plan_clips(options(6, **changes), versions=[])}
    noise = tone(tmp_path / "noise.wav", 300.0, 400.0)
    with_noise = plan_clips(options(6, noise_files=(noise,)), versions=[])
    assert {clip.kind for clip in with_noise if clip.id not in ids} == {"noise"}


def make(folder: str, clips: int) -> None:
    no_speech(folder, options(clips), on_row=lambda row: time.sleep(0.03))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_at_any_point_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    clips, out = 12, tmp_path / "out"
    log = out / "rows.jsonl"
    for enough in (1, 4, 8):
        process = multiprocessing.get_context("fork").Process(target=make, args=(str(out), clips))
        process.start()
        deadline = time.monotonic() + 60
        while not log.is_file() or log.read_bytes().count(b"\n") < enough:
            assert process.is_alive() and time.monotonic() < deadline, "no rows came"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)  # not caught, nothing is cleaned up
        process.join()
        assert not (out / "manifest.jsonl").exists()
        with open(log, "ab") as file:  # a power cut leaves half a line, half a file, and a file without its line
            file.write(b'{"id": "torn')
        folder = next(out.glob("audio/*"))
        (folder / ".half.flac.1.partial").write_bytes(b"half")
    result = no_speech(out, options(clips))
    assert 0 < result.made < clips and result.rows == clips
    no_speech(tmp_path / "whole", options(clips))
    assert rows_of(out) == rows_of(tmp_path / "whole") and files_of(out) == files_of(tmp_path / "whole")
    assert sorted(row["id"] for row in rows_of(out, "rows.jsonl")) == sorted(row["id"] for row in rows_of(out))
    again = no_speech(out, options(clips))
    assert again.made == 0 and files_of(out) == files_of(tmp_path / "whole")
    lost = out / rows_of(out)[3]["audio"]
    lost.unlink()
    assert no_speech(out, options(clips)).made == 1 and files_of(out) == files_of(tmp_path / "whole")


def test_without_espeak_the_kind_is_left_out_or_refused(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    command = ["data", "no-speech", str(tmp_path), "--clips", "3", "--format", "flac"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "without language: the program 'espeak-ng' is not installed" in said.err
    assert "3 clips (3 new; 1 silence, 1 noise, 1 music)" in said.out
    assert "| music | organ | 1 |" in (tmp_path / "README.md").read_text()
    assert main([*command, "--kinds", "language", "noise"]) == 2
    assert "apt install espeak-ng" in capsys.readouterr().err
    with pytest.raises(MissingExtraError):
        no_speech(tmp_path, options(3, kinds=("language",)))


def test_wrong_settings_are_said_before_anything_is_made(tmp_path: Path) -> None:
    for changes, words in (
        ({"clips": 0}, "clips is 0; expected at least 1"),
        ({"split": "dev"}, "expected train, valid or test"),
        ({"kinds": ("speech",)}, "kinds is speech; expected some of silence, noise, music, language"),
        ({"format": "mp3"}, "expected opus or flac"),
        ({"engines": ("flite",)}, "engines is flite; expected some of piper, kokoro, espeak-ng"),
    ):
        with pytest.raises(RecipeError, match=words):
            options(**changes)
    with pytest.raises(AudioError, match="no such file"):
        no_speech(tmp_path / "out", options(noise_files=(str(tmp_path / "absent.wav"),)))
    assert not (tmp_path / "out").exists()
