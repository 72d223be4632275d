"""Encoded audio -> mono float32 at its own rate: soundfile where it can, PyAV for the rest.

soundfile (libsndfile) reads wav, flac, ogg/vorbis, ogg/opus, mp3, aiff; `av` carries its own ffmpeg and reads
m4a, webm and what else there is. Both seek, so a slice costs what it is long.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import soundfile

from aura.audio.container import promised_wav_frames, require_whole_ogg
from aura.audio.pcm import downmix, to_float32
from aura.errors import AudioError

TARGET_RATE = 16_000  # Hz, `waveform.SAMPLE_RATE`; here only to align slices with it
MARGIN = 0.1  # s decoded on both sides of a slice: the resampling filter must see what it sees in the whole
PREROLL = 0.5  # s decoded before a slice by codecs with memory (AAC, Opus) and thrown away
BLOCK = 1 << 20  # frames read at a time: channels are averaged before the next block comes
LOSSY_FORMATS = ("MP3", "OGG")  # libsndfile's names
LOSSY_SLACK = 0.25  # s that a lossy file may lack of its header's promise (encoder delay and padding)
# ffmpeg's names of the containers whose header states a duration and whose time stamps are not guesses.
INDEXED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "avi", "caf", "w64")
# What ffmpeg may open, by its own names: a playlist (m3u8, sdp, concat) could make it fetch other files and addresses.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg,mp3,aac,ac3,eac3,flac,wav,w64,aiff,au,caf,asf,avi,amr,amrnb,amrwb,flv,"
    "mpeg,mpegts,ape,tta,wv,mpc,mpc8,dsf,voc,tak"
)
UNKNOWN_FRAMES = 1 << 50  # libsndfile reports its maximum where a header (piped flac) has no length


@dataclass(frozen=True, kw_only=True)
class Span:
    """The seconds that are wanted; `end=None` is the end of the clip."""

    start: float = 0.0
    end: float | None = None

    def frames(self, rate: int, total: int) -> tuple[int, int]:
        """First and last frame to decode: with a margin, the first on a whole sample of the target rate."""
        if not self.start and self.end is None:
            return 0, total
        step = rate // math.gcd(rate, TARGET_RATE)
        first = max(0, int((self.start - MARGIN) * rate)) // step * step
        last = total if self.end is None else min(total, math.ceil((self.end + MARGIN) * rate))
        return min(first, total), max(last, min(first, total))


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Samples and where they lie in the clip.

    samples_N: mono float32 at `rate`; first: index of its first frame in the clip; total: frames in the clip.
    """

    samples_N: np.ndarray
    rate: int
    first: int
    total: int


def decode(source: str | BinaryIO, name: str, span: Span) -> Decoded:
    """Decode the span (plus a margin) of an encoded source.

    Raises:
        AudioError: not audio, damaged, or shorter than its header says where the span needs the missing part.
    """
    file = _open_soundfile(source, name)
    if file is None:
        return _decode_av(source, name, span)
    with file:
        return _decode_soundfile(file, source, name, span)


def probe(source: str | BinaryIO, name: str) -> float:
    """Seconds, from the header where it has them, else by scanning the packets."""
    file = _open_soundfile(source, name)
    if file is not None:
        with file:
            return file.frames / file.samplerate
    with _open_av(source, name) as container:
        stream = container.streams.audio[0]
        return _promised_av_seconds(container, stream) or _scan_av_seconds(container, stream)


def _open_soundfile(source: str | BinaryIO, name: str) -> soundfile.SoundFile | None:
    """The open file, or None where libsndfile does not know the format or the length (piped flac)."""
    try:
        file = soundfile.SoundFile(source)
    except soundfile.LibsndfileError:
        if not isinstance(source, str):
            source.seek(0)
        require_whole_ogg(source, name)
        return None
    except TypeError as error:  # soundfile asks for a rate when the name ends in .raw
        raise AudioError(
            f"{name}: headerless PCM; expected a file that states its rate. Load it as an array with "
            "sampling_rate, "
            "or convert it to wav."
        ) from error
    if file.frames < UNKNOWN_FRAMES:
        return file
    file.close()  # libsndfile seeks after each read, which fails without a length
    return None


