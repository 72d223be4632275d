"""`items.jsonl`: one row per item as soon as it is done, and the memory of an interrupted evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aura.errors import AuraError, DataError
from aura.evaluation.json_text import plain, replace_text


class ItemLog:
    """Appends rows to `items.jsonl` and knows which ids it holds.

    Opening repairs the file: a last line cut by `kill -9` or a full disk is taken off, and its item is done
    again. A damaged line anywhere else is an error, as no crash of ours leaves one. One process writes at a
    time: whoever opens it sees to that (`one_writer`).

    Args:
        path: the `.jsonl` file, or the folder that holds `items.jsonl`; made if missing.
        settings: what decides an answer (checkpoint, prompt, decoding options). Kept in
            `<name>.settings.json` and compared when the log is opened again, so that one file never mixes the
            answers of two checkpoints.
        resume: go on with what is there; False starts over.

    Raises:
        DataError: the file holds other rows than ours, or those of other settings.
        AuraError: the file cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, settings: Mapping[str, Any] | None = None, resume: bool = True
    ) -> None:
        path = Path(path)
        self.path = path if path.suffix == ".jsonl" else path / "items.jsonl"
        self._file: Any = None
        if not resume:
            self.path.unlink(missing_ok=True)
        rows, length = _read(self.path)
        self._rows = {row["id"]: row for row in rows}
        if settings is not None:
            self._check_settings(plain(settings))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
            self._file.truncate(length)
        except OSError as error:
            raise self._unwritable(error) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; it survives `kill -9` from here on. A row with the id of an earlier one replaces it.

        Raises:
            DataError: the row has no text `id`.
            AuraError: the disk is full or the log is closed; the file then ends in the last whole row.
        """
        if not isinstance(row.get("id"), str):
            raise DataError(f"A row of {self.path.name} has the id {row.get('id')!r}; expected a text 'id' per item.")
        if self._file is None:
            raise AuraError(f"{self.path} is closed; open a new ItemLog to go on with it.")
        written = plain(row)
        line = json.dumps(written, ensure_ascii=False, allow_nan=False) + "\n"
        data = memoryview(line.encode("utf-8", "backslashreplace"))  # half a surrogate pair is no UTF-8
        start = self.path.stat().st_size
        try:
            while data:  # a raw file may take part of the bytes
                data = data[self._file.write(data) :]
        except OSError as error:
            self._file.truncate(start)
            raise self._unwritable(error) from error
        self._rows[written["id"]] = written

    def done_ids(self, *, failed: bool = True) -> set[str]:
        """Ids that need not be done again; `failed=False` leaves out rows marked `"failed": true`."""
        return {id_ for id_, row in self._rows.items() if failed or not row.get("failed")}

    def rows(self) -> list[dict[str, Any]]:
        """All rows, the last one of each id, in the order their ids first came."""
        return list(self._rows.values())

    def close(self) -> None:
        """Push the rows to the disk itself and close."""
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()
                self._file = None

    def __enter__(self) -> ItemLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self.path.with_suffix(".settings.json")
        if not self._rows:
            replace_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
            return
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            kept = {}
        except ValueError as error:
            raise DataError(
                f"{path} is not JSON ({error}). Remove {self.path.parent}, or choose another --out."
            ) from None
        changed = sorted(key for key in kept.keys() | settings.keys() if kept.get(key) != settings.get(key))
        if changed:
            listed = "; ".join(f"{key}: {kept.get(key)!r} there, {settings.get(key)!r} now" for key in changed)
            raise DataError(
                f"{self.path} holds {len(self._rows)} items answered with other settings ({listed}). "
                "Choose another --out, or remove that folder to start over."
            )

    def _unwritable(self, error: OSError) -> AuraError:
        return AuraError(
            f"Could not write {self.path}: {error.strerror or error}; expected a folder with room in it. "
            "Free some space there and run the same command again: the items already done are kept."
        )


def _read(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The rows of a log, and the length in bytes up to the end of the last whole one."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise AuraError(f"Could not read {path}: {error.strerror or error}. Choose another --out.") from error
    rows: list[dict[str, Any]] = []
    *lines, cut = data.split(b"\n")  # a whole file ends in a newline, and then nothing is cut
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and b"\0" in line:
            # After a power cut the end of a file may be there as zeros.
            return rows, len(data) - len(cut) - len(line) - 1
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                raise ValueError("no text 'id'")
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: {error}; expected one JSON object with an 'id' per line. "
                "Choose another --out, or remove the file to start over."
            ) from None
        rows.append(row)
    return rows, len(data) - len(cut)
