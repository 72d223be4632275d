"""What an evaluation leaves behind: `items.jsonl`, row by row, and `report.json` at the end.

A report is written whole or not at all. Rows are flushed one by one, so that an evaluation that is killed
goes on from the items already done.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import aura
from aura.errors import AuraError
from aura.evaluation.item_log import ItemLog
from aura.evaluation.json_text import plain, replace_text

__all__ = ["ItemLog", "folder_of", "machine", "versions", "write_report"]

VERSIONED = ("torch", "transformers", "peft")


def write_report(
    folder: str | os.PathLike[str],
    *,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
    command: str,
    timings: Mapping[str, Any],
    items: int,
    failed: int,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `folder/report.json` atomically; an older report there is replaced only by a complete new one.

    Keys: `metrics`, `settings`, `command`, `timings`, `counts` (`items` given, `failed` among them),
        `versions`,
    `machine`, `created` (UTC, ISO 8601), and those of `extra`. NaN and infinities become null, as JSON has
    neither.

    Args:
        metrics: e.g. `TranscriptionScore.as_dict()`.
        settings: everything that decides the result: checkpoint, manifest, decoding options, seed.
        command: the exact command that reproduces the report.
        timings: seconds, by name.
        items: items given, failed ones included.
        failed: items without an answer.
        extra: further top-level keys, e.g. `{"skipped": [...]}`.

    Raises:
        AuraError: the folder cannot be written to, `extra` repeats a key, or `failed` exceeds `items`.
    """
    if not 0 <= failed <= items:
        raise AuraError(f"A report got {failed} failed of {items} items; expected 0 <= failed <= items.")
    report: dict[str, Any] = {
        "metrics": metrics,
        "settings": settings,
        "command": command,
        "timings": timings,
        "counts": {"items": items, "failed": failed},
        "versions": versions(),
        "machine": machine(),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if repeated := sorted(report.keys() & (extra or {}).keys()):
        raise AuraError(f"A report's extra keys repeat {', '.join(repeated)}; give them other names.")
    text = json.dumps(plain({**report, **(extra or {})}), indent=2, ensure_ascii=False, allow_nan=False)
    path = Path(folder) / "report.json"
    replace_text(path, text + "\n")
    return path


def folder_of(route: str) -> str:
    """The folder of a route's answers beside a comparison's report: letters, digits and `._-` of its name."""
    return re.sub(r"[^\w.-]+", "-", route).strip(".-") or "route"


def versions() -> dict[str, str | None]:
    """Versions of aura, Python and what decides the numbers; None for a package that is not installed."""
    found: dict[str, str | None] = {"aura": aura.__version__, "python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, Any]:
    """CPU model and count, memory, system, accelerators. No host or user name: reports are published."""
    return {
        "cpu": _cpu_model(),
        "cpu_count": _usable_cpus(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "memory_gib": _memory_gib(),
        "accelerators": _accelerators(),
    }


def _cpu_model() -> str:
    try:  # Linux: platform.processor() is empty there
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _usable_cpus() -> int:
    # In a container fewer CPUs may be ours than the machine has.
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf, others may lack the name
        return None


def _accelerators() -> list[str]:
    torch = sys.modules.get("torch")  # a report on a run that never imported torch used no accelerator
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
