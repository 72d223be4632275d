"""Audio from strangers: known containers only, and limits that hold while decoding, not after.

A header may lie and a few kilobytes may hold days of silence. So an upload is read once, block by block, and
given up at the limit. Containers are told by their first bytes and named to ffmpeg: left to guess, it would
take a playlist for audio and open what is written in it, files and addresses of the server's network included.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import soundfile

from aura.audio.pcm import downmix, to_float32
from aura.audio.waveform import SAMPLE_RATE, load_waveform
from aura.errors import AudioError
from aura.serve.failures import ApiError, of_aura_error

logger = logging.getLogger(__name__)

BLOCK = 1 << 16  # frames read at a time
LOWEST_RATE, HIGHEST_RATE = 1000, 192_000  # Hz; what recorders and telephones write lies between
MOST_CHANNELS = 16
LOUDEST = 1e3  # of a sample; full scale is 1, and float files far above it overflow inside the model
SOUNDFILE = ("wav", "flac", "ogg", "mp3", "aiff")  # what libsndfile reads; the rest is ffmpeg's
FFMPEG_NAMES = {"mov": "mov", "matroska": "matroska", "aac": "aac", "caf": "caf"}
EXPECTED = "expected wav, flac, ogg, opus, mp3, m4a, webm, aac, aiff or caf"


class Upload(io.BytesIO):
    """Bytes whose seeks never fail: libsndfile asks for places in front of the file, and prints what Python raises."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: len(self.getbuffer())}[whence]
        return super().seek(max(0, start + offset))


def audio_of_base64(text: str, *, max_seconds: float, param: str) -> np.ndarray:
    """Base64 (or a data URL of it) -> wave_N, float32 at 16 kHz.

    Raises:
        ApiError: 400 for anything that is no audio, 413 for more than `max_seconds`.
    """
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            400, f"{param} is not base64 ({error}); expected the file's bytes", code="invalid_base64", param=param
        ) from error
    return waveform(data, max_seconds=max_seconds, param=param)


def waveform(data: bytes, *, max_seconds: float, param: str) -> np.ndarray:
    """A whole upload -> wave_N, float32 at 16 kHz.

    Raises:
        ApiError: see `audio_of_base64`.
    """
    source = checked_source(data, max_seconds=max_seconds, param=param)
    return _refusing(lambda: load_waveform(source), param)


def checked_source(data: bytes, *, max_seconds: float, param: str) -> Any:
    """The upload as something that `load_waveform` can be trusted with: it is whole and within the limit.

    Returns:
        an `Upload` where libsndfile reads it to its end, else samples at 16 kHz that were decoded here.

    Raises:
        ApiError: see `audio_of_base64`.
    """
    if not data:
        raise ApiError(400, f"{param} holds no bytes; expected a recording", code="invalid_audio", param=param)
    form = container_of(data)
    if form is None:
        raise ApiError(400, f"{param} is no audio that is known; {EXPECTED}", code="invalid_audio", param=param)
    if form in SOUNDFILE and _refusing(lambda: _is_whole(data, max_seconds), param):
        return Upload(data)
    wave_N = _refusing(lambda: _decode(data, FFMPEG_NAMES.get(form, form), max_seconds), param)
    return {"array": wave_N, "sampling_rate": SAMPLE_RATE}


def container_of(data: bytes) -> str | None:
    """Container by its first bytes, None for everything that is not recorded sound."""
    head = data[:12]
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if head[4:8] == b"ftyp":
        return "mov"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"  # ADTS: a sync word with layer 0, which MPEG audio does not have
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        return "mp3"
    by_magic = {b"fLaC": "flac", b"OggS": "ogg", b"\x1a\x45\xdf\xa3": "matroska", b"caff": "caf"}
    return "mp3" if head[:3] == b"ID3" else by_magic.get(head[:4])


