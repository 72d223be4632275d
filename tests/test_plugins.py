"""Checkpoints inside evaluation toolkits: lmms-eval (a stand-in for its base, and the real one where installed), VoiceBench."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
import torch

import aura
from aura.batch.collate import Example
from aura.batch.prompt import user_message
from aura.errors import AudioError, AuraError, ModelError, PromptError, RecipeError
from aura.evaluation.routes.answering import Answerer
from aura.inference.engine import Engine
from aura.plugins.audio import load_handed
from aura.plugins.settings import read_settings
from aura.plugins.voicebench import AuraAssistant
from aura.student.checkpoint import save_checkpoint

SECONDS = (0.9, 0.4, 1.3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("plugins")
    model, processor = tiny.tiny_student("llama", base=str(tiny.tiny_llm_folder("llama", here / "llm")))
    model.config.prompt = "Transcribe."
    model.config.max_seconds = 5.0
    return save_checkpoint(here / "checkpoint", model, processor)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Engine:
    return aura.load(checkpoint, device="cpu")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`aura.plugins.lmms_eval` on a stand-in for lmms-eval's base class, whether that is installed or not."""

    class Lmms:
        def __init__(self) -> None:
            self.task_dict: dict[str, Any] = {}
            self.rank = 0

        def clean(self) -> None: ...

    @dataclass
    class TokenCounts:
        output_tokens: int | None = None

    @dataclass
    class GenerationResult:
        text: str
        token_counts: Any = None

    @dataclass
    class ModelManifest:
        model_id: str
        simple_class_path: str

    members: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.api": {},
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.api.instance": {"GenerationResult": GenerationResult, "TokenCounts": TokenCounts},
        "lmms_eval.models": {},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
    }
    for name, values in members.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "aura.plugins.lmms_eval", raising=False)
    yield importlib.import_module("aura.plugins.lmms_eval")
    sys.modules.pop("aura.plugins.lmms_eval", None)


def docs() -> list[dict[str, Any]]:
    return [
        {"audio": {"array": tiny.tiny_speech(seconds, seed=i), "sampling_rate": 16_000}, "ask": f"Number {i}?"}
        for i, seconds in enumerate(SECONDS)
    ]


def model_on(plugin: Any, checkpoint: Path, rows: list[dict[str, Any]], **options: Any) -> Any:
    model = plugin.AuraModel(checkpoint=str(checkpoint), device="cpu", batch_size="1", **options)
    model.task_dict = {"tiny": {"test": rows}}
    return model


def requests(*middle: Any, rows: list[dict[str, Any]]) -> list[Any]:
    """As lmms-eval builds them: context, what the kind of request needs, and where the item stands."""
    return [types.SimpleNamespace(args=(row["ask"], *middle, i, "tiny", "test")) for i, row in enumerate(rows)]


def audio_of(doc: dict[str, Any]) -> list[Any]:
    return [doc["audio"]]


def expected(engine: Engine, rows: list[dict[str, Any]], *, tokens: int) -> list[str]:
    """Each answer alone, by the engine."""
    return [engine.ask(row["audio"], row["ask"], max_new_tokens=tokens) for row in rows]


# --- lmms-eval, on a stand-in for its base class ------------------------------------------------------------


