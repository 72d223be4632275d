"""hear/recorded.py: which recordings of Debian's packages become clips without English."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from aura.data.manifest import read_utterances
from aura.data.utterance import no_speech_kind
from aura.errors import DataError

ROOT = Path(__file__).parent.parent
RATE = 8000


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "hear"))
    return importlib.import_module("recorded")


def record(file: Path, seconds: float, hertz: float = 200.0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    times_N = np.arange(round(seconds * RATE)) / RATE
    soundfile.write(file, 0.1 * np.sin(2 * np.pi * hertz * times_N), RATE)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Two packages: prompts of all sorts, and an album of two tracks and a jingle."""
    folder = tmp_path / "packages"
    for number in range(12):
        record(folder / "prompts" / "usr" / "sounds" / "ru" / f"vm-{number}.wav", 1.0 + 0.2 * number)
    record(folder / "prompts" / "usr" / "sounds" / "ru" / "letters" / "a.wav", 1.0)
    record(folder / "prompts" / "usr" / "sounds" / "ru" / "tt-monkeys.wav", 2.0)
    record(folder / "prompts" / "usr" / "sounds" / "ru" / "vm-click.wav", 0.3)
    record(folder / "prompts" / "usr" / "sounds" / "ru" / "vm-speech.wav", 20.0)
    record(folder / "prompts" / "usr" / "other" / "elsewhere.wav", 2.0)
    (folder / "prompts" / "usr" / "sounds" / "ru" / "vm-broken.wav").write_bytes(b"RIFF")
    for number in range(2):
        record(folder / "album" / f"track{number}.ogg", 30.0, 300.0 + number)
    record(folder / "album" / "jingle.ogg", 3.0)
    return folder


def sources(recorded: Any, clips: int = 8) -> tuple[Any, ...]:
    return (recorded.prompts("prompts", "ru", "Ivan", clips), recorded.played("album", 5))


def test_clips_are_words_and_stretches_of_whole_tracks(recorded: Any, packages: Path, tmp_path: Path) -> None:
    rows = recorded.collect(packages, sources(recorded), tmp_path / "out", 0)
    utterances = list(read_utterances(tmp_path / "out" / "manifest.jsonl"))
    assert [row["id"] for row in rows] == [u.id for u in utterances] and len({row["id"] for row in rows}) == 13
    assert [no_speech_kind(u.label) for u in utterances] == ["language"] * 8 + ["music"] * 5
    spoken, music = rows[:8], rows[8:]
    assert all(row["source"].startswith("prompts/vm-") and row["speaker"] == "Ivan" for row in spoken)
    assert not {"prompts/vm-click.wav", "prompts/vm-speech.wav", "prompts/vm-broken.wav"} & {
        r["source"] for r in spoken
    }
    source = replace(sources(recorded)[0], without=("vm-3.", "vm-7."))
    others = recorded.collect(packages, (source,), tmp_path / "without", 0)
    assert not {"prompts/vm-3.wav", "prompts/vm-7.wav"} & {row["source"] for row in others}
    assert {"prompts/vm-3.wav", "prompts/vm-7.wav"} & {row["source"] for row in spoken}
    assert {row["source"] for row in music} == {"album/track0.ogg", "album/track1.ogg"}
    for row, utterance in zip(rows, utterances, strict=True):
        wave_N = utterance.audio[0].load()
        assert len(wave_N) / 16_000 == pytest.approx(row["seconds"], abs=1e-3)
        assert row["level_db"] == pytest.approx(-23.0, abs=0.5)  # a sine of 0.1


def test_the_same_clips_come_again_and_a_cut_off_run_goes_on(recorded: Any, packages: Path, tmp_path: Path) -> None:
    first = recorded.collect(packages, sources(recorded), tmp_path / "one", 0)
    assert recorded.collect(packages, sources(recorded), tmp_path / "two", 0) == first
    assert recorded.collect(packages, sources(recorded), tmp_path / "three", 1) != first
    gone = tmp_path / "one" / first[0]["audio"]
    kept = tmp_path / "one" / first[1]["audio"]
    before = kept.stat().st_mtime_ns
    gone.unlink()
    (tmp_path / "one" / "manifest.jsonl").unlink()
    assert recorded.collect(packages, sources(recorded), tmp_path / "one", 0) == first
    assert gone.is_file() and kept.stat().st_mtime_ns == before


