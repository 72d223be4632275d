"""`aura inspect`: how much of the teacher a checkpoint has internalised."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from aura.cli_speech import LoadOptions
from aura.errors import AuraError, ModelError, RecipeError

if TYPE_CHECKING:
    from aura.inspection.ctc import CtcReader
    from aura.inspection.items import Origin
    from aura.teacher.encoder import Teacher


def inspect(
    checkpoint: str,
    /,
    *,
    manifest: Annotated[list[str], Parameter(consume_multiple=True)],
    out: Path,
    teacher: str | None = None,
    items: int | None = 400,
    positions: int = 4096,
    frames: Literal["stack", "pool"] | None = None,
    skip_untrained: bool = False,
    seed: int = 0,
    data_root: Path | None = None,
    split: str | None = None,
    columns: dict[str, str] | None = None,
    skip_bad: bool = False,
    batch_tokens: int = 1024,
    options: LoadOptions = LoadOptions(),  # noqa: B008  # frozen
) -> None:
    """Measure internalisation on held-out speech: per-layer cosine to the teacher, linear probes, CKA.

    Student, stock LLM and untrained student hear the same clips as the teacher. --out gets inspect.json, inspect.md and
    pictures. Several speakers make it better: no head and no content probe is
    measured on a speaker that it was fitted on.

    Args:
        checkpoint: folder of a trained adapter, or a Hub id.
        manifest: manifests or datasets (.jsonl, parquet, folder, hf:NAME) of speech held out from training.
        out: folder for the report.
        teacher: encoder to compare with (Hub id, folder or pip:); the one in the checkpoint's recipe by default.
        items: clips of each manifest at most, spread evenly over it.
        positions: audio positions sampled for the cosines and CKA; more is slower and needs more disk.
        frames: teacher frames of a patch side by side or averaged; as in the checkpoint's recipe by default.
        skip_untrained: leave the untrained student out; saves a third of the LLM's work.
        seed: of samples, splits and intervals.
        data_root: folder that relative audio paths start from; the manifest's own by default.
        split: split of Hugging Face datasets.
        columns: their column for our field, e.g. --columns.transcript sentence.
        skip_bad: drop malformed rows with a count instead of stopping.
        batch_tokens: audio positions per batch.
    """
    from aura.data.manifest import read_utterances
    from aura.errors import require
    from aura.inspection.figures import headline
    from aura.inspection.inspect import inspect_clips
    from aura.inspection.items import pick_clips, read_origin
    from aura.inspection.options import InspectOptions
    from aura.inspection.report import write_inspection

    _check_numbers(items=items, positions=positions, batch_tokens=batch_tokens)
    require("matplotlib", extra="train", purpose="aura inspect")  # said now, not after minutes of work
    origin = read_origin(checkpoint)
    reference = teacher or origin.section("teacher").get("encoder")
    if not reference:
        raise ModelError(f"{checkpoint} has no recipe that names a teacher; expected one. Name it with --teacher REF")
    fields: dict[str, Any] = {"data_root": data_root, "columns": columns, "split": split, "skip_bad": skip_bad}
    for source in manifest:
        read_utterances(source, **fields)  # a bad manifest is said before any model is loaded
    _make(out)
    engine = options.load(checkpoint)
    encoder, reader = load_teacher(reference, origin, engine.model.device)
    limit = min(engine.model.config.max_seconds, (encoder.spec.max_seconds or float("inf")) - 0.1)
    sources = [read_utterances(source, prompt=engine.model.config.prompt, **fields) for source in manifest]
    clips, left_out = pick_clips(sources, per_source=items, max_seconds=limit, origin=origin)
    if bad := sum(len(getattr(source, "skipped", ())) for source in sources):
        left_out["malformed"] = bad
    how = origin.section("distill").get("frame_map")
    settings = InspectOptions(
        positions=positions,
        frames=frames or ("pool" if how == "pool" else "stack"),
        untrained=not skip_untrained,
        batch_tokens=batch_tokens,
        seed=seed,
    )
    with _bars() as progress:
        found = inspect_clips(
            engine, encoder, clips, folder=out, options=settings, origin=origin, reader=reader, progress=progress
        )
    written = write_inspection(
        out,
        found,
        settings={
            "checkpoint": checkpoint,
            "adapter": engine.digest,
            "llm": options.llm or engine.model.config.base_model,
            "teacher": reference,
            "teacher_pad_to_30s": _pads(origin),
            "manifests": manifest,
            "data_root": data_root,
            "items": items,
            "dtype": options.dtype,
            **vars(settings),
        },
        command=shlex.join(["aura", *sys.argv[1:]]),
        left_out=left_out,
        seed=seed,
    )
    print("\n".join([*headline(written.numbers, found.names), f"report: {written.report}"]))
    if note := found.split.note:
        print(f"aura: {note}", file=sys.stderr)


def load_teacher(reference: str, origin: Origin, device: Any) -> tuple[Teacher, CtcReader | None]:
    """The encoder, and its CTC head where it has one.

    Raises:
        ModelError: it cannot be loaded.
    """
    import torch

    from aura.inspection.ctc import load_ctc_reader
    from aura.references import resolve
    from aura.teacher.encoder import Teacher

    path = resolve(reference)
    if (reader := load_ctc_reader(path, device=device)) is not None:
        return reader.teacher, reader
    return Teacher.load(path, dtype=torch.float32, device=device, pad_to_30s=_pads(origin)), None


def _pads(origin: Origin) -> bool:
    return bool(origin.section("teacher").get("pad_to_30s", False))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AuraError(
            f"{folder} cannot be made ({error.strerror}); expected a folder. Choose another --out"
        ) from error


def _check_numbers(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise RecipeError(f"--{name.replace('_', '-')} is {value}; expected at least 1")


class _bars:
    """One bar per stage, each after the other."""

    def __enter__(self) -> Any:
        self.stage: str | None = None
        return self

    def __call__(self, stage: str, total: int, done: int, seconds: float) -> None:
        from aura.progress import audio_progress

        if stage != self.stage:
            self.__exit__()
            self.stage, self.bar = stage, audio_progress(stage, total)
            self.advance = self.bar.__enter__()
        self.advance(done, seconds)

    def __exit__(self, *error: object) -> None:
        if self.stage is not None:
            self.bar.__exit__(None, None, None)
            self.stage = None
