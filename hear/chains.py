"""Short recordings of one voice, one behind the other: what lies between hearing a word and hearing a sentence.

    python hear/chains.py MANIFEST [MANIFEST ...] --out FOLDER [--count 1500] [--links 2 4] [--seed 0]

Each clip is cut of its silence, and some are played over their neighbour's end by a little, as in speech; pauses lie between
the others. Writes FOLDER/manifest.jsonl with transcripts in the same order. The same seed gives the same chains.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from aura.audio.waveform import SAMPLE_RATE
from aura.batch.loader import load_example
from aura.data.manifest import read_utterances
from aura.errors import AuraError, DataError
from aura.evaluation.json_text import replace_text
from aura.progress import audio_progress
from aura.student.files import whole_folder

GAP = (-0.03, 0.25)  # seconds between two clips; below zero they overlap
QUIET_DB = -35.0  # below a clip's loudest 10 ms: silence at its ends
HOP = SAMPLE_RATE // 100


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifests", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--links", type=int, nargs=2, default=(2, 4), help="fewest and most clips in a chain")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        make_chains(options.manifests, options.out, options.count, tuple(options.links), options.seed)
    except AuraError as error:
        print(f"hear/chains.py: {error}", file=sys.stderr)
        return 2
    return 0


def make_chains(manifests: list[str], out: Path, count: int, links: tuple[int, int], seed: int) -> None:
    """The folder, whole or not at all.

    Raises:
        AuraError: manifests or recordings that cannot be read, impossible `links`, or no voice with `links[0]` clips.
    """
    if not 1 <= links[0] <= links[1]:
        raise DataError(
            f"--links is {links[0]} {links[1]}; expected the fewest and the most clips of a chain, e.g. 2 4"
        )
    voices = read_voices(manifests)
    known = sorted(voice for voice, clips in voices.items() if len(clips) >= links[0])
    if not known:
        raise DataError(
            f"{', '.join(manifests)}: no voice has {links[0]} clips; expected transcribed rows with a speaker"
        )
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    with whole_folder(out) as folder, audio_progress("chains", count) as advance:
        (folder / "audio").mkdir()
        for number in range(count):
            voice = known[number % len(known)]
            clips = voices[voice]
            chosen = draw.sample(clips, min(len(clips), draw.randint(*links)))
            wave_N = join([wave for wave, _ in chosen], [draw.uniform(*GAP) for _ in chosen[1:]])
            name = f"audio/{number:05d}.opus"
            soundfile.write(folder / name, wave_N, SAMPLE_RATE, format="OGG", subtype="OPUS")
            rows.append(
                {
                    "audio": name,
                    "seconds": round(len(wave_N) / SAMPLE_RATE, 3),
                    "transcript": " ".join(text for _, text in chosen),
                    "speaker": voice,
                    "task": "transcribe",
                }
            )
            advance(1, rows[-1]["seconds"])
        replace_text(folder / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    print(f"{out / 'manifest.jsonl'}: {count} chains of {len(known)} voices")


def read_voices(manifests: list[str]) -> dict[str, list[tuple[np.ndarray, str]]]:
    """(samples without the silence around them, transcript) by voice."""
    voices: dict[str, list[tuple[np.ndarray, str]]] = defaultdict(list)
    for manifest in manifests:
        for utterance in read_utterances(manifest):
            if len(utterance.audio) != 1:
                raise DataError(
                    f"{utterance.id} of {manifest} has {len(utterance.audio)} recordings; expected rows with one each"
                )
            if utterance.transcript and utterance.speaker:
                [wave_N] = load_example(utterance).waveforms
                voices[utterance.speaker].append((trim(wave_N), utterance.transcript))
    return voices


def trim(wave_N: np.ndarray) -> np.ndarray:
    """Without the quiet frames at both ends."""
    frames = wave_N[: len(wave_N) // HOP * HOP].reshape(-1, HOP)
    level = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(level > level.max(initial=0.0) * 10 ** (QUIET_DB / 20))
    return wave_N[loud[0] * HOP : (loud[-1] + 1) * HOP] if len(loud) else wave_N


def join(waves: list[np.ndarray], gaps: list[float]) -> np.ndarray:
    """One behind the other, with the loudness of the first for all."""
    level = rms(waves[0])
    starts, end = [], 0
    for wave, gap in zip(waves, [0.0, *gaps], strict=True):
        starts.append(max(0, end + round(gap * SAMPLE_RATE)))
        end = max(end, starts[-1] + len(wave))
    whole = np.zeros(end, dtype=np.float32)
    for wave, start in zip(waves, starts, strict=True):
        whole[start : start + len(wave)] += wave * (level / max(rms(wave), 1e-6))
    return whole / max(1.0, float(np.abs(whole).max()))


def rms(wave_N: np.ndarray) -> float:
    return float(np.sqrt((wave_N**2).mean()))


if __name__ == "__main__":
    sys.exit(main())
