"""`aura=CHECKPOINT`, `cascade`, ... as typed -> a route, opened; each kind's code is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from aura.data.utterance import Utterance
from aura.errors import RecipeError
from aura.evaluation.routes.route import Route
from aura.inference.bound import EVERYTHING, Bound

if TYPE_CHECKING:
    from aura.evaluation.routes.endpoint import EndpointOptions
    from aura.evaluation.routes.llm import LlmShelf
    from aura.evaluation.routes.recognise import AsrOptions

SPECS = (
    "aura=CHECKPOINT, bridge=CHECKPOINT, cascade, cascade=ASR (pip:, a CTranslate2 folder or a faster-whisper name), "
    "cascade=hf:ASR, text, text=CHECKPOINT, endpoint=URL"
)


def open_route(
    spec: str,
    *,
    llm: str | None = None,
    device: str = "auto",
    dtype: str = "float32",
    name: str | None = None,
    batch_tokens: int = 2048,
    shots: Sequence[Utterance] = (),
    shot_prompt: str | None = None,
    asr_only: bool = False,
    asr: AsrOptions | None = None,
    endpoint: EndpointOptions | None = None,
    bound: Bound = EVERYTHING,
    prompt: str | None = None,
    shelf: LlmShelf | None = None,
) -> Route:
    """A route from what a user types.

    Args:
        spec: one of `SPECS`.
        llm: reference of the LLM that `cascade` and `text` read with (see `student.llm_of` for a checkpoint's), and
            that checkpoints are loaded on instead of their own.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...; of the LLM and the ASR.
        dtype: of the LLM: float32, bfloat16 or float16.
        name: in reports; the kind when None. Give names where a comparison has several routes of a kind.
        batch_tokens: positions of one batch.
        shots: conversations that `cascade` and `text` put in front of each question: the stock LLM has never seen the
            task, the trained routes have. The cascade shows them as its own ASR hears them.
        shot_prompt: asked behind the audio of the shots instead of their own user turns.
        asr_only: the cascade's answer is what its ASR wrote; for transcription, where an LLM would only copy.
        asr: how the cascade recognises; its reference gives way to the spec's.
        endpoint: how the endpoint is asked; its URL gives way to the spec's.
        bound, prompt: what an answer of aura or bridge must show to say anything; what the checkpoint says itself counts
            where `prompt`, asked behind the audio instead of its own, is None. Every answer counts by default.
        shelf: gives routes on one LLM one copy of its weights; device and dtype are then the shelf's.

    Raises:
        RecipeError: an unknown spec, or a route without the LLM it needs.
        AuraError: what the route needs cannot be loaded.
    """
    kind, equals, value = spec.strip().partition("=")
    needs_value = kind in ("aura", "bridge", "endpoint")
    if kind not in ("aura", "bridge", "cascade", "text", "endpoint") or bool(value) < (needs_value or bool(equals)):
        raise RecipeError(f"the route is {spec!r}; expected one of {SPECS}. For example: cascade=small.en")
    named = name or kind
    if kind == "endpoint":
        from aura.evaluation.routes.endpoint import EndpointOptions, EndpointRoute

        return EndpointRoute(replace(endpoint, url=value) if endpoint else EndpointOptions(url=value), name=named)
    from aura.evaluation.routes.llm import LlmShelf
    from aura.evaluation.routes.student import llm_of, open_student

    shelf = shelf or LlmShelf(device=device, dtype=dtype)
    if kind in ("aura", "bridge"):
        checkpoint_kind: Literal["aura", "bridge"] = "aura" if kind == "aura" else "bridge"
        return open_student(
            value,
            kind=checkpoint_kind,
            shelf=shelf,
            llm=llm,
            name=named,
            batch_tokens=batch_tokens,
            bound=bound,
            prompt=prompt,
        )
    llm = llm or (llm_of(value) if kind == "text" and value else None)
    if llm is None and not (kind == "cascade" and asr_only):
        raise RecipeError(f"the route {spec} was given no LLM; expected one to read with, e.g. --llm ORG/NAME")
    reading: dict[str, Any] = {
        "llm": llm,
        "shelf": shelf,
        "shots": shots,
        "shot_prompt": shot_prompt,
        "batch_tokens": batch_tokens,
    }
    if kind == "text":
        from aura.evaluation.routes.text import TextRoute, open_reader

        return TextRoute(open_reader(**reading, adapter=value or None), name=named)
    from aura.evaluation.routes.cascade import open_cascade
    from aura.evaluation.routes.recognise import AsrOptions

    options = asr or AsrOptions()
    options = replace(options, reference=value) if value else options
    return open_cascade(options, **reading | {"llm": None if asr_only else llm}, name=named)
