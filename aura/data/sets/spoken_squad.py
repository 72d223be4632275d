"""Spoken-SQuAD (Li et al. 2018): questions in writing about spoken paragraphs -> utterances.

The set has one file per sentence, `TOPIC_PARAGRAPH_SENTENCE.wav`, in the numbering of the SQuAD file. A paragraph is
joined to one recording here, since the question is about all of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from aura.audio.waveform import SAMPLE_RATE, load_waveform
from aura.data.collect import NumberedRow, Utterances, collect, convert_rows
from aura.data.converters import with_seconds, write_whole
from aura.data.row import locator
from aura.data.sets.files import existing_file, existing_folder, json_object
from aura.data.utterance import build_messages
from aura.errors import AudioError, DataError

SENTENCE_PAUSE = 0.2  # seconds between two sentences; our choice

Place = tuple[int, int]  # topic and paragraph


def from_spoken_squad(
    file: str | os.PathLike[str],
    audio: str | os.PathLike[str],
    audio_dir: str | os.PathLike[str],
    *,
    squad: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
) -> Utterances:
    """One utterance per question: the paragraph's recording, then the question; the accepted answers as label.

    The transcript is the set's own `context`, which a recogniser wrote (22 % of its words are wrong): what the text
    route reads is not the truth here.

    Args:
        file: `spoken_test-v1.1.json` or `spoken_train-v1.1.json`.
        audio: folder of the sentences, such as `Spoken-SQuAD_audio/dev_wav`.
        audio_dir: where the joined paragraphs are written, `TOPIC_PARAGRAPH.flac`; those already there are kept.
        squad: the original `dev-v1.1.json`, to look the numbers up by question; by default they are counted in
            `file`.
        limit: first N questions.
        skip_bad: drop questions whose paragraph has no audio instead of raising.

    Raises:
        DataError: no such file, or another shape.
        AudioError: a sentence that cannot be decoded.
    """
    path = existing_file(file, "spoken_test-v1.1.json of Spoken-SQuAD")
    sentences = _sentences(existing_folder(audio, "the wav files of Spoken-SQuAD"))
    places = _places(existing_file(squad, "dev-v1.1.json of SQuAD")) if squad is not None else None
    target = Path(audio_dir)
    target.mkdir(parents=True, exist_ok=True)
    rows = _rows(path, sentences, places, target)
    return collect(convert_rows(rows, locate=locator(None), prompt=None, limit=limit), str(path), skip_bad)


def _rows(
    path: Path, sentences: Mapping[Place, list[Path]], places: Mapping[str, Place] | None, target: Path
) -> Iterator[NumberedRow]:
    for counted, paragraph, question in _questions(path):
        try:
            id_ = question["id"]
            accepted = list(dict.fromkeys(answer["text"] for answer in question["answers"]))
            place = counted if places is None else places[id_]
        except (KeyError, TypeError) as error:
            yield f"question {counted}", DataError(f"not a question of SQuAD ({type(error).__name__}: {error})"), None
            continue
        if not accepted or place not in sentences:
            lacks = "no answers" if not accepted else f"no recording {place[0]}_{place[1]}_*.wav"
            yield f"question {id_}", DataError(lacks), id_
            continue
        try:
            recording = _joined(sentences[place], target / f"{place[0]}_{place[1]}.flac")
        except AudioError as error:
            yield f"question {id_}", error, id_
            continue
        label = {"answers": accepted}
        row: dict[str, Any] = {
            "audio": str(recording),
            "transcript": paragraph.get("context"),
            "lang": "en",
            "messages": build_messages(transcript=None, label=label, task="answer", prompt=question.get("question")),
            "label": label,
            "task": "answer",
        }
        yield f"question {id_}", with_seconds(row), id_


def _questions(path: Path) -> Iterator[tuple[Place, Mapping[str, Any], Mapping[str, Any]]]:
    """Topic and paragraph number, paragraph, question."""
    topics = json_object(path).get("data")
    if not isinstance(topics, list):
        raise DataError(f"{path}: no list 'data' in it; expected the JSON of SQuAD: data, paragraphs, qas")
    try:
        for topic, article in enumerate(topics):
            for number, paragraph in enumerate(article["paragraphs"]):
                for question in paragraph["qas"]:
                    yield (topic, number), paragraph, question
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path}: {type(error).__name__} {error}; expected the JSON of SQuAD: data, paragraphs, qas"
        ) from None


def _places(squad: Path) -> dict[str, Place]:
    return {question["id"]: place for place, _, question in _questions(squad)}


def _sentences(folder: Path) -> dict[Place, list[Path]]:
    """The files of each paragraph, in the order they are spoken."""
    found: dict[Place, list[tuple[int, Path]]] = {}
    for path in folder.rglob("*_*.wav"):
        numbers = path.stem.split("_")
        if len(numbers) == 3 and all(number.isdigit() for number in numbers):
            topic, paragraph, sentence = map(int, numbers)
            found.setdefault((topic, paragraph), []).append((sentence, path))
    if not found:
        raise DataError(f"{folder}: no TOPIC_PARAGRAPH_SENTENCE.wav in it, such as 0_0_0.wav. Unpack the audio first.")
    return {place: [path for _, path in sorted(files)] for place, files in found.items()}


def _joined(files: list[Path], target: Path) -> Path:
    """The sentences as one 16 kHz mono file, a pause between two."""
    if target.exists():
        return target
    pause = np.zeros(int(SENTENCE_PAUSE * SAMPLE_RATE), np.float32)
    waves: list[np.ndarray] = []
    for file in files:
        try:
            waves += [load_waveform(str(file)), pause]
        except AudioError as error:
            raise AudioError(f"{error} (a sentence of {target.name})") from None
    whole = np.concatenate(waves[:-1])
    write_whole(target, lambda part: soundfile.write(part, whole, SAMPLE_RATE, format="FLAC", subtype="PCM_16"))
    return target
