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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from aura.audio.waveform import SAMPLE_RATE, load_waveform
from aura.data.utterance import build_messages
from aura.evaluation.json_text import replace_text
from aura.inference.endpoint import Endpointer
from aura.progress import audio_progress

INTENT_PROMPT, ANSWER_PROMPT = "Intent:", "Answer:"
SPEECH = ("librispeech", "speechocean762", "kathleen_arctic", "vctk_p239", "ljspeech_169")
BEFORE, BEHIND = 0.2, 0.3  # seconds kept around the speech of an order

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder with the manifests of the recordings")
    parser.add_argument("--out", type=Path, default=Path("runs/hear/data"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in SPEECH:
        for part in ("train", "valid", "test_other_100"):
            convert(options, f"{name}_{part}.jsonl", transcribed)
    convert(options, "digits_valid.jsonl", transcribed)
    for part in ("train", "valid"):
        convert(options, f"barista_{part}.jsonl", ordered)
    convert(options, "barista_train.jsonl", cut, name="barista_train_cut.jsonl", endpointer=Endpointer())
    for folder in sorted(path.parent for path in options.out.glob("*/manifest.jsonl")):
        spoken(folder, options.out)
    if (grammar := options.speech / "barista_grammar.yaml").is_file():
        phrases(grammar, options.out)
    halve_noise(options.speech / "noise" / "kitchen.opus", options.out)


def convert(
    options: argparse.Namespace, source: str, change: Callable[..., Row], *, name: str | None = None, **given: Any
) -> None:
    """One manifest of the recordings -> one of ours; a manifest that is not there is left out."""
    path = options.speech / source
    if not path.is_file():
        return
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    done = []
    with audio_progress(name or source, len(rows)) as advance:
        for row in rows:
            audio = path.parent / row["audio"]
            row["audio"] = os.path.relpath(audio, options.out)
            done.append(change(row, audio=audio, **given))
            advance(1, row.get("seconds", 0.0))
    write(options.out / (name or source), done)


def write(path: Path, rows: Iterable[Row]) -> None:
    write_lines(path, [json.dumps(row, ensure_ascii=False) for row in rows])


def write_lines(path: Path, lines: Iterable[str]) -> None:
    lines = list(lines)
    replace_text(path, "\n".join(lines) + "\n")
    print(f"{path}: {len(lines)} lines")


def transcribed(row: Row, *, audio: Path) -> Row:
    return row | {"transcript": plain_words(row["transcript"]), "task": "transcribe"}


def ordered(row: Row, *, audio: Path) -> Row:
    messages = build_messages(transcript=None, label=row["label"], task="intent", prompt=INTENT_PROMPT)
    return row | {"messages": list(messages), "task": "intent"}


def cut(row: Row, *, audio: Path, endpointer: Endpointer) -> Row:
    """The order without the silence around it; as it is where the detector hears no speech."""
    wave_N = load_waveform(audio)
    endpointer.reset()
    starts, ends = [], []
    for chunk in np.array_split(wave_N, max(1, len(wave_N) // 1024)):
        endpointer.feed(chunk)
        if endpointer.speech_start is not None:
            starts.append(endpointer.speech_start)
        if endpointer.speech_end is not None:
            ends.append(endpointer.speech_end)
    row = ordered(row, audio=audio)
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
        write(out / f"{folder.name}_intent.jsonl", [ordered(row, audio=folder) for row in rows])
        rows = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    if kind == "questions":
        write(out / f"{folder.name}.jsonl", [asked(row) for row in rows])
    elif kind == "no":
        write(out / f"{folder.name}.jsonl", rows)
    else:
        write(out / f"{folder.name}_words.jsonl", [transcribed(row, audio=folder) for row in rows])


def asked(row: Row) -> Row:
    messages = build_messages(transcript=None, label=row["label"], task="answer", prompt=ANSWER_PROMPT)
    return row | {"messages": list(messages)}


def phrases(grammar: Path, out: Path) -> None:
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
    main()
