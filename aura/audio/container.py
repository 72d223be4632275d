"""What a container's bytes promise, read without decoding: libsndfile hides a cut wav and a cut ogg."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from aura.errors import AudioError

STREAMED_SIZE = 0x7FFF_F000  # bytes: from here on a wav's data size is a piper's placeholder (ffmpeg, sox)
OGG_PAGE = 65_307  # bytes, the largest page: 27 + 255 + 255 * 255


@contextmanager
def _rewound(source: str | BinaryIO) -> Iterator[BinaryIO]:
    """The source as a stream at byte 0; a caller's stream is put back where it was."""
    if isinstance(source, str):
        with open(source, "rb") as stream:
            yield stream
        return
    place = source.tell()
    source.seek(0)
    try:
        yield source
    finally:
        source.seek(place)


def promised_wav_frames(source: str | BinaryIO) -> int | None:
    """Frames that a RIFF header promises; None where it promises none (streamed, or not plain RIFF)."""
    with _rewound(source) as stream:
        if stream.read(4) != b"RIFF":
            return None
        stream.seek(12)
        block_align = 0
        while len(header := stream.read(8)) == 8:
            kind, size = struct.unpack("<4sI", header)
            if kind == b"fmt ":
                if len(layout := stream.read(16)) < 16:
                    return None
                fields = struct.unpack("<HHIIHH", layout)
                # Compressed wav (ADPCM, GSM) has several samples a block: leave its length to libsndfile.
                block_align = fields[4] if fields[0] in (1, 3, 0xFFFE) else 0
                stream.seek(size - 16 + size % 2, io.SEEK_CUR)
            elif kind == b"data":
                return size // block_align if block_align and 0 < size < STREAMED_SIZE else None
            else:
                stream.seek(size + size % 2, io.SEEK_CUR)
    return None


def require_whole_ogg(source: str | BinaryIO, name: str) -> None:
    """Raise where an Ogg stream ends inside a page, which is how a cut download looks.

    Raises:
        AudioError: the last page is longer than the bytes that are left.
    """
    with _rewound(source) as stream:
        if stream.read(4) != b"OggS":
            return
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - OGG_PAGE))
        tail = stream.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return
    page = tail[at:]
    segments = page[26] if len(page) > 26 else 0
    length = 27 + segments + sum(page[27 : 27 + segments])
    if len(page) < length:
        raise AudioError(
            f"{name}: truncated: its last Ogg page has {len(page)} of at least {length} bytes. "
            "Record or download it again, or drop the row with --skip-bad."
        )
