"""One batch of conversations: padding, features, waveforms, transcripts."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

from aura.batch.collate import Batch, Example, collate
from aura.batch.prompt import IGNORE, build_prompt, replace_audio, user_message
from aura.config import AudioConfig
from aura.errors import PromptError
from aura.student.checkpoint import new_processor

PROCESSOR = new_processor(tiny.tiny_tokenizer(), AudioConfig())
ANSWER = {"role": "assistant", "content": "the end"}


def example(name: str, *seconds: float, prompt: str = "what?", transcripts: bool = True) -> Example:
    return Example(
        id=name,
        messages=[user_message(prompt, len(seconds)), ANSWER],
        waveforms=[tiny.tiny_speech(s, seed=len(name) + n) for n, s in enumerate(seconds)],
        transcripts=[f"{name} {n}" for n, _ in enumerate(seconds)] if transcripts else None,
    )


EXAMPLES = [example("a", 0.5), example("bb", 1.3, 0.09, prompt="and then?"), example("ccc", 0.2)]
PATCHES = [[7], [17, 2], [3]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_the_prompts_padded(side: str) -> None:
    batch = collate(PROCESSOR, EXAMPLES, answer=True, padding_side=side)  # type: ignore[arg-type]
    assert batch.ids == ("a", "bb", "ccc")
    for row, (one, patches) in enumerate(zip(EXAMPLES, PATCHES, strict=True)):
        prompt = build_prompt(PROCESSOR, one.messages, patches, answer=True)
        real = batch.attention_mask[row].bool()
        assert tuple(batch.input_ids[row][real].tolist()) == prompt.input_ids
        assert tuple(batch.labels[row][real].tolist()) == prompt.labels
        assert (batch.input_ids[row][~real] == PROCESSOR.tokenizer.pad_token_id).all()
        assert (batch.labels[row][~real] == IGNORE).all()
        assert real.tolist() == sorted(real.tolist(), reverse=side == "right")
    assert batch.attention_mask.sum(1).max() == batch.input_ids.shape[1], "no column is padding in every row"


def test_features_are_those_of_each_part_at_real_length() -> None:
    batch = collate(PROCESSOR, EXAMPLES, answer=True)
    assert batch.input_features is not None and batch.input_features_mask is not None
    waveforms = [w for one in EXAMPLES for w in one.waveforms]
    frames = [8 * n for patches in PATCHES for n in patches]
    assert batch.input_features_mask.sum(1).tolist() == frames
    for row, (waveform, n) in enumerate(zip(waveforms, frames, strict=True)):
        alone = PROCESSOR.feature_extractor([waveform])["input_features"][0]
        assert torch.equal(batch.input_features[row, :, :n], alone)
        assert not batch.input_features[row, :, n:].any()
    assert (batch.input_ids == PROCESSOR.audio_token_id).sum() * 8 == batch.input_features_mask.sum()


def test_model_inputs_are_what_the_model_takes() -> None:
    model, processor = tiny.tiny_student("llama")
    with torch.no_grad():
        assert model(**collate(processor, EXAMPLES, answer=True).model_inputs()).logits.isfinite().all()
    text = Example(id="t", messages=[{"role": "user", "content": "the"}], waveforms=[])
    batch = collate(processor, [text], answer=False)
    assert set(batch.model_inputs()) == {"input_ids", "attention_mask"} and batch.audio_seconds == 0.0


def test_counts() -> None:
    batch = collate(PROCESSOR, EXAMPLES, answer=True)
    end = len(PROCESSOR.tokenizer.encode("the end", add_special_tokens=False)) + 1
    assert batch.answer_tokens == 3 * end
    assert batch.audio_seconds == pytest.approx(0.08 * (7 + 17 + 2 + 3))
    assert (
        collate(
            PROCESSOR,
            [Example(id="a", messages=EXAMPLES[0].messages[:1], waveforms=EXAMPLES[0].waveforms)],
            answer=False,
        ).answer_tokens
        == 0
    )


def test_waveforms_for_the_teacher_are_padded_to_patches() -> None:
    assert collate(PROCESSOR, EXAMPLES, answer=True).waveforms == ()
    kept = collate(PROCESSOR, EXAMPLES, answer=True, keep_waveforms=True).waveforms
    given = [w for one in EXAMPLES for w in one.waveforms]
    assert [len(w) for w in kept] == [1280 * n for patches in PATCHES for n in patches]
    for ours, theirs in zip(kept, given, strict=True):
        assert np.array_equal(ours[: len(theirs)], theirs) and not ours[len(theirs) :].any()


def test_features_given_are_taken() -> None:
    plain = collate(PROCESSOR, EXAMPLES, answer=True)
    mels = [m[:, : int(mask.sum())] for m, mask in zip(plain.input_features, plain.input_features_mask, strict=True)]  # type: ignore[arg-type]
    same = collate(PROCESSOR, EXAMPLES, answer=True, features=mels)
    assert torch.equal(same.input_features, plain.input_features) and torch.equal(
        same.input_features_mask, plain.input_features_mask
    )  # type: ignore[arg-type]
    masked = collate(PROCESSOR, EXAMPLES, answer=True, features=[torch.zeros_like(m) for m in mels])
    assert not masked.input_features.any()  # type: ignore[union-attr]


def test_text_teacher_reads_the_transcript_and_learns_the_same_answers() -> None:
    batch = collate(PROCESSOR, EXAMPLES, answer=True, text_teacher=True)
    text = batch.text
    assert text is not None and text.ids == batch.ids and text.input_features is None
    assert not (text.input_ids == PROCESSOR.audio_token_id).any()
    for row, one in enumerate(EXAMPLES):
        heard, read = batch.labels[row], text.labels[row]
        assert heard[heard != IGNORE].tolist() == read[read != IGNORE].tolist(), "position by position"
        expected = build_prompt(PROCESSOR, replace_audio(one.messages, one.transcripts or []), answer=True)
        assert tuple(text.input_ids[row][text.attention_mask[row].bool()].tolist()) == expected.input_ids
    with pytest.raises(PromptError, match=r"dd has no transcript; .*distill.response_kl: 0"):
        collate(PROCESSOR, [example("dd", 0.5, transcripts=False)], answer=True, text_teacher=True)


def test_moving_keeps_everything() -> None:
    batch = collate(PROCESSOR, EXAMPLES, answer=True, keep_waveforms=True, text_teacher=True)
    moved = batch.to("cpu")
    assert isinstance(moved, Batch) and moved.ids == batch.ids and moved.waveforms is batch.waveforms
    assert moved.text is not None and torch.equal(moved.text.labels, batch.text.labels)  # type: ignore[union-attr]
    meta = batch.to("meta")
    assert meta.input_ids.is_meta and meta.input_features.is_meta and meta.text.input_ids.is_meta  # type: ignore[union-attr]


def test_audio_and_parts_must_agree() -> None:
    one = EXAMPLES[1]
    with pytest.raises(PromptError, match=r"2 audio part\(s\) but 1 audio\(s\)"):
        collate(PROCESSOR, [Example(id="x", messages=one.messages, waveforms=one.waveforms[:1])], answer=True)
