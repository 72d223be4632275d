"""LibriSpeech, tables and datasets become utterances that a manifest can hold."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from aura.data.converters import from_csv, from_hf, from_librispeech
from aura.data.manifest import read_utterances, write_manifest
from aura.errors import AudioError, DataError

RATE = 16_000


def write_audio(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * RATE)) / RATE
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * time), RATE)
    return path


@pytest.fixture
def librispeech(tmp_path: Path) -> Path:
    root = tmp_path / "LibriSpeech" / "dev-clean"
    for speaker, chapter, texts in (
        ("84", "121123", ["GO", "WELL DONE"]),
        ("1272", "128104", ["MISTER QUILTER"]),
    ):
        folder = root / speaker / chapter
        lines = []
        for number, text in enumerate(texts):
            name = f"{speaker}-{chapter}-{number:04d}"
            write_audio(folder / f"{name}.flac", 1.0 + number)
            lines.append(f"{name} {text}\n")
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return root


def test_librispeech(librispeech: Path, tmp_path: Path) -> None:
    found = from_librispeech(librispeech)
    by_id = {utterance.id: utterance for utterance in found}
    assert len(found) == 3
    second = by_id["84-121123-0001"]
    assert (second.transcript, second.speaker, second.lang, second.seconds) == ("WELL DONE", "84", "en", 2.0)
    write_manifest(found, tmp_path / "manifest.jsonl")
    again = read_utterances(tmp_path / "manifest.jsonl")
    assert list(again) == list(found)
    assert len(again[0].audio[0].load()) == RATE


def test_librispeech_errors(librispeech: Path, tmp_path: Path) -> None:
    (librispeech / "84" / "121123" / "84-121123-0001.flac").unlink()
    with pytest.raises(DataError, match=r"1 of 3 rows .*trans\.txt line 2: no audio 84-121123-0001\.flac"):
        from_librispeech(librispeech)
    with pytest.raises(DataError, match="no such folder"):
        from_librispeech(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.trans\.txt"):
        from_librispeech(tmp_path / "empty")


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_csv_delimiter_and_columns_are_recognised(delimiter: str, tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    table = tmp_path / "table.csv"
    row = delimiter.join(["a.wav", "hello there", "anna", "en"])
    table.write_text(delimiter.join(["file_name", "text", "speaker_id", "language"]) + "\n" + row + "\n")
    (utterance,) = from_csv(table)
    assert (utterance.transcript, utterance.speaker, utterance.lang) == ("hello there", "anna", "en")
    assert (utterance.id, utterance.seconds) == ("a.wav", 1.0)


def test_csv_with_mapping_slices_labels_and_quotes(tmp_path: Path) -> None:
    write_audio(tmp_path / "audio" / "a.wav", 3.0)
    table = tmp_path / "table.csv"
    table.write_text(
        "﻿clip,said,start,end,label\n"
        'a.wav,"one, ""two""",0.5,2,\n'
        'a.wav,,,,"{""intent"": ""order"", ""slots"": {""size"": ""big""}}"\n',
        encoding="utf-8",
    )
    spoken, intent = from_csv(table, columns={"audio": "clip", "transcript": "said"}, data_root=tmp_path / "audio")
    assert (spoken.transcript, spoken.seconds, spoken.answer) == ('one, "two"', 1.5, 'one, "two"')
    assert (intent.task, intent.answer, intent.transcript) == ("intent", "order size=big", None)


