"""Kokoro-82M as ONNX, with style vectors as voices; `a+b` is the mean of two styles: one voice more."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from aura.errors import AuraError, require
from aura.references.resolve import resolve_onnx
from aura.synthesis.engine import EngineOptions, Prosody, Voice, split_accent

STYLE = (510, 1, 256)  # one style vector for each number of phonemes
# First letter of a voice's name -> the language (two letters, and as espeak-ng calls it)
LANGUAGES = {
    **{"a": ("en", "en-us"), "b": ("en", "en-gb"), "e": ("es", "es"), "f": ("fr", "fr-fr"), "h": ("hi", "hi")},
    **{"i": ("it", "it"), "j": ("ja", "ja"), "p": ("pt", "pt-br"), "z": ("zh", "cmn")},
}
MOST_RATE, LEAST_RATE = 2.0, 0.5  # what the model was made for


class KokoroEngine:
    """Kokoro, its model from packages or a file, its voices from a folder of .bin files or an .npz."""

    name = "kokoro"
    licence = "Kokoro-82M: Apache-2.0"

    def __init__(self, options: EngineOptions) -> None:
        self._kokoro = require("kokoro_onnx", extra="synth", purpose="The engine kokoro")
        if options.kokoro_voices is None:
            raise AuraError(
                "the engine kokoro needs its voices; expected a folder with <voice>.bin files or an .npz. Fetch them with: "
                "npm pack kokoro-js (they lie in its voices/), then name that folder with --kokoro-voices"
            )
        self._styles = read_styles(Path(options.kokoro_voices).expanduser())
        self._model_file = resolve_onnx(options.kokoro_model)
        self._model: Any = None
        self.version = f"kokoro-onnx-{version('kokoro-onnx')}"

    def voices(self) -> Sequence[Voice]:
        return [
            Voice(name=name, lang=LANGUAGES[name[0]][0], licence="Apache-2.0 (Kokoro-82M)")
            for name in self._styles
            if name[0] in LANGUAGES
        ]

    def speak(self, text: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, int]:
        name, language = split_accent(voice, self._styles)
        parts = name.split("+")
        unknown = [part for part in parts if part not in self._styles or part[0] not in LANGUAGES]
        if unknown:
            raise AuraError(f"kokoro has no voice {unknown[0]!r}; expected some of {', '.join(self._styles)}")
        style = np.mean([self._styles[part] for part in parts], axis=0)
        rate = min(MOST_RATE, max(LEAST_RATE, prosody.rate))
        try:
            return self._load().create(text, style, speed=rate, lang=language or LANGUAGES[parts[0][0]][1], trim=False)
        except (ValueError, RuntimeError) as error:  # a language that its espeak-ng does not have is the second
            raise AuraError(f"kokoro could not speak {text!r:.60}: {error}") from error

    def _load(self) -> Any:
        """The model, loaded at the first text: plans are made without it."""
        if self._model is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            session = onnxruntime.InferenceSession(self._model_file, options, providers=["CPUExecutionProvider"])
            with tempfile.TemporaryDirectory() as folder:
                # It asks for a file of voices; ours are handed over with each text.
                file = Path(folder) / "voices.npz"
                np.savez(file, one=next(iter(self._styles.values())))
                self._model = self._kokoro.Kokoro.from_session(session, str(file))
                self._model.voices.close()  # it keeps the file open
        return self._model


def read_styles(path: Path) -> dict[str, np.ndarray]:
    """Voice name -> style vectors, from a folder of raw float32 .bin files or an .npz.

    Raises:
        AuraError: nothing there, or arrays of another shape.
    """
    if path.is_dir():
        found = {file.stem: np.fromfile(file, dtype="<f4") for file in sorted(path.glob("*.bin"))}
    elif path.suffix == ".npz" and path.is_file():
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name].astype(np.float32) for name in sorted(arrays.files)}
    else:
        found = {}
    if not found:
        raise AuraError(f"{path} holds no voices of Kokoro; expected a folder with <voice>.bin files, or an .npz")
    odd = [name for name, style in found.items() if style.size != np.prod(STYLE)]
    if odd:
        raise AuraError(f"{path}: the voice {odd[0]!r} has {found[odd[0]].size} numbers; expected {np.prod(STYLE)}")
    return {name: style.reshape(STYLE) for name, style in found.items()}
