"""Who sees whom, as tables: rows look, columns are looked at."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from transformers import DynamicCache

from aura.errors import ModelError
from aura.student.mask import attention_masks, block_ids

SEQUENCE = "taaaaataat"  # t text, a audio: a part of five patches and one of two

CAUSAL = """
x.........
xx........
xxx.......
xxxx......
xxxxx.....
xxxxxx....
xxxxxxx...
xxxxxxxx..
xxxxxxxxx.
xxxxxxxxxx
"""
# blocks of two: 1 2, 3 4, 5 and 7 8
BLOCK = """
x.........
xxx.......
xxx.......
xxxxx.....
xxxxx.....
xxxxxx....
xxxxxxx...
xxxxxxxxx.
xxxxxxxxx.
xxxxxxxxxx
"""
FULL = """
x.........
xxxxxx....
xxxxxx....
xxxxxx....
xxxxxx....
xxxxxx....
xxxxxxx...
xxxxxxxxx.
xxxxxxxxx.
xxxxxxxxxx
"""
# three positions back, the looking one included; blocks are seen whole
SLIDING_CAUSAL = """
x.........
xx........
xxx.......
.xxx......
..xxx.....
...xxx....
....xxx...
.....xxx..
......xxx.
.......xxx
"""
SLIDING_BLOCK = """
x.........
xxx.......
xxx.......
.xxxx.....
..xxx.....
...xxx....
....xxx...
.....xxxx.
......xxx.
.......xxx
"""
SLIDING_FULL = """
x.........
xxxxxx....
xxxxxx....
.xxxxx....
.xxxxx....
.xxxxx....
....xxx...
.....xxxx.
......xxx.
.......xxx
"""
TABLES = {
    "causal": (CAUSAL, SLIDING_CAUSAL),
    "block": (BLOCK, SLIDING_BLOCK),
    "full": (FULL, SLIDING_FULL),
}


def audio(sequence: str) -> torch.Tensor:
    return torch.tensor([[letter == "a" for letter in sequence]])


def table(mask: torch.Tensor) -> str:
    seen = mask if mask.dtype == torch.bool else mask == 0
    return "\n" + "".join("".join(".x"[cell] for cell in row) + "\n" for row in seen.tolist())


def config(attn: str = "sdpa", *, window: int = 3) -> Any:
    made = tiny.tiny_llm_config("gemma3")
    made._attn_implementation, made.sliding_window = attn, window
    return made


def masks(sequence: str, pattern: Any, *, attn: str = "sdpa", padding: torch.Tensor | None = None) -> Any:
    blocks = block_ids(audio(sequence), pattern=pattern, block_patches=2)
    if blocks is None:
        blocks = torch.full((1, len(sequence)), -1)  # so that the mask is built and can be read
    return attention_masks(
        config(attn),
        inputs_embeds=torch.zeros(1, len(sequence), 32),
        attention_mask=torch.ones(1, len(sequence), dtype=torch.long) if padding is None else padding,
        position_ids=None,
        cache=None,
        blocks=blocks,
    )


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("block", [-1, 1, 1, 3, 3, 5, -1, 7, 7, -1]),
        ("full", [-1, 1, 1, 1, 1, 1, -1, 7, 7, -1]),
    ],
)
def test_block_ids(pattern: Any, expected: list[int]) -> None:
    assert block_ids(audio(SEQUENCE), pattern=pattern, block_patches=2).tolist() == [expected]


def test_no_blocks_where_plain_causal_attention_is_meant() -> None:
    assert block_ids(audio(SEQUENCE), pattern="causal", block_patches=2) is None
    assert block_ids(audio("ttt"), pattern="block", block_patches=2) is None


def test_blocks_are_counted_from_the_start_of_each_part() -> None:
    rows = torch.cat([audio("aaaataaa"), audio("ttaaaaaa"), audio("tttttttt")])
    assert block_ids(rows, pattern="block", block_patches=3).tolist() == [
        [0, 0, 0, 3, -1, 5, 5, 5],
        [-1, -1, 2, 2, 2, 5, 5, 5],
        [-1] * 8,
    ]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("pattern", TABLES)
def test_who_sees_whom(pattern: str, attn: str) -> None:
    found = masks(SEQUENCE, pattern, attn=attn)
    everywhere, sliding = TABLES[pattern]
    assert table(found["full_attention"][0, 0]) == everywhere
    assert table(found["sliding_attention"][0, 0]) == sliding


def test_padding_is_seen_by_nobody() -> None:
    padding = torch.tensor([[0, 0, 1, 1, 1, 1]])
    found = masks("tttaat", "block", padding=padding)["full_attention"][0, 0]
    assert table(found[2:]) == "\n..x...\n..xxx.\n..xxx.\n..xxxx\n"


def test_masks_on_a_cache_continue_the_table() -> None:
    """The second block's rows of the table, computed when it arrives on its own behind seven positions."""
    cache = DynamicCache(config=config())
    for layer in range(4):
        cache.update(torch.zeros(1, 2, 7, 8), torch.zeros(1, 2, 7, 8), layer)
    blocks = torch.nn.functional.pad(block_ids(audio("aa"), pattern="block", block_patches=2), (7, 0), value=-1)
    found = attention_masks(
        config(),
        inputs_embeds=torch.zeros(1, 2, 32),
        attention_mask=torch.ones(1, 9, dtype=torch.long),
        position_ids=None,
        cache=cache,
        blocks=blocks,
    )
    assert table(found["full_attention"][0, 0]) == "\nxxxxxxxxx\nxxxxxxxxx\n"
    assert table(found["sliding_attention"][0, 0]) == "\nxxxx\n.xxx\n"  # positions 5 to 8: the cache keeps two


def test_masks_are_left_to_the_llm_without_blocks() -> None:
    padding = torch.ones(1, 3)
    embeds = torch.zeros(1, 3, 32)
    found = attention_masks(
        config(),
        inputs_embeds=embeds,
        attention_mask=padding,
        position_ids=None,
        cache=None,
        blocks=None,
    )
    assert found is padding


@pytest.mark.parametrize("attn", ["flash_attention_2", "flash_attention_3", "paged|sdpa"])
def test_attention_that_would_ignore_the_blocks_is_refused(attn: str) -> None:
    llm_config = config()
    llm_config._attn_implementation_internal = attn
    with pytest.raises(ModelError, match=r"cannot see both ways.*attn_implementation='sdpa'.*audio.attention: causal"):
        attention_masks(
            llm_config,
            inputs_embeds=torch.zeros(1, 3, 32),
            attention_mask=None,
            position_ids=None,
            cache=None,
            blocks=torch.tensor([[0, 0, -1]]),
        )


def test_flash_attention_is_refused_in_the_model() -> None:
    model, processor = tiny.tiny_student("llama")
    model.language_model.config._attn_implementation_internal = "flash_attention_2"
    ids = torch.tensor([[7, processor.audio_token_id, 8]])
    with pytest.raises(ModelError, match="flash_attention_2"):
        model(input_ids=ids, input_features=torch.zeros(1, 80, 8))
