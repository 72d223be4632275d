"""Log-mel of samples that arrive bit by bit: each frame as soon as no later sample can change it."""

from __future__ import annotations

import numpy as np
import torch

from aura.audio.logmel import log_mel, log_mel_frames
from aura.audio.patches import HOP, WINDOW, PatchGrid

REACH = WINDOW // 2  # samples on either side of a frame's centre


class LogMelStream:
    """`log_mel` of a growing waveform, bit for bit.

    A frame is final once its 25 ms lie within what was heard; the last two or three of a waveform, whose windows reach
    into the padding behind its end, come from `rest` only. Held back are the samples that coming frames still need, less
    than one patch and one window of them.

    Args:
        grid: whose patches the waveform is padded to at its end.
        n_mels, floor: as for `log_mel`, the floor a number: Whisper's own rule looks at the whole clip.
    """

    def __init__(self, *, grid: PatchGrid, n_mels: int, floor: float) -> None:
        self.grid = grid
        self.n_mels = n_mels
        self.floor = floor
        self.samples = 0  # heard so far
        self.frames = 0  # given out so far
        self._tail = torch.zeros(0)  # from the first sample of the next frame's window on

    def feed(self, samples_N: np.ndarray) -> torch.Tensor:
        """Take samples, return the frames (M, T) that became final; T may be 0.

        Args:
            samples_N: float32 at 16 kHz, any number.
        """
        self.samples += len(samples_N)
        tail = torch.cat([self._tail, torch.from_numpy(np.ascontiguousarray(samples_N, dtype=np.float32))])
        if not self.frames:
            if self.samples <= REACH:
                self._tail = tail  # too short to be mirrored
                return torch.zeros(self.n_mels, 0)
            padded = torch.cat([tail[1 : REACH + 1].flip(0), tail])
        else:
            padded = tail
        count = max(0, (len(padded) - WINDOW) // HOP + 1)
        if not count:
            self._tail = tail
            return torch.zeros(self.n_mels, 0)
        self.frames += count
        self._tail = padded[count * HOP :].clone()
        return log_mel_frames(padded, n_mels=self.n_mels, floor=self.floor)

    def rest(self) -> torch.Tensor:
        """The frames (M, T) that follow if the waveform ends here, padded to whole patches; changes nothing.

        Raises:
            AudioError: nothing was heard.
        """
        total = self.grid.count(self.samples) * self.grid.patch_samples
        padded = torch.nn.functional.pad(self._tail, (0, total - self.samples))
        if not self.frames:
            return log_mel(padded, n_mels=self.n_mels, floor=self.floor)
        padded = torch.cat([padded, padded[-REACH - 1 : -1].flip(0)])
        frames = total // HOP - self.frames
        return log_mel_frames(padded[: (frames - 1) * HOP + WINDOW], n_mels=self.n_mels, floor=self.floor)
