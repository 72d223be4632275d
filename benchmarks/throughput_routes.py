"""The contenders of `throughput.py`, each opened in a process of its own: speech in, a fixed number of tokens out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from aura.audio.patches import SAMPLE_RATE
from aura.batch.collate import collate
from aura.batch.prompt import replace_audio
from aura.config import AudioConfig, BridgeConfig, LoraConfig
from aura.errors import ModelError
from aura.evaluation.memory import reset_peak
from aura.evaluation.routes.llm import LlmShelf, count_parameters, text_reader
from aura.evaluation.routes.recognise import WINDOW_SECONDS, AsrOptions, FasterWhisperRecogniser
from aura.evaluation.routes.route import Kind, Progress, Question, Reply, RouteFacts
from aura.inference.generate import end_tokens, greedy_config
from aura.inference.greedy import open_decoder
from aura.student.checkpoint import load_checkpoint, new_bridge, new_processor, new_student

AURA, CASCADE, BATCHED, BRIDGE = "aura", "cascade", "cascade batched", "bridge"

Hear = Callable[[Sequence[np.ndarray]], list[str]]  # clips -> what was said in each


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What decides how the contenders are built.

    Args:
        llm: reference of the LLM of all.
        checkpoint: trained aura adapter and embedding; untrained ones when None.
        bridge: the same for the bridge.
        asr, beam: of the cascades, for faster-whisper in int8.
        encoder, silence_seconds: of an untrained bridge; the silence is what its encoder hears behind the speech.
        decode: how all of them decode, see `aura.inference.greedy.DECODES`.
        threads: of torch and of the ASR; torch's own choice when None.
    """

    llm: str
    checkpoint: str | None
    bridge: str | None
    asr: str
    beam: int
    encoder: str
    silence_seconds: float
    decode: str
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class TimedReply(Reply):
    """A reply with this question's share of the stages of its batch, in seconds.

    Args:
        listening: an ASR wrote down what it heard; 0 where there is none.
        reading: from there to the first token: log-mel, encoder, prompt, prefill. None where the decode loop does not say.
    """

    listening: float
    reading: float | None


class Contender:
    """A route that answers a whole batch at once with as many tokens as asked for, whatever they are.

    Args:
        model: in eval mode, on its device.
        processor: of the same LLM.
        decode: see `Setting`.
        hear: an ASR whose text takes the place of the audio; None where the model hears.
        asr_parameters: its weights.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        model: Any,
        processor: Any,
        *,
        decode: str,
        hear: Hear | None = None,
        asr_parameters: int | None = 0,
    ) -> None:
        self.model, self.processor, self.hear = model, processor, hear
        self.decoder = open_decoder(model, decode)
        loop = "generate" if self.decoder is None else decode.replace("auto", "lean")
        self.facts = RouteFacts(
            name=name,
            kind=kind,
            settings={"decode": loop, "threads": torch.get_num_threads(), "device": str(model.device)},
            parameters=None if asr_parameters is None else count_parameters(model) + asr_parameters,
            bytes_on_disk=None,
        )

    @torch.no_grad()
    def answer(
        self, questions: Sequence[Question], *, max_new_tokens: int, progress: Progress | None = None
    ) -> list[TimedReply]:
        """One batch, from samples in memory to text; the peak of the process's memory starts anew with it."""
        reset_peak()
        start = time.perf_counter()
        heard: Sequence[str | None] = [None] * len(questions)
        if self.hear is not None:
            heard = self.hear([question.waveforms[0] for question in questions])
            questions = [
                replace(question, messages=replace_audio(question.messages, [text]), waveforms=[])
                for question, text in zip(questions, heard, strict=True)
            ]
        listened = time.perf_counter()
        inputs = collate(self.processor, questions, answer=False).to(self.model.device).model_inputs()
        ids_BN, first = self._write(inputs, max_new_tokens)
        texts = self.processor.tokenizer.batch_decode(ids_BN, skip_special_tokens=True)
        share = 1 / len(questions)
        seconds = (time.perf_counter() - start) * share
        return [
            TimedReply(
                text=text,
                finished=False,
                new_tokens=len(ids),
                wall_seconds=seconds,
                heard=said,
                listening=(listened - start) * share,
                reading=None if first is None else (first - listened) * share,
            )
            for text, ids, said in zip(texts, ids_BN, heard, strict=True)
        ]

    def _write(self, inputs: dict[str, Any], tokens: int) -> tuple[list[list[int]], float | None]:
        """Token ids of each row, no end token among them heeded; when the first one of a row was there."""
        if self.decoder is None:
            # An end token is never chosen before the last step, so no row leaves the batch.
            config = greedy_config(tokens, ends=end_tokens(self.model, self.processor.tokenizer), pad=0)
            config.min_new_tokens = tokens
            ids_BS = self.model.generate(**inputs, generation_config=config)
            return ids_BS[:, inputs["input_ids"].shape[1] :].tolist(), None
        times: list[float] = []
        ids_BN = self.decoder.generate(
            inputs, max_new_tokens=tokens, ends=(), between=lambda: times.append(time.perf_counter())
        )
        return ids_BN, times[0]


