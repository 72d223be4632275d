"""When a speaker has stopped: Silero's voice activity detector, fed as the audio arrives."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from aura.audio.patches import SAMPLE_RATE
from aura.audio.pcm import to_float32
from aura.errors import AudioError, RecipeError, require

VAD_FRAME = 512  # samples, 32 ms: what Silero judges at once
MIN_SILENCE = 0.5  # s; our choice, longer than the pauses inside a sentence. Silero's own default is 0.1
THRESHOLD = 0.5  # probability of speech, Silero's default
State = Literal["speech", "silence", "end"]


class Endpointer:
    """Tells speech from silence, and the end of a turn.

    Args:
        min_silence: seconds of silence behind speech that end a turn; they delay every answer.
        threshold: probability from which a frame counts as speech.

    Raises:
        MissingExtraError: `silero-vad` or `onnxruntime` is not installed.
        RecipeError: numbers that cannot work.
    """

    def __init__(self, *, min_silence: float = MIN_SILENCE, threshold: float = THRESHOLD) -> None:
        if not 0.032 <= min_silence <= 10:
            raise RecipeError(f"min_silence is {min_silence:g} s; expected 0.032 (one frame of the detector) to 10")
        if not 0.15 < threshold < 1:
            raise RecipeError(f"threshold is {threshold:g}; expected a probability above 0.15 and below 1")
        silero = _silero()
        self._detector = silero.VADIterator(
            silero.load_silero_vad(onnx=True),
            threshold=threshold,
            sampling_rate=SAMPLE_RATE,
            min_silence_duration_ms=round(1000 * min_silence),
            speech_pad_ms=0,
        )
        self.reset()

    def reset(self) -> None:
        """Forget what was heard."""
        self._detector.reset_states()
        self._tail = np.zeros(0, dtype=np.float32)
        self._speaking = False
        self.speech_start: float | None = None
        """Seconds since `reset` at which the last stretch of speech began."""
        self.speech_end: float | None = None
        """Seconds since `reset` at which it ended; None while it lasts."""

    def feed(self, samples: np.ndarray) -> State:
        """Take more audio.

        Args:
            samples: (n,) mono at 16 kHz; any n, judged in frames of 32 ms.

        Returns:
            "end" once when `min_silence` has passed behind speech, else "speech" from where speech was found up to that
            end (pauses within included), else "silence".

        Raises:
            AudioError: not such samples.
        """
        if not isinstance(samples, np.ndarray) or samples.ndim != 1 or samples.dtype.kind not in "fiu":
            raise AudioError(f"the endpointer was fed {type(samples).__name__}; expected a NumPy array (n,) at 16 kHz")
        waiting = np.concatenate([self._tail, to_float32(samples)])
        ended = False
        whole = len(waiting) // VAD_FRAME * VAD_FRAME
        for first in range(0, whole, VAD_FRAME):
            event = self._detector(torch.from_numpy(waiting[first : first + VAD_FRAME])) or {}
            if "start" in event:
                self._speaking, self.speech_start, self.speech_end = True, event["start"] / SAMPLE_RATE, None
            elif "end" in event:
                self._speaking, self.speech_end, ended = False, event["end"] / SAMPLE_RATE, True
        self._tail = waiting[whole:]
        if ended:
            return "end"
        return "speech" if self._speaking else "silence"


def _silero() -> Any:
    threads = torch.get_num_threads()
    require("onnxruntime", extra="stream", purpose="endpointing")
    silero = require("silero_vad", extra="stream", purpose="endpointing")
    torch.set_num_threads(threads)  # silero_vad sets it to 1 for the whole process when imported
    return silero
