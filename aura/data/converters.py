"""The common layouts -> utterances for `write_manifest`: LibriSpeech, CSV/TSV, Hugging Face datasets."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import soundfile

from aura.audio.waveform import SAMPLE_RATE, name_of, probe_seconds
from aura.data.collect import NumberedRow, collect, convert_rows
from aura.data.columns import map_columns
from aura.data.manifest import read_utterances
from aura.data.row import check_columns, locator
from aura.data.utterance import AudioRef, Utterance
from aura.errors import AudioError, DataError

LIBRISPEECH_SUFFIXES = (".flac", ".opus", ".wav", ".mp3", ".ogg")
DELIMITERS = (",", "\t", ";", "|")
NUMBERS = ("start", "end", "seconds")
AUDIO_FORMATS = ("original", "flac", "wav")
# First bytes of a file -> its suffix, where the dataset keeps no name.
MAGIC = (
    (b"RIFF", ".wav"),
    (b"fLaC", ".flac"),
    (b"OggS", ".ogg"),
    (b"ID3", ".mp3"),
    (b"\x1aE\xdf\xa3", ".webm"),
)


def from_librispeech(folder: str | os.PathLike, *, lang: str = "en") -> list[Utterance]:
    """LibriSpeech's layout: `SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt` beside `SPEAKER-CHAPTER-NNNN.flac`.

    Args:
        folder: the corpus or any part of it (`LibriSpeech/train-clean-100`); MLS in this layout works too.
        lang: language of every row.

    Raises:
        DataError: no transcript file, or transcripts without audio.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected LibriSpeech, for example LibriSpeech/dev-clean.")
    transcripts = sorted(root.rglob("*.trans.txt"))
    if not transcripts:
        raise DataError(f"{root}: no *.trans.txt in it; expected SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt.")
    rows = (row for path in transcripts for row in _librispeech_rows(path, lang))
    return collect(convert_rows(rows, locate=locator(None), prompt=None, limit=None), str(root), False)


def _librispeech_rows(path: Path, lang: str) -> Iterator[NumberedRow]:
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            name, _, transcript = line.strip().partition(" ")
            audio = _librispeech_audio(path.parent, name)
            row: Mapping[str, Any] | DataError = DataError(f"no audio {name}.flac beside it")
            if audio is not None:
                row = {
                    "audio": str(audio),
                    "transcript": transcript,
                    "speaker": name.split("-")[0],
                    "lang": lang,
                }
            yield f"{path} line {number}", with_seconds(row), name


def _librispeech_audio(folder: Path, name: str) -> Path | None:
    return next((p for suffix in LIBRISPEECH_SUFFIXES if (p := folder / (name + suffix)).exists()), None)


def with_seconds(row: Mapping[str, Any] | DataError) -> Mapping[str, Any] | DataError:
    """The row with its length, which batches by length need; an unreadable file is a bad row."""
    if isinstance(row, DataError) or row.get("seconds") is not None:
        return row
    if row.get("start") is not None or row.get("end") is not None:
        return row
    try:
        return {**row, "seconds": round(probe_seconds(row["audio"]), 3)}
    except AudioError as error:
        return error


def from_csv(
    file: str | os.PathLike,
    *,
    columns: Mapping[str, str] | None = None,
    delimiter: str | None = None,
    data_root: str | os.PathLike | None = None,
    skip_bad: bool = False,
) -> list[Utterance]:
    """A table with a header line, one clip a row. Common Voice's TSV files are recognised as they come.

    Args:
        file: `.csv` or `.tsv`, UTF-8.
        columns: our field -> their column; by default equal names, then the usual ones (`path`, `sentence`,
            `client_id`, `locale`, `text`, ...).
        delimiter: by default a tab for `.tsv`, else whichever of `, tab ; |` the header has most of.
        data_root: folder of relative audio paths; by default the table's, or `clips` in it where that exists.
        skip_bad: drop bad rows (the result's `skipped` lists them) instead of raising.

    Raises:
        DataError: no such file, no audio column, an unknown column, or bad rows by line number.
    """
    path = Path(file)
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a .csv or .tsv with a header line.")
    root = Path(data_root) if data_root is not None else path.parent
    if data_root is None and (root / "clips").is_dir():  # Common Voice keeps bare file names
        root = root / "clips"
    rows = _csv_rows(path, check_columns(columns), delimiter, root)
    return collect(convert_rows(rows, locate=locator(None), prompt=None, limit=None), str(path), skip_bad)


