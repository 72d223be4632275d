"""Samples as they arrive -> audio positions of the LLM, each as soon as no later sample can change it."""

from __future__ import annotations

import numpy as np
import torch

from aura.audio.logmel_stream import LogMelStream
from aura.audio.patches import SAMPLE_RATE
from aura.errors import ModelError
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import AuraProcessor

CONTEXT = 1  # mel frames behind a patch that the conv stem reads: kernel 3 under kernel 3 of stride 2


class PatchStream:
    """The audio embedding of a growing waveform.

    A patch is final once the mel frame behind it is: 12.5 ms after its last sample. Patches are embedded with their
    neighbours, and the neighbours dropped, so that the convolutions see what they see in the whole.

    Raises:
        ModelError: a model whose front-end looks at the whole clip (a bridge, or Whisper's own floor).
    """

    def __init__(self, model: AuraForConditionalGeneration, processor: AuraProcessor) -> None:
        extractor = processor.feature_extractor
        if getattr(model, "speech_encoder", None) is not None or not isinstance(extractor.floor, (int, float)):
            raise ModelError(
                f"the front-end (stem '{model.config.stem}', floor {extractor.floor!r}) looks at whole recordings; expected a "
                "checkpoint of aura train with a fixed audio.floor. Use engine.ask or engine.transcribe"
            )
        self.model = model
        self.grid = extractor.grid
        self._mel = LogMelStream(grid=self.grid, n_mels=extractor.feature_size, floor=extractor.floor)
        self._frames_MT = torch.zeros(extractor.feature_size, 0)  # from the patch before the next one on
        self.patches = 0  # given out so far

    @property
    def samples(self) -> int:
        """Heard so far."""
        return self._mel.samples

    @property
    def seconds(self) -> float:
        """Heard so far."""
        return self.samples / SAMPLE_RATE

    @property
    def left(self) -> int:
        """Patches that `rest` would give."""
        return self.grid.count(self.samples) - self.patches if self.samples else 0

    def feed(self, samples_N: np.ndarray, *, least: int = 1) -> torch.Tensor:
        """Take samples, return the patches (P, D) that became final; P may be 0.

        Args:
            least: wait until so many are final: a pass costs the same for one as for several.
        """
        self._frames_MT = torch.cat([self._frames_MT, self._mel.feed(samples_N)], dim=1)
        size, before = self.grid.patch_frames, min(1, self.patches)
        ready = (self._frames_MT.shape[1] - CONTEXT) // size - before
        if ready < max(1, least):
            return self._embed(self._frames_MT[:, :0], first=0)
        # One more patch behind, its first frame real and the others never looked at.
        end = (before + ready) * size
        frames = torch.nn.functional.pad(self._frames_MT[:, : end + CONTEXT], (0, size - CONTEXT))
        patches = self._embed(frames, first=before)[:ready]
        self.patches += ready
        self._frames_MT = self._frames_MT[:, end - size :].clone()
        return patches

    def rest(self) -> torch.Tensor:
        """The patches (P, D) that follow if the waveform ends here, the last one padded; changes nothing.

        Raises:
            AudioError: nothing was heard.
        """
        frames = torch.cat([self._frames_MT, self._mel.rest()], dim=1)
        return self._embed(frames, first=min(1, self.patches))

    @torch.no_grad()
    def _embed(self, frames_MT: torch.Tensor, *, first: int) -> torch.Tensor:
        if not frames_MT.shape[1]:
            return torch.zeros(0, self.model.config.text_config.hidden_size, device=self.model.device)
        count = torch.tensor([frames_MT.shape[1]], device=self.model.device)
        return self.model.audio_embedding(frames_MT[None].to(self.model.device), count)[first:]
