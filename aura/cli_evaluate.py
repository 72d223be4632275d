"""`aura evaluate`: one checkpoint on a manifest, or several routes beside each other."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from aura.cli_speech import LoadOptions
from aura.errors import RecipeError

if TYPE_CHECKING:
    from aura.data.utterance import Utterance
    from aura.evaluation.compare import Comparison
    from aura.evaluation.evaluate import Evaluation
    from aura.evaluation.route_specs import RouteSpec

TaskName = Literal["transcribe", "answer", "contains", "number", "choice", "intent", "silence"]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How rows are read.

    Args:
        data_root: folder that relative audio paths start from; the manifest's own by default.
        limit: first N rows of each manifest.
        sample: N rows in all, spread evenly over the manifests; all by default.
        noise: recording of noise that is mixed into every row when it is read.
        snr: signal-to-noise ratios in dB; each row is asked once per ratio.
        snr_level: mean compares mean powers over the clip, peak the loudest 128 ms, as the Picovoice benchmark does.
        split: split of Hugging Face datasets.
        columns: their column for our field, e.g. --columns.transcript sentence.
        skip_bad: drop malformed rows with a count instead of stopping.
    """

    data_root: Path | None = None
    limit: int | None = None
    sample: int | None = None
    noise: Path | None = None
    snr: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None
    snr_level: Literal["mean", "peak"] = "mean"
    split: str | None = None
    columns: dict[str, str] | None = None
    skip_bad: bool = False

    def read(self, source: str, prompt: str | None, *, limit: int | None = None) -> list[Utterance]:
        from aura.data.manifest import read_utterances

        read = read_utterances(
            source,
            data_root=self.data_root,
            prompt=prompt,
            columns=self.columns,
            split=self.split,
            limit=limit,
            skip_bad=self.skip_bad,
        )
        found = list(read)
        if dropped := getattr(read, "skipped", ()):
            print(f"aura: {source}: {len(dropped)} bad rows were dropped, e.g. {dropped[0]}", file=sys.stderr)
        return found

    def read_all(self, manifests: Sequence[str], prompt: str | None) -> list[Utterance]:
        rows = [row for source in manifests for row in self.read(source, prompt, limit=self.limit)]
        if self.sample is not None:
            if self.sample < 1:
                raise RecipeError(f"--sample is {self.sample}; expected at least 1")
            rows = spread(rows, self.sample)
        if bool(self.snr) != (self.noise is not None):
            raise RecipeError(
                f"--noise is {self.noise} and --snr {self.snr}; expected both or neither, e.g. --noise kitchen.wav --snr 24 6"
            )
        if self.noise is None:
            return rows
        from aura.evaluation.noise import with_noise

        return with_noise(rows, self.noise, self.snr or [], level=self.snr_level)


