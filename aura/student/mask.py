"""Who sees whom: the three attention patterns over audio, on top of the LLM's own mask."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers.masking_utils import create_masks_for_generate

from aura.errors import ModelError
from aura.student.cache_key import CACHE_KEY

AttentionPattern = Literal["block", "causal", "full"]


def block_ids(is_audio_BS: torch.Tensor, *, pattern: AttentionPattern, block_patches: int) -> torch.Tensor | None:
    """Number the positions that see each other both ways.

    Args:
        is_audio_BS: bool, True at audio positions; adjacent audio parts are parted by at least one text position.
        pattern: `block`: blocks of `block_patches` counted from the start of each audio part; `full`: one block a part.

    Returns:
        (B, S) long: -1 at text positions, one id per block; None where plain causal attention is meant.
    """
    if pattern == "causal" or not bool(is_audio_BS.any()):
        return None
    position_S = torch.arange(is_audio_BS.shape[1], device=is_audio_BS.device)
    previous_BS = torch.nn.functional.pad(is_audio_BS[:, :-1], (1, 0), value=False)
    starts_BS = is_audio_BS & ~previous_BS
    start_BS = torch.where(starts_BS, position_S, 0).cummax(dim=1).values  # index of the part's first position
    ids_BS = start_BS
    if pattern == "block":
        # The id of a block is the index of its first position: unique in the row, and the same however it is prefilled.
        ids_BS = start_BS + (position_S - start_BS) // block_patches * block_patches
    return torch.where(is_audio_BS, ids_BS, -1)


def attention_masks(
    config: Any,
    *,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    cache: Any,
    blocks: torch.Tensor | None,
) -> Any:
    """The LLM's own masks (sliding window and all) with the audio blocks laid over them.

    Args:
        config: of the LLM.
        blocks: (B, past + S) from `block_ids`; None leaves the masks to the LLM itself.

    Returns:
        what the LLM takes as `attention_mask`: a 4D mask, a dict of them by layer type, or the 2D mask as given.

    Raises:
        ModelError: flash attention, which would ignore the blocks without a word.
    """
    if blocks is None:
        return attention_mask
    if config._attn_implementation not in ("sdpa", "eager", "flex_attention"):
        raise ModelError(
            f"attention '{config._attn_implementation}' cannot see both ways inside audio blocks; load with "
            "attn_implementation='sdpa', or train with audio.attention: causal"
        )
    return create_masks_for_generate(
        config=config,
        inputs_embeds=inputs_embeds,
        attention_mask=attention_mask,
        position_ids=position_ids,
        block_sequence_ids=blocks,
        **{CACHE_KEY: cache},
    )
