"""Spoken commands: SLURP, Fluent Speech Commands and the Picovoice barista orders -> utterances with labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from aura.data.collect import NumberedRow, Utterances, collect, convert_rows
from aura.data.converters import with_seconds
from aura.data.manifest import read_rows
from aura.data.row import locator
from aura.data.sets.files import existing_file, existing_folder, json_object
from aura.errors import DataError

Microphone = Literal["all", "headset", "far"]
FLUENT_COLUMNS = ("path", "speakerId", "transcription", "action", "object", "location")


def from_slurp(
    file: str | os.PathLike[str],
    audio: str | os.PathLike[str],
    *,
    microphone: Microphone = "all",
    skip_bad: bool = False,
) -> Utterances:
    """SLURP (Bastianelli et al. 2020): one utterance per recording of `devel.jsonl`, `test.jsonl`, ...

    The intent is `scenario_action`, which the published metric scores (the field `intent` lacks the scenario in some
    rows); the slots are the entities, their tokens joined. A second entity of one type gets a number, `date_2`.

    Args:
        file: of `dataset/slurp`; speakers come from the `metadata.json` beside it where there is one.
        audio: folder of the recordings, or the one that holds `slurp_real` and `slurp_synth`.
        microphone: `headset` keeps files named `*-headset.flac`, `far` the others.
        skip_bad: drop bad rows, such as missing recordings, instead of raising.

    Raises:
        DataError: no such file, or rows that are not SLURP's.
    """
    if microphone not in ("all", "headset", "far"):
        raise DataError(f"microphone is {microphone!r}; expected all, headset or far")
    path, folder = Path(file), existing_folder(audio)
    folders = [folder, folder / "slurp_real", folder / "slurp_synth"]
    speakers = _slurp_speakers(path.with_name("metadata.json"))
    rows = _slurp_rows(path, folders, speakers, microphone)
    return collect(convert_rows(rows, locate=locator(None), prompt=None, limit=None), str(path), skip_bad)


def _slurp_rows(
    path: Path, folders: Sequence[Path], speakers: Mapping[str, str], microphone: Microphone
) -> Iterator[NumberedRow]:
    for number, given in read_rows(str(path), {}):
        place = f"line {number}"
        try:
            if isinstance(given, DataError):
                raise given
            label, recordings = _slurp_label(given), [recording["file"] for recording in given["recordings"]]
        except (KeyError, TypeError, IndexError, StopIteration) as error:
            yield place, DataError(f"not a row of SLURP ({type(error).__name__}: {error})"), None
            continue
        except DataError as error:
            yield place, error, None
            continue
        for name in recordings:
            if microphone != "all" and name.endswith("-headset.flac") != (microphone == "headset"):
                continue
            row = {
                "audio": str(_found(name, folders)),
                "transcript": given.get("sentence"),
                "speaker": speakers.get(name),
                "lang": "en",
                "label": label,
                "task": "intent",
            }
            yield place, with_seconds(row), name


def _slurp_label(row: Mapping[str, Any]) -> dict[str, Any]:
    words = {token["id"]: token["surface"] for token in row["tokens"]}
    slots: dict[str, str] = {}
    for entity in row["entities"]:
        name, number = entity["type"], 2
        while name in slots:
            name, number = f"{entity['type']}_{number}", number + 1
        slots[name] = " ".join(words[index] for index in entity["span"])
    return {"intent": f"{row['scenario']}_{row['action']}", "slots": slots}


def _slurp_speakers(metadata: Path) -> dict[str, str]:
    if not metadata.is_file():
        return {}
    found: dict[str, str] = {}
    for entry in json_object(metadata).values():
        for name, recording in entry.get("recordings", {}).items():
            if recording.get("usrid"):
                found[name] = recording["usrid"]
    return found


def from_fluent(
    file: str | os.PathLike[str], *, data_root: str | os.PathLike[str] | None = None, skip_bad: bool = False
) -> Utterances:
    """Fluent Speech Commands (Lugosch et al. 2019): `data/train_data.csv`, `valid_data.csv` or `test_data.csv`.

    The action is the intent, object and location are slots; `none` is left out, so that a command is right when all
    three are, as in the published accuracy. Spaces in an action become underscores.

    Args:
        data_root: folder that the paths start from; by default the one above `data`.
        skip_bad: drop bad rows instead of raising.

    Raises:
        DataError: no such file, or other columns than Fluent's.
    """
    path = existing_file(file, "data/test_data.csv of Fluent Speech Commands")
    root = Path(data_root) if data_root is not None else path.parent.parent
    rows = _fluent_rows(path, root)
    return collect(convert_rows(rows, locate=locator(None), prompt=None, limit=None), str(path), skip_bad)


def _fluent_rows(path: Path, root: Path) -> Iterator[NumberedRow]:
    with open(path, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines)
        if absent := [name for name in FLUENT_COLUMNS if name not in (reader.fieldnames or ())]:
            raise DataError(
                f"{path}: no column {absent[0]!r}; it has {', '.join(reader.fieldnames or ()) or 'none'}. Expected "
                f"{', '.join(FLUENT_COLUMNS)} as in Fluent Speech Commands"
            )
        for given in reader:
            slots = {name: given[name] for name in ("object", "location") if given[name] not in ("none", "", None)}
            row = {
                "audio": str(root / given["path"]),
                "transcript": given["transcription"],
                "speaker": given["speakerId"],
                "lang": "en",
                "label": {"intent": "_".join((given["action"] or "").split()), "slots": slots},
                "task": "intent",
            }
            yield f"line {reader.line_num}", with_seconds(row), given["path"]


def from_barista(
    file: str | os.PathLike[str], audio: str | os.PathLike[str] | None = None, *, skip_bad: bool = False
) -> Utterances:
    """The Picovoice speech-to-intent benchmark: `data/label/label.json` and the recordings it names.

    Args:
        file: one object, file name -> `{"intent": ..., "slots": {...}}`.
        audio: folder of the recordings; by default `speech/clean` beside the folder of the labels.
        skip_bad: drop bad rows, such as missing recordings, instead of raising.

    Raises:
        DataError: no such file, or another shape.
    """
    path = existing_file(file, "data/label/label.json of the Picovoice benchmark")
    folder = existing_folder(audio if audio is not None else path.parent.parent / "speech" / "clean")
    labels = json_object(path)
    if not all(isinstance(label, Mapping) and "intent" in label for label in labels.values()):
        raise DataError(f"{path}: expected an object of file name -> {{'intent': ..., 'slots': {{...}}}}")
    rows = (
        (name, with_seconds({"audio": str(folder / name), "lang": "en", "label": label, "task": "intent"}), name)
        for name, label in labels.items()
    )
    return collect(convert_rows(rows, locate=locator(None), prompt=None, limit=None), str(path), skip_bad)


def _found(name: str, folders: Sequence[Path]) -> Path:
    """The recording in the first folder that has it, else where it was expected first."""
    return next((path for folder in folders if (path := folder / name).exists()), folders[0] / name)
