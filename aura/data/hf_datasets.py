"""Hugging Face datasets -> utterances: hub, saved to disk, parquet, audiofolder, streaming.

The audio stays encoded bytes or paths, and `aura.audio.waveform` decodes it. `datasets` would decode with
torchcodec, which wants a system ffmpeg; nothing here asks it to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from aura.data import audiofolder
from aura.data.collect import NumberedRow, Utterances, collect, convert_rows, good_rows
from aura.data.columns import map_columns
from aura.data.row import Locate, locator
from aura.data.utterance import Utterance
from aura.errors import DataError, require

HUB = "hf:"
STAND_IN = "<bytes>"  # where a row's audio has no path
SCAN_ROWS = 1000  # rows whose text columns are looked at together


def read_dataset(
    source: str,
    *,
    data_root: str | os.PathLike | None,
    prompt: str | None,
    columns: dict[str, str],
    split: str | None,
    name: str | None,
    streaming: bool,
    limit: int | None,
    skip_bad: bool,
) -> Sequence[Utterance] | Iterator[Utterance]:
    """As `read_utterances`, for anything that is not a manifest."""
    if audiofolder.is_audiofolder(source):
        rows = _renamed(audiofolder.read_rows(source, split), columns)
        results = convert_rows(rows, locate=locator(data_root), prompt=prompt, limit=limit)
        return good_rows(results, source, skip_bad) if streaming else collect(results, source, skip_bad)
    dataset = _open(source, split=split, name=name, streaming=streaming)
    mapping = map_columns(source, list(dataset.features or {}), columns)
    locate = locator(data_root)
    if streaming:
        rows = _streamed_rows(dataset, mapping)
        return good_rows(convert_rows(rows, locate=locate, prompt=prompt, limit=limit), source, skip_bad)
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    return DatasetUtterances(dataset, mapping, locate=locate, prompt=prompt, source=source, skip_bad=skip_bad)


def dataset_columns(source: str, *, split: str | None = None, name: str | None = None) -> list[str]:
    """Names of a dataset's columns, without reading its rows. Raises `DataError` where it cannot be opened."""
    return list(_open(source, split=split, name=name, streaming=True).features or {})


class DatasetUtterances(Sequence[Utterance]):
    """A map-style dataset as utterances: text columns in memory, audio bytes fetched row by row.

    `skipped` lists the rows that were dropped, one line each.
    """

    def __init__(
        self,
        dataset: Any,
        mapping: Mapping[str, str],
        *,
        locate: Locate,
        prompt: str | None,
        source: str,
        skip_bad: bool,
    ):
        # Arrow's view of the columns: the struct {"bytes", "path"} of an Audio column, never decoded.
        self._table = dataset.with_format("arrow")
        self._audio = mapping["audio"]
        self._locate = locate
        rows = (
            (f"row {index}", row, f"{index}:{_path_of(row)}" if _path_of(row) else f"row {index}")
            for index, row in enumerate(self._light_rows(dataset, mapping))
        )
        results = list(convert_rows(rows, locate=_as_is, prompt=prompt, limit=None))
        self._rows = [index for index, (_, result) in enumerate(results) if isinstance(result, Utterance)]
        checked = collect(results, source, skip_bad)
        self._light: list[Utterance] = list(checked)
        self.skipped = checked.skipped

    def __len__(self) -> int:
        return len(self._light)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...

    @overload
    def __getitem__(self, index: slice) -> Utterances: ...

    def __getitem__(self, index: int | slice) -> Utterance | Utterances:
        if isinstance(index, slice):
            return Utterances(self[i] for i in range(*index.indices(len(self))))
        light, row = self._light[index], self._rows[index]
        given = self._table[row : row + 1].column(self._audio).to_pylist()[0]
        sources = given if isinstance(given, list) else [given]
        audio = (replace(part, source=self._locate(source)) for part, source in zip(light.audio, sources, strict=True))
        return replace(light, audio=tuple(audio))

    def _light_rows(self, dataset: Any, mapping: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Rows whose audio is a stand-in of the same shape: what to check without touching the bytes."""
        names = _class_names(dataset.features)
        for first in range(0, len(dataset), SCAN_ROWS):
            table = self._table[first : first + SCAN_ROWS]
            stand_ins = _stand_ins(table.column(self._audio))
            light = {ours: table.column(theirs).to_pylist() for ours, theirs in mapping.items() if ours != "audio"}
            for index, stand_in in enumerate(stand_ins):
                row = {ours: _named(values[index], names.get(mapping[ours])) for ours, values in light.items()}
                yield {**row, "audio": stand_in}


def _open(source: str, *, split: str | None, name: str | None, streaming: bool) -> Any:
    """The `datasets` object of one split."""
    datasets = require("datasets", extra="train", purpose=f"reading the dataset {source}")
    if source.startswith(HUB):
        return _load(datasets, source, source[len(HUB) :], name=name, split=split, streaming=streaming)
    path = Path(source)
    if not path.exists():
        hint = f" A dataset on the hub is written hf:{source}." if source.count("/") == 1 else ""
        raise DataError(
            f"{source}: no such file or folder; expected a .jsonl manifest, a .parquet file or a dataset folder.{hint}"
        )
    if path.is_dir() and ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        return _one_split(source, datasets.load_from_disk(source), split, streaming)
    if path.is_dir():
        files = sorted(str(file) for file in path.rglob("*.parquet"))
    else:
        files = [source] if path.suffix == ".parquet" else []
    if not files:
        raise DataError(_unknown_source(path))
    data_files = _files_by_split(files) if path.is_dir() else {"train": files}
    if not path.is_dir():
        split = split or "train"
    return _load(datasets, source, "parquet", data_files=data_files, split=split, streaming=streaming)


def _unknown_source(path: Path) -> str:
    if path.suffix in (".csv", ".tsv"):
        return f"{path}: a table, not a manifest. Convert it: aura data from-csv {path} --out manifest.jsonl"
    kind = "folder without parquet files, saved dataset or audio" if path.is_dir() else f"'{path.suffix}' file"
    return f"{path}: a {kind}; expected a .jsonl manifest, a .parquet file, a saved dataset or an audiofolder."


def _files_by_split(files: list[str]) -> dict[str, list[str]]:
    """By the hub's convention: `train-00000-of-00002.parquet` and `train/0.parquet` are split `train`."""
    splits: dict[str, list[str]] = {}
    for file in files:
        parts = {Path(file).stem.split("-")[0], Path(file).parent.name}
        split = next((s for s in ("train", "validation", "valid", "dev", "test") if s in parts), "train")
        splits.setdefault(split, []).append(file)
    return splits


def _load(datasets: Any, source: str, path: str, *, split: str | None, streaming: bool, **options: Any) -> Any:
    try:
        loaded = datasets.load_dataset(path, split=split, streaming=streaming, **options)
    except (
        OSError,
        ValueError,
        ImportError,
        RuntimeError,
    ) as error:  # no network, no such name, split or format
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"{source}: cannot be opened as a dataset: {reason}. Check the name, the split and the network."
        ) from error
    return _one_split(source, loaded, None, streaming)


