"""Training throughput: audio-seconds per second and FLOP utilisation against this machine's own matmul rate.

    python benchmarks/train_throughput.py [--recipe FILE] [--steps 8] [--out FOLDER]

Peer in the same run: torch's own large matrix product. Clips of 2 to 15 s (uniform) of noise with answers of read speech's
length: the arithmetic does not depend on what is said. Prints a table of where the time goes and writes
`train_throughput.json` and a bar plot.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

SECONDS = (2.0, 15.0)  # clip lengths
WORDS_PER_SECOND = 2.7  # of read English
CLIPS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=None, help="recipe to measure; the defaults when left out")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--out", default="runs/bench")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="recipe overrides")
    options = parser.parse_args()
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    result = measure(options, out)
    (out / "train_throughput.json").write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    plot(result, out / "train_throughput.png")


def measure(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """One run; every figure from it."""
    import yaml

    from aura.batch.loader import BatchLoader
    from aura.batch.plan import LengthEstimate, plan_batches
    from aura.data.augment import Augment
    from aura.recipes import read_recipe
    from aura.training.cost import step_cost
    from aura.training.data import read_data
    from aura.training.objective import Weights
    from aura.training.schedule import make_optimizer
    from aura.training.setup import build_station

    overrides = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in options.set)}
    manifest = make_clips(out / "clips")
    recipe = read_recipe(
        options.recipe, {"data.train": [str(manifest)], "distill.calibration_seconds": 30.0, **overrides}
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision(recipe.run.float32_matmul)  # of the training and of the rate it is compared with
    matmul_before = matmul_rate(device)
    data = read_data(recipe)
    station = build_station(recipe, data.train, device=device)
    objective = station.objective
    optimizer = make_optimizer(objective.trainable(), recipe.optim)
    cost = step_cost(
        objective.student,
        teacher=station.targets.teacher.encoder if station.targets else None,
        target_width=station.targets.width if station.targets else 0,
        pairs=len(objective.pairs),
    )
    loader = BatchLoader(
        station.processor, augment=Augment(recipe.augment), seed=0, keep_waveforms=station.targets is not None
    )
    plan = plan_batches(
        data.train,
        LengthEstimate(station.processor),
        tokens=recipe.batch.tokens,
        max_items=recipe.batch.max_items,
        seed=0,
    )
    clock = Clock(device)
    totals = {"audio_seconds": 0.0, "positions": 0, "useful_positions": 0, "student_flop": 0.0, "teacher_flop": 0.0}
    objective.train()
    for step, batch in enumerate(loader(plan)):
        if step == options.warmup:
            clock.reset()
            totals = dict.fromkeys(totals, 0.0)
        if step == options.warmup + options.steps:
            break
        clock.lap("data")
        batch = batch.to(device)
        targets = station.targets(batch.waveforms, objective.heads) if station.targets and objective.heads else None
        clock.lap("teacher")
        patches = int((batch.input_ids == station.processor.audio_token_id).sum())
        weights = Weights(distill=1.0, kl=0.0, answer_tokens=batch.answer_tokens, patches=patches)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            losses = objective(batch, targets, weights)
        clock.lap("student forward")
        losses.total.backward()
        clock.lap("student backward")
        torch.nn.utils.clip_grad_norm_(list(objective.trainable().values()), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.lap("optimiser")
        totals["audio_seconds"] += batch.audio_seconds
        totals["positions"] += batch.input_ids.numel()
        totals["useful_positions"] += int(batch.attention_mask.sum())
        totals["student_flop"] += cost.student(
            positions=batch.input_ids.numel(),
            length=batch.input_ids.shape[1],
            answers=batch.answer_tokens,
            patches=patches,
        )
        if station.targets is not None:
            samples = sum(len(w) for w in batch.waveforms)
            totals["teacher_flop"] += cost.teacher(samples // station.targets.teacher.spec.frame_samples)
    matmul_after = matmul_rate(device)
    seconds = sum(clock.spent.values())
    flop = totals["student_flop"] + totals["teacher_flop"]
    rate = (matmul_before + matmul_after) / 2
    return {
        "audio_seconds_per_second": totals["audio_seconds"] / seconds,
        "positions_per_second": totals["positions"] / seconds,
        "padding_share": 1 - totals["useful_positions"] / totals["positions"],
        "model_gflop_per_second": flop / seconds / 1e9,
        "matmul_gflop_per_second": {"before": matmul_before / 1e9, "after": matmul_after / 1e9},
        "utilisation": flop / seconds / rate,
        "gflop_per_position": flop / totals["positions"] / 1e9,
        "teacher_share_of_flop": totals["teacher_flop"] / flop,
        "seconds": {name: spent / max(1, options.steps) for name, spent in clock.spent.items()},
        "steps": options.steps,
        "batch_tokens": recipe.batch.tokens,
        "device": device,
        "float32_matmul": recipe.run.float32_matmul,
        "threads": torch.get_num_threads(),
    }


class Clock:
    """Seconds per named lap."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.reset()

    def reset(self) -> None:
        self.spent: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.spent[name] = self.spent.get(name, 0.0) + now - self.last
        self.last = now