# --- opening them -----------------------------------------------------------------------------------------------------


def open_contender(name: str, setting: Setting) -> Contender:
    """A contender by name; run in the process that will hold it.

    Raises:
        AuraError: what it needs cannot be loaded.
    """
    if setting.threads:
        torch.set_num_threads(setting.threads)
    shelf = LlmShelf()
    if name in (CASCADE, BATCHED):
        asr = AsrOptions(reference=setting.asr, beam_size=setting.beam, language="en")
        recogniser = FasterWhisperRecogniser(asr, device=shelf.device)
        hear = batched(recogniser) if name == BATCHED else one_by_one(recogniser)
        model, processor = text_reader(shelf.take(setting.llm), shelf.tokenizer(setting.llm))
        asr_parameters = recogniser.parameters
        return Contender(
            name, "cascade", model, processor, decode=setting.decode, hear=hear, asr_parameters=asr_parameters
        )
    checkpoint = setting.checkpoint if name == AURA else setting.bridge
    if checkpoint is not None:
        model, processor = load_checkpoint(checkpoint, language_model=shelf.take(setting.llm), llm=setting.llm)
    else:
        model, processor = untrained_aura(setting, shelf) if name == AURA else untrained_bridge(setting, shelf)
    model.to(shelf.device)  # type: ignore[arg-type]  # its decorator hides the signature
    return Contender(name, "aura" if name == AURA else "bridge", model.eval(), processor, decode=setting.decode)


def untrained_aura(setting: Setting, shelf: LlmShelf) -> tuple[Any, Any]:
    """Fresh embedding and adapter."""
    processor = new_processor(shelf.tokenizer(setting.llm), AudioConfig())
    llm = shelf.take(setting.llm)
    return new_student(llm, processor, base=setting.llm, audio=AudioConfig(), lora=LoraConfig()), processor


def untrained_bridge(setting: Setting, shelf: LlmShelf) -> tuple[Any, Any]:
    """Whisper's encoder and a fresh projector in front of the stock LLM: its fastest form, without an adapter."""
    from aura.bridge.encoder import load_encoder

    encoder: Any = load_encoder(setting.encoder)
    audio = AudioConfig(n_mels=encoder.config.num_mel_bins)
    bridge = BridgeConfig(lora=False, silence_seconds=setting.silence_seconds)
    processor = new_processor(shelf.tokenizer(setting.llm), audio, floor=bridge.floor)
    model = new_bridge(
        shelf.take(setting.llm),
        encoder,
        processor,
        base=setting.llm,
        encoder=setting.encoder,
        audio=audio,
        bridge=bridge,
        lora=LoraConfig(),
    )
    return model, processor


def one_by_one(recogniser: FasterWhisperRecogniser) -> Hear:
    """One recording after the other, as faster-whisper's users have it."""
    return lambda waves: [recogniser.hear(wave_N).text for wave_N in waves]


def batched(recogniser: FasterWhisperRecogniser) -> Hear:
    """All recordings in one pass: faster-whisper batches the clips of a recording, so they become clips of one."""
    from faster_whisper import BatchedInferencePipeline

    pipeline, options = BatchedInferencePipeline(recogniser.model), recogniser.options

    def hear(waves: Sequence[np.ndarray]) -> list[str]:
        if (longest := max(map(len, waves)) / SAMPLE_RATE) > WINDOW_SECONDS:
            raise ModelError(
                f"a clip has {longest:g} s; faster-whisper batches clips of at most {WINDOW_SECONDS:g} s. Leave out "
                f"{BATCHED!r} with --routes, or take shorter clips"
            )
        ends = np.cumsum([len(wave_N) for wave_N in waves]) / SAMPLE_RATE
        starts = [0.0, *ends[:-1].tolist()]
        segments, _ = pipeline.transcribe(
            np.concatenate(waves),
            language=options.language,
            beam_size=options.beam_size,
            temperature=0.0,
            vad_filter=False,
            clip_timestamps=[{"start": s, "end": float(e)} for s, e in zip(starts, ends, strict=True)],
            batch_size=len(waves),
        )
        texts = [""] * len(waves)
        for segment in segments:  # lazy: the work is done here
            texts[int(np.searchsorted(ends, segment.start + 0.01, side="right"))] += segment.text
        return [text.strip() for text in texts]

    return hear
