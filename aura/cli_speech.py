"""The verbs that listen: transcribe, ask, evaluate."""

from __future__ import annotations

import json as json_module
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from aura.errors import AuraError, RecipeError

if TYPE_CHECKING:
    from aura.evaluation.evaluate import Evaluation
    from aura.inference.engine import Engine
    from aura.inference.transcribe import Transcript


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How the model is loaded.

    Args:
        llm: load the LLM from here (Hub id, folder or pip:) instead of where the checkpoint says.
        device: auto, cpu, cuda or cuda:1 ....
        dtype: of the LLM's weights.
    """

    llm: str | None = None
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def load(self, checkpoint: str) -> Engine:
        from transformers.utils import logging

        from aura.inference.engine import load

        if os.environ.get("TRANSFORMERS_VERBOSITY") == "error":
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        return load(checkpoint, llm=self.llm, device=self.device, dtype=self.dtype)


def transcribe(
    checkpoint: str,
    /,
    *files: str,
    json: bool = False,
    srt: bool = False,
    out: Path | None = None,
    prompt: str | None = None,
    window: float | None = None,
    overlap: float | None = None,
    max_new_tokens: int = 256,
    batch_tokens: int = 2048,
    options: LoadOptions = LoadOptions(),  # frozen
) -> int:
    """Write down what is said in audio files of any length.

    Args:
        checkpoint: folder of a trained adapter, or a Hub id.
        files: audio files; their windows are batched together.
        json: one JSON object a file: text, seconds, segments.
        srt: subtitles, one cue a window.
        out: write <name>.txt (.json, .srt) into this folder instead of printing.
        prompt: text behind the audio; what training used by default, "" for the audio alone.
        window: seconds heard at once, at most 30 by default.
        overlap: seconds shared by two windows where no pause lies near their border; 2 by default.
        max_new_tokens: tokens per window at most.
        batch_tokens: positions per batch.
    """
    from aura.inference.transcribe import transcribe_each
    from aura.progress import audio_progress

    if not files:
        raise RecipeError("no audio files were given; expected at least one: aura transcribe CHECKPOINT clip.wav")
    if json and srt:
        raise RecipeError("--json and --srt were given; expected one of them (JSON holds the segments too)")
    if srt and len(files) > 1 and out is None:
        raise RecipeError(f"--srt was given for {len(files)} files; expected --out DIR for their subtitles")
    engine = options.load(checkpoint)
    form: Form = "json" if json else "srt" if srt else "txt"
    names = output_names(files, form)
    failed = False
    # A bar and texts on one terminal would run into each other.
    with audio_progress("transcribing", len(files), show=out is not None or not sys.stdout.isatty()) as advance:
        for index, result in transcribe_each(
            engine,
            files,
            prompt=prompt,
            window=window,
            overlap=overlap,
            max_new_tokens=max_new_tokens,
            batch_tokens=batch_tokens,
            progress=lambda seconds: advance(0, seconds),
        ):
            advance(1, 0.0)
            if isinstance(result, AuraError):
                failed = True
                print(f"aura: error: {result}", file=sys.stderr)
                continue
            text = render(files[index], result, form)
            if out is None:
                print(f"{files[index]}: {text}" if form == "txt" and len(files) > 1 else text, flush=True)
            else:
                _write(out / names[index], text)
    return 2 if failed else 0


Form = Literal["txt", "json", "srt"]


def render(file: str, transcript: Transcript, form: Form) -> str:
    """One file's transcript as printed."""
    from aura.inference.transcribe import to_srt

    if form == "srt":
        return to_srt(transcript)
    if form == "json":
        return json_module.dumps({"file": file, **transcript.as_dict()}, ensure_ascii=False)
    return transcript.text


def output_names(files: tuple[str, ...], form: Form) -> list[str]:
    """`clip.txt` for `a/clip.wav`; files that share a name get a number."""
    names: list[str] = []
    for file in files:
        name, number = f"{Path(file).stem}.{form}", 1
        while name in names:
            number += 1
            name = f"{Path(file).stem}-{number}.{form}"
        names.append(name)
    return names


