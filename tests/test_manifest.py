"""A manifest or a dataset in, the same utterances out; every bad row named with its line."""

from __future__ import annotations

import io
import json
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from aura.data.manifest import read_utterances, write_manifest
from aura.data.utterance import AudioRef, build_messages, label_text, parse_label
from aura.errors import AudioError, DataError

AUDIO = {"type": "audio"}
RATE = 16_000


def wav_bytes(seconds: float = 1.0, level: float = 0.1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(int(seconds * RATE), level, np.float32), RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def write_wav(path: Path, seconds: float = 1.0, level: float = 0.1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav_bytes(seconds, level))
    return path


def write_rows(path: Path, *rows) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """One row of each legal kind, beside its audio."""
    write_wav(tmp_path / "clips" / "a.wav", 1.0, 0.1)
    write_wav(tmp_path / "clips" / "b.wav", 2.0, 0.2)
    question = [{"type": "text", "text": "Compare"}, AUDIO, {"type": "text", "text": "with"}, AUDIO]
    return write_rows(
        tmp_path / "data.jsonl",
        {"audio": "clips/a.wav", "transcript": "hello", "speaker": "s1", "lang": "en", "seconds": 1.0},
        {
            "id": "slice",
            "audio": "clips/b.wav",
            "start": 0.5,
            "end": 1.5,
            "transcript": "slice",
            "speaker": 7,
        },
        {
            "audio": "clips/a.wav",
            "label": {"intent": "order", "slots": {"size": " big  one", "drink": "tea"}},
        },
        {
            "audio": [{"audio": "clips/b.wav", "start": 1.0}, "clips/a.wav"],
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Louder."}],
        },
        {"audio": "clips/a.wav"},
    )


def test_each_kind_of_row(manifest: Path) -> None:
    plain, piece, intent, conversation, bare = read_utterances(manifest, prompt="Transcribe.")
    assert (plain.id, plain.task, plain.answer, plain.speaker) == ("clips/a.wav", "transcribe", "hello", "s1")
    assert plain.messages[0]["content"] == [AUDIO, {"type": "text", "text": "Transcribe."}]
    assert (piece.id, piece.seconds, piece.speaker) == ("slice", 1.0, "7")
    assert len(piece.audio[0].load()) == RATE
    assert (intent.task, intent.answer) == ("intent", "order drink=tea; size=big one")
    assert (conversation.task, conversation.answer, conversation.seconds) == ("answer", "Louder.", 2.0)
    assert [float(part.load()[0]) for part in conversation.audio] == pytest.approx([0.2, 0.1])
    assert (bare.answer, len(bare.messages)) == ("", 1)


def test_no_prompt_is_audio_alone(manifest: Path) -> None:
    assert read_utterances(manifest, limit=1)[0].messages[0]["content"] == [AUDIO]


def test_a_transcription_task_is_not_answered_with_the_label(tmp_path: Path) -> None:
    row = {"audio": "a.wav", "transcript": "a tea", "label": {"intent": "order"}}
    rows = write_rows(tmp_path / "m.jsonl", row, {**row, "task": "transcribe"})
    assert [u.answer for u in read_utterances(rows)] == ["order", "a tea"]


def test_data_root_limit_streaming_and_columns(manifest: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    write_wav(moved / "x.wav", 3.0)
    rows = write_rows(tmp_path / "other.jsonl", {"file": "x.wav", "said": "one"}, {"file": "x.wav", "said": "two"})
    columns = {"audio": "file", "transcript": "said"}
    stream = read_utterances(rows, data_root=moved, columns=columns, streaming=True)
    first = next(stream)
    assert (first.answer, first.seconds) == ("one", 3.0)
    assert len(read_utterances(rows, data_root=moved, columns=columns, limit=1)) == 1
    with pytest.raises(DataError, match="columns names nothing"):
        read_utterances(rows, columns={"nothing": "file"})
    with pytest.raises(DataError, match=r"line 1: no column 'text'"):
        read_utterances(rows, columns={"audio": "file", "transcript": "text"})


BAD_ROWS = [
    ({"transcript": "x"}, "no 'audio'"),
    ({"audio": ""}, "no 'audio'"),
    ({"audio": []}, "no 'audio'"),
    ({"audio": 3}, "'audio' is 3"),
    ({"audio": [{"path": "a.wav", "start": "x"}, {"audio": None}]}, "'audio' is None"),
    ({"audio": "a.wav", "start": 2, "end": 1}, "start=2.0 is not before end=1.0"),
    ({"audio": "a.wav", "start": "1"}, "'start' is '1'"),
    ({"audio": "a.wav", "seconds": -1}, "'seconds' is -1"),
    ('{"audio": "a.wav", "end": NaN}', "'end' is nan"),
    ({"audio": ["a.wav", "b.wav"], "start": 1}, "'start' beside 2 recordings"),
    ({"audio": "a.wav", "transcript": 3}, "'transcript' is 3"),
    (
        {"audio": "a.wav", "messages": [{"role": "user", "content": "no audio part"}]},
        "hold 0 .* names 1 recordings",
    ),
    (
        {"audio": "a.wav", "messages": [{"role": "user", "content": [AUDIO, AUDIO]}]},
        "hold 2 .* names 1 recordings",
    ),
    ({"audio": "a.wav", "messages": [{"role": "robot", "content": [AUDIO]}]}, "role 'robot'"),
    ({"audio": "a.wav", "messages": ["hi"]}, "message 1 is 'hi'"),
    (
        {"audio": "a.wav", "messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "part {'type': 'image'}",
    ),
    ({"audio": "a.wav", "messages": [{"role": "user", "content": None}]}, "NoneType as content"),
    ({"audio": "a.wav", "label": {"slots": {}}}, "expected a string or"),
    ("{broken", "is not JSON"),
    ("[1, 2]", "is list"),
]


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS)
def test_a_bad_row_is_named(row, reason: str, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "m.jsonl", {"audio": "good.wav"}, "", row)
    with pytest.raises(DataError, match=rf"m.jsonl: 1 of 2 rows cannot be used: line 3: .*{reason}") as caught:
        read_utterances(rows)
    assert "\n" not in str(caught.value)
    kept = read_utterances(rows, skip_bad=True)
    assert len(kept) == 1 and len(kept.skipped) == 1 and kept.skipped[0].startswith("line 3: ")


def test_many_bad_rows_are_counted_and_five_named(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "m.jsonl", *[{"transcript": str(i)} for i in range(9)], {"audio": "a.wav"})
    with pytest.raises(DataError, match=r"9 of 10 rows .*line 5: .*; \.\.\.\. Correct") as caught:
        read_utterances(rows)
    assert "line 6" not in str(caught.value)


def test_missing_empty_and_unknown_sources(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "table.csv").write_text("a,b\n")
    (tmp_path / "folder").mkdir()
    for source, reason in [
        ("absent.jsonl", "no such file"),
        ("empty.jsonl", "no rows"),
        ("table.csv", "aura data from-csv"),
        ("folder", "folder without parquet"),
        ("absent", "no such file or folder"),
    ]:
        with pytest.raises(DataError, match=reason):
            read_utterances(tmp_path / source)
    with pytest.raises(DataError, match="hf:someone/corpus"):
        read_utterances("someone/corpus")
    with pytest.raises(DataError, match="split='train' was given for a manifest"):
        read_utterances(tmp_path / "empty.jsonl", split="train")


def test_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes('{"audio": "a.wav"}\n'.encode("utf-8-sig") + '{"audio": "ä.wav"}\n'.encode("latin-1"))
    with pytest.raises(DataError, match="line 2: is not UTF-8"):
        read_utterances(path)


def test_write_and_read_again(manifest: Path, tmp_path: Path) -> None:
    before = read_utterances(manifest, prompt="Say it.")
    copy = tmp_path / "copy.jsonl"
    assert write_manifest(before, copy) == len(before)
    assert list(read_utterances(copy)) == list(before)
    rows = [json.loads(line) for line in copy.read_text().splitlines()]
    assert rows[0]["audio"] == "clips/a.wav"  # relative: the folder can be moved
    deeper = tmp_path / "sub" / "copy.jsonl"
    write_manifest(before, deeper)
    assert json.loads(deeper.read_text().splitlines()[0])["audio"] == str(tmp_path / "clips" / "a.wav")
    assert sorted(path.name for path in (tmp_path / "sub").iterdir()) == ["copy.jsonl"]


def test_a_failed_write_leaves_the_old_manifest(manifest: Path) -> None:
    old = manifest.read_text()
    utterances = read_utterances(manifest)

    def broken():
        yield utterances[0]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError):
        write_manifest(broken(), manifest)
    assert manifest.read_text() == old
    assert [path.name for path in manifest.parent.iterdir() if "partial" in path.name] == []


def test_audio_in_memory_cannot_stand_in_a_manifest(tmp_path: Path) -> None:
    from dataclasses import replace

    utterance = read_utterances(write_rows(tmp_path / "m.jsonl", {"audio": "a.wav"}))[0]
    in_memory = replace(utterance, audio=(AudioRef(source=wav_bytes()),))
    with pytest.raises(DataError, match="from-hf"):
        write_manifest([in_memory], tmp_path / "out.jsonl")


# Names as people give them, and anything as values but the separator of slots.
names = st.text(string.ascii_letters + string.digits + "_-.", min_size=1, max_size=12)
values = st.text(max_size=20).map(lambda text: text.replace(";", " "))


@given(intent=names, slots=st.dictionaries(names, values, max_size=5))
def test_label_text_round_trip(intent: str, slots: dict[str, str]) -> None:
    normal = {name: " ".join(value.split()) for name, value in slots.items()}
    text = label_text({"intent": intent, "slots": slots})
    assert parse_label(text) == {"intent": intent, "slots": normal}
    assert label_text(parse_label(text)) == text
    assert label_text({"slots": dict(reversed(slots.items())), "intent": intent}) == text


@given(st.text(max_size=60))
def test_parse_label_takes_whatever_a_model_says(text: str) -> None:
    parsed = parse_label(text)
    assert set(parsed) == {"intent", "slots"}


@pytest.mark.parametrize("label", [{"intent": "two words"}, {"intent": ""}, {"intent": "a", "slots": {"b": "1;2"}}, 3])
def test_labels_that_could_not_be_read_back(label) -> None:
    with pytest.raises(DataError, match="label"):
        label_text(label)


def test_build_messages() -> None:
    user, assistant = build_messages(transcript="hi", label=None, task=None, audio_parts=2, prompt="Say.")
    assert user["content"] == [AUDIO, AUDIO, {"type": "text", "text": "Say."}]
    assert assistant == {"role": "assistant", "content": "hi"}


# --- Hugging Face datasets
# -------------------------------------------------------------------------------------


def hf_table(tmp_path: Path):
    """A dataset as they lie on the hub: an Audio column that `datasets` could decode only with torchcodec."""
    import pyarrow as pa
    from datasets import Audio, ClassLabel, Features, Value

    audio = [{"bytes": wav_bytes(1.0 + i, 0.1 * (i + 1)), "path": f"{i}.wav"} for i in range(3)]
    features = Features(
        {
            "audio": Audio(),
            "sentence": Value("string"),
            "client_id": Value("string"),
            "kind": ClassLabel(names=["x", "y"]),
        }
    )
    table = pa.table({"audio": audio, "sentence": ["a", "b", "c"], "client_id": ["s", "s", "t"], "kind": [0, 1, 0]})
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    ), features


