"""How sure the model is of what it wrote, and transcripts that it is not sure enough of."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
import torch

from aura.audio.resample import change_tempo_and_pitch, telephone_band
from aura.batch.collate import Example, collate
from aura.batch.prompt import user_message
from aura.cli import main
from aura.data.manifest import read_utterances
from aura.errors import CheckpointError, RecipeError
from aura.evaluation.evaluate import evaluate
from aura.evaluation.routes import answering
from aura.evaluation.routes.answering import Answerer
from aura.inference.bound import Bound, Held
from aura.inference.confidence import HEARD_AGAIN, HEARINGS, LONE_WORD, PAUSE, average_log_probs, confidence, sureness
from aura.inference.engine import Engine
from aura.inference.generate import Generation, end_tokens
from aura.inference.transcribe import Transcript
from aura.student.checkpoint import load_checkpoint, save_checkpoint


def examples(count: int) -> list[Example]:
    message = user_message("Say it.")
    return [
        Example(id=str(n), messages=[message], waveforms=[tiny.tiny_speech(0.4 + 0.5 * n, seed=n)])
        for n in range(count)
    ]


@torch.no_grad()
def token_by_token(engine: Engine, example: Example, ids: Sequence[int], *, ends: bool) -> float:
    """The same mean, one growing prompt after the other."""
    inputs = collate(engine.processor, [example], answer=False).model_inputs()
    inputs.pop("position_ids", None)
    logs = []
    for token in [*ids, None]:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        row_V = engine.model(**inputs, use_cache=False).logits[0, -1].double().log_softmax(-1)
        if token is not None:
            logs.append(float(row_V[token]))
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[token]])], dim=1)
        elif ends and not ids:
            ending = end_tokens(engine.model, engine.processor.tokenizer)
            logs.append(math.log(sum(math.exp(float(row_V[end])) for end in ending)))
    return sum(logs) / len(logs)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_mean_is_that_of_the_tokens_one_by_one(family: str) -> None:
    model, processor = tiny.tiny_student(family)
    tiny.train_adapter(model, scale=0.4)
    engine = Engine(model, processor)
    asked = examples(4)
    answered = [
        Generation(text="", token_ids=(21, 22, 23, 30), finished=True),
        Generation(text="", token_ids=(25,), finished=False),
        Generation(text="", token_ids=(), finished=True),
        Generation(text="", token_ids=(31, 32), finished=True),
    ]
    expected = [
        token_by_token(engine, example, generation.token_ids, ends=generation.finished)
        for example, generation in zip(asked, answered, strict=True)
    ]
    for batch_tokens in (1, 4096):  # alone, and padded together
        found = average_log_probs(model, processor, asked, answered, batch_tokens=batch_tokens)
        assert found == pytest.approx(expected, abs=1e-4)
    assert all(value < 0 for value in found) and len(set(found)) == 4


def test_logits_that_are_no_numbers_are_sure_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny.tiny_student("llama")
    monkeypatch.setattr(model, "logits", lambda hidden: torch.full((*hidden.shape[:-1], 300), math.nan))
    generation = Generation(text="", token_ids=(21,), finished=True)
    assert average_log_probs(model, processor, examples(1), [generation]) == [-math.inf]


def test_what_the_model_prefers_it_is_surer_of() -> None:
    engine = Engine(*tiny.tiny_student("llama"))
    [example] = examples(1)
    [own] = engine.generate([example], max_new_tokens=6)
    other = Generation(text="", token_ids=tuple(token ^ 1 for token in own.token_ids), finished=own.finished)
    best, worse = engine.confidence([example, example], [own, other])
    assert best > worse


def test_no_token_and_no_end_is_nothing_to_doubt_and_a_placeholder_is_text() -> None:
    model, processor = tiny.tiny_student("llama")
    nothing = Generation(text="", token_ids=(), finished=False)
    placeholder = Generation(text="", token_ids=(model.config.audio_token_id, 30), finished=False)
    [value] = average_log_probs(model, processor, examples(1), [placeholder])
    assert -math.inf < value < 0
    assert average_log_probs(model, processor, examples(1), [nothing]) == [0.0]
    assert average_log_probs(model, processor, [], []) == []


def test_that_a_lone_word_ends_there_does_not_halve_the_doubt_in_it() -> None:
    model, processor = tiny.tiny_student("llama")
    ended, cut = (Generation(text="", token_ids=(21,), finished=finished) for finished in (True, False))
    found = average_log_probs(model, processor, [*examples(1), *examples(1)], [ended, cut])
    assert (
        found[0]
        == found[1]
        == pytest.approx(token_by_token(Engine(model, processor), examples(1)[0], (21,), ends=True))
    )


def test_audio_is_heard_again_and_the_lowest_counts() -> None:
    """With a pause, short audio so faster and by telephone as well; what would become too long for the model, once."""
    model, processor = tiny.tiny_student("llama")
    tiny.train_adapter(model, scale=0.4)
    message = user_message("Say it.")
    seconds = (0.4, 1.5, HEARD_AGAIN - 0.1, HEARD_AGAIN, HEARD_AGAIN + 1)
    waves = [tiny.tiny_speech(s, seed=n) for n, s in enumerate(seconds)]
    silence = np.zeros(round(16_000 * PAUSE), np.float32)
    asked = [Example(id=str(s), messages=[message], waveforms=[wave]) for s, wave in zip(seconds, waves, strict=True)]
    answered = [Generation(text="", token_ids=(29, 30 + n), finished=True) for n in range(len(asked))]
    hearings = [average_log_probs(model, processor, asked, answered)]
    faster = [change_tempo_and_pitch(wave, 1.12) for wave in waves]
    for played in (waves, faster, [telephone_band(wave) for wave in waves]):
        paused = [
            replace(e, waveforms=[np.concatenate([silence, wave, silence])])
            for e, wave in zip(asked, played, strict=True)
        ]
        hearings.append(average_log_probs(model, processor, paused, answered))
    assert len(hearings) == 1 + len(HEARINGS)
    expected = [min(heard) for heard in zip(*hearings, strict=True)][:3]
    expected += [min(heard) for heard in zip(*hearings[:2], strict=True)][3:]
    assert any(paused < once for once, paused in zip(hearings[0][3:], hearings[1][3:], strict=True))
    assert len({min(range(4), key=lambda n, i=i: hearings[n][i]) for i in range(3)}) > 1  # not always the same hearing
    for batch_tokens in (1, 4096):
        found = confidence(model, processor, asked, answered, batch_tokens=batch_tokens)
        assert found == pytest.approx(expected, abs=1e-4)
    model.config.max_seconds = HEARD_AGAIN  # the third fits, but not with a pause
    found = confidence(model, processor, asked[:3], answered[:3])
    assert found == pytest.approx([*expected[:2], hearings[0][2]], abs=1e-4)
    text = [Example(id="t", messages=[user_message("Say it.", 0)], waveforms=[])]
    assert confidence(model, processor, text, answered[:1]) == average_log_probs(model, processor, text, answered[:1])


class Unsure(Engine):
    """Says two words for each window, with the given sureness."""

    def __init__(self, sureness: Sequence[float], *, bound: float | None = None) -> None:
        super().__init__(*tiny.tiny_student("llama"), checkpoint="tiny")
        self.model.config.min_avg_logprob = bound
        self.sureness, self.scored = list(sureness), 0

    def generate(self, examples: Sequence[Example], **_: Any) -> list[Generation]:
        return [Generation(text=f"say word{n}", token_ids=(n,), finished=True) for n in range(len(examples))]

    def confidence(
        self, examples: Sequence[Example], generations: Sequence[Generation], *, batch_tokens: int = 2048
    ) -> list[float]:
        self.scored += len(generations)
        return [self.sureness[generation.token_ids[0]] for generation in generations]


def spoken() -> dict[str, Any]:
    return {"array": tiny.tiny_speech(6.0, seed=1), "sampling_rate": 16_000}


def transcribe(engine: Engine, **options: Any) -> Transcript:
    found = engine.transcribe(spoken(), window=2.0, overlap=0.0, **options)
    assert isinstance(found, Transcript)
    return found


def test_windows_that_are_not_sure_enough_say_nothing() -> None:
    engine = Unsure([-0.1, -0.9, -0.2])
    assert transcribe(engine).text == "say word0 say word1 say word2" and engine.scored == 0
    found = transcribe(engine, min_avg_logprob=-0.5)
    assert found.unsure == found.as_dict()["unsure"] == 1
    assert found.text == "say word0 say word2" and [s.avg_logprob for s in found.segments] == [-0.1, -0.2]
    assert transcribe(engine, min_avg_logprob=-math.inf).text == "say word0 say word1 say word2"
    assert transcribe(engine, scores=True).as_dict()["segments"][1]["avg_logprob"] == -0.9
    assert "avg_logprob" not in transcribe(engine).as_dict()["segments"][0]
    for bound in (0.5, math.nan):
        with pytest.raises(RecipeError, match="a log-probability is at most 0"):
            transcribe(engine, min_avg_logprob=bound)


class Terse(Unsure):
    """Says one."""

    def generate(self, examples: Sequence[Example], **_: Any) -> list[Generation]:
        return [replace(generation, text=generation.text.split()[1]) for generation in super().generate(examples)]


def test_a_lone_word_has_to_be_as_sure_again(tmp_path: Path) -> None:
    assert sureness("six", -0.1) == -0.2 and sureness("double shot", -0.1) == sureness("两杯咖啡", -0.1) == -0.1
    found = transcribe(Terse([-0.1, -0.9, -0.2]), min_avg_logprob=-0.3)
    assert found.text == "word0" and found.unsure == 2 and found.segments[0].avg_logprob == -0.1
    assert transcribe(Unsure([-0.1, -0.9, -0.2]), min_avg_logprob=-0.3).text == "say word0 say word2"
    rows = clips(tmp_path, transcript="", task="transcribe", label={"no_speech": "music"})
    for kind, rate in ((Terse, 1 / 3), (Unsure, 2 / 3)):
        engine = kind([-0.1, -0.9, -0.2], bound=-0.3)
        out = tmp_path / kind.__name__
        found_rate = evaluate(engine, rows, task="silence", out=out, show_progress=False).metrics[
            "false_transcript_rate"
        ]
        assert found_rate == pytest.approx(rate)
        assert json.loads((out / "report.json").read_text())["settings"]["doubt_in_a_lone_word"] == LONE_WORD
        answerer = Answerer(engine.model, engine.processor, held=Held(least=-0.3))
        asked = examples(3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(answering, "confidence", lambda *_, engine=engine, **__: engine.sureness)
            said = [generation.text for generation in answerer._sure_enough(asked, engine.generate(asked))]
        assert sum(map(bool, said)) == round(3 * rate)


class Mixed(Unsure):
    """One word for each window, but for those that say two."""

    def __init__(self, sureness: Sequence[float], *, two: Sequence[int], bound: float | None = None) -> None:
        super().__init__(sureness, bound=bound)
        self.model.config.lone_words, self.two = False, two

    def generate(self, examples: Sequence[Example], **_: Any) -> list[Generation]:
        found = super().generate(examples)
        return [g if n in self.two else replace(g, text=f"word{n}") for n, g in enumerate(found)]


def test_a_checkpoint_may_write_no_lone_word_down(tmp_path: Path) -> None:
    alone = Mixed([-0.01, -0.9, -0.01], two=[], bound=-0.3)
    found = transcribe(alone)
    assert found.text == "" and found.unsure == 3 and not found.segments and not found.truncated
    assert transcribe(alone, lone_words=True).text == "word0 word2"  # as sure again, as everywhere
    assert transcribe(alone, min_avg_logprob=-0.001).text == ""
    assert transcribe(alone, min_avg_logprob=-math.inf).text == "word0 word1 word2"
    assert transcribe(alone, prompt="Say it.").text == "word0 word1 word2"  # the bound was found for another prompt
    assert transcribe(alone, prompt="Say it.", lone_words=False).text == ""
    assert transcribe(alone, min_avg_logprob=-math.inf, lone_words=False).text == ""
    # Beside more words of the same recording one is not alone, unless those are left out themselves.
    assert transcribe(Mixed([-0.01, -0.01, -0.9], two=[1], bound=-0.3)).text == "word0 say word1"
    assert transcribe(Mixed([-0.01, -0.9, -0.01], two=[1], bound=-0.3)).text == ""
    assert (
        transcribe(Mixed([-0.01, -0.01, -0.01], two=[], bound=None)).text == "word0 word1 word2"
    )  # nothing is held to
    rows = clips(tmp_path, transcript="", task="transcribe", label={"no_speech": "music"})
    for lone_words, rate in ((None, 1 / 3), (True, 2 / 3)):
        engine = Mixed([-0.01, -0.9, -0.01], two=[0], bound=-0.3)
        out = tmp_path / str(lone_words)
        scored = evaluate(engine, rows, task="silence", out=out, lone_words=lone_words, show_progress=False)
        assert scored.metrics["false_transcript_rate"] == pytest.approx(rate)
        settings = json.loads((out / "report.json").read_text())["settings"]
        assert settings["min_avg_logprob"] == -0.3 and settings.get("lone_words") == (None if lone_words else False)
        answerer = Answerer(engine.model, engine.processor, held=Bound(lone_words=lone_words).of(engine.model, None))
        asked = examples(3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(answering, "confidence", lambda *_, engine=engine, **__: engine.sureness)
            said = [generation.text for generation in answerer._sure_enough(asked, engine.generate(asked))]
        assert sum(map(bool, said)) == round(3 * rate)
    with pytest.raises(RecipeError, match="lone_words given with the task answer"):
        evaluate(engine, rows, task="answer", lone_words=True, out=tmp_path / "no", show_progress=False)


def test_the_bound_of_a_checkpoint_holds_unless_another_is_given(tmp_path: Path) -> None:
    engine = Unsure([-0.1, -0.9, -0.2], bound=-0.15)
    assert transcribe(engine).text == "say word0"
    assert transcribe(engine, min_avg_logprob=-0.5).text == "say word0 say word2"
    assert transcribe(engine, min_avg_logprob=-math.inf).text == "say word0 say word1 say word2"
    assert (
        transcribe(engine, prompt="Say it.").text == "say word0 say word1 say word2"
    )  # it was found for another prompt
    tiny.tiny_llm_folder("llama", tmp_path / "llm")
    model, processor = tiny.tiny_student("llama", base=str(tmp_path / "llm"))
    model.config.min_avg_logprob = -0.25
    save_checkpoint(tmp_path / "saved", model, processor)
    loaded, _ = load_checkpoint(tmp_path / "saved")
    assert loaded.config.min_avg_logprob == -0.25 and loaded.config.lone_words is True
    config = json.loads((tmp_path / "saved" / "config.json").read_text()) | {"min_avg_logprob": 0.5}
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"min_avg_logprob is 0\.5"):
        load_checkpoint(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config | {"min_avg_logprob": -0.5, "lone_words": "no"}))
    with pytest.raises(CheckpointError, match="lone_words"):
        load_checkpoint(tmp_path / "saved")


def clips(folder: Path, **fields: Any) -> list[Any]:
    rows = []
    for n in range(3):
        soundfile.write(folder / f"{n}.wav", tiny.tiny_speech(0.5, seed=n), 16_000)
        rows.append({"id": f"clip{n}", "audio": f"{n}.wav", **fields})
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return list(read_utterances(folder / "rows.jsonl"))


def test_false_transcripts_are_counted_behind_the_bound(tmp_path: Path) -> None:
    rows = clips(tmp_path, transcript="", task="transcribe", label={"no_speech": "music"})
    rates = []
    for bound in (None, -0.5):
        engine = Unsure([-0.1, -0.9, -0.8], bound=bound)
        found = evaluate(engine, rows, task="silence", out=tmp_path / str(bound), show_progress=False)
        rates.append(found.metrics["false_transcript_rate"])
    assert rates == [1.0, pytest.approx(1 / 3)]
    engine = Unsure([-0.1, -0.9, -0.8], bound=-0.5)
    asked = evaluate(engine, rows, task="silence", prompt="Say it.", out=tmp_path / "asked", show_progress=False)
    assert (
        asked.metrics["false_transcript_rate"] == 1.0 and engine.scored == 0
    )  # the bound was found for another prompt
    logged = [json.loads(line) for line in (tmp_path / "-0.5" / "items.jsonl").read_text().splitlines()]
    assert sorted(row["avg_logprob"] for row in logged) == [-0.9, -0.8, -0.1]
    assert json.loads((tmp_path / "-0.5" / "report.json").read_text())["settings"]["min_avg_logprob"] == -0.5


def test_answers_to_questions_are_never_left_out(tmp_path: Path) -> None:
    rows = clips(tmp_path, transcript="word0")
    engine = Unsure([-0.1, -0.9, -0.8], bound=-0.5)
    found = evaluate(engine, rows, task="answer", out=tmp_path / "out", show_progress=False)
    assert found.failed == 0 and engine.scored == 0
    with pytest.raises(RecipeError, match="expected one of transcribe, silence with it"):
        evaluate(engine, rows, task="answer", min_avg_logprob=-0.1, out=tmp_path / "no", show_progress=False)


def test_mistakes_on_the_command_line_are_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips(tmp_path, transcript="a")
    clip = str(tmp_path / "0.wav")
    assert main(["transcribe", "nowhere", clip, "--scores"]) == 2
    assert "--scores was given without --json" in capsys.readouterr().err
    words = ["--manifest", str(tmp_path / "rows.jsonl"), "--out", str(tmp_path / "out"), "--routes", "text"]
    assert main(["evaluate", *words, "--task", "contains", "--min-avg-logprob", "-0.5"]) == 2
    assert "expected one of transcribe, silence with it" in capsys.readouterr().err
    assert main(["evaluate", *words, "--llm", "nowhere", "--min-avg-logprob", "0.5"]) == 2
    assert "a log-probability is at most 0" in capsys.readouterr().err