def test_the_entry_point_names_a_class_that_is_simple(plugin: Any) -> None:
    pyproject = (Path(aura.__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points."lmms_eval.models"]\naura = "aura.plugins:lmms_eval_manifest"\n' in pyproject
    manifest = importlib.import_module("aura.plugins").lmms_eval_manifest()
    module, name = manifest.simple_class_path.rsplit(".", 1)
    assert (manifest.model_id, module) == ("aura", plugin.__name__)
    assert getattr(plugin, name).is_simple is True


def test_the_manifest_is_light() -> None:
    code = "import sys, aura.plugins; print([m for m in ('torch', 'transformers', 'lmms_eval') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_answers_are_the_engines_in_the_order_asked(plugin: Any, checkpoint: Path, engine: Engine) -> None:
    rows = docs()
    model = model_on(plugin, checkpoint, rows)
    asked = requests({"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0, "do_sample": False}, audio_of, rows=rows)
    asked[1].args[1]["max_new_tokens"] = 6
    results = model.generate_until(asked)
    assert [result.text for result in results] == expected(engine, rows, tokens=6)
    assert all(0 < result.token_counts.output_tokens <= 6 for result in results)


def test_each_item_keeps_its_own_limit(plugin: Any, checkpoint: Path, engine: Engine) -> None:
    rows = docs()
    model = model_on(plugin, checkpoint, rows)
    asked = [requests({"max_new_tokens": 2 + i}, audio_of, rows=rows)[i] for i in (2, 0, 1)]
    alone = [expected(engine, [rows[i]], tokens=2 + i)[0] for i in (2, 0, 1)]
    assert [result.text for result in model.generate_until(asked)] == alone


def test_answers_end_before_a_stop_text(plugin: Any, checkpoint: Path, engine: Engine) -> None:
    rows = docs()[:1]
    [whole] = expected(engine, rows, tokens=8)
    stop = whole[len(whole) // 2]
    [result] = model_on(plugin, checkpoint, rows).generate_until(
        requests({"max_new_tokens": 8, "until": ["never there", stop]}, audio_of, rows=rows)
    )
    assert result.text == whole.split(stop)[0] != whole


def test_the_trained_prompt_stands_in_for_the_tasks(plugin: Any, checkpoint: Path, engine: Engine) -> None:
    rows = docs()
    [result, *_] = model_on(plugin, checkpoint, rows, prompt="trained").generate_until(
        requests({"max_new_tokens": 5}, audio_of, rows=rows)
    )
    assert result.text == engine.ask(rows[0]["audio"], "Transcribe.", max_new_tokens=5)


def test_a_question_without_audio_is_asked_as_text_and_said(plugin: Any, checkpoint: Path, engine: Engine) -> None:
    rows = docs()[:1]
    model = model_on(plugin, checkpoint, rows)
    for nothing in ([], None):
        with pytest.warns(UserWarning, match="tiny: a question came without audio"):
            [result] = model.generate_until(requests({"max_new_tokens": 4}, lambda doc: nothing, rows=rows))  # noqa: B023
        assert result.text == engine.chat([{"role": "user", "content": "Number 0?"}], max_new_tokens=4)


def test_an_item_that_fails_stops_the_run_and_is_named(plugin: Any, checkpoint: Path) -> None:
    rows = docs()
    rows[1]["audio"]["array"] = np.full(16_000, np.nan, dtype=np.float32)
    with pytest.raises(AudioError, match=r"tiny/test/1: .*16000 samples are NaN"):
        model_on(plugin, checkpoint, rows).generate_until(requests({"max_new_tokens": 3}, audio_of, rows=rows))


def test_failures_that_are_marked_are_no_empty_answers(plugin: Any, checkpoint: Path, engine: Engine) -> None:
    rows = docs()
    rows[1]["audio"]["array"] = tiny.tiny_speech(6.0)  # the checkpoint takes 5 s
    model = model_on(plugin, checkpoint, rows, failures="mark")
    with pytest.warns(UserWarning, match="tiny/test/1 could not be answered"):
        results = model.generate_until(requests({"max_new_tokens": 3}, audio_of, rows=rows))
    assert results[1].text.startswith("[LMMS_EVAL_REQUEST_FAILED] tiny/test/1: <array> is 6.0 s long")
    assert [results[i].text for i in (0, 2)] == expected(engine, [rows[0], rows[2]], tokens=3)


def test_a_failure_of_the_model_stops_the_run(plugin: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*args: Any, **options: Any) -> Any:
        raise RuntimeError("out of memory")

    rows = docs()[:1]
    model = model_on(plugin, checkpoint, rows)
    monkeypatch.setattr("aura.evaluation.routes.answering.generate_texts", out_of_memory)
    with pytest.raises(ModelError, match=r"out of memory \(tiny/test/0 could not be answered\).*failures=mark"):
        model.generate_until(requests({"max_new_tokens": 3}, audio_of, rows=rows))


def test_the_likeliest_option_has_the_smallest_loss(plugin: Any, checkpoint: Path, engine: Engine) -> None:
    rows = docs()[:2]
    options = ["on the", "no", "the one"]
    asked = [
        types.SimpleNamespace(args=(row["ask"], f" {option}", audio_of, i, "tiny", "test"))
        for i, row in enumerate(rows)
        for option in options
    ]
    results = [result.text for result in model_on(plugin, checkpoint, rows).loglikelihood(asked)]
    answerer = Answerer(engine.model, engine.processor)
    for i, row in enumerate(rows):
        question = Example(id="q", messages=[user_message(row["ask"])], waveforms=[row["audio"]["array"]])
        losses = [loss for loss, _ in results[3 * i : 3 * i + 3]]
        assert losses == pytest.approx([-score for score in answerer.score(question, options)])
    assert [greedy for _, greedy in results] == [False] * 6


def test_the_greedy_answer_is_known_as_such(plugin: Any, checkpoint: Path, engine: Engine) -> None:
    rows = docs()[:1]
    model = model_on(plugin, checkpoint, rows)
    question = Example(id="q", messages=[user_message(rows[0]["ask"])], waveforms=[rows[0]["audio"]["array"]])
    [own] = engine.generate([question], max_new_tokens=4)
    # The tiny tokenizer's pieces may write one text in several ways; tell the adapter which one was generated.
    tokens = {"greedy": own.token_ids[:3], "other": (own.token_ids[0], own.token_ids[1] ^ 1)}
    model._answer_ids = lambda question, option: tokens[option]
    asked = [
        types.SimpleNamespace(args=(rows[0]["ask"], lambda doc, o=option: o, audio_of, 0, "tiny", "test"))
        for option in tokens
    ]
    assert [result.text[1] for result in model.loglikelihood(asked)] == [True, False]


def test_log_likelihoods_without_a_question_are_refused(plugin: Any, checkpoint: Path) -> None:
    model = model_on(plugin, checkpoint, docs())
    with pytest.raises(PromptError, match="Leave the metric acc_mutual_info out"):
        model.loglikelihood([types.SimpleNamespace(args=("", "one"))])


def test_rounds_go_on_until_the_task_ends_them(plugin: Any, checkpoint: Path, engine: Engine) -> None:
    rows = docs()
    seen = []

    def lead(doc: Any, *, previous_output: list[str], round_idx: int, previous_round_info: Any) -> tuple[Any, ...]:
        seen.append((round_idx, previous_round_info, len(previous_output)))
        over = round_idx == (3 if doc["ask"] == "Number 1?" else 2)
        return [doc["audio"]], f"{doc['ask']} Round {round_idx}", over, previous_output, round_idx * 10

    asked = requests({"max_new_tokens": 4}, audio_of, lead, rows=rows)
    results = model_on(plugin, checkpoint, rows).generate_until_multi_round(asked)
    assert [len(rounds) for rounds in results] == [2, 3, 2]
    for row, rounds in zip(rows, results, strict=True):
        contexts = [row["ask"], *(f"{row['ask']} Round {n}" for n in (1, 2))][: len(rounds)]
        assert rounds == [engine.ask(row["audio"], context, max_new_tokens=4) for context in contexts]
    assert seen == [(1, None, 1)] * 3 + [(2, 10, 2)] * 3 + [(3, 20, 3)]


def test_rounds_that_never_end_do(plugin: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = docs()[:1]
    monkeypatch.setattr(plugin, "MAX_ROUNDS", 2)
    for step, message in (
        ((None, "On?", False, None, None), "goes on after 2 rounds"),
        ("On?", "gave str for round 1"),
    ):
        asked = requests({"max_new_tokens": 1}, audio_of, lambda doc, **_: step, rows=rows)  # noqa: B023
        with pytest.raises(PromptError, match=message), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the later rounds have no audio
            model_on(plugin, checkpoint, rows).generate_until_multi_round(asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither of checkpoint and pretrained"),
        ({"checkpoint": "a", "pretrained": "b"}, "both of checkpoint and pretrained"),
        ({"checkpoint": "a", "failures": "hide"}, "failures is 'hide'; expected failures=raise or failures=mark"),
        ({"checkpoint": "a", "prompt": "mine"}, "prompt is 'mine'"),
    ],
)
def test_arguments_that_are_not_understood(plugin: Any, options: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plugin.AuraModel(**options)


def test_clean_lets_the_model_go(plugin: Any, checkpoint: Path) -> None:
    model = model_on(plugin, checkpoint, [])
    assert model.device == torch.device("cpu")
    model.clean()
    model.clean()
    assert not hasattr(model, "engine")


# --- settings and audio, as toolkits hand them over ---------------------------------------------------------


def test_settings_of_greedy_tasks_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = {"max_new_tokens": 128, "do_sample": False, "temperature": 0.7, "top_p": None, "num_beams": 1}
        assert read_settings(given, task="t").max_new_tokens == 128
        assert read_settings({"until": "\n\n", "temperature": 0}, task="t").until == ("\n\n",)
        assert read_settings({"max_gen_toks": 3.0, "until": ["", "."]}, task="t").until == (".",)
        assert read_settings(None, task="t").max_new_tokens == 256


@pytest.mark.parametrize("given", [{"temperature": 0.7}, {"do_sample": True}, {"do_sample": False, "num_beams": 4}])
def test_settings_that_sample_are_said(given: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="asks for .*aura decodes greedily instead"):
        read_settings(given, task="t")


def test_settings_without_effect_are_said() -> None:
    with pytest.warns(UserWarning, match="t: generation settings without effect here: repetition_penalty"):
        read_settings({"repetition_penalty": 1.2}, task="t")


@pytest.mark.parametrize("given", [{"max_new_tokens": 0}, {"max_new_tokens": "many"}, {"until": [7]}])
def test_settings_that_are_not_understood(given: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match=r"t: (max_new_tokens|until) is"):
        read_settings(given, task="t")


def test_every_form_of_audio_is_the_same_recording(tmp_path: Path) -> None:
    wave_N = tiny.tiny_speech(0.5)
    soundfile.write(tmp_path / "clip.wav", wave_N, 16_000, subtype="FLOAT")
    data = (tmp_path / "clip.wav").read_bytes()

    class Decoder:  # of torchcodec, as `datasets` hands it out
        def get_all_samples(self) -> Any:
            return types.SimpleNamespace(data=torch.from_numpy(wave_N)[None], sample_rate=16_000)

    forms = [
        {"array": wave_N, "sampling_rate": 16_000},
        {"array": wave_N.tolist(), "sampling_rate": 16_000, "path": "a/path/of/another/machine.wav"},
        {"bytes": data, "path": None},
        {"path": str(tmp_path / "clip.wav")},
        str(tmp_path / "clip.wav"),
        data,
        (wave_N, 16_000),
        Decoder(),
    ]
    for form in forms:
        np.testing.assert_allclose(load_handed(form, max_seconds=5, place="x"), wave_N, atol=1e-7)


@pytest.mark.parametrize("value", [object(), {"array": None, "sampling_rate": 1}, {}, 7, ["a.wav"]])
def test_what_is_no_audio_is_refused(value: Any) -> None:
    with pytest.raises(PromptError, match=r"t/test/3 holds .*; expected audio"):
        load_handed(value, max_seconds=5, place="t/test/3")


# --- VoiceBench ---------------------------------------------------------------------------------------------


def test_voicebench_gets_the_engines_answers(checkpoint: Path, engine: Engine) -> None:
    assistant = AuraAssistant(checkpoint, device="cpu")
    audio = docs()[0]["audio"]
    assert assistant.generate_audio(audio, max_new_tokens=5) == engine.ask(audio, "", max_new_tokens=5)
    said = engine.chat([{"role": "user", "content": "Why?"}], max_new_tokens=5)
    assert assistant.generate_text("Why?", max_new_tokens=5) == said
    assert 0 < assistant.generate_ttft(audio) < 60


def test_voicebench_with_system_turn_and_prompt(engine: Engine) -> None:
    assistant = AuraAssistant(engine, system="Be kind.", prompt="Answer.")
    audio = docs()[0]["audio"]
    parts = [{"type": "audio", **audio}, {"type": "text", "text": "Answer."}]
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": parts}]
    assert assistant.generate_audio(audio, max_new_tokens=5) == engine.chat(turns, max_new_tokens=5)


def test_voicebench_never_gets_an_empty_answer_for_a_failure(engine: Engine) -> None:
    with pytest.raises(AuraError, match=r"is 6\.0 s long"):
        AuraAssistant(engine).generate_audio({"array": tiny.tiny_speech(6.0), "sampling_rate": 16_000})


# --- lmms-eval itself ---------------------------------------------------------------------------------------

TASK_CODE = """
import soundfile


def hear(doc):
    array, rate = soundfile.read(doc["file"], dtype="float32")
    return [{"array": array, "sampling_rate": rate}]


def ask(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if previous_output is None:
        return doc["ask"]
    return hear(doc), f"Round {round_idx}", round_idx == 2, previous_output, None


def exact(doc, results):
    return {"same": float(results[0] == doc["answer"])}


def rounds(doc, results):
    return {"same": float(results[0] == doc["rounds"])}
"""

TASK = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_visual: !function code.hear
doc_to_text: !function code.ask
"""

GENERATING = """
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 6, temperature: 0, do_sample: false}}
process_results: !function code.{process}
metric_list: [{{metric: same, aggregation: mean, higher_is_better: true}}]
"""

CHOOSING = """
output_type: multiple_choice
doc_to_choice: ["on the", "no", "the one"]
doc_to_target: choice
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def write_tasks(folder: Path, engine: Engine) -> None:
    """Three tasks on three clips; what the engine says by itself is the truth."""
    answerer = Answerer(engine.model, engine.processor)
    options = ["on the", "no", "the one"]
    rows = []
    for i, doc in enumerate(docs()):
        file = folder / f"clip{i}.wav"
        soundfile.write(file, doc["audio"]["array"], 16_000, subtype="FLOAT")
        question = Example(id="q", messages=[user_message(doc["ask"])], waveforms=[doc["audio"]["array"]])
        rounds = [engine.ask(str(file), text, max_new_tokens=6).strip() for text in (doc["ask"], "Round 1")]
        best = int(np.argmax(answerer.score(question, options)))
        rows.append({"file": str(file), "ask": doc["ask"], "answer": rounds[0], "rounds": rounds, "choice": best})
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "code.py").write_text(TASK_CODE)
    shared = TASK.format(data=data)
    for name, rest in {
        "tiny_answer": "output_type: generate_until" + GENERATING.format(process="exact"),
        "tiny_rounds": "output_type: generate_until_multi_round" + GENERATING.format(process="rounds"),
        "tiny_choice": CHOOSING,
    }.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}{shared}{rest}")


def lmms_eval(folder: Path, checkpoint: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The toolkit's own command line, offline."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "aura", "--include_path", str(folder), *options]
    command += ["--model_args", f"checkpoint={checkpoint},device=cpu", "--output_path", str(folder / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | offline, timeout=600)


def test_lmms_eval_runs_its_tasks_on_a_checkpoint(tmp_path: Path, checkpoint: Path, engine: Engine) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: pip install 'aura-lora[lmms]'")
    write_tasks(tmp_path, engine)
    done = lmms_eval(tmp_path, checkpoint, "--tasks", "tiny_answer,tiny_rounds,tiny_choice", "--log_samples")
    reports = list((tmp_path / "out").rglob("*_results.json"))
    assert len(reports) == 1, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.returncode == 0
    results = json.loads(reports[0].read_text())["results"]
    assert results["tiny_answer"]["same,none"] == 1.0
    assert results["tiny_rounds"]["same,none"] == 1.0
    assert results["tiny_choice"]["acc,none"] == 1.0


@pytest.mark.slow
def test_lmms_eval_reports_nothing_where_an_item_fails(tmp_path: Path, checkpoint: Path, engine: Engine) -> None:
    pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: pip install 'aura-lora[lmms]'")
    write_tasks(tmp_path, engine)
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(8), 16_000, format="WAV")
    (tmp_path / "clip1.wav").write_bytes(silence.getvalue())
    done = lmms_eval(tmp_path, checkpoint, "--tasks", "tiny_answer")
    assert "tiny_answer/test/1: <array> holds 0.001 s of audio" in done.stdout + done.stderr
    assert not list((tmp_path / "out").rglob("*_results.json"))
