"""A checkpoint's answers to a manifest, scored: `items.jsonl` row by row, `report.json` at the end."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aura.batch.collate import Example
from aura.data.one_writer import one_writer
from aura.data.utterance import Utterance
from aura.errors import AudioError, AuraError
from aura.evaluation.choices import most_likely
from aura.evaluation.item_log import ItemLog
from aura.evaluation.measures import Item, items_of, score_items
from aura.evaluation.noise import noise_settings
from aura.evaluation.question import asked_messages, question_digest
from aura.evaluation.report import write_report
from aura.evaluation.routes.llm import llm_digest
from aura.evaluation.tables import tables
from aura.evaluation.tasks import TASKS, Task, get_task
from aura.evaluation.unsure import bound_for
from aura.inference.bound import Held
from aura.inference.generate import plan_batches, prompt_length
from aura.inference.transcribe import written
from aura.progress import Advance, audio_progress

if TYPE_CHECKING:
    from aura.inference.engine import Engine

__all__ = ["TASKS", "Evaluation", "evaluate", "reference_of"]

CHUNK = 64  # utterances decoded together, so that like lengths can be batched


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came out.

    Args:
        metrics: of the task, with `accuracy`: the share of answers that are right as a whole.
        report: path of `report.json`.
        items, failed: utterances given, and those among them without an answer.
        errors: the first few reasons, `id: reason`.
        tables: the metrics by speaker, length ..., as `aura.evaluation.tables.tables` gives them.
    """

    metrics: Mapping[str, Any]
    report: Path
    items: int
    failed: int
    errors: tuple[str, ...]
    tables: Mapping[str, Any] = field(default_factory=dict)


def evaluate(
    engine: Engine,
    utterances: Iterable[Utterance],
    *,
    task: str = "transcribe",
    out: str | os.PathLike[str],
    max_new_tokens: int = 128,
    batch_tokens: int = 2048,
    batch_items: int = CHUNK,
    prompt: str | None = None,
    min_avg_logprob: float | None = None,
    lone_words: bool | None = None,
    limit: int | None = None,
    resume: bool = True,
    command: str = "aura.evaluation.evaluate.evaluate(...)",
    settings: Mapping[str, Any] | None = None,
    show_progress: bool = True,
) -> Evaluation:
    """Answer every utterance greedily and score the answers.

    An utterance that cannot be answered (unreadable audio, longer than the model takes) is written down as
    failed, counted and left out of the rates. An evaluation that was interrupted goes on where it stopped;
    failed items are tried again.

    Args:
        utterances: with what the task is scored against: transcript (`transcribe`), assistant turn (`answer`), label
            (`intent`) ...
        task: one of `aura.evaluation.tasks.TASKS`.
        out: folder of `report.json` and `items.jsonl`.
        batch_tokens, batch_items: bounds of one batch, see `generate_texts`.
        prompt: asked behind the audio instead of what the utterances' own user turns say.
        min_avg_logprob: for `transcribe` and `silence`: an answer less sure than this says nothing, as `transcribe_each` has
            it; None for the checkpoint's own bound, `-inf` for none.
        lone_words: for the same tasks: False where one word says nothing; None for what the checkpoint says.
        limit: first N utterances.
        resume: go on with the items in `out`; False starts over.
        command: what reproduces the report, kept in it.
        settings: kept in the report, e.g. the manifests.

    Raises:
        DataError: nothing to score against, `out` holds answers given under other settings, or another process writes there.
        RecipeError: an impossible bound, or one for another task.
        PromptError, MissingExtraError, AuraError: see `generate_texts`, `transcription`, `ItemLog`.
    """
    kind = get_task(task)
    items = items_of(kind, list(itertools.islice(utterances, limit)))
    held = bound_for(kind.name, min_avg_logprob, lone_words).of(engine.model, prompt)
    score_items(kind, items[:1], [None])  # the scoring package is missing: say so now, not after an hour
    decides: dict[str, Any] = {
        "checkpoint": engine.checkpoint,
        "adapter": engine.digest,
        "llm_digest": llm_digest(engine.model.language_model),
        "decode": engine.decode,
        "dtype": str(engine.model.language_model.dtype).removeprefix("torch."),
        "task": task,
        "prompt": prompt,
        "max_new_tokens": max_new_tokens,
        "noise": noise_settings(item.utterance for item in items),
    }
    decides |= held.settings()
    start = time.monotonic()
    folder = Path(out)
    with one_writer(folder), ItemLog(folder / "items.jsonl", settings=decides, resume=resume) as done:
        kept = {row["id"]: row.get("question") for row in done.rows() if not row["failed"]}
        names = {item.id: _digest(item, kind, prompt) for item in items}
        pending = [item for item in items if kept.get(item.id) != names[item.id]]
        with audio_progress("evaluating", len(items), show=show_progress) as advance:
            advance(len(items) - len(pending), 0.0)
            for row in _answer(engine, pending, kind, prompt, held, max_new_tokens, batch_tokens, batch_items, advance):
                done.append({**row, "question": names[row["id"]]})
        by_id = {row["id"]: row for row in done.rows()}
    rows = [by_id[item.id] for item in items]
    failed = [row for row in rows if row["failed"]]
    score = score_items(kind, items, [row["hypothesis"] for row in rows])
    metrics = score.metrics
    cut = tables([item.utterance for item in items], score)
    extra: dict[str, Any] = {"tables": cut}
    if failed:
        extra["failures"] = [{"id": row["id"], "error": row["error"]} for row in failed]
    report = write_report(
        out,
        metrics=metrics,
        settings={**decides, **(settings or {}), "limit": limit, "batch_tokens": batch_tokens},
        command=command,
        timings={**_timings(rows), "this_run_seconds": round(time.monotonic() - start, 3)},
        items=len(rows),
        failed=len(failed),
        extra=extra,
    )
    return Evaluation(
        metrics=metrics,
        report=report,
        items=len(rows),
        failed=len(failed),
        errors=tuple(f"{row['id']}: {row['error']}" for row in failed[:5]),
        tables=cut,
    )


