"""A corpus of speech -> a manifest with transcripts, confidences and answers; killed, it goes on where it stopped.

out/
  heard.jsonl      what the ASR heard, one row a recording as soon as it is done
  answers.jsonl    what the LLM answered, likewise
  manifest.jsonl   the rows that are good enough
  dropped.jsonl    the others, each with its reason
  report.json      how many of each

The two logs are the memory: other bounds of the filter cost nothing but the answers of the rows they let in.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from aura.batch.prompt import user_message
from aura.data.manifest import row_from_utterance
from aura.data.one_writer import one_writer
from aura.data.utterance import Utterance
from aura.errors import AuraError, RecipeError
from aura.evaluation.item_log import ItemLog
from aura.evaluation.json_text import plain, replace_text
from aura.labelling.answer import Answerer
from aura.labelling.filter import Filter
from aura.labelling.hear import Hearing, Listener

HEARD, ANSWERS = "heard.jsonl", "answers.jsonl"
MANIFEST, DROPPED, REPORT = "manifest.jsonl", "dropped.jsonl", "report.json"
AT_ONCE = 16  # transcripts answered together; a kill costs the work on so many, never a row

Known = Literal["keep", "replace", "compare"]
Advance = Callable[[int, float], None]


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What came out.

    Args:
        manifest: the file; None when nothing was kept.
        kept, total: rows.
        dropped: reasons with their counts, the most frequent first.
        seconds: of the audio kept.
    """

    manifest: Path | None
    kept: int
    total: int
    dropped: Mapping[str, int]
    seconds: float


def label(
    utterances: Sequence[Utterance],
    out: str | os.PathLike[str],
    *,
    listener: Callable[[], Listener] | None,
    answerer: Callable[[], Answerer] | None = None,
    known: Known = "keep",
    bounds: Filter | None = None,
    progress: Callable[[str, int], Any] | None = None,
) -> Labels:
    """Label a corpus.

    Args:
        utterances: rows with one recording each; their messages and labels are left behind.
        listener: opens the ASR, when there is something left to hear; None takes the rows' own transcripts.
        answerer: opens the LLM, when there is something left to answer; None makes rows to transcribe.
        known: transcripts that rows have already are kept unheard, replaced, or compared and kept where both agree.
        bounds: of the filter.
        progress: `progress(title, total)` gives a context manager around an `Advance`.

    Raises:
        DataError: the folder holds labels of another ASR or LLM.
        RecipeError: neither an ASR nor an LLM.
    """
    if listener is None and answerer is None:
        raise RecipeError(
            "neither an ASR nor an LLM was named; expected at least one, so that there is something to label"
        )
    folder, bounds = Path(out), bounds or Filter()
    rows = _unique(utterances)
    with one_writer(folder):
        heard = _hear_all(rows, folder / HEARD, listener, known, progress)
        judged = _judge(rows, heard, bounds, known)
        answers = _answer_all(judged, folder / ANSWERS, answerer, progress) if answerer is not None else None
        return _write(folder, judged, answers)


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A row with its transcript, or with the reason why it is dropped."""

    utterance: Utterance
    transcript: str | None
    hearing: Hearing | None
    reason: str | None
    detail: str = ""


def _unique(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Ids that come twice get a number, in the order of the rows."""
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for utterance in utterances:
        seen[utterance.id] += 1
        count = seen[utterance.id]
        found.append(utterance if count == 1 else replace(utterance, id=f"{utterance.id}~{count}"))
    return found


def _needs_hearing(utterance: Utterance, known: Known) -> bool:
    return len(utterance.audio) == 1 and (utterance.transcript is None or known != "keep")


def _hear_all(
    rows: Sequence[Utterance], path: Path, listener: Callable[[], Listener] | None, known: Known, progress: Any
) -> dict[str, dict[str, Any]]:
    """Rows of the log by id."""
    if listener is None or not any(_needs_hearing(row, known) for row in rows):
        return {}
    ear = listener()
    with ItemLog(path, settings=ear.settings) as log, _bar(progress, "hearing", len(rows)) as advance:
        done = log.done_ids()
        for row in rows:
            if row.id not in done and _needs_hearing(row, known):
                log.append(_hear(row, ear))
            advance(1, 0.0 if row.id in done else row.seconds)
        return {row["id"]: row for row in log.rows()}


def _hear(row: Utterance, ear: Listener) -> dict[str, Any]:
    try:
        hearing = ear.hear(row.audio[0].load())
    except AuraError as error:
        return {"id": row.id, "failed": True, "error": str(error)}
    return {"id": row.id, **asdict(hearing)}


def _judge(
    rows: Sequence[Utterance], heard: Mapping[str, Mapping[str, Any]], bounds: Filter, known: Known
) -> list[_Judged]:
    hearings = {
        id: Hearing(**{name: value for name, value in row.items() if name != "id"})
        for id, row in heard.items()
        if not row.get("failed")
    }
    compared = [row for row in rows if known == "compare" and row.transcript is not None and row.id in hearings]
    rates = _word_error_rates(compared, hearings)
    return [_judge_one(row, heard.get(row.id), hearings.get(row.id), rates.get(row.id), bounds, known) for row in rows]