def _blocks(file: soundfile.SoundFile, frames: int) -> Iterator[np.ndarray]:
    """Mono blocks until `frames` have come or the file ends."""
    while frames > 0:
        block_NC = file.read(min(BLOCK, frames), dtype="float32", always_2d=True)
        if not len(block_NC):
            return
        frames -= len(block_NC)
        yield downmix(block_NC.T)


def _read(file: soundfile.SoundFile, first: int, last: int) -> np.ndarray:
    """Mono frames `first` to `last`, or as many as there are."""
    # The first frames after a seek sound wrong in codecs with memory (MP3's bit reservoir, Opus).
    preroll = min(first, int(PREROLL * file.samplerate)) if file.format in LOSSY_FORMATS else 0
    if first:
        file.seek(min(first - preroll, file.frames))
    parts = list(_blocks(file, last - first + preroll))
    return np.concatenate(parts)[preroll:] if parts else np.zeros(0, np.float32)


def _decode_soundfile(file: soundfile.SoundFile, source: str | BinaryIO, name: str, span: Span) -> Decoded:
    rate, promised = file.samplerate, file.frames
    if file.format in ("WAV", "WAVEX"):  # libsndfile quietly shortens a cut wav
        promised = promised_wav_frames(source) or promised
    elif file.format == "OGG":
        require_whole_ogg(source, name)
    first, last = span.frames(rate, promised)
    try:
        samples = _read(file, first, last)
    except soundfile.LibsndfileError:
        # libsndfile gives up on the whole file at the first damage; ffmpeg decodes up to it.
        return _decode_av(source, name, span, promised=promised / rate)
    slack = int(LOSSY_SLACK * rate) if file.format in LOSSY_FORMATS else 0
    # The margin after a slice is a comfort, not a need: a slice that lies before the cut is whole.
    wanted = last if span.end is None else min(last, round(span.end * rate))
    if first + len(samples) < wanted - slack:
        _raise_truncated(name, promised / rate, (first + len(samples)) / rate)
    return Decoded(samples_N=samples, rate=rate, first=first, total=promised)


def _raise_truncated(name: str, promised: float, got: float, failure: str = "") -> None:
    raise AudioError(
        f"{name}: truncated or damaged: its header promises {promised:.3f} s, {got:.3f} s could be "
        f"decoded{failure}. "
        "Record or download it again, or drop the row with --skip-bad."
    )


def _open_av(source: str | BinaryIO, name: str) -> Any:
    import av  # 40 ms, and most corpora never need it

    av.logging.set_level(av.logging.PANIC)  # ffmpeg's own complaints would bury our one line
    if not isinstance(source, str):
        source.seek(0)
    try:
        container = av.open(source, metadata_errors="ignore", options={"format_whitelist": CONTAINERS})
    except (av.FFmpegError, OSError, ValueError) as error:
        raise AudioError(
            f"{name}: not audio that can be decoded; expected wav, flac, ogg, opus, mp3, m4a or webm. "
            "Check that the file is whole and is audio."
        ) from error
    if not container.streams.audio:
        container.close()
        raise AudioError(f"{name}: a {container.format.name} file without an audio stream; expected audio.")
    return container


def _promised_av_seconds(container: Any, stream: Any) -> float | None:
    """Seconds that the header states; None where ffmpeg would guess them from the bit rate (raw aac, amr)."""
    if container.format.name not in INDEXED_FORMATS:
        return None
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and not container.streams.video:
        return container.duration / 1_000_000  # AV_TIME_BASE, microseconds
    return None


def _scan_av_seconds(container: Any, stream: Any) -> float:
    ticks = 0
    for packet in container.demux(stream):
        if packet.pts is not None:
            ticks = max(ticks, packet.pts + (packet.duration or 0))
    return float(ticks * stream.time_base)


