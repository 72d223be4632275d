"""Any file, bytes or array -> mono float32 at 16 kHz.

Shapes: N samples at 16 kHz. The decoders live in `aura.audio.decode`; here are the rules of what may come
out.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any, BinaryIO, cast

import numpy as np

from aura.audio.decode import Decoded, Span, decode, probe
from aura.audio.pcm import downmix, to_float32
from aura.errors import AudioError

SAMPLE_RATE = 16_000  # Hz: what every speech encoder we distil from was trained on
MIN_SECONDS = 0.1  # s, our choice: the shortest clip that can hold a word
RANGE_SLACK = 0.011  # s: manifests round their times to 10 ms, so an end may lie that far past the last sample
MAX_CHANNELS = 64  # an array with more than that on its short axis is a spectrogram, not audio

AudioSource = str | os.PathLike | bytes | BinaryIO | np.ndarray | Mapping


def load_waveform(
    source: AudioSource,
    *,
    sampling_rate: int | None = None,
    start: float | None = None,
    end: float | None = None,
) -> np.ndarray:
    """Decode, average the channels, resample to 16 kHz.

    Args:
        source: path, bytes, seekable or plain binary file object (a seekable one is read from its beginning),
            array `(n,)`, `(channels, n)` or `(n, channels)`, or a Hugging Face audio dict
            (`{"bytes", "path"}` or `{"array", "sampling_rate"}`). Integer arrays are taken as PCM and scaled.
        sampling_rate: Hz, for arrays only, and required there.
        start: first second to return; the part before it is sought over, not decoded.
        end: second at which to stop; the part after it is not decoded.

    Returns:
        wave_N: float32, C-contiguous, 16 kHz. A slice equals the same region of the whole decode (for
        webm to that container's time resolution, 1 ms).

    Raises:
        AudioError: missing, empty, truncated or non-audio input, NaN or infinite samples, a slice outside
            the clip, fewer than `MIN_SECONDS` of audio. One line, with what to do next.
    """
    name = name_of(source)
    span = _span(name, start, end)
    array, rate = _array_of(source, sampling_rate)
    if array is not None:
        decoded = _decode_array(array, rate, name, span)
    else:
        if sampling_rate is not None:
            raise AudioError(
                f"{name}: sampling_rate={sampling_rate} was given for encoded audio; expected it for arrays "
                "only, "
                "files carry their own rate. Leave it out."
            )
        decoded = decode(_openable(source, name), name, span)
    _require_in_range(decoded, name, span)
    _require_finite(decoded, name)
    wave = _resample(decoded, span)
    if len(wave) < MIN_SECONDS * SAMPLE_RATE:
        holds = f"{len(wave) / SAMPLE_RATE:.3f} s of audio" if len(wave) else "no audio samples"
        raise AudioError(
            f"{name}{_slice_text(span)} holds {holds}; expected at least {MIN_SECONDS} s. "
            "Check the recording, or drop the row with --skip-bad."
        )
    return wave


def probe_seconds(source: AudioSource) -> float:
    """Duration in seconds, from the header where possible (a file without one is scanned).

    Raises:
        AudioError: as for `load_waveform`, as far as a header can tell.
    """
    name = name_of(source)
    rate = None if isinstance(source, Mapping) else SAMPLE_RATE
    if isinstance(source, np.ndarray):
        raise AudioError(f"{name}: an array alone has no duration; give {{'array': ..., 'sampling_rate': ...}}.")
    array, rate = _array_of(source, None)
    if array is not None:
        return max(array.shape, default=0) / rate
    return probe(_openable(source, name), name)


def name_of(source: Any) -> str:
    """What to call a source in a message: its path, or `<bytes>`, `<array>`, `<file object>`."""
    if isinstance(source, Mapping):
        path = source.get("path")
        if path:
            return str(path)
        return "<array>" if source.get("array") is not None else "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    if isinstance(source, np.ndarray):
        return "<array>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "<file object>"


def _span(name: str, start: float | None, end: float | None) -> Span:
    for key, value in (("start", start), ("end", end)):
        if value is not None and (not isinstance(value, (int, float)) or not np.isfinite(value) or value < 0):
            raise AudioError(f"{name}: {key}={value!r}; expected seconds >= 0. Correct the row.")
    if end is not None and end <= (start or 0.0):
        raise AudioError(f"{name}: start={start or 0.0} s is not before end={end} s; expected start < end.")
    return Span(start=float(start or 0.0), end=None if end is None else float(end))


def _slice_text(span: Span) -> str:
    if not span.start and span.end is None:
        return ""
    return f" [{span.start:g} s to {'the end' if span.end is None else f'{span.end:g} s'}]"


def _array_of(source: Any, sampling_rate: int | None) -> tuple[np.ndarray | None, int]:
    """The array and its rate where the source is one, else `(None, 0)`."""
    if isinstance(source, Mapping) and source.get("array") is not None:
        rate = source.get("sampling_rate", sampling_rate)
        array = np.asarray(source["array"])
    elif isinstance(source, np.ndarray):
        array, rate = source, sampling_rate
    else:
        return None, 0
    if not isinstance(rate, (int, np.integer)) or rate <= 0:
        raise AudioError(
            f"{name_of(source)}: sampling_rate={rate!r} for an array of shape {array.shape}; expected its "
            "rate in "
            "Hz. Call load_waveform(array, sampling_rate=16000)."
        )
    return array, int(rate)


def _decode_array(array: np.ndarray, rate: int, name: str, span: Span) -> Decoded:
    if array.ndim not in (1, 2) or (array.ndim == 2 and min(array.shape) > MAX_CHANNELS):
        raise AudioError(
            f"{name}: array of shape {array.shape}; expected (n,), (channels, n) or (n, channels) samples."
        )
    if array.dtype.kind not in "fiu":
        raise AudioError(f"{name}: array of {array.dtype}; expected floats in [-1, 1] or integer PCM samples.")
    if array.ndim == 2 and array.shape[0] > array.shape[1]:
        array = array.T  # (n, channels): nobody has more channels than samples
    total = array.shape[-1]
    first, last = span.frames(rate, total)
    return Decoded(samples_N=downmix(to_float32(array[..., first:last])), rate=rate, first=first, total=total)


def _openable(source: Any, name: str) -> str | BinaryIO:
    """A path that exists and holds bytes, or a seekable file object at its beginning."""
    if isinstance(source, Mapping):
        if source.get("bytes") is not None:
            return _openable(source["bytes"], name)
        if source.get("path"):
            return _openable(source["path"], name)
        raise AudioError(
            f"audio dict with the keys {sorted(source)}: none is set; expected 'bytes', 'path', or 'array' "
            "with "
            "'sampling_rate'."
        )
    if isinstance(source, (str, os.PathLike)):
        return _checked_path(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        stream: BinaryIO = io.BytesIO(source)
    elif hasattr(source, "read"):
        stream = cast(BinaryIO, source)
        if not (hasattr(stream, "seekable") and stream.seekable()):
            stream = io.BytesIO(stream.read())
    else:
        raise AudioError(
            f"{type(source).__name__} is no audio source; expected a path, bytes, a binary file object, a "
            "NumPy "
            "array with sampling_rate, or an audio dict."
        )
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if size == 0:
        raise AudioError(f"{name}: 0 bytes; expected an audio file. Record or download it again.")
    return stream


def _checked_path(path: str) -> str:
    if os.path.isdir(path):
        raise AudioError(f"{path}: is a folder; expected an audio file. Name the files: {path.rstrip('/')}/*.wav")
    if not os.path.exists(path):
        raise AudioError(f"{path}: no such file; expected an audio file. Check the path and the data root.")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: may not be read; expected a readable audio file. Check its permissions.")
    if os.path.getsize(path) == 0:
        raise AudioError(f"{path}: 0 bytes; expected an audio file. Record or download it again.")
    return path


def _require_in_range(decoded: Decoded, name: str, span: Span) -> None:
    seconds = decoded.total / decoded.rate
    if span.start and span.start >= seconds:
        raise AudioError(f"{name}: start={span.start:g} s, but the clip is {seconds:.3f} s long. Correct the row.")
    if span.end is not None and span.end > seconds + RANGE_SLACK:
        raise AudioError(f"{name}: end={span.end:g} s, but the clip is {seconds:.3f} s long. Correct the row.")


def _require_finite(decoded: Decoded, name: str) -> None:
    finite = np.isfinite(decoded.samples_N)
    if not finite.all():
        where = (decoded.first + int(np.argmin(finite))) / decoded.rate
        raise AudioError(
            f"{name}: {int((~finite).sum())} samples are NaN or infinite, the first at {where:.3f} s; "
            "expected "
            "finite samples. Re-export the file, or drop the row with --skip-bad."
        )


def _resample(decoded: Decoded, span: Span) -> np.ndarray:
    wave, rate = decoded.samples_N, decoded.rate
    if rate != SAMPLE_RATE and len(wave):
        import soxr

        wave = soxr.resample(wave, rate, SAMPLE_RATE)
    # `decoded.first` lies on a frame that is a whole sample at 16 kHz as well (Span.frames): no phase error.
    offset = decoded.first * SAMPLE_RATE // rate
    first = round(span.start * SAMPLE_RATE) - offset
    last = len(wave) if span.end is None else round(span.end * SAMPLE_RATE) - offset
    return np.ascontiguousarray(wave[first:last], dtype=np.float32)