def test_common_voice(tmp_path: Path) -> None:
    write_audio(tmp_path / "clips" / "common_voice_en_1.mp3")
    (tmp_path / "train.tsv").write_text(
        'client_id\tpath\tsentence\tup_votes\tage\tlocale\nf00d\tcommon_voice_en_1.mp3\t"Well," he said.\t2\t\ten\n'
    )
    (utterance,) = from_csv(tmp_path / "train.tsv")
    assert (utterance.transcript, utterance.speaker, utterance.lang) == ('"Well," he said.', "f00d", "en")
    assert len(utterance.audio[0].load()) == pytest.approx(RATE, abs=RATE // 10)


def test_csv_errors(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    table = tmp_path / "t.csv"
    table.write_text("audio,text,start\na.wav,ok,\nmissing.wav,no,\n,no,\na.wav,no,soon\n")
    with pytest.raises(
        DataError, match=r"3 of 4 rows .*line 3: .*missing\.wav: no such file.*line 4: .*line 5: "
    ) as caught:
        from_csv(table)
    assert "'start' is 'soon'" in str(caught.value) and "'audio' is empty" in str(caught.value)
    assert [u.transcript for u in from_csv(table, skip_bad=True)] == ["ok"]
    with pytest.raises(DataError, match="no column 'wave' for 'audio'; it has audio, text, start"):
        from_csv(table, columns={"audio": "wave"})
    with pytest.raises(DataError, match="no such file"):
        from_csv(tmp_path / "absent.csv")
    table.write_text("who,what\na,b\n")
    with pytest.raises(DataError, match="no audio column among who, what"):
        from_csv(table)
    table.write_bytes("audio,text\na.wav,schön\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        from_csv(table)


def encoded(kind: str, seconds: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    time = np.arange(int(seconds * RATE)) / RATE
    subtype = {"OGG": "OPUS"}.get(kind, "PCM_16")
    soundfile.write(buffer, 0.3 * np.sin(2 * np.pi * 440 * time), RATE, format=kind, subtype=subtype)
    return buffer.getvalue()


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    import datasets

    datasets.disable_progress_bars()
    clips = [{"bytes": encoded(kind), "path": None} for kind in ("WAV", "FLAC", "OGG")]
    datasets.Dataset.from_dict({"audio": clips, "text": ["a", "b", "c"]}).save_to_disk(str(tmp_path / "dataset"))
    return str(tmp_path / "dataset")


@pytest.mark.parametrize("streaming", [True, False])
def test_from_hf_keeps_the_bytes(dataset: str, streaming: bool, tmp_path: Path) -> None:
    seen: list[int] = []
    found = from_hf(dataset, tmp_path / "out" / "audio", streaming=streaming, on_row=seen.append)
    files = sorted((tmp_path / "out" / "audio").iterdir())
    assert [file.suffix for file in files] == [".wav", ".flac", ".ogg"]
    assert files[1].read_bytes() == encoded("FLAC")
    assert seen == [1, 2, 3]
    assert write_manifest(found, tmp_path / "out" / "m.jsonl") == 3
    again = read_utterances(tmp_path / "out" / "m.jsonl")
    assert [(u.transcript, u.seconds) for u in again] == [("a", 1.0), ("b", 1.0), ("c", 1.0)]
    assert '"audio": "audio/0000000.wav"' in (tmp_path / "out" / "m.jsonl").read_text()


@pytest.mark.parametrize("audio_format", ["flac", "wav"])
def test_from_hf_decodes(dataset: str, audio_format: str, tmp_path: Path) -> None:
    original = read_utterances(dataset)
    found = from_hf(dataset, tmp_path / "audio", audio_format=audio_format, limit=2)
    assert len(found) == 2
    for before, after in zip(original, found, strict=False):
        assert after.audio[0].source.endswith(f".{audio_format}")
        assert np.array_equal(after.audio[0].load(), before.audio[0].load())


def test_from_hf_bad_audio(tmp_path: Path) -> None:
    import datasets

    clips = [{"bytes": b"not audio at all", "path": None}, {"bytes": encoded("WAV"), "path": None}]
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"audio": clips, "text": ["a", "b"]}).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(AudioError, match="not audio"):
        from_hf(str(tmp_path / "d"), tmp_path / "audio")
    assert [u.transcript for u in from_hf(str(tmp_path / "d"), tmp_path / "audio", skip_bad=True)] == ["b"]
    with pytest.raises(DataError, match="audio_format='mp3'"):
        from_hf(str(tmp_path / "d"), tmp_path / "audio", audio_format="mp3")
