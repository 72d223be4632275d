"""`aura data from-...`: public test sets in their published formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from cyclopts import App


def add_sets(data: App, save: Callable[[Any, Path], None]) -> None:
    """Add a verb for each set to `aura data`; `save` writes the manifest and says so."""

    @data.command
    def from_voicebench(
        source: str,
        /,
        *,
        out: Path,
        subset: str | None = None,
        split: str | None = None,
        audio_dir: Path | None = None,
        choice: bool | None = None,
        limit: int | None = None,
        skip_bad: bool = False,
    ) -> None:
        """Make a manifest from a subset of VoiceBench.

        Args:
            source: hf:hlt-lab/voicebench, parquet files of a subset, or JSON Lines with the same fields.
            out: manifest to write (.jsonl).
            subset: openbookqa, mmsu, sd-qa, bbh, alpacaeval ...
            split: test in most subsets; the region in sd-qa, such as usa.
            audio_dir: folder for the audio; "audio" beside the manifest by default.
            choice: the answers are letters of options; found out by default.
            limit: first N rows.
            skip_bad: drop bad rows with a count instead of stopping.
        """
        from aura.data.sets.voicebench import from_voicebench as convert
        from aura.progress import audio_progress

        with audio_progress("extracting", limit) as advance:
            rows = convert(
                source,
                audio_dir if audio_dir is not None else out.parent / "audio",
                subset=subset,
                split=split,
                choice=choice,
                limit=limit,
                skip_bad=skip_bad,
                on_row=lambda _: advance(1, 0.0),
            )
        save(rows, out)

    @data.command
    def from_openaudiobench(folder: Path, /, *, out: Path, subset: str | None = None, skip_bad: bool = False) -> None:
        """Make a manifest from a subset of OpenAudioBench.

        Args:
            folder: of the subset, such as OpenAudioBench/eval_datas/web_questions.
            out: manifest to write (.jsonl).
            subset: its name, where the folder has another.
            skip_bad: drop bad rows with a count instead of stopping.
        """
        from aura.data.sets.openaudiobench import from_openaudiobench as convert

        save(convert(folder, subset=subset, skip_bad=skip_bad), out)

    @data.command
    def from_spoken_squad(
        file: Path,
        /,
        *,
        audio: Path,
        out: Path,
        audio_dir: Path | None = None,
        squad: Path | None = None,
        limit: int | None = None,
        skip_bad: bool = False,
    ) -> None:
        """Make a manifest from Spoken-SQuAD, the sentences of a paragraph joined to one recording.

        Args:
            file: spoken_test-v1.1.json or spoken_train-v1.1.json.
            audio: folder of the wav files, such as Spoken-SQuAD_audio/dev_wav.
            out: manifest to write (.jsonl).
            audio_dir: folder for the joined audio; "audio" beside the manifest by default.
            squad: the original dev-v1.1.json, to look paragraph numbers up by question.
            limit: first N questions.
            skip_bad: drop questions without audio with a count instead of stopping.
        """
        from aura.data.sets.spoken_squad import from_spoken_squad as convert

        target = audio_dir if audio_dir is not None else out.parent / "audio"
        save(convert(file, audio, target, squad=squad, limit=limit, skip_bad=skip_bad), out)

    @data.command
    def from_slurp(
        file: Path,
        /,
        *,
        audio: Path,
        out: Path,
        microphone: Literal["all", "headset", "far"] = "all",
        skip_bad: bool = False,
    ) -> None:
        """Make a manifest from SLURP, one row per recording.

        Args:
            file: slurp/dataset/slurp/test.jsonl or another part.
            audio: folder of the recordings, or the one that holds slurp_real and slurp_synth.
            out: manifest to write (.jsonl).
            microphone: keep headset recordings, far ones, or all.
            skip_bad: drop bad rows with a count instead of stopping.
        """
        from aura.data.sets.commands import from_slurp as convert

        save(convert(file, audio, microphone=microphone, skip_bad=skip_bad), out)

    @data.command
    def from_fluent(file: Path, /, *, out: Path, data_root: Path | None = None, skip_bad: bool = False) -> None:
        """Make a manifest from Fluent Speech Commands.

        Args:
            file: fluent_speech_commands_dataset/data/test_data.csv or another part.
            out: manifest to write (.jsonl).
            data_root: folder of relative audio paths; the one above "data" by default.
            skip_bad: drop bad rows with a count instead of stopping.
        """
        from aura.data.sets.commands import from_fluent as convert

        save(convert(file, data_root=data_root, skip_bad=skip_bad), out)

    @data.command
    def from_barista(file: Path, /, *, out: Path, audio: Path | None = None, skip_bad: bool = False) -> None:
        """Make a manifest from the orders of the Picovoice speech-to-intent benchmark.

        Args:
            file: data/label/label.json.
            out: manifest to write (.jsonl).
            audio: folder of the recordings; data/speech/clean by default.
            skip_bad: drop bad rows with a count instead of stopping.
        """
        from aura.data.sets.commands import from_barista as convert

        save(convert(file, audio, skip_bad=skip_bad), out)