@pytest.fixture
def hf_sources(tmp_path: Path, monkeypatch) -> dict[str, str]:
    import datasets
    import pyarrow.parquet as pq

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    table, _ = hf_table(tmp_path)
    folder = tmp_path / "parquet"
    folder.mkdir()
    pq.write_table(table, folder / "train-00000-of-00001.parquet")
    loaded = datasets.load_dataset("parquet", data_files=str(folder / "*.parquet"), cache_dir=str(tmp_path / "cache"))
    loaded.save_to_disk(str(tmp_path / "dict"))
    loaded["train"].save_to_disk(str(tmp_path / "saved"))
    return {
        "parquet file": str(folder / "train-00000-of-00001.parquet"),
        "parquet folder": str(folder),
        "saved": str(tmp_path / "saved"),
        "saved dict": str(tmp_path / "dict"),
    }


@pytest.mark.parametrize("streaming", [False, True], ids=["map", "stream"])
def test_hf_datasets_give_the_same_utterances(hf_sources: dict[str, str], streaming: bool) -> None:
    for kind, source in hf_sources.items():
        found = read_utterances(source, streaming=streaming, columns={"label": "kind"}, limit=2)
        utterances = list(found)
        assert [u.transcript for u in utterances] == ["a", "b"], kind
        assert [u.speaker for u in utterances] == ["s", "s"]
        assert [u.answer for u in utterances] == ["x", "y"]
        assert [u.seconds for u in utterances] == [1.0, 2.0]
        assert [float(u.audio[0].load()[0]) for u in utterances] == pytest.approx([0.1, 0.2])
        assert utterances[1].id == "1:1.wav"


