"""Turns without a button: where speech begins and ends in audio that never stops."""

from __future__ import annotations

from typing import Any

import numpy as np

from aura.audio.waveform import SAMPLE_RATE
from aura.errors import MissingExtraError
from aura.serve.failures import ApiError

FRAME = 512  # samples given to the detector at once, 32 ms


class Ears:
    """Cuts a stream of samples into turns.

    Args:
        settings: `TurnDetection`.

    Raises:
        ApiError: the server has no detector.
    """

    def __init__(self, settings: Any) -> None:
        from aura.inference.endpoint import Endpointer

        try:
            self._detector = Endpointer(min_silence=settings.silence_duration_ms / 1000, threshold=settings.threshold)
        except MissingExtraError as error:
            raise ApiError(
                400,
                "this server finds no end of speech by itself (its operator can install aura-lora[stream]); "
                "set turn_detection to null and commit",
                code="turn_detection_unavailable",
                param="session.audio.input.turn_detection",
            ) from error
        self._padding = round(settings.prefix_padding_ms / 1000 * SAMPLE_RATE) + FRAME
        self._before = np.zeros(0, np.float32)  # kept while nobody speaks
        self._rest = np.zeros(0, np.float32)
        self._heard = 0
        self.speaking = False
        self.start_ms = self.end_ms = 0

    def hear(self, samples_N: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """(`start`, `go on` or `stop`, samples of the turn) in order; nothing of silence between turns."""
        found: list[tuple[str, np.ndarray]] = []
        samples_N = np.concatenate([self._rest, samples_N])
        whole = len(samples_N) // FRAME * FRAME
        self._rest = samples_N[whole:]
        for first in range(0, whole, FRAME):
            frame_N = samples_N[first : first + FRAME]
            self._heard += FRAME
            found += self._frame(frame_N, self._detector.feed(frame_N))
        return found

    def _frame(self, frame_N: np.ndarray, state: str) -> list[tuple[str, np.ndarray]]:
        now = round(1000 * self._heard / SAMPLE_RATE)
        if self.speaking:
            if state != "end":
                return [("go on", frame_N)]
            self.speaking, self.end_ms = False, now
            self._detector.reset()
            return [("stop", frame_N)]
        self._before = np.concatenate([self._before, frame_N])[-self._padding :]
        if state != "speech":
            return []
        self.speaking = True
        self.start_ms = max(0, now - round(1000 * len(self._before) / SAMPLE_RATE))
        turn_N, self._before = self._before, np.zeros(0, np.float32)
        return [("start", turn_N)]
