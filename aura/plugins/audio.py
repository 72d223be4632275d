"""Audio in the forms that evaluation toolkits hand over -> waveforms."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from aura.errors import AudioError, PromptError
from aura.inference.messages import load_limited


def load_handed(value: Any, *, max_seconds: float, place: str) -> np.ndarray:
    """One recording as a toolkit hands it over -> (samples,) float32 at 16 kHz.

    Args:
        value: `{"array", "sampling_rate"}` or `{"bytes", "path"}`, a path, bytes, `(array, rate)`, or an
            `AudioDecoder` of `datasets`.
        max_seconds: longest recording.
        place: where it comes from, for messages.

    Raises:
        PromptError: it is no audio, e.g. an image.
        AudioError: it cannot be heard, or is longer than `max_seconds`.
    """
    source = _source(value)
    if source is None:
        raise PromptError(
            f"{place} holds {type(value).__name__}; expected audio: a dict of array and sampling_rate, a path or bytes. "
            "This model hears and reads, it does not see: choose tasks of audio or text"
        )
    try:
        return load_limited(source, max_seconds=max_seconds)
    except AudioError as error:
        raise AudioError(f"{place}: {error}") from error


def _source(value: Any) -> Any:
    """What `load_limited` takes, or None."""
    if hasattr(value, "get_all_samples"):  # torchcodec's decoder, which `datasets` hands out since version 4
        samples = value.get_all_samples()
        return {"array": np.asarray(samples.data), "sampling_rate": int(samples.sample_rate)}
    if isinstance(value, Mapping):
        if value.get("array") is not None and value.get("sampling_rate") is not None:
            # A path beside it may be one of the machine that built the data set.
            return {"array": np.asarray(value["array"]), "sampling_rate": int(value["sampling_rate"])}
        return value if value.get("bytes") is not None or value.get("path") else None
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], (int, np.integer)):
        return {"array": np.asarray(value[0]), "sampling_rate": int(value[1])}
    return value if isinstance(value, (str, os.PathLike, bytes)) else None
