"""`aura report`: evaluations beside each other."""

from __future__ import annotations

import json as json_module
from pathlib import Path


def report(*reports: Path, out: Path | None = None, json: bool = False) -> None:
    """Compare evaluations: every metric with its difference to the first report, and the settings that differ.

    Args:
        reports: report.json files, or the --out folders of aura evaluate; the first is what others are compared with.
            A comparison of several routes counts as one report per route.
        out: write comparison.json and comparison.md into this folder as well.
        json: print JSON instead of tables.
    """
    from aura.evaluation.json_text import plain, replace_text
    from aura.evaluation.report_diff import compare_reports, markdown_diff

    diff = compare_reports(reports)
    text = markdown_diff(diff)
    whole = json_module.dumps(plain(diff.as_dict()), indent=2, ensure_ascii=False)
    if out is not None:
        replace_text(out / "comparison.json", whole + "\n")
        replace_text(out / "comparison.md", text + "\n")
    print(whole if json else text)