def _one_split(source: str, loaded: Any, split: str | None, streaming: bool) -> Any:
    """The split itself; a dictionary of one split counts as that split."""
    if isinstance(loaded, dict):
        if split is None and len(loaded) == 1:
            split = next(iter(loaded))
        if split not in loaded:
            given = "no split was named" if split is None else f"no split {split!r}"
            raise DataError(
                f"{source}: {given}; it has {', '.join(loaded)}. Name one with split: {next(iter(loaded))}."
            )
        loaded = loaded[split]
    if streaming and not hasattr(loaded, "decode"):
        loaded = loaded.to_iterable_dataset()
    return loaded.decode(False) if streaming else loaded


def _streamed_rows(dataset: Any, mapping: Mapping[str, str]) -> Iterator[NumberedRow]:
    names = _class_names(dataset.features)
    for index, given in enumerate(dataset):
        row = {ours: _named(given[theirs], names.get(theirs)) for ours, theirs in mapping.items()}
        path = _path_of(row)
        yield f"row {index}", row, f"{index}:{path}" if path else f"row {index}"


def _renamed(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, str]) -> Iterator[NumberedRow]:
    for index, row in enumerate(rows):
        present = list(row)
        try:
            mapping = map_columns("audiofolder", present, columns)
            yield f"row {index}", {ours: row[theirs] for ours, theirs in mapping.items()}, row.get("id")
        except DataError as error:
            yield f"row {index}", error, None


def _class_names(features: Any) -> dict[str, list[str]]:
    """Names of the classes of each ClassLabel column, which stores numbers."""
    return {column: feature.names for column, feature in (features or {}).items() if hasattr(feature, "int2str")}


def _named(value: Any, names: list[str] | None) -> Any:
    return value if names is None or not isinstance(value, int) else (names[value] if value >= 0 else None)


def _as_is(source: Any) -> Any:
    return source


def _path_of(row: Mapping[str, Any]) -> str | None:
    audio = row.get("audio")
    path = audio.get("path") if isinstance(audio, Mapping) else audio
    return path if isinstance(path, str) and path != STAND_IN else None


def _stand_ins(column: Any) -> list[Any]:
    """For each row the audio's paths (or a word), without its bytes; None where there is no audio."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return [None if n is None else [{"path": STAND_IN}] * n for n in pc.list_value_length(column).to_pylist()]
    if not pa.types.is_struct(column.type):
        valid = column.is_valid().to_pylist()
        text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        return column.to_pylist() if text else [{"path": STAND_IN} if ok else None for ok in valid]
    fields = {column.type.field(i).name for i in range(column.type.num_fields)}
    paths = pc.struct_field(column, "path").to_pylist() if "path" in fields else [None] * len(column)
    held = [key for key in ("bytes", "array") if key in fields]
    filled = [pc.struct_field(column, key).is_valid().to_pylist() for key in held]
    here = [any(row) for row in zip(*filled, strict=True)] if held else [False] * len(column)
    return [{"path": path or STAND_IN} if path or ok else None for path, ok in zip(paths, here, strict=True)]