def test_more_of_a_source_is_none_of_what_came_before(recorded: Any, tmp_path: Path) -> None:
    """Some recordings lie there under two names."""
    folder = tmp_path / "packages" / "prompts" / "sounds"
    for number in range(12):
        record(folder / f"{number}.wav", 1.0 + 0.01 * (number % 10))
    assert (folder / "0.wav").read_bytes() == (folder / "10.wav").read_bytes()
    source = recorded.prompts("prompts", "ru", "Ivan", 4)
    first = recorded.collect(tmp_path / "packages", (source,), tmp_path / "one", 0)
    more = recorded.collect(tmp_path / "packages", (replace(source, clips=6, behind=4),), tmp_path / "more", 0)
    waves = [
        (tmp_path / out / row["audio"]).read_bytes() for out, rows in (("one", first), ("more", more)) for row in rows
    ]
    assert len({row["id"] for row in first + more}) == 10 and len(set(waves)) == 10
    with pytest.raises(DataError, match="too few"):
        recorded.collect(tmp_path / "packages", (replace(source, clips=7, behind=4),), tmp_path / "most", 0)


def test_phrases_are_none_of_the_test_before_and_longer_than_a_word(
    recorded: Any, packages: Path, tmp_path: Path
) -> None:
    source = recorded.prompts("prompts", "ru", "Ivan", 5)  # of 12, which last 1.0 to 3.2 s
    first = recorded.collect(packages, (source,), tmp_path / "one", 0)
    long_before = sum(row["seconds"] >= 1.5 for row in first)
    rest = replace(source, clips=9 - long_before, behind=5, at_least=1.5)
    more = recorded.collect(packages, (rest,), tmp_path / "more", 0)
    assert not {row["source"] for row in first} & {row["source"] for row in more}
    assert len(more) == 9 - long_before and min(row["seconds"] for row in more) >= 1.5
    for old, new in zip(recorded.SOURCES["test"][:4], recorded.SOURCES["test-phrases"][:4], strict=True):
        assert (new.package, new.behind, new.seconds) == (old.package, old.clips, old.seconds)


def test_what_is_missing_is_said_in_one_line(
    recorded: Any, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["recorded.py", *map(str, words)])
        return int(recorded.main())

    monkeypatch.setitem(recorded.SOURCES, "test", sources(recorded, clips=50))
    assert main(packages, "--out", tmp_path / "out") == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "prompts holds 38 recordings too few" in line and not (tmp_path / "out" / "manifest.jsonl").exists()
    monkeypatch.setitem(recorded.SOURCES, "test", (recorded.played("absent", 1),))
    assert main(packages, "--out", tmp_path / "out") == 2
    assert "unpack the Debian package absent there" in capsys.readouterr().err
    assert main("--packages") == 0
    assert "fillets-ng-data-cs" in capsys.readouterr().out.split()


def test_a_telephone_carries_nothing_above_4_kHz(recorded: Any, tmp_path: Path) -> None:
    times_N = np.arange(16_000) / 16_000
    wave_N = 0.1 * np.sin(2 * np.pi * 440 * times_N) + 0.1 * np.sin(2 * np.pi * 6000 * times_N)
    file = tmp_path / "packages" / "prompts" / "sounds" / "wide.wav"
    file.parent.mkdir(parents=True)
    soundfile.write(file, wave_N, 16_000)
    source = (recorded.prompts("prompts", "cs", "Jan", 1),)
    rows = []
    for name, telephone in (("wide", False), ("narrow", True)):
        rows += recorded.collect(tmp_path / "packages", source, tmp_path / name, 0, telephone=telephone)
        [utterance] = read_utterances(tmp_path / name / "manifest.jsonl")
        power_F = np.abs(np.fft.rfft(utterance.audio[0].load())) ** 2
        assert power_F[440] == pytest.approx(800**2, rel=0.05)
        assert (power_F[6000] > 0.9 * 800**2) != telephone and (power_F[4200:].sum() < 1.0) == telephone
    assert rows[0]["id"] != rows[1]["id"] and rows[0]["seconds"] == rows[1]["seconds"]


def test_no_part_hears_a_language_a_person_or_an_album_of_another(recorded: Any) -> None:
    parts: dict[str, set[tuple[str, str]]] = {}
    people: dict[str, set[str]] = {}
    for name, sources in recorded.SOURCES.items():
        part = name.split("-")[0]
        parts.setdefault(part, set()).update((source.kind, source.sound) for source in sources)
        people.setdefault(part, set()).update(s.speaker or s.package for s in sources if s.kind == "language")
    assert set(parts) == {"train", "valid", "test"}
    assert (
        not parts["train"] & parts["valid"]
        and not parts["train"] & parts["test"]
        and not parts["valid"] & parts["test"]
    )
    assert not people["train"] & people["valid"] and not (people["train"] | people["valid"]) & people["test"]
    assert sum(source.clips for source in recorded.SOURCES["test"]) >= 200