def test_hf_is_lazy_and_sliceable(hf_sources: dict[str, str]) -> None:
    found = read_utterances(hf_sources["saved"])
    assert len(found) == 3
    assert [u.transcript for u in found[1:]] == ["b", "c"]
    assert found[-1].transcript == "c"
    with pytest.raises(IndexError):
        found[3]


def test_hf_rows_without_audio(tmp_path: Path, monkeypatch) -> None:
    import datasets

    rows = {"audio": [{"bytes": wav_bytes(), "path": None}, None], "text": ["good", "bad"]}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "d"))
    with pytest.raises(DataError, match=r"1 of 2 rows .*row 1: no 'audio'"):
        read_utterances(tmp_path / "d")
    kept = read_utterances(tmp_path / "d", skip_bad=True)
    assert [u.transcript for u in kept] == ["good"] and len(kept.skipped) == 1
    assert len(kept[0].audio[0].load()) == RATE


def test_hf_several_audio_parts(tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    parts = [{"bytes": wav_bytes(1.0, 0.1), "path": None}, {"bytes": wav_bytes(2.0, 0.2), "path": None}]
    datasets.Dataset.from_dict({"audio": [parts], "text": ["two"]}).save_to_disk(str(tmp_path / "d"))
    (utterance,) = read_utterances(tmp_path / "d")
    assert [float(part.load()[0]) for part in utterance.audio] == pytest.approx([0.1, 0.2])


def test_hf_errors(hf_sources: dict[str, str], tmp_path: Path) -> None:
    import datasets

    for source, options, reason in [
        (hf_sources["saved dict"], {"split": "test"}, "no split 'test'; it has train"),
        (
            hf_sources["parquet file"],
            {"columns": {"transcript": "nope"}},
            "no column 'nope' for 'transcript'; it has",
        ),
        ("hf:someone/corpus", {}, "cannot be opened as a dataset"),
    ]:
        with pytest.raises(DataError, match=reason):
            read_utterances(source, **options)
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "no_audio"))
    with pytest.raises(DataError, match="no audio column among text"):
        read_utterances(tmp_path / "no_audio")


