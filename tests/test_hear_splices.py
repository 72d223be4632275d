"""`hear/splices.py`: what a new order's recording says is what its transcript and its label say."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from aura.audio.waveform import SAMPLE_RATE, load_waveform
from aura.data.manifest import read_utterances

ROOT = Path(__file__).parent.parent
STEP = 0.25  # seconds a word
ORDERS = (
    ("a dark roast mocha with milk and sugar", {"roast": "dark roast", "coffeeDrink": "mocha", "milkAmount": "milk"}),
    ("please a large latte with brown sugar", {"size": "large", "coffeeDrink": "latte", "sugarAmount": "brown sugar"}),
    ("get me an espresso", {"coffeeDrink": "espresso"}),
)
VOCABULARY = sorted({word for text, _ in ORDERS for word in text.split()})


@pytest.fixture
def splices(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "hear"))
    module = importlib.import_module("splices")

    def make(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["splices", *map(str, words)])
        status: int = module.main()
        return status

    return make


def pitch(word: str) -> float:
    return 300.0 + 200 * VOCABULARY.index(word)


def speak(folder: Path) -> tuple[Path, Path]:
    """A manifest whose every word is a tone of its own, and the words' times."""
    rows, heard = [], []
    for number, (text, slots) in enumerate(ORDERS):
        words = text.split()
        time_N = np.arange(round(STEP * SAMPLE_RATE)) / SAMPLE_RATE
        wave_N = np.concatenate([np.sin(2 * np.pi * pitch(word) * time_N) for word in words])
        soundfile.write(folder / f"{number}.flac", 0.3 * wave_N, SAMPLE_RATE)
        label = {"intent": "orderDrink", "slots": slots}
        rows.append({"audio": f"{number}.flac", "label": label, "task": "intent"})
    manifest = folder / "orders.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for utterance, (text, _) in zip(read_utterances(manifest), ORDERS, strict=True):
        times = [[word, STEP * n, STEP * (n + 1)] for n, word in enumerate(text.split())]
        heard.append({"id": utterance.id, "words": times})
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in heard))
    return manifest, folder / "words.jsonl"


def heard_words(wave_N: np.ndarray, count: int) -> list[str]:
    """The words of a recording of `count` tones of equal length, by the loudest frequency in the middle of each."""
    found = []
    for middle_N in ((np.arange(count) + 0.5) * len(wave_N) / count).astype(int):
        piece_N = wave_N[middle_N - 800 : middle_N + 800] * np.hanning(1600)
        frequency = np.abs(np.fft.rfft(piece_N, 16_000)).argmax()
        found.append(min(VOCABULARY, key=lambda word: abs(pitch(word) - frequency)))
    return found


def test_a_splice_sounds_as_its_transcript_and_label_say(splices: Any, tmp_path: Path) -> None:
    manifest, words = speak(tmp_path)
    assert splices(manifest, "--words", words, "--out", tmp_path / "out", "--count", "60") == 0
    made = list(read_utterances(tmp_path / "out" / "manifest.jsonl"))
    known = {value: slot for _, slots in ORDERS for slot, value in slots.items()}
    for utterance in made:
        texts = (utterance.transcript or "").split()
        [part] = utterance.audio
        assert heard_words(load_waveform(part.source), len(texts)) == texts
        assert isinstance(utterance.label, dict)
        slots = utterance.label["slots"]
        assert "coffeeDrink" in slots and all(f" {value} " in f" {utterance.transcript} " for value in slots.values())
        assert all(
            slots.get(slot) == value for value, slot in known.items() if f" {value} " in f" {utterance.transcript} "
        )
    assert len({u.transcript for u in made}) > 20 > len(ORDERS)
    spoken = {tuple(sorted(u.label["slots"])) for u in made}  # type: ignore[index]
    assert len(spoken) > 5  # values were left out and put in


def test_the_same_seed_gives_the_same_orders(splices: Any, tmp_path: Path) -> None:
    manifest, words = speak(tmp_path)
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        assert splices(manifest, "--words", words, "--out", tmp_path / name, "--count", "9", "--seed", seed) == 0
    one, two, other = ((tmp_path / name / "manifest.jsonl").read_text() for name in ("one", "two", "other"))
    assert one == two != other


def test_orders_that_cannot_be_cut_are_left_out(splices: Any, tmp_path: Path) -> None:
    manifest, words = speak(tmp_path)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0]["label"]["slots"]["size"] = ""  # no word at all
    del rows[1]["label"]["intent"]
    rows[1] |= {"messages": [{"role": "user", "content": [{"type": "audio"}]}, {"role": "assistant", "content": "!"}]}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    heard = [json.loads(line) for line in words.read_text().splitlines()]
    assert splices(manifest, "--words", words, "--out", tmp_path / "one", "--count", "3") == 0
    texts = {u.transcript for u in read_utterances(tmp_path / "one" / "manifest.jsonl")}
    assert texts == {ORDERS[2][0]}
    heard[2]["words"][-1][1:] = [5.0, 5.2]  # behind the end of the recording
    words.write_text("".join(json.dumps(row) + "\n" for row in heard))
    assert splices(manifest, "--words", words, "--out", tmp_path / "none") == 2


def test_splices_of_nothing_are_refused_in_one_line(
    splices: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, _ = speak(tmp_path)
    (tmp_path / "none.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"id": "a"}\n')
    for given in ("none.jsonl", "broken.jsonl", "missing.jsonl"):
        assert splices(manifest, "--words", tmp_path / given, "--out", tmp_path / "out") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and all(line.startswith("hear/splices.py: ") for line in lines)
    assert "run hear/spans.py first" in lines[0] and "broken.jsonl:1" in lines[1]
    assert not (tmp_path / "out").exists()