def _csv_rows(path: Path, columns: Mapping[str, str], delimiter: str | None, root: Path) -> Iterator[NumberedRow]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            header = lines.readline()
            lines.seek(0)
            separator = delimiter or _guess_delimiter(path, header)
            # Common Voice writes quotation marks as they are spoken, without the doubling of CSV.
            options: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if separator == "\t" else {}
            reader = csv.DictReader(lines, delimiter=separator, **options)
            mapping = map_columns(str(path), list(reader.fieldnames or []), columns)
            for given in reader:
                row = with_seconds(_csv_row(given, mapping, root))
                yield f"line {reader.line_num}", row, given.get(mapping["audio"])
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); expected UTF-8. Convert it with iconv.") from error


def _guess_delimiter(path: Path, header: str) -> str:
    return "\t" if path.suffix == ".tsv" else max(DELIMITERS, key=header.count)


def _csv_row(given: Mapping[str, str], mapping: Mapping[str, str], root: Path) -> Mapping[str, Any] | DataError:
    row: dict[str, Any] = {ours: given[theirs] for ours, theirs in mapping.items() if given.get(theirs)}
    try:
        for key in NUMBERS:
            if key in row:
                row[key] = float(row[key])
        for key in ("label", "messages"):
            if row.get(key, "").startswith(("{", "[")):
                row[key] = json.loads(row[key])
    except ValueError as error:
        return DataError(f"'{key}' is {row[key]!r} ({error})")
    if "audio" not in row:
        return DataError(f"the column {mapping['audio']!r} is empty; expected the path of a recording")
    return {**row, "audio": str(root / row["audio"])}


def from_hf(
    source: str,
    audio_dir: str | os.PathLike,
    *,
    split: str | None = None,
    name: str | None = None,
    columns: Mapping[str, str] | None = None,
    audio_format: str = "original",
    streaming: bool = True,
    limit: int | None = None,
    skip_bad: bool = False,
    on_row: Callable[[int], None] | None = None,
) -> list[Utterance]:
    """A Hugging Face dataset -> audio files in `audio_dir` and utterances that refer to them.

    Args:
        source, split, name, columns, streaming, limit, skip_bad: as in `read_utterances`.
        audio_dir: made where missing; files are numbered, and written atomically.
        audio_format: `original` keeps the encoded bytes; `flac` and `wav` decode to 16 kHz mono, 16 bit.
        on_row: called with the number of rows done.

    Raises:
        DataError: as `read_utterances`; AudioError where a clip cannot be decoded and must be.
    """
    if audio_format not in AUDIO_FORMATS:
        raise DataError(f"audio_format={audio_format!r}; expected one of {', '.join(AUDIO_FORMATS)}.")
    target = Path(audio_dir)
    target.mkdir(parents=True, exist_ok=True)
    utterances: Iterable[Utterance] = read_utterances(
        source, split=split, name=name, columns=columns, streaming=streaming, limit=limit, skip_bad=skip_bad
    )
    done: list[Utterance] = []
    for index, utterance in enumerate(utterances):
        try:
            parts = [
                extract_part(part, target / f"{index:07d}{f'-{k}' if k else ''}", audio_format)
                for k, part in enumerate(utterance.audio)
            ]
        except AudioError:
            if not skip_bad:
                raise
            continue
        done.append(replace(utterance, audio=tuple(parts)))
        if on_row is not None:
            on_row(index + 1)
    return done


def extract_part(part: AudioRef, stem: Path, audio_format: str) -> AudioRef:
    """The part as a file: the slice where it is decoded, the whole recording where the bytes are kept."""
    source = part.source
    if audio_format == "original" and not (isinstance(source, Mapping) and source.get("array") is not None):
        file = stem.with_name(stem.name + _suffix(source))
        write_whole(file, lambda partial: _copy_bytes(source, partial))
        return replace(part, source=str(file), seconds=round(replace(part, source=str(file)).measure(), 3))
    wave = part.load()
    kind = "wav" if audio_format == "wav" else "flac"
    file = stem.with_name(f"{stem.name}.{kind}")
    write_whole(
        file,
        lambda partial: soundfile.write(partial, wave, SAMPLE_RATE, format=kind.upper(), subtype="PCM_16"),
    )
    return AudioRef(source=str(file), seconds=round(len(wave) / SAMPLE_RATE, 3))


def write_whole(file: Path, fill: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all: `fill` gets a temporary name beside it."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        fill(partial)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _copy_bytes(source: Any, partial: Path) -> None:
    data = source.get("bytes") if isinstance(source, Mapping) else source
    if isinstance(data, bytes):
        partial.write_bytes(data)
        return
    path = name_of(source)
    if not os.path.isfile(path):
        raise AudioError(f"{path}: no such file; expected the recording that the dataset names. Check the data root.")
    shutil.copyfile(path, partial)


def _suffix(source: Any) -> str:
    data = source.get("bytes") if isinstance(source, Mapping) else source
    if isinstance(data, bytes):
        for magic, suffix in MAGIC:
            if data.startswith(magic):
                return suffix
        if data[4:8] == b"ftyp":
            return ".m4a"
    return Path(name_of(source)).suffix or ".audio"
