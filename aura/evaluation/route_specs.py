"""`aura=CKPT cascade text` -> functions that open these routes, all of them on one LLM."""

from __future__ import annotations

import functools
import json
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aura.data.utterance import Utterance
from aura.errors import DataError, RecipeError
from aura.evaluation.route_host import OpenRoute
from aura.evaluation.routes.open import SPECS, open_route
from aura.evaluation.routes.recognise import AsrOptions
from aura.evaluation.routes.student import llm_of
from aura.inference.bound import EVERYTHING, Bound
from aura.student.files import CONFIG, checkpoint_folder

_SPEC = re.compile(r"(?:(?P<name>[\w.-]+):)?(?P<spec>(?P<kind>aura|bridge|cascade|text|endpoint)(?:=(?P<value>.*))?)")


@dataclass(frozen=True, kw_only=True)
class RouteSpec:
    """One route as a user types it.

    Args:
        name: in reports.
        kind, value: before and behind the `=`.
        vad: the cascade's voice activity filter.
    """

    name: str
    kind: str
    value: str | None
    vad: bool = False

    @property
    def spec(self) -> str:
        return self.kind if self.value is None else f"{self.kind}={self.value}"


@dataclass(frozen=True, kw_only=True)
class RouteOptions:
    """What all routes share.

    Args:
        llm: reference of the LLM; that of the first checkpoint when None.
        device, dtype: of the LLM.
        batch_tokens: positions of one batch.
        shots: examples in front of each question for the routes whose LLM reads text.
        prompt: asked behind the audio, of the shots as well.
        asr_only: the cascade's answer is what its recogniser wrote.
        language: what the recogniser is told; None lets it detect.
        bound: what checkpoints' answers must show to say anything, see `open_route`.
    """

    llm: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    batch_tokens: int = 2048
    shots: tuple[Utterance, ...] = ()
    prompt: str | None = None
    asr_only: bool = False
    language: str | None = None
    bound: Bound = EVERYTHING


def parse_routes(words: Sequence[str], *, checkpoint: str | None = None, vad: bool = False) -> list[RouteSpec]:
    """What `--routes` holds: `KIND`, `KIND=VALUE`, with `NAME:` in front where two of a kind need names.

    Args:
        checkpoint: what `aura` without a value stands for; the first route where `aura` is not among them.
        vad: every cascade a second time, with its voice activity filter.

    Raises:
        RecipeError: a route that is none, lacks its checkpoint, or shares its name with another.
    """
    found: list[RouteSpec] = []
    for word in words:
        match = _SPEC.fullmatch(word.strip())
        if match is None:
            raise RecipeError(f"the route is {word!r}; expected one of {SPECS}, with NAME: in front to name it")
        kind, value = match["kind"], match["value"]
        if kind == "aura" and not value:
            value = checkpoint
        if kind in ("aura", "bridge", "endpoint") and not value:
            raise RecipeError(f"the route {word!r} lacks its {_what(kind)}; expected {kind}={_what(kind).upper()}")
        found.append(RouteSpec(name=match["name"] or kind, kind=kind, value=value or None))
        if vad and kind == "cascade":
            found.append(RouteSpec(name=f"{match['name'] or kind}-vad", kind=kind, value=value or None, vad=True))
    if checkpoint is not None and not any(route.kind == "aura" for route in found):
        found.insert(0, RouteSpec(name="aura", kind="aura", value=checkpoint))
    names = [route.name for route in found]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        first = next(route for route in found if route.name == repeated[0])
        raise RecipeError(
            f"two routes are called {repeated[0]!r}; expected names of their own, e.g. --routes {first.spec} "
            f"second:{first.spec}"
        )
    return found


def _what(kind: str) -> str:
    return "URL" if kind == "endpoint" else "checkpoint"