def _refusing(read: Any, param: str) -> Any:
    """Run a decoder on bytes of a stranger: whatever it raises is about the bytes."""
    try:
        return read()
    except ApiError as error:
        error.param = param
        raise
    except AudioError as error:
        message = str(error).replace("<bytes>", param).replace("<array>", param).replace("<file object>", param)
        raise of_aura_error(AudioError(message), param=param) from error
    except MemoryError:
        raise
    except Exception as error:
        logger.info("a decoder gave up: %s", type(error).__name__)
        raise ApiError(
            400,
            f"{param} cannot be decoded: damaged, or not what it begins like; {EXPECTED}",
            code="invalid_audio",
            param=param,
        ) from error


def _is_whole(data: bytes, max_seconds: float) -> bool:
    """libsndfile reads every frame that the header promises; False where ffmpeg has to try."""
    try:
        with soundfile.SoundFile(Upload(data)) as file:
            _check_form(file.samplerate, file.channels)
            frames = 0
            while frames < file.frames:
                block = file.read(BLOCK, dtype="float32", always_2d=True)
                if not len(block):
                    # Cut short: `load_waveform` says so, or forgives the few samples that mp3 may lack.
                    return True
                frames += len(block)
                _check_length(frames, file.samplerate, max_seconds)
                _check_loudness(block)
            return file.frames > 0
    except soundfile.LibsndfileError:
        return False


def _decode(data: bytes, form: str, max_seconds: float) -> np.ndarray:
    """Through ffmpeg, mixed down and resampled block by block: (samples,) float32 at 16 kHz."""
    import soxr

    parts: list[np.ndarray] = []
    stream: Any = None
    frames = rate = 0
    for samples_N, now in _ffmpeg_frames(data, form):
        if stream is None:
            rate = now
            stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32")
        if now != rate:
            raise AudioError(
                f"<bytes>: the rate changes from {rate} to {now} Hz; expected one rate. Re-encode the file."
            )
        frames += len(samples_N)
        _check_length(frames, rate, max_seconds)
        _check_loudness(samples_N)
        parts.append(stream.resample_chunk(np.ascontiguousarray(samples_N)))
    if stream is None:
        raise AudioError(f"<bytes>: no audio could be decoded; {EXPECTED}. Check that the file is whole.")
    parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(parts)


def _ffmpeg_frames(data: bytes, form: str) -> Iterator[tuple[np.ndarray, int]]:
    """(mono samples, Hz) of each decoded frame; damage ends the recording with an error."""
    import av

    av.logging.set_level(av.logging.PANIC)
    try:
        container: Any
        with av.open(io.BytesIO(data), format=form, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise AudioError("<bytes>: there is no sound in it; expected an audio stream.")
            for frame in container.decode(container.streams.audio[0]):
                _check_form(frame.sample_rate, frame.layout.nb_channels)
                samples = frame.to_ndarray()
                if not frame.format.is_planar:
                    samples = samples.reshape(-1, frame.layout.nb_channels).T
                yield downmix(to_float32(samples)), frame.sample_rate
    except (av.FFmpegError, OSError) as error:
        raise AudioError(f"<bytes>: damaged or cut off, it cannot be decoded to its end; {EXPECTED}.") from error


def _check_form(rate: int, channels: int) -> None:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise AudioError(f"<bytes>: its rate is {rate} Hz; expected {LOWEST_RATE} to {HIGHEST_RATE} Hz.")
    if not 1 <= channels <= MOST_CHANNELS:
        raise AudioError(f"<bytes>: it has {channels} channels; expected at most {MOST_CHANNELS}.")


def _check_loudness(samples: np.ndarray) -> None:
    if samples.size and (peak := float(np.abs(samples).max())) > LOUDEST:
        raise AudioError(f"<bytes>: a sample is {peak:g}; expected -1 to 1, and {LOUDEST:g} at the very most.")


def _check_length(frames: int, rate: int, max_seconds: float) -> None:
    if frames > max_seconds * rate + 1:
        raise ApiError(
            413,
            f"the audio is longer than {max_seconds:g} s, the most that is taken at once; send a shorter part"
            " (long recordings go to /v1/audio/transcriptions)",
            code="audio_too_long",
        )