def test_pieces_are_cut_where_it_is_quiet(recorded: Any, tmp_path: Path) -> None:
    """Bursts of three tenths of a second with pauses of two between them: what is cut off begins and ends in a pause."""
    pause, burst = 0.2, 0.3
    for number in range(6):
        times_N = np.arange(round(6 * RATE)) / RATE
        wave_N = 0.1 * np.sin(2 * np.pi * 200 * times_N) * (times_N % (pause + burst) >= pause)
        file = tmp_path / "packages" / "fish" / "cs" / f"{number}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, wave_N, RATE)
    record(tmp_path / "packages" / "fish" / "cs" / "short.wav", 2.0)
    broken = tmp_path / "packages" / "fish" / "cs" / "broken.flac"  # its head still says six seconds
    soundfile.write(broken, wave_N, RATE)
    broken.write_bytes(broken.read_bytes()[:500])
    source = recorded.Source(
        package="fish", kind="language", sound="cs", clips=4, below="/cs/", seconds=(0.5, 1.5), pieces=True
    )
    rows = recorded.collect(tmp_path / "packages", (source,), tmp_path / "out", 0)
    assert len({row["source"] for row in rows}) == 4 and "fish/short.wav" not in {row["source"] for row in rows}
    utterances = list(read_utterances(tmp_path / "out" / "manifest.jsonl"))
    for row, utterance in zip(rows, utterances, strict=True):
        assert 0.5 <= row["seconds"] <= 1.5
        wave_N = utterance.audio[0].load()
        edge = 16_000 // 200
        assert np.abs(wave_N).max() > 0.05 > 10 * max(np.abs(wave_N[:edge]).max(), np.abs(wave_N[-edge:]).max())


def test_names_of_pictures_are_of_one_language_and_no_letters(recorded: Any, tmp_path: Path) -> None:
    stamps = tmp_path / "packages" / "tuxpaint-stamps-default" / "usr" / "stamps"
    for language in ("el", "ru"):
        for number in range(3):
            record(stamps / "animals" / f"{number}_desc_{language}.ogg", 0.9)
        record(stamps / "symbols" / "math" / f"0_desc_{language}.ogg", 0.6)
        record(stamps / "symbols" / "alphabets" / "asl" / f"a_desc_{language}.ogg", 0.9)
    record(stamps / "animals" / "0_desc.ogg", 0.9)  # English
    record(stamps / "animals" / "0.ogg", 0.9)  # what it sounds like
    rows = recorded.collect(tmp_path / "packages", (recorded.stamps("el", 4),), tmp_path / "out", 0)
    assert {row["source"].split("/")[1] for row in rows} == {f"{n}_desc_el.ogg" for n in range(3)}
    assert len({row["id"] for row in rows}) == 4 and {row["lang"] for row in rows} == {"el"}
    with pytest.raises(DataError, match="holds 1 recordings too few"):
        recorded.collect(tmp_path / "packages", (recorded.stamps("el", 5),), tmp_path / "more", 0)


@pytest.mark.parametrize("recipe", ["people", "short", "names", "telephone", "voices"])
def test_the_recipe_hears_the_training_part_alone(recipe: str) -> None:
    text = (ROOT / "recipes" / f"hear-270m-{recipe}.yaml").read_text()
    heard = {line.strip("- \n") for line in text.splitlines() if "no_speech" in line}
    assert "runs/hear/data/no_speech_people_train.jsonl" in heard
    assert ("runs/hear/data/no_speech_people_words_train.jsonl" in heard) == (recipe != "people")
    assert ("runs/hear/data/no_speech_people_names_train.jsonl" in heard) == (recipe == "names")
    assert ("runs/hear/data/no_speech_telephone_names_train.jsonl" in heard) == (recipe in ("telephone", "voices"))
    for name in ("people_voices_train", "telephone_voices_train", "numerals"):
        assert (f"runs/hear/data/no_speech_{name}.jsonl" in heard) == (recipe == "voices")
    untold = ("_valid", "_test", "people.jsonl", "words.jsonl", "names.jsonl", "voices.jsonl")
    assert not any(part in name for name in heard for part in untold)
