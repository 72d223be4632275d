"""The frozen speech encoder of a bridge: loaded, recognised again, and run over log-mel of any length.

Nothing of an aura checkpoint needs this room; a bridge cannot hear without it. Encoders of the Whisper family only: they
take log-mel, as the student does. Shapes: `A` audio parts, `M` mel bins, `T` mel frames, `F` encoder frames of all parts,
`E` encoder width, `W` windows that run together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from aura.audio.logmel import DYNAMIC_RANGE, TINY
from aura.audio.patches import FRAMES_PER_SECOND
from aura.errors import CheckpointError, ModelError
from aura.references import explain_load_error, resolve
from aura.references.quiet import no_load_report

SAMPLES = 64  # weights kept per sampled tensor of the fingerprint
GROUP_FRAMES = (
    24_000  # encoder frames run at once, padding included: 16 windows of 30 s; bounds the memory. Our choice.
)
PADDING_SHARE = 0.06  # most padding of a group on a CPU, which gains little from batching an encoder. Our choice.

Floor = float | Literal["clip"]


class FrozenEncoder(nn.Module):
    """Log-mel -> the encoder's last states, after its final norm; never trained, always in eval mode.

    Whisper has positions for 30 s. A longer part is heard in windows of that length, one after the other, none of which
    knows the others: the wall of every bridge to such an encoder. Nothing is cut off.

    Args:
        encoder: a `WhisperEncoder`.
        patch_frames: mel frames per audio position of the LLM; a window holds whole patches.
        silence_seconds: heard behind the speech, within the window; 30 fills it, as in Whisper's training. An encoder that
            never heard speech end without silence behind it hears short clips worse at their real length (docs/bridge.md).
        floor: of the log-mel, see `aura.audio.logmel.log_mel`; says what silence is.

    Raises:
        ModelError: a patch is no whole number of encoder frames.
    """

    def __init__(self, encoder: Any, *, patch_frames: int, silence_seconds: float = 0.0, floor: Floor = "clip") -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.floor = floor
        self.n_mels = int(encoder.config.num_mel_bins)
        self.width = int(encoder.config.d_model)
        self.positions = int(encoder.config.max_source_positions)
        self.stride = encoder.conv1.stride[0] * encoder.conv2.stride[0]  # mel frames per encoder frame: 2
        self.silent_frames = round(silence_seconds * FRAMES_PER_SECOND / self.stride)
        if patch_frames % self.stride or patch_frames > self.positions * self.stride:
            raise ModelError(
                f"a patch of {patch_frames} mel frames is no whole number of encoder frames of {self.stride}; choose "
                f"audio.patch_frames as a multiple of {self.stride}"
            )
        self.frames_per_patch = patch_frames // self.stride
        self.window = self.positions // self.frames_per_patch * patch_frames  # mel frames heard at once

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stay in eval mode: dropout in a frozen network is noise."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, mel_AMT: torch.Tensor, frames_A: torch.Tensor) -> torch.Tensor:
        """Encode the valid frames of each part.

        Args:
            mel_AMT: log-mel, any values behind each part's end.
            frames_A: valid mel frames per part, whole patches.

        Returns:
            hidden_FE: `frames // stride` encoder frames of every part, back to back, in order.

        Raises:
            ModelError: the log-mel has another number of bins than the encoder takes.
        """
        if mel_AMT.shape[1] != self.n_mels:
            raise ModelError(
                f"the log-mel has {mel_AMT.shape[1]} bins, the speech encoder takes {self.n_mels}; set audio.n_mels: {self.n_mels}"
            )
        windows = [
            (part, start, min(self.window, total - start))
            for part, total in enumerate(frames_A.tolist())
            for start in range(0, total, self.window)
        ]
        silence = [self._silence(mel[:, :total]) for mel, total in zip(mel_AMT, frames_A.tolist())]
        lengths = [length // self.stride for *_, length in windows]
        fed = [min(self.positions, length + self.silent_frames) for length in lengths]
        weight = self.encoder.conv1.weight
        heard: list[torch.Tensor] = [weight] * len(windows)
        for group in self._groups(fed):
            mel_WMT = weight.new_zeros(len(group), self.n_mels, max(fed[i] for i in group) * self.stride)
            for row, i in zip(mel_WMT, group):
                part, start, length = windows[i]
                row[:, : fed[i] * self.stride] = silence[part]
                row[:, :length] = mel_AMT[part, :, start : start + length]
            hidden_WTE = self._encode(mel_WMT, [fed[i] for i in group])
            for hidden_TE, i in zip(hidden_WTE, group):
                heard[i] = hidden_TE[: lengths[i]]
        return torch.cat(heard)

    def _encode(self, mel_WMT: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """The encoder's own submodules over any length up to its window: its `forward` insists on all of it."""
        encoder = self.encoder
        # Zeros behind an item are what the convolutions pad with, and the second one, of stride 2, does not carry the
        # first one's bias back into the item: a padded item equals a single one.
        hidden = nn.functional.gelu(encoder.conv1(mel_WMT))
        hidden_WTE = nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2)
        hidden_WTE = hidden_WTE + encoder.embed_positions.weight[: hidden_WTE.shape[1]]
        mask = _key_mask(lengths, hidden_WTE)
        for layer in encoder.layers:
            hidden_WTE = layer(hidden_WTE, mask)
        return encoder.layer_norm(hidden_WTE)  # type: ignore[no-any-return]

    def _silence(self, mel_MT: torch.Tensor) -> torch.Tensor:
        """What digital silence is in the log-mel of this part."""
        lowest = torch.log10(mel_MT.new_tensor(TINY))
        bound = mel_MT.max() * 4.0 - 4.0 - DYNAMIC_RANGE if self.floor == "clip" else mel_MT.new_tensor(self.floor)
        return (torch.maximum(lowest, bound) + 4.0) / 4.0

    def _groups(self, fed: Sequence[int]) -> list[list[int]]:
        """Windows that run together, the longest first; `fed` frames each, silence included."""
        on_cpu = self.encoder.conv1.weight.device.type == "cpu"
        groups: list[list[int]] = []
        valid = 0
        for i in sorted(range(len(fed)), key=lambda i: -fed[i]):
            padded = fed[groups[-1][0]] * (len(groups[-1]) + 1) if groups else 0
            wasted = padded - valid - fed[i] if on_cpu else 0
            if groups and padded <= GROUP_FRAMES and wasted <= PADDING_SHARE * padded:
                groups[-1].append(i)
                valid += fed[i]
            else:
                groups.append([i])
                valid = fed[i]
        return groups


