"""Messages to ids and labels: what is learnt is what generation must produce, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import tiny

from aura.batch.prompt import IGNORE, Prompt, build_prompt, count_audio, replace_audio, user_message
from aura.config import AudioConfig
from aura.errors import PromptError
from aura.student.checkpoint import new_processor
from aura.student.processor import AuraProcessor

AUDIO = {"type": "audio"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, str]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def assistant(words: str) -> dict[str, str]:
    return {"role": "assistant", "content": words}


SYSTEM = {"role": "system", "content": "be brief"}
ONE = [user(AUDIO, text("what?")), assistant("the end")]
TWO = [
    SYSTEM,
    user(text("a: "), AUDIO),
    assistant("on"),
    user(text("b"), AUDIO, AUDIO, text("c")),
    assistant("in the"),
]
TEXT_ONLY = [user(text("the")), assistant("thing"), {"role": "user", "content": "and?"}, assistant("")]

THINKER = (  # as Qwen 3's: the last answer opens with a thought, an empty one where thinking is switched off
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
STRICT = (  # as Gemma's: roles must alternate
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"chatml": tiny.CHATML, "plain": None, "strict": STRICT}


def processor_for(template: str | None, **options: Any) -> AuraProcessor:
    return new_processor(tiny.tiny_tokenizer(chat_template=template, **options), AudioConfig())


@pytest.fixture(params=TEMPLATES)
def processor(request: pytest.FixtureRequest) -> AuraProcessor:
    return processor_for(TEMPLATES[request.param])


@pytest.fixture
def chatml() -> AuraProcessor:
    return processor_for(tiny.CHATML)


def decoded(processor: AuraProcessor, ids: Any) -> str:
    return processor.tokenizer.decode(list(ids))


def learnt(processor: AuraProcessor, prompt: Prompt) -> list[str]:
    """The labelled stretches as text."""
    stretches: list[list[int]] = [[]]
    for label in prompt.labels:
        if label != IGNORE:
            stretches[-1].append(label)
        elif stretches[-1]:
            stretches.append([])
    return [decoded(processor, ids) for ids in stretches if ids]


def test_one_turn_by_the_letter(chatml: AuraProcessor) -> None:
    prompt = build_prompt(chatml, ONE, [3], answer=True)
    assert decoded(chatml, prompt.input_ids) == (
        "<|im_start|>user\n<unused0><unused0><unused0>what?<|im_end|>\n<|im_start|>assistant\nthe end<|im_end|>\n"
    )
    assert learnt(chatml, prompt) == ["the end<|im_end|>"]


@pytest.mark.parametrize(
    ("messages", "patches", "answers"),
    [(ONE, [3], ["the end"]), (TWO, [1, 2, 4], ["on", "in the"]), (TEXT_ONLY, [], ["thing", ""])],
    ids=["one", "two", "text"],
)
def test_labels_are_the_answers_and_their_end(
    processor: AuraProcessor, messages: list[Any], patches: list[int], answers: list[str]
) -> None:
    if "alternate" in processor.chat_template:
        messages = [m for m in messages if m["role"] != "system"]
    prompt = build_prompt(processor, messages, patches, answer=True)
    assert len(prompt.input_ids) == len(prompt.labels)
    end = processor.tokenizer.eos_token if "im_end" not in processor.chat_template else "<|im_end|>"
    assert learnt(processor, prompt) == [answer + end for answer in answers]
    assert all(label in (IGNORE, token) for token, label in zip(prompt.input_ids, prompt.labels, strict=True))
    assert prompt.input_ids.count(processor.audio_token_id) == sum(patches)
    assert processor.audio_token_id not in prompt.labels


@pytest.mark.parametrize(
    ("messages", "patches"), [(ONE, [3]), (TWO, [1, 2, 4]), (TEXT_ONLY, [])], ids=["one", "two", "text"]
)
def test_generation_starts_from_what_training_saw(
    processor: AuraProcessor, messages: list[Any], patches: list[int]
) -> None:
    if "alternate" in processor.chat_template:
        messages = [m for m in messages if m["role"] != "system"]
    whole = build_prompt(processor, messages, patches, answer=True)
    start = build_prompt(processor, messages[:-1], patches, answer=False)
    n = len(start.input_ids)
    assert whole.input_ids[:n] == start.input_ids
    assert whole.labels[n] != IGNORE and whole.labels[n - 1] == IGNORE, "the answer begins right behind the prompt"


def test_audio_parts_stand_in_reading_order(chatml: AuraProcessor) -> None:
    ids = build_prompt(chatml, TWO, [1, 2, 4], answer=True).input_ids
    runs = decoded(chatml, ids).replace("<unused0>", "#")
    assert runs.split("user\n")[1].startswith("a: #<|im_end|>")
    assert runs.split("user\n")[2].startswith("b##\n####c<|im_end|>")


def test_adjacent_audio_parts_are_parted(processor: AuraProcessor) -> None:
    """The mask counts blocks from the start of each part; it tells parts by the text between them."""
    ids = build_prompt(processor, [user(AUDIO, AUDIO, AUDIO), assistant("x")], [2, 3, 1], answer=True).input_ids
    runs = decoded(processor, ids).replace("<unused0>", "#")
    assert "##\n###\n#" in runs and "####" not in runs


def test_processor_template_takes_text_and_parts_alike(processor: AuraProcessor) -> None:
    as_text = processor.apply_chat_template([{"role": "user", "content": "the end"}], tokenize=False)
    as_parts = processor.apply_chat_template([user(text("the "), text("end"))], tokenize=False)
    assert as_text == as_parts and "the end" in as_text


def test_no_bos_is_added_beyond_the_templates_own() -> None:
    adding = processor_for(tiny.CHATML, adds_bos=True)
    assert adding.tokenizer("the")["input_ids"][0] == adding.tokenizer.bos_token_id, "the tokenizer adds one"
    assert adding.tokenizer.bos_token_id not in build_prompt(adding, TWO, [1, 2, 4], answer=True).input_ids
    strict = processor_for(STRICT, adds_bos=True)
    ids = build_prompt(strict, TWO[1:], [1, 2, 4], answer=True).input_ids
    assert ids[0] == strict.tokenizer.bos_token_id and ids.count(strict.tokenizer.bos_token_id) == 1


def test_hybrid_thinkers_answer_without_a_thought() -> None:
    thinker = processor_for(THINKER)
    prompt = build_prompt(thinker, ONE, [3], answer=True)
    assert learnt(thinker, prompt) == ["the end<|im_end|>"]
    start = build_prompt(thinker, ONE[:-1], [3], answer=False)
    assert decoded(thinker, start.input_ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert "<think>" in thinker.apply_chat_template(ONE[:-1], add_generation_prompt=True, tokenize=False)
    asked = thinker.apply_chat_template(ONE[:-1], add_generation_prompt=True, tokenize=False, enable_thinking=True)
    assert asked.endswith("<|im_start|>assistant\n")


def test_templates_that_rewrite_turns() -> None:
    thinker = processor_for(THINKER)
    with pytest.raises(PromptError, match=r"rewrites earlier turns.*split it into rows with one assistant turn each"):
        build_prompt(thinker, TWO, [1, 2, 4], answer=True)
    # Generation needs no labels, so it goes on.
    start = decoded(thinker, build_prompt(thinker, TWO[:-1], [1, 2, 4], answer=False).input_ids)
    assert "<think>" not in start.split("assistant\n")[1] and start.endswith("</think>\n\n")


@pytest.mark.parametrize(
    ("messages", "patches", "answer", "message"),
    [
        ([], [], False, r"holds no messages; expected at least one user turn"),
        ([user(AUDIO)], [], False, r"hold 1 audio part\(s\) but 0 audio\(s\) were given"),
        (ONE, [1, 2], True, r"hold 1 audio part\(s\) but 2 audio\(s\) were given"),
        (ONE[:1], [1], True, r"last message is the user's; training needs the assistant's answer last"),
        (
            [{"role": "human", "content": "x"}],
            [],
            False,
            r"message 1 is .*'human'.*expected a role \(system, user or assistant\)",
        ),
        ([{"content": "x"}], [], False, r"message 1 is .*expected a role"),
        ([{"role": "user"}], [], False, r"message 1 is .*content as text"),
        ([{"role": "user", "content": 3}], [], False, r"message 1 is .*content as text"),
        (
            [SYSTEM, user({"type": "image"})],
            [],
            False,
            r"message 2 holds the part \{'type': 'image'\}; expected type 'text'",
        ),
        (
            [user({"type": "text"})],
            [],
            False,
            r"message 1 holds the part .*expected type 'text' \(with text\)",
        ),
        ([user({"type": "text", "text": None})], [], False, r"message 1 holds the part"),  # type: ignore[dict-item]
        ([user("x")], [], False, r"message 1 holds the part 'x'; expected type 'text'"),  # type: ignore[arg-type]
        (
            [user(AUDIO), {"role": "assistant", "content": [AUDIO]}],
            [1, 1],
            True,
            r"message 2 is the assistant's and holds audio",
        ),
        (["x"], [], False, r"message 1 is 'x'; expected a role"),
        (
            [user(text("a <unused0> b"))],
            [],
            False,
            r"message 1 holds the text '<unused0>', which stands for audio; leave it out",
        ),
        ([user(AUDIO), assistant("<unused0>")], [1], True, r"message 2 holds the text '<unused0>'"),
    ],
)
def test_errors(chatml: AuraProcessor, messages: list[Any], patches: list[int], answer: bool, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        build_prompt(chatml, messages, patches, answer=answer)


def test_a_template_that_refuses_says_why() -> None:
    with pytest.raises(PromptError, match="refuses this conversation: roles must alternate"):
        build_prompt(processor_for(STRICT), [SYSTEM, *ONE], [1], answer=True)


def test_messages_are_left_as_they_are(processor: AuraProcessor) -> None:
    messages = [user(AUDIO, text("what?")), assistant("the end")]
    build_prompt(processor, messages, [3], answer=True)
    assert messages == ONE


def test_helpers() -> None:
    assert user_message("what?", 2) == user(AUDIO, AUDIO, text("what?"))
    assert user_message(None) == user(AUDIO)
    assert count_audio(TWO) == 3 and count_audio(TEXT_ONLY) == 0


def test_transcripts_in_place_of_audio() -> None:
    replaced = replace_audio([*TWO, user(AUDIO, text("what?"))], ["one", "two", "three", "four"])
    assert [m["content"] for m in replaced] == [
        "be brief",
        "a: one",
        "on",
        "b\ntwo\nthree\nc",
        "in the",
        "four\nwhat?",
    ]
    assert count_audio(TWO) == 3, "the original keeps its audio"
