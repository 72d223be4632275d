"""The aura route, and the bridge that is opened the same way: a checkpoint hears the speech itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from aura.errors import CheckpointError
from aura.evaluation.routes.answering import BATCH_TOKENS, Answerer
from aura.evaluation.routes.llm import (
    LlmShelf,
    count_parameters,
    folder_weight_bytes,
    llm_digest,
    template_digest,
    weight_bytes,
)
from aura.evaluation.routes.route import Kind, Progress, Question, Reply, RouteFacts
from aura.inference.bound import EVERYTHING, Bound, Held
from aura.inference.engine import Engine
from aura.student.checkpoint import load_checkpoint
from aura.student.files import CONFIG, checkpoint_folder

DECIDING = ("gate", "attention", "block_patches", "patch_frames", "n_mels", "floor", "stem")
DECIDING_BRIDGE = ("encoder", "silence_seconds", "adapter")
"""Fields of a checkpoint's config that change its answers without being weights."""


class StudentRoute:
    """A loaded checkpoint as a route.

    Args:
        engine: the checkpoint.
        name: in reports; the kind when None.
        llm: reference the LLM was loaded from; the one named in the checkpoint when None.
        batch_tokens, least: see `Answerer`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        name: str | None = None,
        llm: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
        held: Held = Held(),  # noqa: B008  # frozen
    ) -> None:
        self.engine = engine
        config = engine.model.config
        kind = kind_of(config)
        reference = llm or config.base_model
        self.facts = RouteFacts(
            name=name or kind,
            kind=kind,
            settings={
                "checkpoint": engine.checkpoint,
                "learnt": engine.digest,
                "llm": reference,
                "llm_digest": llm_digest(engine.model.language_model),
                "dtype": str(engine.model.language_model.dtype).removeprefix("torch."),
                "decoding": "greedy",
                "template_digest": template_digest(engine.processor),
                **{field: getattr(config, field) for field in DECIDING + DECIDING_BRIDGE * config.is_bridge},
                **held.settings(),
            },
            parameters=count_parameters(engine.model),
            bytes_on_disk=_bytes(engine.checkpoint, reference, config.encoder),
        )
        self._answerer = Answerer(engine.model, engine.processor, batch_tokens=batch_tokens, held=held)

    def answer(
        self, questions: Sequence[Question], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[Reply]:
        return self._answerer.answer(questions, max_new_tokens=max_new_tokens, progress=progress)

    def first_token(self, question: Question) -> float:
        return self._answerer.first_token(question)

    def score(self, question: Question, options: Sequence[str]) -> list[float]:
        return self._answerer.score(question, options)


def open_student(
    checkpoint: str,
    *,
    kind: Kind,
    shelf: LlmShelf,
    llm: str | None = None,
    name: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    bound: Bound = EVERYTHING,
    prompt: str | None = None,
) -> StudentRoute:
    """Checkpoint folder or Hub id -> route.

    Args:
        kind: `aura` or `bridge`, as the user called it.
        shelf: where the LLM's weights come from.
        llm: reference of the LLM instead of the one named in the checkpoint.
        bound, prompt: what an answer must show to say anything, see `Bound.of`; by default every answer counts.

    Raises:
        CheckpointError: no checkpoint, one of another LLM, or one of the other kind.
    """
    reference = llm or llm_of(checkpoint)
    model, processor = load_checkpoint(
        checkpoint, language_model=shelf.take(reference), llm=reference, dtype=shelf.dtype
    )
    if (found := kind_of(model.config)) != kind:
        raise CheckpointError(
            f"{checkpoint} was given as {kind}, but it is a checkpoint of the {found} route; use {found}={checkpoint}"
        )
    held = bound.of(model, prompt)
    model.to(shelf.device)  # type: ignore[arg-type]  # its decorator hides the signature
    engine = Engine(model, processor, checkpoint=checkpoint)
    return StudentRoute(engine, name=name, llm=reference, batch_tokens=batch_tokens, held=held)


def llm_of(checkpoint: str) -> str:
    """Reference of the LLM that a checkpoint was trained on: what the routes beside it should read with.

    Raises:
        CheckpointError: no checkpoint, or a torn one.
    """
    path = checkpoint_folder(checkpoint) / CONFIG
    try:
        reference = json.loads(path.read_text(encoding="utf-8"))["base_model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} does not name its LLM (base_model); copy or save the checkpoint again"
        ) from error
    return str(reference)


def kind_of(config: Any) -> Kind:
    """Whether a checkpoint keeps a speech encoder at run time (bridge) or none (aura)."""
    return "bridge" if config.is_bridge else "aura"


def _bytes(checkpoint: str, llm: str, encoder: str | None) -> int | None:
    """LLM, what was learnt, and a bridge's encoder; None for a model that was never on disk."""
    try:
        own = folder_weight_bytes(checkpoint_folder(checkpoint))
    except CheckpointError:
        return None
    parts = [own, weight_bytes(llm), weight_bytes(encoder) if encoder else 0]
    return None if None in parts else sum(part for part in parts if part is not None)
