"""Characters of single patches, where the teacher is a CTC model: its own reading, as no forced aligner is at hand.

A patch is labelled with the most probable character of the frame (of those that are not blank) that is surest of one;
patches whose frames are all blank have no label. The labels are the teacher's opinion: its last layer cannot help
carrying them, and a student's score says how much of *that* it carries, not how right it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from aura.inspection.labels import LeftOut, Task
from aura.inspection.splits import grouped_folds
from aura.teacher.encoder import Teacher
from aura.teacher.wav2vec2 import receptive_field

NAME = "patch_characters"
FOLDS = 2  # thousands of positions: halves are enough to train on
FEWEST = 20  # patches of a character


class CtcReader:
    """A CTC head on the encoder of a `Teacher`, so that the encoder is in memory once.

    Args:
        model: a `...ForCTC` of transformers.
        extractor: its feature extractor.
        characters: id -> character; ids that are no character (blank, padding, word boundary) are left out.
    """

    def __init__(self, model: Any, extractor: Any, characters: dict[int, str]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.teacher = Teacher(getattr(model, model.base_model_prefix), extractor)
        self.extractor = extractor
        self.ids = sorted(characters)
        self.characters = [characters[number] for number in self.ids]

    @torch.no_grad()
    def __call__(self, waveforms: Sequence[np.ndarray], frames_per_patch: int) -> np.ndarray:
        """(patches of all waveforms,) index into `characters`, -1 where nothing is read."""
        return np.concatenate([self._read(waveform, frames_per_patch) for waveform in waveforms])

    def _read(self, waveform: np.ndarray, frames_per_patch: int) -> np.ndarray:
        config, frame = self.model.config, self.teacher.spec.frame_samples
        frames = len(waveform) // frame
        # As for the teacher: the unpadded convolutions get zeros until they make every frame.
        size = max(len(waveform), (frames - 1) * frame + receptive_field(config.conv_kernel, config.conv_stride))
        values = self.extractor(waveform, sampling_rate=16_000)["input_values"][0]
        reference = next(self.model.parameters())
        padded = torch.zeros(1, size)
        padded[0, : len(waveform)] = torch.as_tensor(np.asarray(values, dtype=np.float32))
        logits = self.model(padded.to(reference.device, reference.dtype)).logits[0, :frames].float()
        sure, best = logits.softmax(-1)[:, self.ids].max(-1)
        read = torch.isin(logits.argmax(-1), torch.tensor(self.ids, device=logits.device))
        sure = torch.where(read, sure, -1.0).reshape(-1, frames_per_patch)
        top = sure.argmax(1)
        label = best.reshape(-1, frames_per_patch).gather(1, top[:, None])[:, 0]
        return torch.where(sure.max(1).values > 0, label, -1).numpy(force=True)


def load_ctc_reader(path: str, *, device: torch.device) -> CtcReader | None:
    """The CTC model at a folder or hub id; None where it is none, or its characters are not known.

    What fails here for another reason fails again, with its message, when the teacher itself is loaded.
    """
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(path)
        if not any(name.endswith("ForCTC") for name in config.architectures or ()):
            return None
        tokenizer = AutoTokenizer.from_pretrained(path)
        extractor = AutoFeatureExtractor.from_pretrained(path)
        model = AutoModelForCTC.from_pretrained(path, dtype=torch.float32)
    except (OSError, ValueError, KeyError):
        return None
    vocabulary = {number: token.casefold() for token, number in tokenizer.get_vocab().items()}
    characters = {n: token for n, token in vocabulary.items() if len(token) == 1 and token.isalnum()}
    return CtcReader(model.to(device), extractor, characters) if characters else None


def patch_task(
    labels: np.ndarray, clips: np.ndarray, groups: np.ndarray, characters: Sequence[str], *, split: str, seed: int
) -> Task | LeftOut:
    """The probe for characters of single patches.

    Args:
        labels: (n,) of the sampled positions, -1 without one.
        clips: (n,) their clips.
        groups: (clips,) what training and test must not share.
        split: the same in words.
    """
    counts = Counter(labels[labels >= 0].tolist())
    classes = sorted(label for label, count in counts.items() if count >= FEWEST)
    if len(classes) < 2 or len(set(groups.tolist())) < 2:
        return LeftOut(name=NAME, reason=f"{len(classes)} character(s) read in {FEWEST} or more patches; expected 2")
    members = np.flatnonzero(np.isin(labels, classes))
    owners = groups[clips[members]]
    return Task(
        name=NAME,
        kind="class",
        question=f"which of {len(classes)} characters the teacher's CTC head reads in the patch",
        members=members,
        targets=(labels[members][:, None] == np.array(classes)[None]).astype(float),
        classes=tuple(characters[label] for label in classes),
        folds=grouped_folds(owners, folds=FOLDS, seed=seed),
        groups=owners,
        split=split,
        level="position",
    )
