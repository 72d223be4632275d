"""The scripts of hear/: chains of short recordings, the shipped folder, the curves, and what they say of bad input."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

import aura
from aura.audio.waveform import load_waveform
from aura.data.manifest import read_utterances
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
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and "none.jsonl" in lines[0] and "no voice has 5 clips" in lines[1]
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
    texts = [aura.load(tmp_path / name).transcribe(wave, max_new_tokens=5) for name in ("trained", "shipped")]
    assert texts[0].text == texts[1].text  # type: ignore[union-attr]
    assert run(ship, monkeypatch, tmp_path / "nowhere", tmp_path / "shipped") == 2


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
