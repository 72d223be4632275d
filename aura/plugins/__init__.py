"""aura as a model of evaluation toolkits. Nothing in aura imports this room; the toolkits do."""

from __future__ import annotations

from typing import Any


def lmms_eval_manifest() -> Any:
    """What lmms-eval's entry point group `lmms_eval.models` asks for.

    lmms-eval calls this at every start, whatever model is asked for, so nothing heavy is imported here.
    """
    from lmms_eval.models.registry_v2 import ModelManifest

    # Simple, not chat: lmms-eval's chat path turns every dict it meets, audio too, into a video.
    return ModelManifest(model_id="aura", simple_class_path="aura.plugins.lmms_eval.AuraModel")
