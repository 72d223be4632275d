"""The scripts of hear/: chains of short recordings, the shipped folder, the curves, and what they say of bad input."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
import torch
from safetensors.torch import load_file

import aura
from aura.audio.waveform import load_waveform
from aura.data.manifest import read_utterances
from aura.inference.confidence import is_lone_word, sureness
from aura.student.checkpoint import save_checkpoint

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "hear"))
    return importlib.import_module


def run(module: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    status: int = module.main()
    return status


def digits(folder: Path, count: int) -> Path:
    """The first rows of the demo's recordings."""
    rows = [json.loads(line) for line in (ROOT / "demo" / "data" / "held_out.jsonl").read_text().splitlines()[:count]]
    for row in rows:
        row["audio"] = str(ROOT / "demo" / "data" / row["audio"])
    (folder / "digits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "digits.jsonl"


def test_chains_say_what_their_links_say(script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    chains = script("chains")
    manifest = digits(tmp_path, 12)
    words = (manifest, "--count", "6", "--links", "2", "3", "--seed", "1")
    assert run(chains, monkeypatch, *words, "--out", tmp_path / "one") == 0
    assert run(chains, monkeypatch, *words, "--out", tmp_path / "two") == 0
    one, two = (list(read_utterances(tmp_path / name / "manifest.jsonl")) for name in ("one", "two"))
    assert [u.transcript for u in one] == [u.transcript for u in two]
    lengths = {u.transcript: u.seconds for u in read_utterances(manifest)}
    for made in one:
        links = (made.transcript or "").split()
        assert len(links) in (2, 3) and set(links) <= set(lengths) and made.speaker == "lucas"
        [part] = made.audio
        wave = load_waveform(part.source)
        assert 0.1 * len(links) < len(wave) / 16_000 < 1.0 * len(links) + 0.25 * (len(links) - 1)
        assert np.abs(wave).max() > 0.01


def test_silence_around_a_link_is_cut(script: Any) -> None:
    chains = script("chains")
    tone = np.sin(np.arange(1600, dtype=np.float32))
    quiet = np.full(3200, 1e-4, dtype=np.float32)
    assert len(chains.trim(np.concatenate([quiet, tone, quiet]))) == len(tone)
    joined = chains.join([tone, 0.1 * tone], [0.05])
    assert len(joined) == 2 * len(tone) + 800
    assert chains.rms(joined[-1600:]) == pytest.approx(chains.rms(joined[:1600]), rel=1e-3)


def test_chains_of_nothing_are_refused_in_one_line(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chains = script("chains")
    assert run(chains, monkeypatch, tmp_path / "none.jsonl", "--out", tmp_path / "out") == 2
    assert run(chains, monkeypatch, digits(tmp_path, 2), "--links", "5", "6", "--out", tmp_path / "out") == 2
    clip = str(ROOT / "tests" / "data" / "sense_and_sensibility_0880.flac")
    row = {"audio": [clip, clip], "transcript": "two", "speaker": "a", "task": "transcribe"}
    (tmp_path / "two.jsonl").write_text(json.dumps(row) + "\n")
    assert run(chains, monkeypatch, tmp_path / "two.jsonl", "--out", tmp_path / "out") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and "none.jsonl" in lines[0] and "no voice has 5 clips" in lines[1]
    assert "has 2 recordings; expected rows with one each" in lines[2]
    assert not (tmp_path / "out").exists()


def test_the_shipped_folder_is_the_checkpoint_in_half_the_bytes(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ship = script("ship")
    tiny.tiny_llm_folder("llama", tmp_path / "llm")
    model, processor = tiny.tiny_student("llama", base=str(tmp_path / "llm"))
    tiny.train_adapter(model, scale=0.4)
    save_checkpoint(tmp_path / "trained", model, processor, extra={"README.md": "# a card\n"})
    (tmp_path / "table.md").write_text("| a | b |\n")
    words = (tmp_path / "trained", tmp_path / "shipped", "--table", tmp_path / "table.md")
    assert run(ship, monkeypatch, *words) == 0
    for name in ship.HALVED:
        before, after = load_file(tmp_path / "trained" / name), load_file(tmp_path / "shipped" / name)
        assert all(tensor.dtype == torch.float16 for tensor in after.values())
        assert all(torch.equal(before[key].half(), after[key]) for key in before)
    card = (tmp_path / "shipped" / "README.md").read_text()
    assert "# a card" in card and "Gemma Terms of Use" in card and "| a | b |" in card
    wave = {"array": tiny.tiny_speech(1.0, seed=0), "sampling_rate": 16_000}
    assert not list((tmp_path / "shipped").glob("recipe-*.yaml"))
    start = ROOT / "checkpoints" / "hear-270m"
    assert run(ship, monkeypatch, *words, "--after", start) == 0
    stages = {path.name: path.read_bytes() for path in start.glob("recipe-*.yaml")}
    [run_out] = [
        line.split("/")[-1] for line in (start / "recipe.yaml").read_text().splitlines() if line[:6] == "  out:"
    ]
    stages[f"recipe-{run_out}.yaml"] = (start / "recipe.yaml").read_bytes()
    assert {path.name: path.read_bytes() for path in (tmp_path / "shipped").glob("recipe-*.yaml")} == stages
    texts = [aura.load(tmp_path / name).transcribe(wave, max_new_tokens=5) for name in ("trained", "shipped")]
    assert texts[0].text == texts[1].text  # type: ignore[union-attr]
    assert run(ship, monkeypatch, tmp_path / "nowhere", tmp_path / "shipped") == 2
    (tmp_path / "shipped" / "config.json").write_text("{")
    assert run(ship, monkeypatch, tmp_path / "trained", tmp_path / "shipped") == 2


def test_several_ends_of_a_run_are_shipped_as_their_mean(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ship = script("ship")
    for name, scale, stem in (("one", 0.4, "conv"), ("two", 0.2, "conv"), ("other", 0.4, "linear")):
        model, processor = tiny.tiny_student("llama", stem=stem)
        tiny.train_adapter(model, scale=scale)
        save_checkpoint(tmp_path / name, model, processor, extra={"README.md": f"# {name}\n"})
    assert run(ship, monkeypatch, tmp_path / "one", tmp_path / "mean", "--average", tmp_path / "two") == 0
    differ = 0
    for name in ship.HALVED:
        one, two, mean = (load_file(tmp_path / each / name) for each in ("one", "two", "mean"))
        assert all(torch.equal(((one[key] + two[key]) / 2).half(), mean[key]) for key in one)
        differ += sum(not torch.equal(one[key], two[key]) for key in one)
    card = (tmp_path / "mean" / "README.md").read_text()
    assert differ and "# one" in card and f"the mean of what is described above and `{tmp_path / 'two'}`" in card
    capsys.readouterr()
    assert run(ship, monkeypatch, tmp_path / "one", tmp_path / "no", "--average", tmp_path / "other") == 2
    assert "other/audio_embedding.safetensors has other weights than" in capsys.readouterr().err
    damaged = tmp_path / "two" / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    assert run(ship, monkeypatch, tmp_path / "one", tmp_path / "no", "--average", tmp_path / "two") == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "two/adapter_model.safetensors cannot be read" in line and not (tmp_path / "no").exists()
    assert not (tmp_path / "no").exists()


def test_the_shipped_recipes_name_no_machine() -> None:
    recipes = sorted((ROOT / "checkpoints" / "hear-270m").glob("recipe*.yaml"))
    assert len(recipes) > 1
    for recipe in recipes:
        lines = recipe.read_text(encoding="utf-8").splitlines()
        assert not [line for line in lines if line.split(": ", 1)[-1].strip("- ").startswith("/")], recipe.name


def test_curves_follow_the_stages(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = script("curves")
    for side in ("on", "off"):
        for stage in ("1-words", "2-more"):
            folder = tmp_path / side / stage
            folder.mkdir(parents=True)
            rows = [{"kind": "train", "step": 10, "loss": 2.0}, {"kind": "train", "step": 20, "loss": 1.0}]
            rows.append({"kind": "valid", "step": 20, "loss": 1.5, "accuracy": 0.5})  # type: ignore[dict-item]
            (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--on", tmp_path / "on", "--off", tmp_path / "off", "--out", tmp_path / "page")
    assert run(curves, monkeypatch, *words) == 0
    table = capsys.readouterr().out
    assert "| 20 | accuracy 0.500, loss 1.500 |" in table and "| 40 |" in table
    assert (tmp_path / "page.png").stat().st_size > 1000
    assert run(curves, monkeypatch, "--on", tmp_path / "page", "--off", tmp_path / "off") == 2


def test_preparing_without_the_recordings_says_so(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = script("prepare")
    assert run(prepare, monkeypatch, tmp_path, "--out", tmp_path / "out") == 2
    (tmp_path / "barista_grammar.yaml").write_text("context: {slots: {size: [small, large]}}\n")
    assert run(prepare, monkeypatch, tmp_path, "--out", tmp_path / "out", "--texts-only") == 0
    assert (tmp_path / "out" / "phrases.txt").read_text() == "small\nlarge\n"
    assert run(prepare, monkeypatch, tmp_path, "--out", tmp_path / "out") == 2
    assert "no manifest such as" in capsys.readouterr().err


class Heard:
    """In place of the ASR model: writes down the given words, one behind the other, and counts whom it was asked about."""

    def __init__(self, texts: dict[int, str]) -> None:
        self.texts, self.asked = texts, []

    def transcribe(self, wave_N: np.ndarray, **options: Any) -> tuple[list[Any], None]:
        self.asked.append(len(wave_N))
        times = enumerate(self.texts[len(wave_N)].split())
        step = 4.0 / max(10, len(self.texts[len(wave_N)].split()))
        words = [SimpleNamespace(word=f" {text}", start=step * n, end=step * (n + 1)) for n, text in times]
        return [SimpleNamespace(words=words)], None


def orders(folder: Path, rows: list[dict[str, Any]]) -> Path:
    for number, row in enumerate(rows):
        soundfile.write(folder / f"{number}.wav", np.zeros(64_000 + number, dtype=np.float32), 16_000)
        row |= {"audio": f"{number}.wav", "task": "intent"}
    (folder / "orders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "orders.jsonl"


@pytest.fixture
def spans(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`hear/spans.py` that asks a `Heard`; returns what runs it."""
    module = script("spans")
    monkeypatch.setattr(module, "resolve_ctranslate2", lambda reference: reference)

    def ask(heard: Heard, manifest: Path, *words: object) -> int:
        monkeypatch.setattr(module, "require", lambda *_, **__: SimpleNamespace(WhisperModel=lambda *_, **__: heard))
        return run(module, monkeypatch, manifest, *words)

    return ask


def label(**slots: str) -> dict[str, Any]:
    return {"label": {"intent": "orderDrink", "slots": slots}}


def test_spans_say_what_lies_between_their_ends(spans: Any, tmp_path: Path) -> None:
    manifest = orders(
        tmp_path,
        [
            label(size="twelve ounce", milkAmount="skim milk", coffeeDrink="latte"),
            label(size="large", coffeeDrink="mocha"),  # of which the model hears only half
            label(coffeeDrink="latte", milkAmount="milk"),  # and here the same words over and over
        ],
    )
    said = "a 12-ounce latte with skim milk"
    heard = Heard({64_000: said, 64_001: "a large mop", 64_002: " ".join(["latte", *["milk"] * 60])})
    times = ["a", "twelve", "ounce", "latte", "with", "skim", "milk"]
    assert spans(heard, manifest, "--each", "8", "--out", tmp_path / "out", "--words", "1", "3") == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "spans.jsonl").read_text().splitlines()]
    assert rows[0]["transcript"] == " ".join(times) and rows[0]["start"] == 0 and rows[0]["end"] == pytest.approx(4)
    assert len(rows) > 3 and all(Path(row["audio"]).name == "0.wav" for row in rows)
    for row in rows[1:]:
        words = row["transcript"].split()
        assert 1 <= len(words) <= 3 and row["transcript"] in rows[0]["transcript"]
    asked = list(read_utterances(tmp_path / "out" / "intents.jsonl"))
    answers = {utterance.transcript: utterance.answer for utterance in asked}
    assert answers == {
        key: value
        for key, value in {
            "twelve ounce": "orderDrink size=twelve ounce",
            "latte": "orderDrink coffeeDrink=latte",
            "skim milk": "orderDrink milkAmount=skim milk",
            "twelve ounce latte": "orderDrink coffeeDrink=latte; size=twelve ounce",
            "latte with skim milk": "orderDrink coffeeDrink=latte; milkAmount=skim milk",
        }.items()
        if key in answers
    }
    assert len(answers) >= 2


def test_a_shorter_value_is_not_found_inside_a_longer_one(script: Any) -> None:
    module = script("spans")
    words = [module.Word(text, 0.0, 1.0) for text in ["skim", "milk", "and", "milk"]]
    utterance = SimpleNamespace(transcript=None, label=label(a="milk", b="skim milk")["label"])
    assert module.places(words, utterance) == {"b": (0, 2), "a": (3, 4)}
    assert module.places(words[:2], utterance) == {}


def test_spans_go_on_from_what_a_killed_run_heard(spans: Any, tmp_path: Path) -> None:
    manifest = orders(tmp_path, [label(size="large"), label(size="small")])
    heard = Heard({64_000: "a large coffee", 64_001: "a small coffee"})
    assert spans(heard, manifest, "--out", tmp_path / "whole") == 0
    whole = (tmp_path / "whole" / "words.jsonl").read_text()
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "words.jsonl").write_text(whole[:-20])  # killed inside the second line
    heard.asked.clear()
    assert spans(heard, manifest, "--out", tmp_path / "part") == 0
    assert heard.asked == [64_001]
    (tmp_path / "hints.txt").write_text("latte")
    assert spans(heard, manifest, "--out", tmp_path / "part", "--hints", tmp_path / "hints.txt") == 2
    (tmp_path / "part" / "words.settings.json").write_text('{"asr": ')
    assert spans(heard, manifest, "--out", tmp_path / "part") == 2
    for name in ("words", "spans"):
        assert (tmp_path / "part" / f"{name}.jsonl").read_text() == (tmp_path / "whole" / f"{name}.jsonl").read_text()


def test_uncut_recordings_have_the_words_of_the_cut_ones(
    spans: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = orders(tmp_path, [label(size="large"), label(size="small"), label(size="tiny")])
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    (tmp_path / "cuts").mkdir()  # another folder, so another spelling of the same files
    cut = tmp_path / "cuts" / "cut.jsonl"
    rows_cut = [row | {"audio": f"../{row['audio']}", "start": 0.5, "end": 3.0} for row in rows]
    cut.write_text("".join(json.dumps(row) + "\n" for row in rows_cut))
    whole.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))  # the first is not among them
    heard = Heard({40_000: "a small coffee"})
    assert spans(heard, cut, "--out", tmp_path / "out", "--uncut", whole) == 0
    [found] = read_utterances(tmp_path / "out" / "uncut.jsonl")
    assert found.transcript == "a small coffee" and Path(found.audio[0].source).name == "1.wav"
    assert found.seconds == pytest.approx(64_001 / 16_000) and found.task == "transcribe"
    assert spans(heard, cut, "--out", tmp_path / "out") == 0
    assert not (tmp_path / "out" / "uncut.jsonl").exists()  # of the run before, and not of this one
    whole.write_text(json.dumps(rows[1]) + "\n" + json.dumps(rows[1] | {"id": "again"}) + "\n")
    assert spans(heard, cut, "--out", tmp_path / "out", "--uncut", whole) == 2
    assert "has two rows" in capsys.readouterr().err
    elsewhere = digits(tmp_path, 1)
    assert spans(heard, cut, "--out", tmp_path / "out", "--uncut", elsewhere) == 2
    assert "expected the same ones, whole" in capsys.readouterr().err


def test_a_recording_of_one_word_says_it_once(spans: Any, tmp_path: Path) -> None:
    assert spans(Heard({64_000: "large"}), orders(tmp_path, [label(size="large")]), "--out", tmp_path / "out") == 0
    [found] = read_utterances(tmp_path / "out" / "spans.jsonl")
    assert found.transcript == "large" and found.seconds == pytest.approx(4.0)


def test_spans_of_nothing_that_agrees_are_refused_in_one_line(
    spans: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = orders(tmp_path, [label(size="large")])
    assert spans(Heard({64_000: "hello"}), manifest, "--out", tmp_path / "out") == 2
    assert spans(Heard({}), manifest, "--words", "3", "1", "--out", tmp_path / "out") == 2
    assert spans(Heard({}), tmp_path / "none.jsonl", "--out", tmp_path / "out") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 3 and all(line.startswith("hear/spans.py: ") for line in lines)


def test_a_bound_keeps_the_share_that_was_asked_for(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bound, ship = script("bound"), script("ship")
    manifest = digits(tmp_path, 20)
    tiny.tiny_llm_folder("llama", tmp_path / "llm")
    model, processor = tiny.tiny_student("llama", base=str(tmp_path / "llm"))
    tiny.train_adapter(model, scale=0.4)
    save_checkpoint(tmp_path / "trained", model, processor, extra={"README.md": "# a card\n"})
    assert run(bound, monkeypatch, tmp_path / "trained", manifest, "--keep", "0.8") == 0
    value = float(capsys.readouterr().out)
    assert run(ship, monkeypatch, tmp_path / "trained", tmp_path / "shipped", "--min-avg-logprob", value) == 0
    engine = aura.load(tmp_path / "shipped")
    waves = [u.audio[0].load() for u in read_utterances(manifest)]
    sources = [{"array": wave, "sampling_rate": 16_000} for wave in waves]
    everything = engine.transcribe(sources, min_avg_logprob=-np.inf, scores=True)
    heard = [t for t in everything if t.segments]  # type: ignore[union-attr]
    kept = [t for t in engine.transcribe(sources) if t.segments]  # type: ignore[union-attr]
    assert len(heard) >= 10 and 0.8 * len(heard) <= len(kept) < len(heard)
    assert run(ship, monkeypatch, tmp_path / "trained", tmp_path / "shipped") == 0
    assert aura.load(tmp_path / "shipped").model.config.min_avg_logprob == value  # as it was
    assert run(ship, monkeypatch, tmp_path / "trained", tmp_path / "shipped", "--no-lone-words") == 0
    assert run(ship, monkeypatch, tmp_path / "trained", tmp_path / "shipped", "--table", manifest) == 0
    config = aura.load(tmp_path / "shipped").model.config
    assert config.min_avg_logprob == value and config.lone_words is False  # both stay
    wordy = sum(not is_lone_word(t.text) for t in heard)
    assert run(bound, monkeypatch, tmp_path / "shipped", manifest) == 0
    assert f"{wordy} clips with words" in capsys.readouterr().err  # a word by itself is none
    assert run(bound, monkeypatch, tmp_path / "trained", manifest, "--keep", "0") == 2
    capsys.readouterr()
    said_first = {row: t.segments[0] for row, t in enumerate(everything) if t.segments}  # type: ignore[union-attr]
    sure = {row: sureness(first.text, first.avg_logprob) for row, first in said_first.items()}
    surest = sorted(sure.values())[len(sure) // 2]
    rows = [line for row, line in enumerate(manifest.read_text().splitlines()) if sure.get(row, surest) <= surest]
    quiet = manifest.with_name("quiet.jsonl")
    quiet.write_text("\n".join(rows))
    assert run(bound, monkeypatch, tmp_path / "trained", manifest, "--keep", "0.8", "--quiet", quiet) == 0
    said = capsys.readouterr()
    raised = float(said.out)
    assert value < raised and surest < raised <= surest + 0.011
    passing = sum(each >= raised for each in sure.values())
    assert f"keeps the words of {passing} of {len(heard)} clips" in said.err and passing < len(kept)
    quiet_flags = ("--keep", "0.8", "--quiet", quiet, "--spare")
    assert run(bound, monkeypatch, tmp_path / "trained", manifest, *quiet_flags, 1) == 0
    assert value <= float(capsys.readouterr().out) <= raised  # the second surest may round to the same
    assert run(bound, monkeypatch, tmp_path / "trained", manifest, *quiet_flags, len(rows)) == 0
    assert float(capsys.readouterr().out) == value
    assert run(bound, monkeypatch, tmp_path / "trained", manifest, *quiet_flags, -1) == 2
    assert "--spare is -1; expected a number of clips" in capsys.readouterr().err
    assert run(ship, monkeypatch, tmp_path / "trained", tmp_path / "no", "--min-avg-logprob=-inf") == 2
    assert run(ship, monkeypatch, tmp_path / "trained", tmp_path / "no", "--min-avg-logprob", "1") == 2
    assert not (tmp_path / "no").exists()
