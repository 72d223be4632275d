"""Time to the first token of the answer, counted from the end of the speech: one question at a time, all routes.

The routes take turns on each item, and another one begins each time, so that a noisy machine hits all alike.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aura.audio.patches import SAMPLE_RATE
from aura.errors import AudioError, AuraError
from aura.evaluation.json_text import replace_text
from aura.evaluation.measures import Item
from aura.evaluation.memory import load_average
from aura.evaluation.route_answers import question_of
from aura.evaluation.route_host import RouteBroke, RouteHost
from aura.progress import Advance


@dataclass(frozen=True, kw_only=True)
class FirstTokens:
    """What was measured.

    Args:
        ids: of the items, in the order they were asked.
        audio_seconds: of each item.
        seconds: by route, per item; None where the route could not answer.
        interleaved: the routes took turns item by item.
        load_average: of the machine when the measuring began; above the number of busy cores of the routes
            themselves, somebody else was at work.
    """

    ids: tuple[str, ...]
    audio_seconds: tuple[float, ...]
    seconds: Mapping[str, tuple[float | None, ...]]
    interleaved: bool
    load_average: float | None

    def summary(self, name: str) -> dict[str, Any]:
        """Median and 95th percentile of one route, on the items that every route answered."""
        shared = [
            index for index in range(len(self.ids)) if all(row[index] is not None for row in self.seconds.values())
        ]
        own = [self.seconds[name][index] for index in shared]
        audio = [self.audio_seconds[index] for index in shared]
        return {
            "median": float(np.median(own)) if own else None,  # type: ignore[arg-type]
            "p95": float(np.quantile(own, 0.95)) if own else None,  # type: ignore[arg-type]
            "items": len(own),
            "audio_seconds": audio,
            "seconds": own,
            "interleaved": self.interleaved,
            "load_average": self.load_average,
        }

    def joined(self, other: FirstTokens) -> FirstTokens:
        """With further routes, measured on the same items one after the other."""
        return FirstTokens(
            ids=self.ids,
            audio_seconds=self.audio_seconds,
            seconds={**self.seconds, **other.seconds},
            interleaved=False,
            load_average=self.load_average,
        )


def sample_items(items: Sequence[Item], count: int, *, seed: int) -> list[Item]:
    """`count` items, the same ones for every route and every run, in the manifest's order."""
    chosen = random.Random(seed).sample(range(len(items)), min(count, len(items)))
    return [items[index] for index in sorted(chosen)]


def measure_first_tokens(
    hosts: Sequence[RouteHost], items: Iterable[Item], *, prompt: str | None, advance: Advance
) -> FirstTokens:
    """Ask every route every item alone, after one question to each that is not counted (the warm-up).

    Raises:
        AuraError: a route's process ended.
    """
    ids: list[str] = []
    audio: list[float] = []
    seconds: dict[str, list[float | None]] = {host.facts.name: [] for host in hosts}
    load = load_average()
    for item in items:
        try:
            question = question_of(item, prompt)
        except AudioError:
            advance(len(hosts), 0.0)
            continue
        if not ids:
            for host in hosts:
                _first_token(host, question)
        turn = len(ids) % max(1, len(hosts))
        for host in [*hosts[turn:], *hosts[:turn]]:
            seconds[host.facts.name].append(_first_token(host, question))
            advance(1, 0.0)
        ids.append(item.id)
        audio.append(sum(map(len, question.waveforms)) / SAMPLE_RATE)
    return FirstTokens(
        ids=tuple(ids),
        audio_seconds=tuple(audio),
        seconds={name: tuple(values) for name, values in seconds.items()},
        interleaved=True,
        load_average=load,
    )


def _first_token(host: RouteHost, question: Any) -> float | None:
    try:
        return host.first_token(question)
    except (AuraError, RouteBroke):
        if not host.alive():
            raise
        return None


def save_first_tokens(path: Path, measured: FirstTokens, key: Mapping[str, Any]) -> None:
    """Keep what was measured under what it was measured with."""
    replace_text(path, json.dumps({"key": key, **asdict(measured)}, indent=2, ensure_ascii=False) + "\n")


def kept_first_tokens(path: Path, key: Mapping[str, Any]) -> FirstTokens | None:
    """What an earlier run measured with the same routes on the same items; None where there is none."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("key") != json.loads(json.dumps(key)):
            return None
        return FirstTokens(
            ids=tuple(kept["ids"]),
            audio_seconds=tuple(kept["audio_seconds"]),
            seconds={name: tuple(values) for name, values in kept["seconds"].items()},
            interleaved=kept["interleaved"],
            load_average=kept["load_average"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # nothing there, or not ours: measuring again costs a minute
