"""An ASR that says how sure it is."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from aura.audio.waveform import SAMPLE_RATE
from aura.errors import AudioError
from aura.evaluation.routes.recognise import (
    WINDOW_SECONDS,
    AsrOptions,
    FasterWhisperRecogniser,
    PipelineRecogniser,
    open_recogniser,
)


@dataclass(frozen=True, kw_only=True)
class Hearing:
    """What an ASR wrote, and how sure it is; None where it cannot tell.

    Args:
        text: stripped; empty where nothing was heard.
        avg_logprob: mean log-probability (nats) of a token; of a frame's best symbol for CTC models.
        no_speech_prob: probability that nobody speaks, the highest over the segments.
        compression_ratio: bytes of the text over its compressed bytes; a text that repeats itself shrinks a lot.
        language: as detected or told.
    """

    text: str
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    compression_ratio: float | None = None
    language: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The confidence as it stands in a manifest."""
        figures = {
            "avg_logprob": self.avg_logprob,
            "no_speech_prob": self.no_speech_prob,
            "compression_ratio": self.compression_ratio,
        }
        return {name: round(value, 4) for name, value in figures.items() if value is not None}


class Listener(Protocol):
    """An ASR that labels."""

    settings: Mapping[str, Any]

    def hear(self, wave_N: np.ndarray) -> Hearing:
        """Mono float32 at 16 kHz -> what is said.

        Raises:
            AudioError: it is longer than this ASR can judge.
        """
        ...


def open_listener(options: AsrOptions, *, device: torch.device | str = "cpu") -> Listener:
    """ASR behind a reference; see `open_recogniser` for what may be named and what is raised."""
    recogniser = open_recogniser(options, device=device)
    if isinstance(recogniser, FasterWhisperRecogniser):
        return WhisperListener(recogniser)
    assert isinstance(recogniser, PipelineRecogniser)
    return PipelineListener(recogniser, options.language)


class WhisperListener:
    """faster-whisper, which knows all three figures for each segment."""

    def __init__(self, recogniser: FasterWhisperRecogniser) -> None:
        self.recogniser = recogniser
        self.settings = recogniser.settings

    def hear(self, wave_N: np.ndarray) -> Hearing:
        options = self.recogniser.options
        found, info = self.recogniser.model.transcribe(
            np.ascontiguousarray(wave_N, dtype=np.float32),
            language=options.language,
            beam_size=options.beam_size,
            temperature=0.0,
            condition_on_previous_text=False,
            vad_filter=options.vad,
        )
        segments = list(found)  # lazy: the work is done here
        text = "".join(segment.text for segment in segments).strip()
        if not segments:
            return Hearing(text="", no_speech_prob=1.0, language=info.language)
        tokens = [max(1, len(segment.tokens)) for segment in segments]
        return Hearing(
            text=text,
            avg_logprob=float(np.average([segment.avg_logprob for segment in segments], weights=tokens)),
            no_speech_prob=max(segment.no_speech_prob for segment in segments),
            compression_ratio=compression_ratio(text),
            language=info.language,
        )


class PipelineListener:
    """Any Hugging Face ASR: what it wrote is scored by one more pass through the model.

    An encoder-decoder reads its own text (teacher forcing) and gives each token a probability; a CTC model gives each
    frame's best symbol one. Neither says whether anybody speaks.
    """

    def __init__(self, recogniser: PipelineRecogniser, language: str | None = None) -> None:
        self.recogniser = recogniser
        self.language = language
        self.settings = recogniser.settings

    def hear(self, wave_N: np.ndarray) -> Hearing:
        seconds = len(wave_N) / SAMPLE_RATE
        if seconds > WINDOW_SECONDS:
            raise AudioError(
                f"{seconds:.1f} s is longer than the {WINDOW_SECONDS:g} s that {self.settings['asr']} judges at once; cut "
                "the recording, or label it with faster-whisper"
            )
        text = self.recogniser.hear(wave_N).text
        return Hearing(
            text=text,
            avg_logprob=self._score(wave_N, text) if text else None,
            compression_ratio=compression_ratio(text) if text else None,
            language=self.language,
        )

    @torch.no_grad()
    def _score(self, wave_N: np.ndarray, text: str) -> float:
        pipeline = self.recogniser.pipeline
        model = pipeline.model
        features = pipeline.feature_extractor(wave_N, sampling_rate=SAMPLE_RATE, return_tensors="pt")
        inputs = {name: value.to(model.device) for name, value in features.items()}
        inputs = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        if not self.recogniser.generates:
            logs_BTV = model(**inputs).logits.float().log_softmax(-1)
            return float(logs_BTV.max(-1).values.mean())
        if pipeline.type == "seq2seq_whisper":
            text = f" {text}"  # its words begin with their blank, the first one too
        # A Whisper tokenizer puts the language and the task in front itself
        if self.language and hasattr(pipeline.tokenizer, "set_prefix_tokens"):
            pipeline.tokenizer.set_prefix_tokens(language=self.language, task="transcribe", predict_timestamps=False)
        ids = pipeline.tokenizer(text, return_tensors="pt").input_ids.to(model.device)
        start = model.config.decoder_start_token_id
        if ids[0, 0] != start:
            ids = torch.cat([ids.new_tensor([[start]]), ids], dim=1)
        logs_BSV = model(**inputs, decoder_input_ids=ids[:, :-1]).logits.float().log_softmax(-1)
        scores = logs_BSV.gather(-1, ids[:, 1:, None])[0, :, 0]
        special = set(pipeline.tokenizer.all_special_ids)
        kept = [float(score) for score, token in zip(scores, ids[0, 1:].tolist(), strict=True) if token not in special]
        return float(np.mean(kept)) if kept else 0.0


def compression_ratio(text: str) -> float:
    """Bytes over zlib's bytes, as Whisper's own filter has it."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0