def openers(routes: Sequence[RouteSpec], options: RouteOptions) -> list[OpenRoute]:
    """A function per route, which other processes can be sent.

    Raises:
        RecipeError: a route that reads text, and no LLM to read with.
        RecipeError: a bound, and no checkpoint that could keep to it.
        CheckpointError: no checkpoint to take the LLM from.
    """
    hearing = any(route.kind in ("aura", "bridge") for route in routes)
    if not hearing and options.bound not in (Bound(), EVERYTHING):
        raise RecipeError(
            f"a bound is given with the routes {', '.join(route.spec for route in routes)}; expected "
            "aura=CHECKPOINT or bridge=CHECKPOINT among them, or neither min_avg_logprob nor lone_words"
        )
    reads = options.llm or shared_llm(routes)
    found: list[OpenRoute] = []
    for route in routes:
        settings: dict[str, Any] = {
            "device": options.device,
            "dtype": options.dtype,
            "name": route.name,
            "batch_tokens": options.batch_tokens,
        }
        if route.kind in ("aura", "bridge"):
            settings["llm"] = options.llm  # a checkpoint knows its own
            settings |= {"bound": options.bound, "prompt": _foreign_prompt(route, routes, options)}
        elif route.kind in ("cascade", "text"):
            asr_only = route.kind == "cascade" and options.asr_only
            if reads is None and not asr_only and not (route.kind == "text" and route.value):
                raise RecipeError(
                    f"the route {route.spec} has no LLM to read with; expected --llm ORG/NAME, or a route aura=CHECKPOINT "
                    "whose LLM it shares"
                )
            settings |= {"llm": reads, "shots": options.shots, "shot_prompt": options.prompt, "asr_only": asr_only}
            if route.kind == "cascade":
                settings["asr"] = AsrOptions(vad=route.vad, language=options.language)
        found.append(functools.partial(open_route, route.spec, **settings))
    return found


def _foreign_prompt(route: RouteSpec, routes: Sequence[RouteSpec], options: RouteOptions) -> str | None:
    """What a checkpoint is asked in place of its own prompt; None where it is that. Rows bring the first checkpoint's."""
    first = first_checkpoint(routes)
    if options.prompt is not None or first is None or route.value is None:
        return options.prompt
    asked = trained_prompt(first)
    return None if trained_prompt(route.value) == asked else asked or ""


def shared_llm(routes: Sequence[RouteSpec]) -> str | None:
    """The LLM of the first checkpoint among the routes; None without one.

    Raises:
        CheckpointError: that is no checkpoint.
    """
    checkpoint = first_checkpoint(routes)
    return None if checkpoint is None else llm_of(checkpoint)


def first_checkpoint(routes: Sequence[RouteSpec]) -> str | None:
    """The first aura or bridge checkpoint, else the one whose adapter reads text."""
    by_kind = {kind: [r.value for r in routes if r.kind == kind and r.value] for kind in ("aura", "bridge", "text")}
    return next((value for values in by_kind.values() for value in values), None)


def trained_prompt(checkpoint: str) -> str | None:
    """What a checkpoint's training asked behind the audio of rows without messages.

    Raises:
        CheckpointError: no checkpoint.
    """
    path = checkpoint_folder(checkpoint) / CONFIG
    try:
        prompt = json.loads(path.read_text(encoding="utf-8")).get("prompt")
    except (OSError, ValueError, AttributeError):
        return None  # opening the route will say what is wrong with it
    return prompt if isinstance(prompt, str) else None


def choose_shots(
    rows: Sequence[Utterance], count: int, *, evaluated: Sequence[Utterance], seed: int = 0
) -> tuple[Utterance, ...]:
    """A fixed-seed sample of rows that can serve as examples: one recording, its transcript, and an answer.

    Answers that are not among the examples yet come first: four of one kind would teach the LLM that kind.

    Raises:
        DataError: too few such rows, or one of them is among those that are evaluated.
    """
    asked = {part.name for utterance in evaluated for part in utterance.audio}
    able = [row for row in rows if row.transcript is not None and row.answer and len(row.audio) == 1]
    if any(row.audio[0].name in asked for row in able):
        known = next(row.id for row in able if row.audio[0].name in asked)
        raise DataError(
            f"the example {known} is among the evaluated rows; expected other recordings. Choose another --shots-from"
        )
    if len(able) < count:
        raise DataError(
            f"{len(able)} of {len(rows)} rows can serve as examples, {count} are needed; expected rows with one audio, "
            "'transcript' and an assistant turn. Choose another --shots-from, or fewer --shots"
        )
    shuffled = random.Random(seed).sample(able, len(able))
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, int]] = []  # how often the answer came before, place
    for place, row in enumerate(shuffled):
        rounds.append((seen[row.answer], place))
        seen[row.answer] += 1
    return tuple(shuffled[place] for _, place in sorted(rounds)[:count])
