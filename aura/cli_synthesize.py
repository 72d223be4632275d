"""`aura data synthesize`, `grammar`, `questions` and `no-speech`: speech from text, and clips without any."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

Names = Annotated[list[str] | None, Parameter(consume_multiple=True)]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StyleOptions:
    """How rows are varied; ranges are LOWEST HIGHEST, drawn evenly for each row.

    Args:
        rate: tempo, 1 is the voice's own; 0.85 1.2 by default.
        pitch: factor on pitch and formants; 0.94 1.06 by default.
        rooms: share of the rows in a synthetic room.
        noise: share of the rows with noise.
        snr: signal-to-noise ratio of those, dB.
        noise_files: recordings of noise; white noise alone without any.
        format: opus is small, flac lossless.
        plain: voices as they are, no variation, room or noise.
    """

    rate: tuple[float, float] | None = None
    pitch: tuple[float, float] | None = None
    rooms: float | None = None
    noise: float | None = None
    snr: tuple[float, float] | None = None
    noise_files: Names = None
    format: Literal["opus", "flac"] = "opus"
    plain: bool = False

    def style(self) -> Any:
        from aura.synthesis.plan import Style

        given: dict[str, Any] = {
            **{"rate": self.rate, "pitch": self.pitch, "room_probability": self.rooms, "noise_probability": self.noise},
            **{"snr_db": self.snr, "noise_files": tuple(self.noise_files or ()) or None, "format": self.format},
        }
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        return Style.plain(**changes) if self.plain else Style(**changes)


def synthesize(
    source: Path,
    /,
    *,
    out: Path,
    engine: Names = None,
    voices: Names = None,
    without: Names = None,
    mixes: int = 0,
    count: int | None = None,
    takes: int = 1,
    lang: str = "en",
    seed: int = 0,
    workers: int = os.cpu_count() or 1,
    kokoro_model: str | None = None,
    kokoro_voices: str | None = None,
    piper_voices: Names = None,
    style: StyleOptions = StyleOptions(),
) -> int:
    """Speak texts with many voices; once interrupted, the same command goes on where it stopped.

    Args:
        source: one text a line; JSON Lines with "text" and "answer" or "label"; or a grammar (.yaml, .json).
        out: folder for audio, manifest.jsonl and a data card.
        engine: piper, kokoro, flite, espeak-ng, all that is there, or module:function of your own.
        voices: only these, e.g. kokoro:af_* flite:slt.
        without: voices kept for tests, e.g. kokoro:bm_*.
        mixes: so many voices more, each the mean of two of Kokoro's.
        count: sentences drawn from a grammar; the first N lines otherwise.
        takes: how often each text is spoken, by different voices.
        lang: language of the voices.
        seed: of everything drawn.
        workers: processes.
        kokoro_model: pip:<distribution> of the model's parts, or an .onnx file.
        kokoro_voices: folder with <voice>.bin files, or an .npz; $AURA_KOKORO_VOICES by default.
        piper_voices: .onnx files beside their .onnx.json, besides installed voices.
    """
    from aura.progress import audio_progress
    from aura.synthesis.engine import EngineOptions
    from aura.synthesis.engines import open_engines
    from aura.synthesis.plan import Cast
    from aura.synthesis.synthesize import synthesize as run
    from aura.synthesis.texts import read_lines

    chosen = style.style()
    lines = read_lines(source, count=count, seed=seed)
    options = EngineOptions.from_environment(
        kokoro_model=kokoro_model, kokoro_voices=kokoro_voices, piper_voices=tuple(piper_voices or ())
    )
    engines, missing = open_engines(engine or ["all"], options)
    for name, reason in missing.items():
        print(f"aura: without {name}: {reason}", file=sys.stderr)
    cast = Cast(engines=engines, only=voices or (), without=without or (), mixes=mixes, lang=lang, seed=seed)
    with audio_progress("speaking", len(lines) * takes) as advance:

        def done(row: Mapping[str, Any]) -> None:
            advance(1, row.get("seconds", 0.0))

        result = run(
            lines,
            cast,
            out,
            style=chosen,
            takes=takes,
            seed=seed,
            workers=workers,
            options=options,
            source=str(source.name),
            on_start=lambda left: advance(len(lines) * takes - left, 0.0),
            on_row=done,
        )
    for error in result.failed[:5]:
        print(f"aura: failed: {error}", file=sys.stderr)
    if result.strangers:
        print(
            f"aura: {result.strangers} rows of other settings lie in {out} too; no manifest names them", file=sys.stderr
        )
    print(
        f"{result.rows} rows ({result.made} new), {result.seconds / 3600:.2f} hours, {len(cast.voices)} voices, "
        f"{len(result.failed)} failed: {result.manifest or 'no manifest'}"
    )
    return 0 if result.rows else 2


def grammar(
    file: Path, /, *, count: int = 10, seed: int = 0, labels: Names = None, data_root: Path | None = None
) -> int:
    """Show sentences of a grammar, and whether it can express the labels of manifests.

    Ends with status 1 where a label cannot be expressed.

    Args:
        file: Picovoice's YAML, or JSON.
        count: sentences to show.
        seed: of the drawing.
        labels: manifests whose labels are checked.
        data_root: folder of their relative audio paths.
    """
    from aura.data.manifest import read_utterances
    from aura.data.utterance import label_text
    from aura.synthesis.grammar_file import read_grammar

    found = read_grammar(file)
    print(f"{found.count():,} sentences, e.g.")
    for sentence in found.sample(count, seed=seed):
        print(f"  {sentence.text}\n    {label_text(sentence.label)}")
    good = True
    for manifest in labels or []:
        rows = read_utterances(manifest, data_root=data_root)
        report = found.check_labels(row.label for row in rows if row.label is not None)
        print(f"{manifest}: {report.as_text()}")
        good = good and report.expressible == report.total
    return 0 if good else 1


def no_speech(
    out: Path,
    /,
    *,
    clips: int,
    seed: int = 0,
    split: Literal["train", "valid", "test"] = "train",
    noise: Names = None,
    kinds: Annotated[
        list[Literal["silence", "noise", "music", "language"]] | None, Parameter(consume_multiple=True)
    ] = None,
    engine: Names = None,
    kokoro_model: str | None = None,
    kokoro_voices: str | None = None,
    piper_voices: Names = None,
    format: Literal["opus", "flac"] = "opus",
) -> int:
    """Make clips on which nobody speaks English, and what to answer to them; an interrupted run goes on.

    Args:
        out: folder for audio, manifest.jsonl and a data card.
        clips: in all, the kinds in turn.
        seed: of everything drawn.
        split: test has other sounds, timbres, languages and voices than train, and other halves of the recordings; valid has
            languages and voices of neither, and train's sounds drawn anew.
        noise: recordings of noise; stretches of them are clips too.
        kinds: all by default; language (another one than English) needs an engine.
        engine: who speaks the other languages: espeak-ng by default, piper, kokoro.
        kokoro_model: pip:<distribution> of the model's parts, or an .onnx file.
        kokoro_voices: folder with <voice>.bin files, or an .npz; $AURA_KOKORO_VOICES by default.
        piper_voices: .onnx files beside their .onnx.json, besides installed voices.
        format: opus is small, flac lossless.
    """
    from aura.progress import audio_progress
    from aura.synthesis.engine import EngineOptions
    from aura.synthesis.no_speech import ESPEAK, NoSpeechOptions
    from aura.synthesis.no_speech import no_speech as run

    options = NoSpeechOptions(
        clips=clips,
        seed=seed,
        split=split,
        kinds=None if kinds is None else tuple(kinds),
        engines=tuple(engine or (ESPEAK,)),
        noise_files=tuple(noise or ()),
        format=format,
    )
    voices = EngineOptions.from_environment(
        kokoro_model=kokoro_model, kokoro_voices=kokoro_voices, piper_voices=tuple(piper_voices or ())
    )
    with audio_progress("making", clips) as advance:
        result = run(
            out,
            options,
            engine_options=voices,
            on_start=lambda left: advance(clips - left, 0.0),
            on_row=lambda row: advance(1, row.get("seconds", 0.0)),
        )
    for kind, reason in result.missing.items():
        print(f"aura: without {kind}: {reason}", file=sys.stderr)
    for error in result.failed[:5]:
        print(f"aura: failed: {error}", file=sys.stderr)
    counts = ", ".join(f"{count} {kind}" for kind, count in result.kinds.items())
    print(
        f"{result.rows} clips ({result.made} new; {counts}), {result.seconds / 60:.1f} minutes, "
        f"{len(result.failed)} failed: {result.manifest or 'no manifest'}"
    )
    return 0 if result.rows else 2


def questions(
    out: Path,
    /,
    *,
    count: int = 600,
    seed: int = 0,
    split: Literal["train", "test"] = "train",
    instruction: str | None = None,
) -> None:
    """Write short questions with one right answer each, to be spoken by aura data synthesize.

    Args:
        out: JSON Lines to write (.jsonl).
        count: questions, no two alike.
        seed: of the drawing.
        split: nothing that test asks for is asked in train, in whatever words.
        instruction: written text behind the spoken question; by default the recipe's prompt stands there.
    """
    import json

    from aura.errors import DataError
    from aura.evaluation.json_text import replace_text
    from aura.synthesis.questions import questions as draw

    if out.suffix != ".jsonl":
        raise DataError(f"{out} does not end in .jsonl; expected a name such as questions.jsonl")
    drawn = draw(count, seed=seed, split=split)
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = (json.dumps(question.row(instruction=instruction), ensure_ascii=False) for question in drawn)
    replace_text(out, "".join(f"{row}\n" for row in rows))
    categories = len({question.category for question in drawn})
    print(
        f"{len(drawn)} questions of {categories} kinds: {out}. Speak them with: aura data synthesize {out} --out FOLDER"
    )


def add_synthesis(data: App) -> None:
    """Add the verbs to `aura data`."""
    data.command(synthesize)
    data.command(grammar)
    data.command(no_speech)
    data.command(questions)
