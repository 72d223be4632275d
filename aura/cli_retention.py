"""`aura retention`: what an adapter did to the LLM's own text."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from aura.cli_evaluate import summary_lines
from aura.cli_speech import LoadOptions


def retention(
    checkpoint: str,
    /,
    *,
    texts: Path | None = None,
    out: Path | None = None,
    options: LoadOptions = LoadOptions(),  # noqa: B008  # frozen
) -> None:
    """Score text-only prompts under a checkpoint and under its stock LLM: perplexity and multiple choice.

    With gate `audio` the largest difference of any logit must be exactly 0.

    Args:
        checkpoint: folder of a trained adapter, or a Hub id.
        texts: JSON Lines of {"text": ...} and {"question", "options", "answer"}; a small set of our own by default.
        out: folder for report.json.
    """
    import time

    from aura.evaluation.report import write_report
    from aura.evaluation.retention import read_retention, text_retention
    from aura.evaluation.retention_texts import CHOICES, TEXTS
    from aura.progress import audio_progress

    prose, choices = (list(TEXTS), list(CHOICES)) if texts is None else read_retention(texts)
    engine = options.load(checkpoint)
    start = time.monotonic()
    with audio_progress("reading", len(prose) + len(choices), show=True) as advance:
        score = text_retention(engine, prose, choices, progress=lambda count: advance(count, 0.0))
    metrics = score.as_dict()
    print("\n".join(summary_lines(metrics)))
    if out is None:
        return
    path = write_report(
        out,
        metrics=metrics,
        settings={"checkpoint": engine.checkpoint, "adapter": engine.digest, "task": "retention", "texts": texts},
        command=shlex.join(["aura", *sys.argv[1:]]),
        timings={"this_run_seconds": round(time.monotonic() - start, 3)},
        items=score.items,
        failed=score.failed,
        extra={"rows": score.row_dicts()},
    )
    print(f"report: {path}")
