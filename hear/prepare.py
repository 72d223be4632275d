"""Manifests of recipes/hear-270m.yaml, from a folder of transcribed speech and from text that is spoken here.

    python hear/prepare.py SPEECH [--out runs/hear/data]

SPEECH holds barista_train.jsonl, librispeech_train.jsonl and so on (hear/README.md says where each comes from). Written
are manifests with paths relative to themselves: read speech with transcripts in lower case (capitals cost the tokenizer
two and a half times the tokens), the spoken orders once as recorded and once with the silence around them cut off (two
thirds of them is silence), and the kitchen noise in two halves, one to train with and one to measure with.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from aura.audio.waveform import SAMPLE_RATE, load_waveform
from aura.data.utterance import build_messages
from aura.errors import AuraError, DataError
from aura.evaluation.json_text import replace_text
from aura.inference.endpoint import Endpointer
from aura.progress import audio_progress

INTENT_PROMPT, ANSWER_PROMPT = "Intent:", "Answer:"
SPEECH = ("digits", "librispeech", "speechocean762", "kathleen_arctic", "vctk_p239", "ljspeech_169")
BEFORE, BEHIND = 0.2, 0.3  # seconds kept around the speech of an order

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder with the manifests of the recordings")
    parser.add_argument("--out", type=Path, default=Path("runs/hear/data"))
    parser.add_argument("--texts-only", action="store_true", help="only the texts that are to be spoken")
    options = parser.parse_args()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        write_phrases(options.speech / "barista_grammar.yaml", options.out)
        if not options.texts_only:
            prepare(options.speech, options.out)
    except (AuraError, OSError) as error:
        print(f"hear/prepare.py: {error}", file=sys.stderr)
        return 2
    return 0


def prepare(speech: Path, out: Path) -> None:
    """All manifests; one that is not in `speech` is left out.

    Raises:
        DataError: none is there.
        AudioError: a recording that is named and missing.
    """
    names = [f"{name}_{part}.jsonl" for name in SPEECH for part in ("train", "valid", "test_other_100")]
    done = [convert(speech / name, out, transcribed) for name in names]
    done += [convert(speech / f"barista_{part}.jsonl", out, ordered) for part in ("train", "valid")]
    if not any(done):
        raise DataError(
            f"{speech}: no manifest such as librispeech_train.jsonl in it; hear/README.md says what belongs there"
        )
    convert(
        speech / "barista_train.jsonl",
        out,
        partial(cut, folder=out, endpointer=Endpointer()),
        "barista_train_cut.jsonl",
    )
    for folder in sorted(path.parent for path in out.glob("*/manifest.jsonl")):
        spoken(folder, out)
    halve_noise(kitchen(speech / "noise"), out)


def kitchen(folder: Path) -> Path:
    """The recording of noise, whichever its format.

    Raises:
        DataError: none is there.
    """
    if found := sorted(folder.glob("kitchen.*")):
        return found[0]
    raise DataError(f"{folder} holds no kitchen.wav or the like; hear/README.md says where it is from")


def convert(source: Path, out: Path, change: Callable[[Row], Row], name: str | None = None) -> bool:
    """One manifest of the recordings -> one of ours, called alike unless `name` says otherwise; whether it was there."""
    if not source.is_file():
        return False
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    done = []
    with audio_progress(name or source.name, len(rows)) as advance:
        for row in rows:
            row["audio"] = os.path.relpath(source.parent / row["audio"], out)
            done.append(change(row))
            advance(1, row.get("seconds", 0.0))
    write(out / (name or source.name), done)
    return True


def write(path: Path, rows: Iterable[Row]) -> None:
    write_lines(path, [json.dumps(row, ensure_ascii=False) for row in rows])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    lines = list(lines)
    replace_text(path, "\n".join(lines) + "\n")
    print(f"{path}: {len(lines)} lines")


def transcribed(row: Row) -> Row:
    return row | {"transcript": plain_words(row["transcript"]), "task": "transcribe"}


def ordered(row: Row) -> Row:
    messages = build_messages(transcript=None, label=row["label"], task="intent", prompt=INTENT_PROMPT)
    return row | {"messages": list(messages), "task": "intent"}


def cut(row: Row, *, folder: Path, endpointer: Endpointer) -> Row:
    """The order without the silence around it; as it is where the detector hears no speech."""
    wave_N = load_waveform(folder / row["audio"])
    endpointer.reset()
    starts, ends = [], []
    for chunk in np.array_split(wave_N, max(1, len(wave_N) // 1024)):
        endpointer.feed(chunk)
        if endpointer.speech_start is not None:
            starts.append(endpointer.speech_start)
        if endpointer.speech_end is not None:
            ends.append(endpointer.speech_end)
    row = ordered(row)
    if not starts:
        return row
    length = len(wave_N) / SAMPLE_RATE
    start, end = max(0.0, min(starts) - BEFORE), min(length, max(ends, default=length) + BEHIND)
    return row | {"start": round(start, 3), "end": round(end, 3), "seconds": round(end - start, 3)}


def spoken(folder: Path, out: Path) -> None:
    """What `aura data` made in `folder`, as rows beside the recordings': words to write down, and what else they are for."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["audio"] = os.path.relpath(folder / row["audio"], out)
    kind = folder.name.split("_")[0]
    if kind == "orders":
        write(out / f"{folder.name}_intent.jsonl", [ordered(row) for row in rows])
        rows = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    if kind == "questions":
        write(out / f"{folder.name}.jsonl", [asked(row) for row in rows])
    elif kind == "no":
        write(out / f"{folder.name}.jsonl", rows)
    else:
        write(out / f"{folder.name}_words.jsonl", [transcribed(row) for row in rows])


def asked(row: Row) -> Row:
    messages = build_messages(transcript=None, label=row["label"], task="answer", prompt=ANSWER_PROMPT)
    return row | {"messages": list(messages)}


def write_phrases(grammar: Path, out: Path) -> None:
    """The grammar's slot values, one a line: short texts to speak, from which hearing is learnt first."""
    import yaml

    slots = yaml.safe_load(grammar.read_text(encoding="utf-8"))["context"]["slots"]
    write_lines(out / "phrases.txt", dict.fromkeys(value for values in slots.values() for value in values))


def plain_words(text: str) -> str:
    """Lower case without punctuation, apostrophes inside words kept."""
    return " ".join(re.findall(r"[\w]+(?:'[\w]+)*", text.lower().replace("’", "'")))


def halve_noise(path: Path, out: Path) -> None:
    """Two recordings of noise that share no sample."""
    import soundfile

    noise_N = load_waveform(path)
    middle = len(noise_N) // 2
    for name, half in (("kitchen_train", noise_N[:middle]), ("kitchen_test", noise_N[middle:])):
        temporary = out / f".{name}.tmp.flac"
        soundfile.write(temporary, half, SAMPLE_RATE)
        os.replace(temporary, out / f"{name}.flac")


if __name__ == "__main__":
    sys.exit(main())
