"""Many rows -> many utterances, with every bad row accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from aura.data.row import Locate, utterance_from_row
from aura.data.utterance import Utterance
from aura.errors import DataError

SHOWN_ERRORS = 5  # how many bad rows one message names before it only counts
# A row with its place ("line 7"), its fields or what is wrong with it, and an id where the row has none.
NumberedRow = tuple[str, Mapping[str, Any] | DataError, str | None]
# A row's place with its utterance, or with the reason why it has none.
Result = tuple[str, Utterance | str]


class Utterances(list[Utterance]):
    """A list of utterances that remembers which rows were dropped: `skipped`, one line each."""

    def __init__(self, items: Iterable[Utterance] = (), skipped: Sequence[str] = ()):
        super().__init__(items)
        self.skipped = tuple(skipped)


def convert_rows(
    rows: Iterable[NumberedRow], *, locate: Locate, prompt: str | None, limit: int | None
) -> Iterator[Result]:
    """For each row its place, with the `Utterance` or with what is wrong."""
    for index, (place, row, fallback_id) in enumerate(rows):
        if limit is not None and index >= limit:
            return
        try:
            if isinstance(row, DataError):
                raise row
            yield place, utterance_from_row(row, locate=locate, prompt=prompt, fallback_id=fallback_id)
        except DataError as error:
            yield place, str(error)


def good_rows(results: Iterable[Result], source: str, skip_bad: bool) -> Iterator[Utterance]:
    """The good rows of a stream; the first bad one raises unless `skip_bad`."""
    for place, result in results:
        if isinstance(result, Utterance):
            yield result
        elif not skip_bad:
            raise DataError(f"{source}: {place}: {result}. Correct the row, or drop it with --skip-bad.")


def collect(results: Iterable[Result], source: str, skip_bad: bool) -> Utterances:
    """All good rows. Raises `DataError` with the first bad ones and their count unless `skip_bad`."""
    good: list[Utterance] = []
    bad: list[str] = []
    for place, result in results:
        if isinstance(result, Utterance):
            good.append(result)
        else:
            bad.append(f"{place}: {result}")
    if bad and not skip_bad:
        shown = "; ".join(bad[:SHOWN_ERRORS]) + ("; ..." if len(bad) > SHOWN_ERRORS else "")
        raise DataError(
            f"{source}: {len(bad)} of {len(bad) + len(good)} rows cannot be used: {shown}. "
            "Correct them, or drop them with --skip-bad."
        )
    if not good:
        raise DataError(f"{source}: no rows{f' left, {len(bad)} were bad: {bad[0]}' if bad else ''}; expected some.")
    return Utterances(good, bad)
