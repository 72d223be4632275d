"""Length arithmetic: samples -> mel frames -> patches -> teacher frames. All of it, and nowhere else.

A waveform is padded with zeros to whole patches before the student *and* the teacher see it, so that mel frames and
teacher frames divide exactly and a placeholder in the prompt, a valid patch and a stack of teacher frames are always
the same count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aura.errors import AudioError

SAMPLE_RATE = 16_000  # Hz
HOP = 160  # samples, 10 ms
WINDOW = 400  # samples, 25 ms
FRAMES_PER_SECOND = SAMPLE_RATE // HOP  # 100


@dataclass(frozen=True, kw_only=True)
class PatchGrid:
    """Counts for one patch size.

    Args:
        patch_frames: mel frames per patch (8 = 80 ms = 12.5 Hz).
    """

    patch_frames: int = 8

    @property
    def patch_samples(self) -> int:
        """Samples per patch."""
        return self.patch_frames * HOP

    @property
    def patches_per_second(self) -> float:
        return FRAMES_PER_SECOND / self.patch_frames

    def count(self, samples: int) -> int:
        """Patches that `samples` fill, the last one padded; at least one.

        Raises:
            AudioError: no samples at all.
        """
        if samples < 1:
            raise AudioError(f"{samples} samples make no patch; expected at least 1 sample of audio")
        return -(-samples // self.patch_samples)

    def count_seconds(self, seconds: float) -> int:
        """Patches of `seconds` of audio, as `count` of its samples."""
        return self.count(max(1, round(seconds * SAMPLE_RATE)))

    def mel_frames(self, patches: int) -> int:
        return patches * self.patch_frames

    def pad(self, waveform: np.ndarray) -> np.ndarray:
        """(samples,) -> (patches * patch_samples,), zeros behind."""
        missing = self.count(len(waveform)) * self.patch_samples - len(waveform)
        return np.pad(waveform, (0, missing)) if missing else waveform

    def teacher_frames(self, frame_samples: int) -> int:
        """Teacher frames per patch, e.g. 4 for 50 Hz under 12.5 Hz.

        Raises:
            ValueError: the teacher's frame does not divide the patch.
        """
        if self.patch_samples % frame_samples:
            raise ValueError(
                f"a patch of {self.patch_samples} samples does not hold a whole number of teacher frames of "
                f"{frame_samples} samples; choose audio.patch_frames as a multiple of {math.lcm(frame_samples, HOP) // HOP}"
            )
        return self.patch_samples // frame_samples