def matmul_rate(device: str) -> float:
    """Best of a few rounds of a large matrix product, FLOP/s, in the dtype that training computes in."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    size = 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(6):
        clock = Clock(device)
        a @ b
        clock.lap("product")
        best = max(best, 2 * size**3 / clock.spent["product"])
    return best


def make_clips(folder: Path) -> Path:
    """A manifest of noise clips with answers of fitting length; made once."""
    manifest = folder / "clips.jsonl"
    if manifest.is_file():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    words = ("people", "watch", "the", "quick", "fox", "jump", "over", "lazy", "dogs", "from", "their", "windows")
    rows = []
    for number in range(CLIPS):
        seconds = rng.uniform(*SECONDS)
        wave = rng.standard_normal(int(seconds * 16_000), dtype=np.float32) * 0.05
        soundfile.write(folder / f"{number}.wav", wave, 16_000)
        text = " ".join(rng.choice(words, max(1, int(seconds * WORDS_PER_SECOND))))
        rows.append({"audio": f"{number}.wav", "seconds": round(seconds, 3), "transcript": text})
    temporary = folder / f".clips.{os.getpid()}.tmp"
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(temporary, manifest)
    return manifest


def show(result: dict[str, Any]) -> None:
    total = sum(result["seconds"].values())
    print(f"\n{'station':20} {'s/step':>8} {'share':>7}")
    for name, seconds in result["seconds"].items():
        print(f"{name:20} {seconds:8.3f} {seconds / total:7.1%}")
    matmul = result["matmul_gflop_per_second"]
    print(
        f"\n{result['audio_seconds_per_second']:.2f} audio-seconds per second, {result['positions_per_second']:.0f} "
        f"positions/s ({result['padding_share']:.1%} padding), {result['gflop_per_position']:.2f} GFLOP a position\n"
        f"{result['model_gflop_per_second']:.1f} GFLOP/s in the model; matrix product {matmul['before']:.0f} before, "
        f"{matmul['after']:.0f} after\nutilisation {result['utilisation']:.2f} (aim on two cores: 0.6)"
    )


def plot(result: dict[str, Any], path: Path) -> None:
    from aura.pictures import pyplot, save_figure

    plt = pyplot("plotting a benchmark")

    figure, axis = plt.subplots(figsize=(7, 2.6))
    left = 0.0
    for name, seconds in result["seconds"].items():
        axis.barh(0, seconds, left=left, label=name)
        left += seconds
    axis.set(
        xlabel="seconds per step",
        yticks=[],
        title=f"Where a training step goes (utilisation {result['utilisation']:.2f})",
    )
    axis.legend(ncols=3, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.35))
    save_figure(figure, path, bbox_inches="tight")


if __name__ == "__main__":
    main()
