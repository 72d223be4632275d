"""The verbs that listen: transcribe, ask."""

from __future__ import annotations

import json as json_module
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import Parameter

from aura.errors import AuraError, RecipeError

if TYPE_CHECKING:
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
        decode: lean, or a copy of the weights that decodes faster on CPU: float32, float16, int8; generate: transformers' loop.
        no_screen: read the whole output layer of the LLM for each token, not an 8-bit copy that gives the same tokens.
    """

    llm: str | None = None
    device: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    decode: Literal["auto", "generate", "lean", "float32", "float16", "int8"] = "auto"
    no_screen: bool = False

    def load(self, checkpoint: str) -> Engine:
        from transformers.utils import logging

        from aura.inference.engine import load

        if os.environ.get("TRANSFORMERS_VERBOSITY") == "error":
            logging.set_verbosity_error()
            logging.disable_progress_bar()
        return load(
            checkpoint,
            llm=self.llm,
            device=self.device,
            dtype=self.dtype,
            decode=self.decode,
            screen=not self.no_screen,
        )


def transcribe(
    *names: str,
    json: bool = False,
    srt: bool = False,
    out: Path | None = None,
    prompt: str | None = None,
    window: float | None = None,
    overlap: float | None = None,
    max_new_tokens: int = 256,
    batch_tokens: int = 2048,
    min_avg_logprob: float | None = None,
    lone_words: bool | None = None,
    scores: bool = False,
    options: LoadOptions = LoadOptions(),  # frozen
) -> int:
    """Write down what is said in audio files of any length.

    Args:
        names: folder of a trained adapter or a Hub id, then audio files, whose windows are batched together. Where the first
            is an audio file already, $AURA_CHECKPOINT or the checkpoint that comes with aura's source is taken.
        json: one JSON object a file: text, seconds, segments.
        srt: subtitles, one cue a window.
        out: write <name>.txt (.json, .srt) into this folder instead of printing.
        prompt: text behind the audio; what training used by default, "" for the audio alone.
        window: seconds heard at once, at most 30 by default.
        overlap: seconds shared by two windows where no pause lies near their border; 2 by default.
        max_new_tokens: tokens per window at most.
        batch_tokens: positions per batch.
        min_avg_logprob: leave out windows whose tokens have a lower mean log-probability, e.g. -0.3: what the model is unsure
            of is often invented. The lowest mean of two hearings counts, below 3 s of four. The checkpoint's own bound by default,
            if it has one; -inf keeps everything.
        lone_words: whether one word can be all of a transcript. What the checkpoint says by default: where nothing stands beside
            it, a word of another language that sounds like one of ours is not told from it.
        scores: that mean for every segment, in the output of --json.
    """
    from aura.inference.transcribe import transcribe_each
    from aura.progress import audio_progress

    checkpoint, files = chosen_checkpoint(names)
    if not files:
        raise RecipeError("no audio files were given; expected at least one: aura transcribe CHECKPOINT clip.wav")
    if json and srt:
        raise RecipeError("--json and --srt were given; expected one of them (JSON holds the segments too)")
    if scores and not json:
        raise RecipeError("--scores was given without --json; expected both, the other forms hold no scores")
    if srt and len(files) > 1 and out is None:
        raise RecipeError(f"--srt was given for {len(files)} files; expected --out DIR for their subtitles")
    engine = options.load(checkpoint)
    form: Form = "json" if json else "srt" if srt else "txt"
    written = output_names(files, form)
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
            min_avg_logprob=min_avg_logprob,
            lone_words=lone_words,
            scores=scores,
            progress=lambda seconds: advance(0, seconds),
        ):
            advance(1, 0.0)
            if isinstance(result, AuraError):
                failed = True
                print(f"aura: error: {result}", file=sys.stderr)
                continue
            if result.unsure:
                print(
                    f"aura: {files[index]}: the words of {result.unsure} window(s) were left out, as the model is unsure of "
                    "them; --lone-words shows a word by itself that it is sure of, --min-avg-logprob -inf everything",
                    file=sys.stderr,
                )
            text = render(files[index], result, form)
            if out is None:
                print(f"{files[index]}: {text}" if form == "txt" and len(files) > 1 else text, flush=True)
            else:
                _write(out / written[index], text)
    return 2 if failed else 0


def chosen_checkpoint(names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Checkpoint and audio files of a command line that may leave the checkpoint out.

    Raises:
        CheckpointError: it is left out, and there is none to fall back on.
    """
    from aura.student.files import default_checkpoint

    if not names or not Path(names[0]).is_file():
        return (names[0] if names else ""), names[1:]
    checkpoint = default_checkpoint()
    print(f"aura: the checkpoint is {checkpoint}; its README.md says what it hears", file=sys.stderr)
    return checkpoint, names


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
