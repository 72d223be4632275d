"""`aura data`: look at manifests and make them."""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Literal

from cyclopts import App

from aura.cli_label import add_labelling
from aura.cli_sets import add_sets
from aura.cli_synthesize import add_synthesis

data = App(name="data", help="Check manifests, and make them from the usual layouts.")


@data.command
def check(
    manifest: str,
    /,
    *,
    json: bool = False,
    out: Path | None = None,
    data_root: Path | None = None,
    columns: dict[str, str] | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> int:
    """Decode everything once; report hours, speakers, durations and every bad row with its reason.

    Ends with status 1 where rows cannot be used.

    Args:
        manifest: manifest or dataset (.jsonl, parquet, folder, hf:NAME).
        json: print JSON instead of text.
        out: write the JSON here as well.
        data_root: folder that relative audio paths start from; the manifest's own by default.
        columns: their column for our field, e.g. --columns.transcript sentence.
        split: split of Hugging Face datasets.
        limit: first N rows.
    """
    from aura.data.check import check_manifest
    from aura.evaluation.json_text import plain, replace_text
    from aura.progress import audio_progress

    with audio_progress("decoding", None) as advance:
        report = check_manifest(
            manifest,
            data_root=data_root,
            columns=columns,
            split=split,
            limit=limit,
            on_row=lambda _: advance(1, 0.0),
        )
    text = json_module.dumps(plain(report.as_dict()), indent=2, ensure_ascii=False)
    if out is not None:
        replace_text(out, text + "\n")
    print(text if json else report.as_text())
    return 0 if report.ok else 1


@data.command
def from_librispeech(folder: Path, /, *, out: Path, lang: str = "en") -> None:
    """Make a manifest from LibriSpeech or any corpus in its layout.

    Args:
        folder: the corpus or a part of it, such as LibriSpeech/train-clean-100.
        out: manifest to write (.jsonl).
        lang: language of every row.
    """
    from aura.data.converters import from_librispeech as convert

    _save(convert(folder, lang=lang), out)


@data.command
def from_csv(
    file: Path,
    /,
    *,
    out: Path,
    columns: dict[str, str] | None = None,
    delimiter: str | None = None,
    data_root: Path | None = None,
    skip_bad: bool = False,
) -> None:
    """Make a manifest from a table with a header line; Common Voice's TSV files work as they come.

    Args:
        file: .csv or .tsv.
        out: manifest to write (.jsonl).
        columns: their column for our field, e.g. --columns.transcript sentence.
        delimiter: between the columns; found out by default.
        data_root: folder of relative audio paths; the table's own by default.
        skip_bad: drop bad rows with a count instead of stopping.
    """
    from aura.data.converters import from_csv as convert

    _save(
        convert(file, columns=columns, delimiter=delimiter, data_root=data_root, skip_bad=skip_bad),
        out,
    )


@data.command
def from_hf(
    source: str,
    /,
    *,
    out: Path,
    audio_dir: Path | None = None,
    split: str | None = None,
    name: str | None = None,
    columns: dict[str, str] | None = None,
    audio_format: Literal["original", "flac", "wav"] = "original",
    limit: int | None = None,
    skip_bad: bool = False,
) -> None:
    """Make a manifest and audio files from a Hugging Face dataset.

    Args:
        source: hf:NAME, a folder that datasets saved, or parquet.
        out: manifest to write (.jsonl).
        audio_dir: folder for the audio; "audio" beside the manifest by default.
        split: split of the dataset.
        name: configuration of the dataset.
        columns: their column for our field, e.g. --columns.transcript sentence.
        audio_format: keep the encoded bytes, or decode to 16 kHz mono.
        limit: first N rows.
        skip_bad: drop bad rows with a count instead of stopping.
    """
    from aura.data.converters import from_hf as convert
    from aura.progress import audio_progress

    with audio_progress("extracting", limit) as advance:
        rows = convert(
            source,
            audio_dir if audio_dir is not None else out.parent / "audio",
            split=split,
            name=name,
            columns=columns,
            audio_format=audio_format,
            limit=limit,
            skip_bad=skip_bad,
            on_row=lambda _: advance(1, 0.0),
        )
    _save(rows, out)


def _save(rows: list, out: Path) -> None:
    from aura.data.manifest import write_manifest

    if skipped := getattr(rows, "skipped", ()):
        print(f"aura: {len(skipped)} bad rows were dropped, e.g. {skipped[0]}", file=sys.stderr)
    print(f"{write_manifest(rows, out)} rows written to {out}. Look at them with: aura data check {out}")


add_sets(data, _save)
add_synthesis(data)
add_labelling(data)
