"""Which column of a table or dataset holds which of our fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aura.data.row import FIELDS
from aura.errors import DataError

# What corpora call our fields; the first that a dataset has is taken, an explicit mapping wins.
SYNONYMS = {
    "audio": ("audio", "file", "path", "file_name", "filename", "audio_path", "audio_file", "wav"),
    "transcript": ("transcript", "transcription", "text", "sentence", "normalized_text", "raw_text"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "lang": ("lang", "language", "locale"),
    "seconds": ("seconds", "duration"),
}


def map_columns(source: str, present: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Our field -> their column: the explicit mapping, then equal names, then the usual synonyms.

    Raises:
        DataError: a mapped column that is not there, or no column for the audio.
    """
    for ours, theirs in columns.items():
        if theirs not in present:
            raise DataError(f"{source}: no column {theirs!r} for '{ours}'; it has {', '.join(present) or 'none'}.")
    found = dict(columns)
    for ours in FIELDS:
        taken = found.get(ours) or next((c for c in SYNONYMS.get(ours, (ours,)) if c in present), None)
        if taken is not None:
            found[ours] = taken
    if "audio" not in found:
        raise DataError(
            f"{source}: no audio column among {', '.join(present) or 'none'}; expected one named 'audio'. "
            "Name it with columns: {audio: THEIR_NAME}."
        )
    return found