def _write(path: Path, text: str) -> None:
    from aura.evaluation.json_text import replace_text

    replace_text(path, text.rstrip("\n") + "\n")


def ask(
    checkpoint: str,
    clip: str,
    question: str,
    /,
    *,
    max_new_tokens: int = 256,
    options: LoadOptions = LoadOptions(),
) -> None:
    """Answer a question about a recording.

    Args:
        checkpoint: folder of a trained adapter, or a Hub id.
        clip: audio file.
        question: what to ask about it.
        max_new_tokens: tokens of the answer at most.
    """
    engine = options.load(checkpoint)
    engine.ask(clip, question, max_new_tokens=max_new_tokens, stream=lambda text: print(text, end="", flush=True))
    print()


def evaluate(
    checkpoint: str,
    /,
    *,
    manifest: Annotated[list[str], Parameter(consume_multiple=True)],
    out: Path,
    task: Literal["transcribe", "answer", "intent"] = "transcribe",
    data_root: Path | None = None,
    prompt: str | None = None,
    limit: int | None = None,
    split: str | None = None,
    columns: dict[str, str] | None = None,
    skip_bad: bool = False,
    max_new_tokens: int = 128,
    batch_tokens: int = 2048,
    batch_items: int = 64,
    restart: bool = False,
    options: LoadOptions = LoadOptions(),
) -> int:
    """Answer every row of a manifest and score the answers; once interrupted, go on where it stopped.

    Args:
        checkpoint: folder of a trained adapter, or a Hub id.
        manifest: manifests or datasets (.jsonl, parquet, folder, hf:NAME).
        out: folder for report.json and items.jsonl.
        task: what is scored: transcribe against transcripts (WER), answer against the assistant's turns,
            intent against labels.
        data_root: folder that relative audio paths start from; the manifest's own by default.
        prompt: asked behind the audio instead of what the rows say; by default, rows without messages get
            what training used.
        limit: first N rows.
        split: split of Hugging Face datasets.
        columns: their column for our field, e.g. --columns.transcript sentence.
        skip_bad: drop malformed rows with a count instead of stopping.
        max_new_tokens: tokens per answer at most.
        batch_tokens: positions per batch.
        batch_items: utterances per batch at most.
        restart: do not go on with the items in --out, start over.
    """
    from aura.data.manifest import read_utterances
    from aura.evaluation.evaluate import evaluate as run

    def rows(default_prompt: str | None) -> list[Any]:
        found: list[Any] = []
        for source in manifest:
            read = read_utterances(
                source,
                data_root=data_root,
                prompt=default_prompt,
                columns=columns,
                split=split,
                limit=limit,
                skip_bad=skip_bad,
            )
            found.extend(read)
            if dropped := getattr(read, "skipped", ()):
                print(
                    f"aura: {source}: {len(dropped)} bad rows were dropped, e.g. {dropped[0]}",
                    file=sys.stderr,
                )
        return found

    rows(None)  # a bad manifest is said before the model is loaded
    engine = options.load(checkpoint)
    result = run(
        engine,
        rows(engine.model.config.prompt),
        task=task,
        out=out,
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        batch_items=batch_items,
        prompt=prompt,
        limit=limit,
        resume=not restart,
        command=shlex.join(["aura", *sys.argv[1:]]),
        settings={"manifests": manifest, "data_root": data_root},
    )
    print(summary(result))
    for error in result.errors:
        print(f"aura: failed: {error}", file=sys.stderr)
    return 2 if result.failed == result.items else 0


def summary(result: Evaluation) -> str:
    """The metrics as lines, then where the report lies."""
    lines = []
    for name, value in result.metrics.items():
        if isinstance(value, (list, tuple)):
            shown = " to ".join(f"{v:.4f}" for v in value)
        else:
            shown = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        lines.append(f"{name:<24} {shown}")
    if result.failed:
        lines.append(f"{result.failed} of {result.items} items failed; they are left out of the rates")
    return "\n".join([*lines, f"report: {result.report}"])