def _digest(item: Item, task: Task, prompt: str | None) -> str:
    """Names the question and what its answer is compared with: rows of other data under the same id are asked again."""
    return question_digest(item.utterance, prompt=prompt, also=[task.options_of(item.utterance), item.reference])


def reference_of(utterance: Utterance, task: str) -> Any:
    """What an answer is compared with: transcript, assistant turn, label ...; None where there is none."""
    return get_task(task).reference_of(utterance)


def _answer(
    engine: Engine,
    items: Sequence[Item],
    task: Task,
    prompt: str | None,
    held: Held,
    max_new_tokens: int,
    batch_tokens: int,
    batch_items: int,
    advance: Advance,
) -> Iterator[dict[str, Any]]:
    """A row for each item, batch by batch."""
    for first in range(0, len(items), CHUNK):
        chunk = items[first : first + CHUNK]
        start = time.monotonic()
        ready: list[tuple[Item, Example]] = []
        lengths: list[int] = []
        for item in chunk:
            try:
                example = _question(engine, item.utterance, prompt)
                lengths.append(prompt_length(engine.model, engine.processor, example))
                ready.append((item, example))
            except AuraError as error:
                yield _row(item, task, error=str(error))
                advance(1, 0.0)
        decoding = (time.monotonic() - start) / max(1, len(ready))
        if task.options_of(chunk[0].utterance) is not None:
            yield from _choose(engine, ready, task, decoding, advance)
            continue
        for planned in plan_batches(lengths, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens):
            for at in range(0, len(planned), batch_items):
                batch = [ready[index] for index in planned[at : at + batch_items]]
                start = time.monotonic()
                examples = [example for _, example in batch]
                generations = engine.generate(examples, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens)
                sure: Sequence[float | None] = [None] * len(batch)
                if held.needs_scores:
                    sure = engine.confidence(examples, generations, batch_tokens=batch_tokens)
                used = (time.monotonic() - start) / len(batch) + decoding
                for (item, example), generation, average in zip(batch, generations, sure, strict=True):
                    seconds = sum(len(wave) for wave in example.waveforms) / 16_000
                    text = "" if held.leaves_out(generation.text, average) else generation.text
                    row = _row(item, task, hypothesis=text, finished=generation.finished, seconds=seconds, used=used)
                    yield row if average is None else {**row, "avg_logprob": written(average)}
                    advance(1, seconds)


def _choose(
    engine: Engine, ready: Sequence[tuple[Item, Example]], task: Task, decoding: float, advance: Advance
) -> Iterator[dict[str, Any]]:
    """A row for each item: the option of the highest likelihood, nothing is written."""
    from aura.evaluation.routes.answering import Answerer

    answerer = Answerer(engine.model, engine.processor)
    for item, example in ready:
        start = time.monotonic()
        seconds = sum(len(wave) for wave in example.waveforms) / 16_000
        options = task.options_of(item.utterance) or ()
        try:
            chosen = most_likely(options, answerer.score(example, options))
        except AuraError as error:
            yield _row(item, task, error=str(error))
        else:
            used = time.monotonic() - start + decoding
            yield _row(item, task, hypothesis=chosen, finished=True, seconds=seconds, used=used)
        advance(1, seconds)


def _question(engine: Engine, utterance: Utterance, prompt: str | None) -> Example:
    """The utterance without its answer, decoded."""
    messages = asked_messages(utterance, prompt)
    longest = engine.model.config.max_seconds
    for part in utterance.audio:
        if (seconds := part.measure()) > longest:
            raise AudioError(f"{part.name} is {seconds:.1f} s long; expected at most {longest:g} s at once. Cut it.")
    return Example(id=utterance.id, messages=messages, waveforms=[part.load() for part in utterance.audio])


def _row(
    item: Item,
    task: Task,
    *,
    hypothesis: str | None = None,
    finished: bool | None = None,
    seconds: float | None = None,
    used: float = 0.0,
    error: str | None = None,
) -> dict[str, Any]:
    return {
        "id": item.id,
        "reference": task.written(item.reference),
        "hypothesis": hypothesis,
        "correct": score_items(task, [item], [hypothesis]).correct[0],
        "finished": finished,
        "audio_seconds": seconds,
        "wall_seconds": round(used, 6),
        "failed": error is not None,
        "error": error,
    }


def _timings(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the answered items, over all runs that went into the log."""
    answered = [row for row in rows if not row["failed"]]
    audio = sum(row["audio_seconds"] for row in answered)
    wall = sum(row["wall_seconds"] for row in answered)
    return {
        "audio_seconds": round(audio, 6),
        "wall_seconds": round(wall, 6),
        "real_time_factor": wall / audio if audio else None,
        "audio_seconds_per_second": audio / wall if wall else None,
    }