def test_audiofolder(tmp_path: Path) -> None:
    root = tmp_path / "folder"
    for split in ("train", "test"):
        write_wav(root / split / "a.wav")
        write_rows(root / split / "metadata.jsonl", {"file_name": "a.wav", "transcription": split})
    with pytest.raises(DataError, match="no split was named; it has test, train"):
        read_utterances(root)
    (utterance,) = read_utterances(root, split="test")
    assert (utterance.transcript, utterance.id, utterance.seconds) == ("test", "test/a.wav", 1.0)
    with pytest.raises(DataError, match="no split folder 'dev'"):
        read_utterances(root, split="dev")


def test_audiofolder_without_metadata_has_the_folder_as_label(tmp_path: Path) -> None:
    for word in ("yes", "no"):
        write_wav(tmp_path / "words" / word / "a.wav")
    found = read_utterances(tmp_path / "words")
    assert [(u.id, u.answer, u.task) for u in found] == [
        ("no/a.wav", "no", "intent"),
        ("yes/a.wav", "yes", "intent"),
    ]


def test_a_missing_recording_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    (utterance,) = read_utterances(write_rows(tmp_path / "m.jsonl", {"audio": "gone.wav", "seconds": 2.0}))
    assert utterance.seconds == 2.0
    with pytest.raises(AudioError, match=r"gone\.wav: no such file"):
        utterance.audio[0].load()


def test_reading_a_manifest_imports_neither_torch_nor_datasets() -> None:
    code = (
        "import sys, aura.data.manifest, aura.data.check, aura.data.augment, aura.data.converters; "
        "print([m for m in ('torch', 'datasets', 'pyarrow', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_rows_of_the_documentation_are_legal(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    rows = text.split("```json\n")[1].split("```")[0]
    found = read_utterances(write_rows(tmp_path / "m.jsonl", rows))
    assert [u.task for u in found] == ["transcribe", "transcribe", "intent", "answer", "answer"]
    assert found[2].answer == "order drink=tea; size=big"