def _decode_av(source: str | BinaryIO, name: str, span: Span, promised: float | None = None) -> Decoded:
    """Through ffmpeg; `promised` seconds, if given, are exact, else the container's own claim is taken."""
    import av

    slack = LOSSY_SLACK if promised is None else 0.0
    seek_to = span.start - MARGIN - PREROLL
    with _open_av(source, name) as container:
        stream = container.streams.audio[0]
        promised = promised or _promised_av_seconds(container, stream)
        frames = _AvFrames(name)
        try:
            if seek_to > 0 and container.format.name in INDEXED_FORMATS:
                frames.calibrate(itertools.islice(container.decode(stream), 2))
                _seek(container, stream, seek_to)
            for frame in container.decode(stream):
                frames.add(frame)
                if span.end is not None and frames.end_seconds >= span.end + MARGIN:
                    break
        except av.FFmpegError as error:
            if span.end is None or frames.end_seconds < span.end:
                got = frames.end_seconds
                _raise_truncated(name, promised or got, got, f" ({error.strerror})")
    return frames.decoded(span, promised, slack)


def _seek(container: Any, stream: Any, seconds: float) -> None:
    import av

    try:
        container.seek(int(seconds / stream.time_base), stream=stream, backward=True)
    except (av.FFmpegError, OSError):  # a live webm without an index: read it from the beginning
        container.seek(0)


class _AvFrames:
    """Collects decoded frames; after a seek, their place is the first one's time stamp."""

    def __init__(self, name: str):
        self.name = name
        self.parts: list[np.ndarray] = []
        self.rate = 0
        self.origin = 0  # frames before the first decoded one
        self.count = 0
        self.shift = 0  # frames between a time stamp and the place in the whole decode
        self.first_pts: int | None = None

    def calibrate(self, first_two: Iterable[Any]) -> None:
        """Learn `shift` from the clip's first two frames.

        Codec delay moves all time stamps, and webm rounds them to milliseconds: the second frame's stamp
        against the first frame's length says by how much.
        """
        first, second = [*first_two, None, None][:2]
        self.first_pts = first.pts if first is not None else None
        if second is not None and second.pts is not None:
            self.shift = first.samples - round(float(second.pts * second.time_base) * first.sample_rate)

    @property
    def end_seconds(self) -> float:
        return (self.origin + self.count) / self.rate if self.rate else 0.0

    def add(self, frame: Any) -> None:
        if not self.rate:
            self.rate = frame.sample_rate
            if frame.pts is not None and self.first_pts is not None and frame.pts > self.first_pts:
                self.origin = round(float(frame.pts * frame.time_base) * self.rate) + self.shift
        elif frame.sample_rate != self.rate:
            raise AudioError(
                f"{self.name}: the rate changes from {self.rate} to {frame.sample_rate} Hz at "
                f"{self.end_seconds:.1f} s; expected one rate. Re-encode the file."
            )
        samples = frame.to_ndarray()
        if not frame.format.is_planar:
            samples = samples.reshape(-1, frame.layout.nb_channels).T
        self.parts.append(downmix(to_float32(samples)))
        self.count += self.parts[-1].shape[0]

    def decoded(self, span: Span, promised: float | None, slack: float) -> Decoded:
        if not self.rate and promised is not None and span.start >= promised:
            return Decoded(samples_N=np.zeros(0, np.float32), rate=1000, first=0, total=int(promised * 1000))
        if not self.rate:
            raise AudioError(f"{self.name}: no audio frame could be decoded; expected at least 0.1 s of audio.")
        end = self.origin + self.count
        wanted = promised if span.end is None else min(span.end, promised or span.end)
        if promised is not None and wanted is not None and end / self.rate < wanted - slack:
            _raise_truncated(self.name, promised, end / self.rate)
        # Where decoding stopped early the clip is at least as long as its header says.
        total = end if span.end is None else max(end, int((promised or 0.0) * self.rate))
        first, last = span.frames(self.rate, end)
        first = max(first, self.origin)
        samples = np.concatenate(self.parts)[first - self.origin : last - self.origin]
        return Decoded(samples_N=samples, rate=self.rate, first=first, total=total)
