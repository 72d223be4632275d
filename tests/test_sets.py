"""Public sets in their published formats become utterances that a manifest can hold and a task can score."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from aura.cli import main
from aura.data.converters import from_csv
from aura.data.manifest import read_utterances, write_manifest
from aura.data.sets.commands import from_barista, from_fluent, from_slurp
from aura.data.sets.openaudiobench import SUBSETS, from_openaudiobench
from aura.data.sets.spoken_squad import SENTENCE_PAUSE, from_spoken_squad
from aura.data.sets.voicebench import from_voicebench, options_in
from aura.data.utterance import Utterance, label_text, message_text
from aura.errors import DataError
from aura.evaluation.tasks import TASKS

RATE = 16_000


def sound(path: Path, seconds: float = 0.5, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)
    kind = "WAV" if path.suffix == ".wav" else "FLAC"
    soundfile.write(path, wave, rate, format=kind)
    return path


def kept(rows: list[Utterance], folder: Path, task: str) -> list[Any]:
    """References of the rows, which a manifest gives back unchanged; its paths are relative."""
    write_manifest(rows, folder / "m.jsonl")
    again = list(read_utterances(folder / "m.jsonl"))
    assert again == list(rows)
    for line in (folder / "m.jsonl").read_text(encoding="utf-8").splitlines():
        assert not Path(json.loads(line)["audio"]).is_absolute()
    return [TASKS[task].reference_of(row) for row in again]


# ------------------------------------------------------------------------------------- Common Voice


def test_common_voice_as_it_is_released(tmp_path: Path) -> None:
    header = "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender accents variant locale segment"
    row = ["f00", "cv_de_1.mp3", "9a", 'Er sagte: "Ja".', "", "2", "0", "", "", "", "", "de", ""]
    sound(tmp_path / "clips" / "cv_de_1.mp3")
    (tmp_path / "validated.tsv").write_text("\t".join(header.split()) + "\n" + "\t".join(row) + "\n", encoding="utf-8")
    rows = from_csv(tmp_path / "validated.tsv")
    assert kept(rows, tmp_path, "transcribe") == ['Er sagte: "Ja".']
    assert (rows[0].speaker, rows[0].lang, rows[0].seconds) == ("f00", "de", 0.5)


# ------------------------------------------------------------------------------------- SLURP


@pytest.fixture
def slurp(tmp_path: Path) -> Path:
    def token(number: int, word: str) -> dict[str, Any]:
        return {"surface": word, "id": number, "lemma": word, "pos": "NN"}

    def recording(name: str) -> dict[str, Any]:
        return {"file": name, "wer": 0.0, "ent_wer": 0.0, "status": "correct"}

    sentence = "put lunch on tuesday ten am and friday"
    rows = [
        {
            "slurp_id": 1,
            "sentence": sentence,
            "sentence_annotation": "put [event_name : lunch] on [date : tuesday] [time : ten am] and [date : friday]",
            "intent": "calendar_set",
            "action": "set",
            "tokens": [token(n, w) for n, w in enumerate(sentence.split())],
            "scenario": "calendar",
            "recordings": [recording("audio-1-headset.flac"), recording("audio-1.flac")],
            "entities": [
                {"span": [1], "type": "event_name"},
                {"span": [3], "type": "date"},
                {"span": [4, 5], "type": "time"},
                {"span": [7], "type": "date"},
            ],
        },
        {
            "slurp_id": 2,
            "sentence": "brighter please",
            "sentence_annotation": "brighter please",
            "intent": "hue_lightup",
            "action": "hue_lightup",
            "tokens": [token(0, "brighter"), token(1, "please")],
            "scenario": "iot",
            "recordings": [recording("audio-2-headset.flac")],
            "entities": [],
        },
    ]
    folder = tmp_path / "dataset" / "slurp"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    speakers = {"1": {"recordings": {"audio-1.flac": {"usrid": "FO-488", "status": "correct"}}}}
    (folder / "metadata.json").write_text(json.dumps(speakers))
    for name in ("audio-1-headset", "audio-1"):
        sound(tmp_path / "audio" / "slurp_real" / f"{name}.flac")
    sound(tmp_path / "audio" / "slurp_synth" / "audio-2-headset.flac")
    return tmp_path


def test_slurp(slurp: Path) -> None:
    file = slurp / "dataset" / "slurp" / "test.jsonl"
    rows = from_slurp(file, slurp / "audio")
    slots = {"event_name": "lunch", "date": "tuesday", "time": "ten am", "date_2": "friday"}
    command = {"intent": "calendar_set", "slots": slots}
    assert kept(rows, slurp, "intent") == [command, command, {"intent": "iot_hue_lightup", "slots": {}}]
    assert [row.id for row in rows] == ["audio-1-headset.flac", "audio-1.flac", "audio-2-headset.flac"]
    assert [row.speaker for row in rows] == [None, "FO-488", None]
    assert rows[0].transcript == "put lunch on tuesday ten am and friday"
    assert rows[0].answer == "calendar_set date=tuesday; date_2=friday; event_name=lunch; time=ten am"
    assert [row.id for row in from_slurp(file, slurp / "audio", microphone="far")] == ["audio-1.flac"]
    assert len(from_slurp(file, slurp / "audio", microphone="headset")) == 2


def test_slurp_errors(slurp: Path) -> None:
    file = slurp / "dataset" / "slurp" / "test.jsonl"
    (slurp / "audio" / "slurp_real" / "audio-1.flac").unlink()
    with pytest.raises(DataError, match=r"1 of 3 rows .*line 1: .*audio-1\.flac: no such file"):
        from_slurp(file, slurp / "audio")
    assert len(from_slurp(file, slurp / "audio", skip_bad=True)) == 2
    with pytest.raises(DataError, match="no such folder"):
        from_slurp(file, slurp / "nowhere")
    file.write_text('{"sentence": "x"}\n')
    with pytest.raises(DataError, match="not a row of SLURP"):
        from_slurp(file, slurp / "audio")


# ------------------------------------------------------------------------------------- Fluent Speech Commands


def test_fluent(tmp_path: Path) -> None:
    for name in ("1", "2"):
        sound(tmp_path / "wavs" / "speakers" / "4BrX" / f"{name}.wav")
    (tmp_path / "data").mkdir()
    table = tmp_path / "data" / "test_data.csv"
    table.write_text(
        ",path,speakerId,transcription,action,object,location\n"
        "0,wavs/speakers/4BrX/1.wav,4BrX,Change language,change language,none,none\n"
        '1,wavs/speakers/4BrX/2.wav,4BrX,"Lights on, kitchen",activate,lights,kitchen\n'
    )
    rows = from_fluent(table)
    assert kept(rows, tmp_path, "intent") == [
        {"intent": "change_language", "slots": {}},
        {"intent": "activate", "slots": {"object": "lights", "location": "kitchen"}},
    ]
    assert (rows[1].speaker, rows[1].transcript, rows[1].id) == (
        "4BrX",
        "Lights on, kitchen",
        "wavs/speakers/4BrX/2.wav",
    )
    table.write_text("path,text\n")
    with pytest.raises(DataError, match="no column 'speakerId'; it has path, text"):
        from_fluent(table)


# ------------------------------------------------------------------------------------- Picovoice barista


def test_barista(tmp_path: Path) -> None:
    labels = {
        "0075.wav": {"intent": "orderDrink", "slots": {"coffeeDrink": "coffee", "size": "twelve ounce"}},
        "01a5.wav": {"intent": "orderDrink", "slots": {"coffeeDrink": "mocha", "milkAmount": " soy milk"}},
    }
    (tmp_path / "data" / "label").mkdir(parents=True)
    file = tmp_path / "data" / "label" / "label.json"
    file.write_text(json.dumps(labels))
    for name in labels:
        sound(tmp_path / "data" / "speech" / "clean" / name)
    rows = from_barista(file)
    assert kept(rows, tmp_path, "intent") == list(labels.values())
    assert [row.id for row in rows] == ["0075.wav", "01a5.wav"] and rows[0].transcript is None
    score = TASKS["intent"].score(
        [row.label for row in rows], [label_text(labels["0075.wav"]), "orderDrink coffeeDrink=mocha"]
    )
    assert score.metrics["command_accuracy"] == 0.5
    file.write_text('{"0075.wav": "orderDrink"}')
    with pytest.raises(DataError, match="file name"):
        from_barista(file)
    file.write_text("not json")
    with pytest.raises(DataError, match="not JSON"):
        from_barista(file)


# ------------------------------------------------------------------------------------- OpenAudioBench

TABLES = {
    "alpaca_eval": ("instruction,output,audio_filename", "Name a tree.,An oak is one.,0.mp3", ["An oak is one."]),
    "llama_questions": ("Questions,Answer,audio_filename", "What is the capital of France?,Paris,0.mp3", ["Paris"]),
    "reasoning_qa": ("Prompt,参考答案,audio_filename", "Is it odd?,Yes. It is 3.,0.mp3", ["Yes. It is 3."]),
    "trivia_qa": (
        "question,answer_normalized_value,answer_normalized_aliases,audio_filename",
        'Where?,paris,"city of paris, paris",0.mp3',
        ["paris", "city of paris"],
    ),
    "web_questions": (
        "question,answers,audio_filename",
        "Who?,George Seifert;Dom Capers,0.mp3",
        ["George Seifert", "Dom Capers"],
    ),
}


@pytest.mark.parametrize("subset", SUBSETS)
def test_openaudiobench(subset: str, tmp_path: Path) -> None:
    header, line, accepted = TABLES[subset]
    folder = tmp_path / "eval_datas" / subset
    sound(folder / "audios" / "0.mp3")
    (folder / f"{subset}.csv").write_text(f"{header}\n{line}\n", encoding="utf-8")
    rows = from_openaudiobench(folder)
    assert kept(rows, tmp_path, "answer") == [accepted]
    assert (rows[0].id, rows[0].answer, rows[0].task) == (f"{subset}/0.mp3", accepted[0], "answer")
    assert rows[0].transcript == line.split(",")[0]
    fields = dict(zip(header.split(","), ["q", *map(str, [accepted] * (header.count(",") - 1)), "0.mp3"], strict=True))
    (folder / f"{subset}.csv").unlink()
    (folder / f"{subset}.jsonl").write_text(json.dumps(fields) + "\n")
    again = from_openaudiobench(folder)[0].label["answers"]
    assert again == (accepted if SUBSETS[subset].separator else [str(accepted)])


def test_openaudiobench_errors(tmp_path: Path) -> None:
    folder = tmp_path / "web_questions"
    folder.mkdir()
    with pytest.raises(DataError, match=r"no web_questions\.csv"):
        from_openaudiobench(folder)
    (folder / "web_questions.csv").write_text("question,answers,audio_filename\na,b,0.mp3\nc,,1.mp3\n")
    with pytest.raises(DataError, match=r"2 of 2 rows .*line 2: .*0\.mp3: no such file.*line 3: no answer"):
        from_openaudiobench(folder)
    (folder / "web_questions.csv").write_text("question,audio_filename\na,0.mp3\n")
    with pytest.raises(DataError, match="no column 'answers'"):
        from_openaudiobench(folder)
    with pytest.raises(DataError, match="expected one of alpaca_eval"):
        from_openaudiobench(tmp_path)


# ------------------------------------------------------------------------------------- VoiceBench

QUESTION = "What falls from clouds? A. rain B. coins C. shoes"


def parquet(folder: Path, columns: dict[str, list[str]]) -> str:
    import datasets

    datasets.disable_progress_bars()
    data = io.BytesIO()
    soundfile.write(data, np.full(RATE // 2, 0.1), RATE, format="WAV")
    clips = [{"bytes": data.getvalue(), "path": None} for _ in next(iter(columns.values()))]
    folder.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict({"audio": clips, **columns}).to_parquet(str(folder / "test-00000-of-00001.parquet"))
    return str(folder)


def test_voicebench_multiple_choice(tmp_path: Path) -> None:
    source = parquet(tmp_path / "openbookqa", {"prompt": [QUESTION, "Which?"], "reference": ["B", "D"]})
    rows = from_voicebench(source, tmp_path / "audio", split="test")
    first, second = kept(list(rows), tmp_path, "choice")
    assert first == {"options": ["A", "B", "C"], "answer": "B"}
    assert second == {"options": ["A", "B", "C", "D"], "answer": "D"}
    assert (rows[0].task, rows[0].answer, rows[0].transcript, rows[0].lang) == ("choice", "B", QUESTION, "en")
    assert len(rows[0].audio[0].load()) == RATE // 2
    assert TASKS["choice"].options_of(rows[0]) == ("A", "B", "C")


def test_voicebench_answers(tmp_path: Path) -> None:
    source = parquet(tmp_path / "sd-qa", {"prompt": ["who wrote it"], "reference": ["Jane Austen"]})
    rows = from_voicebench(source, tmp_path / "audio", split="test", subset="sd-qa")
    assert kept(list(rows), tmp_path, "contains") == [["Jane Austen"]]
    source = parquet(tmp_path / "alpacaeval", {"prompt": ["name a tree"], "output": ["An oak."]})
    assert from_voicebench(source, tmp_path / "b", split="test")[0].answer == "An oak."
    source = parquet(tmp_path / "ifeval", {"prompt": ["write two words"], "key": ["1000"]})
    (row,) = from_voicebench(source, tmp_path / "c", split="test")
    assert row.label is None and row.answer == "" and len(row.messages) == 1
    source = parquet(tmp_path / "other", {"text": ["x"]})
    with pytest.raises(DataError, match="no column 'prompt'"):
        from_voicebench(source, tmp_path / "d", split="test")


def test_voicebench_lines(tmp_path: Path) -> None:
    sound(tmp_path / "clips" / "0.wav")
    lines = [
        {"audio": "clips/0.wav", "prompt": "where", "reference": "A"},
        {"audio": "clips/0.wav", "prompt": "who", "reference": "the man"},
    ]
    (tmp_path / "sd-qa.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = from_voicebench(str(tmp_path / "sd-qa.jsonl"), tmp_path / "unused")
    assert [row.label for row in rows] == [{"answers": ["A"]}, {"answers": ["the man"]}]
    with pytest.raises(DataError, match="expected one of A, B, C, D"):
        from_voicebench(str(tmp_path / "sd-qa.jsonl"), tmp_path / "unused", choice=True)
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("prompt", "letters"),
    [
        ("Which? A. ice\nB. steam\nC. fog\nD. dew", "ABCD"),
        ("Which? A) ice B) steam", "AB"),
        ("Who was J. R. Smith? A. a man B. a dog", "AB"),
        ("Which is it?", "ABCD"),
    ],
)
def test_letters_of_the_options(prompt: str, letters: str) -> None:
    assert "".join(options_in(prompt)) == letters


# ------------------------------------------------------------------------------------- Spoken-SQuAD


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    def question(id_: str, *texts: str) -> dict[str, Any]:
        return {"id": id_, "question": f"Question {id_}?", "answers": [{"answer_start": 0, "text": t} for t in texts]}

    topics = [
        {
            "title": "Bowl",
            "paragraphs": [
                {"context": "the broncos won.", "qas": [question("q1", "broncos", "broncos", "the broncos")]}
            ],
        },
        {"title": "Harbour", "paragraphs": [{"context": "a ship. two.", "qas": [question("q2", "two")]}]},
    ]
    (tmp_path / "spoken_test-v1.1.json").write_text(json.dumps({"data": topics, "version": "1.1"}))
    for name, seconds in (("0_0_0", 0.5), ("0_0_2", 0.3), ("0_0_10", 0.2), ("1_0_0", 0.4)):
        sound(tmp_path / "dev_wav" / f"{name}.wav", seconds, rate=24_000)
    return tmp_path


def test_spoken_squad(squad: Path) -> None:
    file = squad / "spoken_test-v1.1.json"
    rows = from_spoken_squad(file, squad / "dev_wav", squad / "audio")
    assert kept(list(rows), squad, "answer") == [["broncos", "the broncos"], ["two"]]
    assert rows[0].seconds == pytest.approx(0.5 + 0.3 + 0.2 + 2 * SENTENCE_PAUSE, abs=0.01)
    assert message_text(rows[0].messages[0]) == "Question q1?" and rows[0].transcript == "the broncos won."
    assert Path(rows[0].audio[0].source).name == "0_0.flac"
    before = Path(rows[0].audio[0].source).stat().st_mtime_ns
    from_spoken_squad(file, squad / "dev_wav", squad / "audio")
    assert Path(rows[0].audio[0].source).stat().st_mtime_ns == before


def test_spoken_squad_by_the_numbers_of_the_original(squad: Path) -> None:
    original = {"data": [{"paragraphs": [{"qas": [{"id": "q2"}]}]}, {"paragraphs": [{"qas": [{"id": "q1"}]}]}]}
    (squad / "dev-v1.1.json").write_text(json.dumps(original))
    file = squad / "spoken_test-v1.1.json"
    rows = from_spoken_squad(file, squad / "dev_wav", squad / "a", squad=squad / "dev-v1.1.json")
    assert [Path(row.audio[0].source).name for row in rows] == ["1_0.flac", "0_0.flac"]


def test_spoken_squad_errors(squad: Path) -> None:
    file = squad / "spoken_test-v1.1.json"
    (squad / "dev_wav" / "1_0_0.wav").write_bytes(b"no audio")
    with pytest.raises(DataError, match=r"1 of 2 rows .*question q2: .*1_0_0\.wav"):
        from_spoken_squad(file, squad / "dev_wav", squad / "audio")
    (squad / "dev_wav" / "1_0_0.wav").unlink()
    with pytest.raises(DataError, match=r"question q2: no recording 1_0_\*\.wav"):
        from_spoken_squad(file, squad / "dev_wav", squad / "audio")
    assert len(from_spoken_squad(file, squad / "dev_wav", squad / "audio", skip_bad=True)) == 1
    file.write_text("{}")
    with pytest.raises(DataError, match="no list 'data'"):
        from_spoken_squad(file, squad / "dev_wav", squad / "audio")
    (squad / "empty").mkdir()
    with pytest.raises(DataError, match="TOPIC_PARAGRAPH_SENTENCE"):
        from_spoken_squad(file, squad / "empty", squad / "audio")


# ------------------------------------------------------------------------------------- the command line


def test_the_verbs_write_manifests(slurp: Path, squad: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [
        ["from-slurp", str(slurp / "dataset" / "slurp" / "test.jsonl"), "--audio", str(slurp / "audio")],
        ["from-spoken-squad", str(squad / "spoken_test-v1.1.json"), "--audio", str(squad / "dev_wav")],
    ]
    for number, command in enumerate(commands):
        out = slurp / f"{number}.jsonl"
        assert not main(["data", *command, "--out", str(out)])
        assert f"rows written to {out}" in capsys.readouterr().out
        assert len(read_utterances(out)) == 3 - number
    assert main(["data", "from-barista", str(slurp / "absent.json"), "--out", str(slurp / "x.jsonl")]) == 2
    assert "label.json" in capsys.readouterr().err
