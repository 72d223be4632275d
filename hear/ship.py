"""A trained checkpoint -> the folder that the repository carries: float16 weights, a compact tokenizer, the full model card.

    python hear/ship.py runs/hear/run/checkpoint checkpoints/hear-270m [--table runs/hear/measured/table.md]
        [--min-avg-logprob BOUND]   # of hear/bound.py: transcripts less sure than this count as nothing said
        [--no-lone-words]           # nor does one word by itself count as a transcript
        [--average CHECKPOINT ...]  # the mean of these weights and the first one's: ends of one run, of stages in a row
        [--after CHECKPOINT]        # what the run started from, whose recipes go with its own

Run it once before measuring, so that the figures are those of the shipped weights, and once more with their table: the bound
that the target has stays, unless another is given.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aura.errors import AuraError, CheckpointError, RecipeError
from aura.inference.bound import Bound
from aura.recipes import read_recipe
from aura.student.checkpoint import CARD, RECIPE
from aura.student.files import CONFIG, checkpoint_folder, whole_folder

HALVED = ("adapter_model.safetensors", "audio_embedding.safetensors")
TOKENIZER = "tokenizer.json"
WORDS = Path(__file__).with_name("card.md")
LIMIT = 60_000_000  # bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--table", type=Path, default=None, help="from hear/measure.py")
    parser.add_argument("--average", type=Path, nargs="+", default=[], help="checkpoints of the same run")
    parser.add_argument("--after", type=Path, default=None, help="checkpoint that the run started from")
    parser.add_argument("--min-avg-logprob", type=float, default=None, help="from hear/bound.py")
    parser.add_argument("--no-lone-words", action="store_true", help="one word by itself is no transcript")
    options = parser.parse_args()
    try:
        sources = [options.checkpoint, *options.average]
        lone_words = False if options.no_lone_words else None
        bound = Bound(min_avg_logprob=options.min_avg_logprob, lone_words=lone_words)
        ship(sources, options.target, options.table, bound, after=options.after)
    except (AuraError, OSError) as error:
        print(f"hear/ship.py: {error}", file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in options.target.iterdir())
    print(f"{options.target}: {size / 1e6:.1f} MB")
    if size > LIMIT:
        print(f"hear/ship.py: that is more than {LIMIT / 1e6:.0f} MB", file=sys.stderr)
        return 1
    return 0


def ship(
    checkpoints: Sequence[Path],
    target: Path,
    table: Path | None = None,
    bound: Bound = Bound(),  # noqa: B008  # frozen
    *,
    after: Path | None = None,
) -> None:
    """The folder, whole or not at all.

    Args:
        checkpoints: the first one's, with the mean of the weights of all.
        bound: which transcripts count; None for what the target says.
        after: what it started from; its recipes, and those of the stages before it, go with the first one's.

    Raises:
        AuraError: no checkpoint there, one of another shape, an impossible bound, or a target whose configuration cannot be
            read.
    """
    if bound.min_avg_logprob == -math.inf:
        raise RecipeError("--min-avg-logprob is -inf; expected a number, or nothing for no bound")
    sources = [checkpoint_folder(checkpoint) for checkpoint in checkpoints]
    source = sources[0]
    before = None if after is None else checkpoint_folder(after)
    counts = bound_in(target / CONFIG) if (target / CONFIG).is_file() else {}
    counts |= given_in(asdict(bound))
    with whole_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        if before is not None:
            for stage in before.glob("recipe-*.yaml"):
                shutil.copy(stage, folder)
            started = Path(read_recipe(before / RECIPE).run.out).name  # as stages name theirs
            shutil.copy(before / RECIPE, folder / f"recipe-{started}.yaml")
        for name in HALVED:
            halves = {key: tensor.half() for key, tensor in mean_weights([each / name for each in sources]).items()}
            save_file(halves, folder / name, metadata={"format": "pt"})
            (folder / name).chmod(0o644)
        config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
        config["text_config"].pop("_name_or_path", None)  # where the LLM lay on the machine that trained
        config |= counts
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tokenizer = json.loads((source / TOKENIZER).read_text(encoding="utf-8"))
        compact = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
        (folder / TOKENIZER).write_text(compact, encoding="utf-8")
        parts = [(source / CARD).read_text(encoding="utf-8"), WORDS.read_text(encoding="utf-8")]
        if others := [f"`{checkpoint}`" for checkpoint in checkpoints[1:]]:
            parts.insert(1, f"The weights here are the mean of what is described above and {', '.join(others)}.\n")
        if table is not None:
            parts.append(
                "## Figures\n\nHeld-out speech, float16 weights as they lie here:\n\n"
                + table.read_text(encoding="utf-8")
            )
        (folder / CARD).write_text("\n".join(parts), encoding="utf-8")


def mean_weights(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of each tensor, float32.

    Raises:
        CheckpointError: a file that is damaged, or whose tensors have other names or shapes than the first one's.
    """
    mean = {key: tensor.float() for key, tensor in _read_weights(files[0]).items()}
    for file in files[1:]:
        more = _read_weights(file)
        if {key: tensor.shape for key, tensor in more.items()} != {key: tensor.shape for key, tensor in mean.items()}:
            raise CheckpointError(f"{file} has other weights than {files[0]}; expected checkpoints of the same run")
        for key, tensor in more.items():
            mean[key] += tensor.float()
    return {key: tensor / len(files) for key, tensor in mean.items()}


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} cannot be read ({error}); expected the weights of a whole checkpoint") from None


def bound_in(config: Path) -> dict[str, float | bool]:
    """The fields of `Bound` that a configuration has."""
    try:
        fields = dict(json.loads(config.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise RecipeError(f"{config}: not a JSON object; delete {config.parent}, and give the bound again") from None
    return given_in({field: fields.get(field) for field in asdict(Bound())})


def given_in(fields: Mapping[str, float | bool | None]) -> dict[str, float | bool]:
    return {field: value for field, value in fields.items() if value is not None}


if __name__ == "__main__":
    sys.exit(main())
