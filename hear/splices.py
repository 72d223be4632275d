"""New orders out of recorded ones: the values of slots are cut out, exchanged, left out and put in, and the label follows.

    python hear/splices.py MANIFEST [MANIFEST ...] --words FOLDER/words.jsonl --out FOLDER [--count 3000] [--seed 0]

A few hundred recordings hold few of the orders that their words could make, and a model learns which orders there are sooner
than what it hears. Here the same recordings say orders that nobody gave, often in several voices, so that only listening helps.
`--words` are the times of the words that `hear/spans.py` wrote; an order is used where these hold every slot value of its label.
Every piece is made as loud as the first. Writes FOLDER/manifest.jsonl. The same seed gives the same orders.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from chains import join  # beside this file
from prepare import ordered
from spans import Word, places, plausible

from aura.audio.waveform import SAMPLE_RATE
from aura.batch.loader import load_example
from aura.data.manifest import read_utterances
from aura.errors import AuraError, DataError
from aura.evaluation.json_text import replace_text
from aura.progress import audio_progress
from aura.student.files import whole_folder

EXCHANGED, LEFT_OUT, PUT_IN = 0.45, 0.15, 0.12  # chances of a slot that is there, there and not needed, not there
MARGIN = 0.03  # seconds kept around a value, played over its neighbours' ends: word times are that uncertain
HEAD = "coffeeDrink"  # the slot that no order is without: some values stand before it, some behind
LINKS = ("with", "and")  # words that bring in a value behind it


class Piece(NamedTuple):
    wave_N: np.ndarray
    text: str
    slot: str | None = None
    value: str = ""


class Order(NamedTuple):
    pieces: list[Piece]  # of one recording, one behind the other
    intent: str

    def slots(self) -> set[str]:
        return {piece.slot for piece in self.pieces if piece.slot}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+")
    parser.add_argument("--words", type=Path, required=True, help="words.jsonl of hear/spans.py for the same manifests")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        write_splices(options)
    except (AuraError, OSError) as error:
        print(f"hear/splices.py: {error}", file=sys.stderr)
        return 2
    return 0


def write_splices(options: argparse.Namespace) -> None:
    """The folder, whole or not at all.

    Raises:
        AuraError: manifests, words or recordings that cannot be read, or no order whose words agree with its label.
    """
    heard = read_words(options.words)
    orders = read_orders(options.manifests, heard)
    if not orders:
        raise DataError(
            f"no order of {', '.join(options.manifests)} has words in {options.words} that hold its slots; "
            "expected manifests with labels and the words of the same rows: run hear/spans.py first"
        )
    donors: dict[str, list[Piece]] = defaultdict(list)
    linked: dict[str, list[tuple[Piece, Piece]]] = defaultdict(list)  # with the "with" or "and" in front
    for order in orders:
        for piece in order.pieces:
            if piece.slot:
                donors[piece.slot].append(piece)
        for before, piece in itertools.pairwise(order.pieces):
            if piece.slot and before.text in LINKS:
                linked[piece.slot].append((before, piece))
    draw = random.Random(options.seed)
    rows: list[dict[str, Any]] = []
    with whole_folder(options.out) as folder, audio_progress("splices", options.count) as advance:
        (folder / "audio").mkdir()
        for number in range(options.count):
            order = orders[number % len(orders)]
            pieces = respoken(order, donors, linked, draw)
            wave_N = join([piece.wave_N for piece in pieces], [-MARGIN] * (len(pieces) - 1))
            name = f"audio/{number:05d}.opus"
            soundfile.write(folder / name, wave_N, SAMPLE_RATE, format="OGG", subtype="OPUS")
            slots = dict(sorted((piece.slot, piece.value) for piece in pieces if piece.slot))
            row: dict[str, Any] = {
                "audio": name,
                "seconds": round(len(wave_N) / SAMPLE_RATE, 3),
                "transcript": " ".join(piece.text for piece in pieces),
                "lang": "en",
                "label": {"intent": order.intent, "slots": slots},
            }
            rows.append(ordered(row))
            advance(1, row["seconds"])
        replace_text(folder / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{options.out / 'manifest.jsonl'}: {options.count} orders out of {len(orders)} recordings")


def read_words(path: Path) -> dict[str, list[Word]]:
    heard = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text; expected the words.jsonl of hear/spans.py") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            heard[row["id"]] = [Word(str(text), float(start), float(end)) for text, start, end in row["words"]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f'{path}:{number} is no row of hear/spans.py; expected {{"id": ..., "words": [...]}}'
            ) from error
    return heard


def read_orders(manifests: Sequence[str], heard: Mapping[str, list[Word]]) -> list[Order]:
    """The orders whose words are known and hold their slots, in pieces.

    Left out are those with a value too short to be one: the times of words may lie past the end.
    """
    orders = []
    for manifest in manifests:
        for utterance in read_utterances(manifest):
            words = heard.get(utterance.id)
            if not words or not plausible(words) or len(utterance.audio) != 1:
                continue
            found = places(words, utterance)
            if HEAD not in found or not isinstance(intent := utterance.label.get("intent"), str):
                continue
            [wave_N] = load_example(utterance).waveforms
            pieces = cut(wave_N, words, found, utterance.label["slots"])
            if all(len(piece.wave_N) > (2 * MARGIN * SAMPLE_RATE if piece.slot else 0) for piece in pieces):
                orders.append(Order(pieces, intent))
    return orders


def cut(
    wave_N: np.ndarray, words: Sequence[Word], found: Mapping[str, tuple[int, int]], values: Mapping[str, str]
) -> list[Piece]:
    """A recording in pieces: each slot's value, and what lies between them, a word of LINKS by itself."""
    marks = {first: (end, slot) for slot, (first, end) in found.items()}
    pieces, first = [], 0
    while first < len(words):
        end, slot = marks.get(first, (first + 1, None))
        if slot is None and words[first].text not in LINKS:
            while end < len(words) and end not in marks and words[end].text not in LINKS:
                end += 1
        start_N = 0 if first == 0 else round((words[first].start - MARGIN / 2) * SAMPLE_RATE)
        end_N = len(wave_N) if end == len(words) else round((words[end - 1].end + MARGIN / 2) * SAMPLE_RATE)
        text = " ".join(word.text for word in words[first:end])
        value = " ".join(values[slot].split()) if slot else ""
        pieces.append(Piece(wave_N[max(0, start_N) : max(end_N, start_N + 1)], text, slot, value))
        first = end
    return pieces


def respoken(
    order: Order,
    donors: Mapping[str, Sequence[Piece]],
    linked: Mapping[str, Sequence[tuple[Piece, Piece]]],
    draw: random.Random,
) -> list[Piece]:
    """The order with some of its slots exchanged, left out and put in."""
    pieces: list[Piece] = []
    for piece in order.pieces:
        if piece.slot and piece.slot != HEAD and draw.random() < LEFT_OUT:
            if pieces and pieces[-1].text in LINKS:
                pieces.pop()
        elif piece.slot and draw.random() < EXCHANGED:
            pieces.append(draw.choice(donors[piece.slot]))
        else:
            pieces.append(piece)
    for slot in sorted(donors.keys() - order.slots()):
        if draw.random() >= PUT_IN:
            continue
        if linked[slot]:
            pieces += draw.choice(linked[slot])
        else:
            head = next(place for place, piece in enumerate(pieces) if piece.slot == HEAD)
            pieces.insert(head, draw.choice(donors[slot]))
    return pieces


if __name__ == "__main__":
    sys.exit(main())