def _judge_one(
    row: Utterance,
    logged: Mapping[str, Any] | None,
    hearing: Hearing | None,
    wer: float | None,
    bounds: Filter,
    known: Known,
) -> _Judged:
    def judged(transcript: str | None, reason: str | None, detail: str = "") -> _Judged:
        return _Judged(utterance=row, transcript=transcript, hearing=hearing, reason=reason, detail=detail)

    if len(row.audio) != 1:
        return judged(None, f"the row holds {len(row.audio)} recordings; one is labelled at a time")
    if row.transcript is not None and known == "keep":
        return judged(row.transcript, None)
    if hearing is None:
        if logged is None:
            return judged(None, "the row has no transcript, and no ASR was named")
        return judged(None, "the recording could not be heard", str(logged["error"]))
    own = row.transcript if known == "compare" else None
    return judged(own if own is not None else hearing.text, bounds.why_not(hearing, seconds=row.seconds, wer=wer))


def _word_error_rates(rows: Sequence[Utterance], hearings: Mapping[str, Hearing]) -> dict[str, float]:
    if not rows:
        return {}
    from aura.evaluation.metrics import transcription

    score = transcription(
        [row.transcript or "" for row in rows],
        [hearings[row.id].text for row in rows],
        lang=[row.lang or "en" for row in rows],
    )
    return {
        row.id: item.word_errors / item.words if item.words else float(bool(item.word_errors))
        for row, item in zip(rows, score.rows, strict=True)
    }


def _answer_all(
    judged: Sequence[_Judged], path: Path, answerer: Callable[[], Answerer], progress: Any
) -> dict[str, dict[str, Any]]:
    """Rows of the log by id; answers to other transcripts are given anew."""
    good = [item for item in judged if item.reason is None]
    if not good:
        return {}
    llm = answerer()
    with ItemLog(path, settings=llm.settings) as log, _bar(progress, "answering", len(good)) as advance:
        known = {row["id"]: row for row in log.rows()}
        waiting = [item for item in good if known.get(item.utterance.id, {}).get("transcript") != item.transcript]
        advance(len(good) - len(waiting), 0.0)
        for batch in _batches(waiting):
            for row in _answer(batch, llm):
                log.append(row)
            advance(len(batch), sum(item.utterance.seconds for item in batch))
        return {row["id"]: row for row in log.rows()}


def _answer(batch: Sequence[_Judged], llm: Answerer) -> Iterator[dict[str, Any]]:
    ids = [item.utterance.id for item in batch]
    texts = [item.transcript or "" for item in batch]
    try:
        answers = llm.answer(ids, texts)
    except AuraError as error:
        if len(batch) > 1:  # what breaks a batch is tried alone, so that it fails alone
            for item in batch:
                yield from _answer([item], llm)
            return
        yield {"id": ids[0], "transcript": texts[0], "failed": True, "error": str(error)}
        return
    for id, text, answer in zip(ids, texts, answers, strict=True):
        yield {"id": id, "transcript": text, "answer": answer.text, "finished": answer.finished}


def _batches(items: Sequence[_Judged]) -> Iterator[list[_Judged]]:
    remaining = iter(items)
    while batch := list(islice(remaining, AT_ONCE)):
        yield batch


def _write(
    folder: Path,
    judged: Sequence[_Judged],
    answers: Mapping[str, Mapping[str, Any]] | None,
) -> Labels:
    kept: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    seconds = 0.0
    options = None if answers is None else _options(folder / ANSWERS)
    for item in judged:
        answer = None if answers is None else answers.get(item.utterance.id)
        reason = item.reason or (None if answers is None else _why_not(answer))
        if reason is None:
            kept.append(_row(item, answer, options, folder.absolute()))
            seconds += item.utterance.seconds
            continue
        heard = item.hearing.text if item.hearing is not None else None
        detail = item.detail or str((answer or {}).get("error") or "")
        dropped.append({"id": item.utterance.id, "reason": reason, "heard": heard, "detail": detail or None})
    counts = dict(collections.Counter(row["reason"] for row in dropped).most_common())
    _write_lines(folder / MANIFEST, kept)
    _write_lines(folder / DROPPED, dropped)
    report = {"total": len(judged), "kept": len(kept), "hours": seconds / 3600, "dropped": counts}
    replace_text(folder / REPORT, json.dumps(plain(report), indent=2, ensure_ascii=False) + "\n")
    manifest = folder / MANIFEST if kept else None
    return Labels(manifest=manifest, kept=len(kept), total=len(judged), dropped=counts, seconds=seconds)


def _options(answers: Path) -> Mapping[str, Any]:
    settings = answers.with_suffix(".settings.json")
    return json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}


def _why_not(answer: Mapping[str, Any] | None) -> str | None:
    if answer is None or answer.get("failed"):
        return "the LLM could not answer"
    if not answer["answer"]:
        return "the answer is empty"
    return None if answer["finished"] else "the answer does not end"


def _row(
    item: _Judged, answer: Mapping[str, Any] | None, options: Mapping[str, Any] | None, root: Path
) -> dict[str, Any]:
    utterance = replace(item.utterance, transcript=item.transcript, label=None, task="transcribe", messages=())
    messages: tuple[Any, ...] = (user_message(None), {"role": "assistant", "content": item.transcript})
    if answer is not None:
        said = {"role": "assistant", "content": answer["answer"]}
        messages = (user_message((options or {}).get("instruction")), said)
    row = row_from_utterance(
        replace(utterance, messages=messages, task="answer" if answer is not None else "transcribe"), root
    )
    if utterance.lang is None and item.hearing is not None and item.hearing.language:
        row["lang"] = item.hearing.language
    row.setdefault("seconds", round(utterance.seconds, 4))
    if item.hearing is not None:
        row["confidence"] = item.hearing.as_dict()
    return row


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    replace_text(path, "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows))


def _bar(progress: Any, title: str, total: int) -> Any:
    from aura.progress import audio_progress

    return progress(title, total) if progress is not None else audio_progress(title, total, show=False)