def _key_mask(lengths: Sequence[int], hidden_WTE: torch.Tensor) -> torch.Tensor | None:
    """Additive mask over keys behind each item's end; None where nothing is padded."""
    windows, longest = hidden_WTE.shape[:2]
    if min(lengths) == longest:
        return None
    ends_W = torch.tensor(lengths, device=hidden_WTE.device)
    behind_WT = torch.arange(longest, device=hidden_WTE.device) >= ends_W[:, None]
    mask = hidden_WTE.new_zeros(windows, 1, 1, longest)
    mask.masked_fill_(behind_WT[:, None, None], torch.finfo(hidden_WTE.dtype).min)
    return mask.expand(windows, 1, longest, longest)


def load_encoder(reference: str, *, dtype: str | torch.dtype = "float32") -> nn.Module:
    """The encoder of a Whisper checkpoint, its decoder left on disk.

    Args:
        reference: Hub id, local folder or `pip:<distribution>`.

    Raises:
        ModelReferenceError: nothing loadable there.
        ModelError: a model of another family, or weights that are torn or incomplete.
    """
    from safetensors import SafetensorError
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = encoder_config(reference)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    loader: Any = WhisperEncoder
    try:
        with no_load_report():
            encoder, info = loader.from_pretrained(
                resolve(reference),
                config=config,
                dtype=dtype,
                output_loading_info=True,
                key_mapping={r"^(model\.)?encoder\.": ""},
            )
    except OSError as error:
        raise explain_load_error(reference, error) from error
    except (ValueError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the weights of the speech encoder '{reference}' cannot be loaded ({reason}); expected a complete checkpoint. "
            "Fetch it again"
        ) from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"the speech encoder '{reference}' lacks {len(missing)} of its weights, e.g. {missing[0]}; expected a complete "
            "Whisper checkpoint. Fetch it again"
        )
    return encoder  # type: ignore[no-any-return]


def encoder_config(reference: str) -> Any:
    """Config of a speech encoder that a bridge can use.

    Raises:
        ModelReferenceError: nothing loadable there.
        ModelError: a model of another family.
    """
    from transformers import AutoConfig

    path = resolve(reference)
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise explain_load_error(reference, error) from error
    check_family(reference, config)
    return config


def check_family(reference: str, config: Any) -> None:
    """Raises `ModelError` for anything but Whisper."""
    if config.model_type != "whisper":
        raise ModelError(
            f"the speech encoder '{reference}' is a {config.model_type} model; a bridge takes encoders of the Whisper family, "
            "which read log-mel. Choose one with --teacher.encoder, e.g. openai/whisper-base (other encoders can teach the "
            "aura route)"
        )


@torch.no_grad()
def encoder_fingerprint(encoder: Any) -> dict[str, Any]:
    """Shapes and a few weights of the encoder; survives a change of dtype."""
    sampled = {}
    for name, weight in (("front end", encoder.conv1.weight), ("last layer", encoder.layers[-1].fc2.weight)):
        flat = weight.reshape(-1)
        picks = torch.linspace(0, flat.numel() - 1, SAMPLES, dtype=torch.float64).long().to(flat.device)
        sampled[name] = [round(value, 6) for value in flat[picks].float().tolist()]
    config = encoder.config
    shapes = {"layers": len(encoder.layers), "width": config.d_model, "n_mels": config.num_mel_bins}
    return {"model_type": config.model_type, **shapes, **sampled}


def check_encoder(expected: Mapping[str, Any], encoder: Any, *, checkpoint: str, reference: str) -> None:
    """Refuse an encoder that the projector was not trained on.

    Raises:
        CheckpointError: naming both, and what differs.
    """
    found = encoder_fingerprint(encoder)
    for key, value in sorted(expected.items(), key=lambda entry: isinstance(entry[1], list)):  # sizes say more
        other = found.get(key)
        same = value == other
        if isinstance(value, list) and isinstance(other, list):
            same = torch.allclose(torch.tensor(value), torch.tensor(other), rtol=1e-2, atol=1e-4)  # as bfloat16 rounds
        if not same:
            shown = f"its {key} differs" if isinstance(value, list) else f"{key} {value} expected, {other} found"
            raise CheckpointError(
                f"{checkpoint} was trained on another speech encoder than {reference}: {shown}. Give the one named in its "
                "config.json, or train a bridge for this one with aura train --route bridge --teacher.encoder"
            )