def spread(rows: list[Utterance], count: int) -> list[Utterance]:
    """`count` rows at even distances, so that a manifest sorted by speaker or label is met all over."""
    return rows if count >= len(rows) else [rows[index * len(rows) // count] for index in range(count)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RouteArguments:
    """Several routes beside each other.

    Args:
        routes: aura=CHECKPOINT, bridge=CHECKPOINT, cascade, cascade=ASR, text, text=CHECKPOINT, endpoint=URL; with
            NAME: in front to name one. cascade and text read with the LLM of the first checkpoint, or --llm.
        shots: examples in front of each question for cascade and text, whose LLM never saw the task.
        shots_from: manifest they are drawn from; not the evaluated one.
        vad: every cascade a second time, with a voice activity filter in front.
        asr_only: the cascade's answer is what its recogniser wrote; always so in --task transcribe.
        asr_language: language code the cascade's recogniser is told; detected by default.
        first_token_items: rows on which the time to the first token is measured; 0 leaves it out.
        page_rows: rows to hear in report.html at most.
        one_at_a_time: load one route after the other; needs the least memory, but times them at different times.
        seed: of samples and intervals.
    """

    routes: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None
    shots: int = 0
    shots_from: str | None = None
    vad: bool = False
    asr_only: bool = False
    asr_language: str | None = None
    first_token_items: int = 20
    page_rows: int = 60
    one_at_a_time: bool = False
    seed: int = 0


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How rows are asked.

    Args:
        prompt: asked behind the audio instead of what the rows say; by default, rows without messages get
            what training used.
        max_new_tokens: tokens per answer at most.
        batch_tokens: positions per batch.
        batch_items: utterances per batch at most.
        min_avg_logprob: for the tasks transcribe and silence: a checkpoint's answer whose tokens have a lower mean
            log-probability says nothing. The checkpoint's own bound by default; -inf for none.
        lone_words: for the same tasks: whether one word can be all of an answer. What the checkpoint says by default.
        restart: do not go on with the items in --out, start over.
    """

    prompt: str | None = None
    max_new_tokens: int = 128
    batch_tokens: int = 2048
    batch_items: int = 64
    min_avg_logprob: float | None = None
    lone_words: bool | None = None
    restart: bool = False


def evaluate(
    checkpoint: str | None = None,
    /,
    *,
    manifest: Annotated[list[str], Parameter(consume_multiple=True)],
    out: Path,
    task: TaskName = "transcribe",
    answering: AnswerOptions = AnswerOptions(),
    data: DataOptions = DataOptions(),
    beside: RouteArguments = RouteArguments(),
    options: LoadOptions = LoadOptions(),  # noqa: B008  # frozen
) -> int:
    """Answer every row of a manifest and score the answers; once interrupted, go on where it stopped.

    With --routes, several ways from speech to an answer are compared: quality with intervals and significance, time to
    the first token, memory, and a page to hear them side by side.

    Args:
        checkpoint: folder of a trained adapter, or a Hub id.
        manifest: manifests or datasets (.jsonl, parquet, folder, hf:NAME).
        out: folder for report.json and items.jsonl; with --routes also report.md, report.html and a folder per route.
        task: what is scored: transcribe against transcripts (WER); answer, contains or number against the
            assistant's turns; choice and intent against labels; silence on clips without speech.
    """
    if beside.routes is None and checkpoint is None:
        raise RecipeError("no checkpoint was given; expected one, or --routes: aura evaluate CHECKPOINT --manifest ...")
    data.read_all(manifest, None)  # a bad manifest is said before the model is loaded
    if beside.routes is not None:
        return _compare(checkpoint, manifest, out, task, answering, data, beside, options)
    from aura.evaluation.evaluate import evaluate as run

    engine = options.load(str(checkpoint))
    result = run(
        engine,
        data.read_all(manifest, engine.model.config.prompt),
        task=task,
        out=out,
        max_new_tokens=answering.max_new_tokens,
        batch_tokens=answering.batch_tokens,
        batch_items=answering.batch_items,
        prompt=answering.prompt,
        min_avg_logprob=answering.min_avg_logprob,
        lone_words=answering.lone_words,
        limit=data.limit,
        resume=not answering.restart,
        command=shlex.join(["aura", *sys.argv[1:]]),
        settings={"manifests": manifest, "data_root": data.data_root},
    )
    print(summary(result))
    for error in result.errors:
        print(f"aura: failed: {error}", file=sys.stderr)
    return 2 if result.failed == result.items else 0


def _compare(
    checkpoint: str | None,
    manifest: list[str],
    out: Path,
    task: str,
    answering: AnswerOptions,
    data: DataOptions,
    beside: RouteArguments,
    options: LoadOptions,
) -> int:
    """The form with `--routes`."""
    from aura.evaluation.compare import CompareOptions, compare
    from aura.evaluation.route_specs import RouteOptions, first_checkpoint, openers, parse_routes, trained_prompt
    from aura.evaluation.unsure import bound_for

    routes = parse_routes(beside.routes or [], checkpoint=checkpoint, vad=beside.vad)
    trained_on = first_checkpoint(routes)
    default = trained_prompt(trained_on) if trained_on is not None else None
    rows = data.read_all(manifest, default)
    shared = RouteOptions(
        llm=options.llm,
        device=options.device,
        dtype=options.dtype,
        batch_tokens=answering.batch_tokens,
        shots=_shots(beside, data, default, rows),
        prompt=answering.prompt,
        asr_only=beside.asr_only or task == "transcribe",  # an LLM behind it would only copy
        language=beside.asr_language,
        bound=bound_for(task, answering.min_avg_logprob, answering.lone_words),
    )
    result = compare(
        openers(routes, shared),
        rows,
        task=task,
        out=out,
        options=CompareOptions(
            max_new_tokens=answering.max_new_tokens,
            prompt=answering.prompt,
            limit=data.limit,
            first_token_items=beside.first_token_items,
            page_rows=beside.page_rows,
            seed=beside.seed,
            chunk=answering.batch_items,
            one_at_a_time=beside.one_at_a_time,
            resume=not answering.restart,
        ),
        command=shlex.join(["aura", *sys.argv[1:]]),
        settings={
            "manifests": manifest,
            "data_root": data.data_root,
            "routes": [_typed(route) for route in routes],
            "shots": beside.shots,
            "shots_from": beside.shots_from,
            "batch_tokens": answering.batch_tokens,
            "device": options.device,
            "dtype": options.dtype,
        },
    )
    print(comparison_summary(result))
    for error in result.errors:
        print(f"aura: failed: {error}", file=sys.stderr)
    return 2 if any(failed == result.items for failed in result.failed.values()) else 0


def _typed(route: RouteSpec) -> str:
    return f"{route.name}:{route.spec}" + (" with VAD" if route.vad else "")


def _shots(
    beside: RouteArguments, data: DataOptions, prompt: str | None, rows: Sequence[Utterance]
) -> tuple[Utterance, ...]:
    if bool(beside.shots) != (beside.shots_from is not None) or beside.shots < 0:
        raise RecipeError(
            f"--shots is {beside.shots} and --shots-from {beside.shots_from}; expected both or neither, e.g. "
            "--shots 4 --shots-from train.jsonl"
        )
    if beside.shots_from is None:
        return ()
    from aura.evaluation.route_specs import choose_shots

    pool = data.read(beside.shots_from, prompt)
    return choose_shots(pool, beside.shots, evaluated=rows, seed=beside.seed)


def comparison_summary(result: Comparison) -> str:
    """The table's lines as text, then where the reports lie."""
    from aura.evaluation.report_table import headline, scope_text

    names = list(result.content["routes"])
    lines = headline(result.content)
    table = [["", *names], *([line.label, *(cell.text for cell in line.cells)] for line in lines)]
    widths = [max(len(row[column]) for row in table) for column in range(len(names) + 1)]
    text = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]
    return "\n".join([*text, scope_text(result.content), f"report: {result.report}", f"page: {result.page}"])


def summary_lines(metrics: Mapping[str, object]) -> list[str]:
    """A metric a line."""
    lines = []
    for name, value in metrics.items():
        if isinstance(value, (list, tuple)):
            shown = " to ".join(f"{v:.4f}" for v in value)
        else:
            shown = "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
        lines.append(f"{name:<24} {shown}")
    return lines


def _cut(result: Evaluation, table: str, column: str, rate: str) -> list[str]:
    """A line for each group: its rate and its size."""
    return [
        f"  {row[column] or 'other'!s:<22} {'-' if row.get(rate) is None else f'{row[rate]:.4f}'}  ({row['items']} items)"
        for row in result.tables.get(table, ())
        if rate in row
    ]


def summary(result: Evaluation) -> str:
    """The metrics as lines, what else was heard or asked by kind, then where the report lies."""
    lines = summary_lines(result.metrics)
    lines += _cut(result, "by_no_speech", "no_speech", "false_transcript_rate")
    lines += _cut(result, "by_category", "category", "accuracy")
    if result.failed:
        lines.append(f"{result.failed} of {result.items} items failed; they are left out of the rates")
    return "\n".join([*lines, f"report: {result.report}"])
