"""Any container, rate and channel count gives the same mono sine at 16 kHz; bad input gives one line."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from aura.audio.waveform import SAMPLE_RATE, load_waveform, name_of, probe_seconds
from aura.errors import AudioError

SECONDS = 2.0
TONE = 440.0  # Hz
LEVEL = 0.3
RATES = (8_000, 16_000, 22_050, 44_100, 48_000)
SOUNDFILE_FORMATS = {
    "wav16": ("WAV", "PCM_16"),
    "wav24": ("WAV", "PCM_24"),
    "wavfloat": ("WAV", "FLOAT"),
    "wavulaw": ("WAV", "ULAW"),
    "flac": ("FLAC", "PCM_16"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}
AV_FORMATS = {"m4a": ("ipod", "aac"), "webm": ("webm", "libopus"), "aac": ("adts", "aac")}
OPUS_RATES = (8_000, 16_000, 48_000)
CASES = [
    (name, rate)
    for name in (*SOUNDFILE_FORMATS, *AV_FORMATS)
    for rate in RATES
    if rate in OPUS_RATES or name not in ("opus", "webm")
]


def tone(rate: int, seconds: float = SECONDS, channels: int = 1, chirp: bool = False) -> np.ndarray:
    """`(n,)` or `(n, channels)`; with `chirp` no two places sound the same, so a shifted slice shows."""
    time = np.arange(int(rate * seconds)) / rate
    phase = 2 * np.pi * (200 * time + 400 * time**2) if chirp else 2 * np.pi * TONE * time
    wave = (LEVEL * np.sin(phase)).astype(np.float32)
    return np.stack([wave] * channels, axis=1) if channels > 1 else wave


def encode(name: str, samples: np.ndarray, rate: int) -> bytes:
    buffer = io.BytesIO()
    if name in SOUNDFILE_FORMATS:
        container, subtype = SOUNDFILE_FORMATS[name]
        soundfile.write(buffer, samples, rate, format=container, subtype=subtype)
        return buffer.getvalue()
    container_name, codec = AV_FORMATS[name]
    planes = np.ascontiguousarray(samples.T if samples.ndim == 2 else samples[None])
    layout = "stereo" if len(planes) == 2 else "mono"
    with av.open(buffer, "w", format=container_name) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate)
        for converted in resampler.resample(frame):
            container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def frequency_and_level(wave: np.ndarray) -> tuple[float, float]:
    """Of the strongest sine in the middle of the clip."""
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 8 * len(middle)))
    peak = int(spectrum.argmax())
    return peak * SAMPLE_RATE / (8 * len(middle)), float(np.sqrt(2 * np.mean(middle**2)))


@pytest.mark.parametrize(("name", "rate"), CASES)
def test_a_sine_keeps_its_frequency_level_and_length(name: str, rate: int) -> None:
    wave = load_waveform(encode(name, tone(rate), rate))
    assert wave.dtype == np.float32 and wave.ndim == 1 and wave.flags.c_contiguous
    padding = 2 * 1024 / rate if name in ("aac", "m4a") else 0.04  # s: AAC comes in frames of 1024 samples
    assert len(wave) / SAMPLE_RATE == pytest.approx(SECONDS, abs=padding)
    frequency, level = frequency_and_level(wave)
    assert frequency == pytest.approx(TONE, abs=1.0)
    assert level == pytest.approx(LEVEL, rel=0.06)


@pytest.mark.parametrize("name", ["wav16", "flac", "opus", "mp3", "m4a", "webm"])
def test_stereo_is_averaged(name: str) -> None:
    left = tone(48_000)
    wave = load_waveform(encode(name, np.stack([left, left / 2], axis=1), 48_000))
    frequency, level = frequency_and_level(wave)
    assert frequency == pytest.approx(TONE, abs=1.0)
    assert level == pytest.approx(0.75 * LEVEL, rel=0.06)


@pytest.mark.parametrize(("start", "end"), [(0.5, 1.25), (1.2345, 1.777), (1.0, None), (None, 0.9)])
@pytest.mark.parametrize(("name", "rate"), CASES)
def test_a_slice_is_that_region_of_the_whole(name: str, rate: int, start: float | None, end: float | None) -> None:
    data = encode(name, tone(rate, chirp=True), rate)
    whole = load_waveform(data)
    region = whole[round((start or 0) * SAMPLE_RATE) : None if end is None else round(end * SAMPLE_RATE)]
    piece = load_waveform(data, start=start, end=end)
    assert len(piece) == len(region)
    lossless = name.startswith("wav") or name == "flac"
    assert np.abs(piece - region).max() < (1e-5 if lossless else 5e-3)


def test_lossless_at_16k_is_bit_exact() -> None:
    samples = tone(SAMPLE_RATE, chirp=True)
    assert np.array_equal(load_waveform(encode("wavfloat", samples, SAMPLE_RATE)), samples)


@pytest.mark.parametrize("name", ["flac", "m4a"])
def test_path_bytes_file_object_and_dict_agree(name: str, tmp_path) -> None:
    data = encode(name, tone(44_100, chirp=True), 44_100)
    path = tmp_path / f"clip.{name}"
    path.write_bytes(data)
    expected = load_waveform(data)
    read_to_the_end = io.BytesIO(data)
    read_to_the_end.read()
    with open(path, "rb") as file:
        for source in (
            path,
            str(path),
            file,
            read_to_the_end,
            {"bytes": data, "path": None},
            {"path": str(path)},
        ):
            assert np.array_equal(load_waveform(source), expected)


@pytest.mark.parametrize(
    "array",
    [
        tone(8_000),
        tone(8_000, channels=2),
        tone(8_000, channels=2).T,
        tone(8_000).astype(np.float64),
        (tone(8_000) * 2**15).astype(np.int16),
        (tone(8_000) * 2**31).astype(np.int32),
        (tone(8_000) * 127 + 128).astype(np.uint8),
    ],
    ids=["mono", "n-channels", "channels-n", "float64", "int16", "int32", "uint8"],
)
def test_arrays(array: np.ndarray) -> None:
    wave = load_waveform(array, sampling_rate=8_000)
    frequency, level = frequency_and_level(wave)
    assert len(wave) == SECONDS * SAMPLE_RATE
    assert (frequency, level) == (pytest.approx(TONE, abs=1.0), pytest.approx(LEVEL, rel=0.02))
    as_dict = load_waveform({"array": array, "sampling_rate": 8_000})
    assert np.array_equal(as_dict, wave)


def test_array_slice() -> None:
    array = tone(44_100, chirp=True)
    whole = load_waveform(array, sampling_rate=44_100)
    piece = load_waveform(array, sampling_rate=44_100, start=0.7, end=1.1)
    assert np.abs(piece - whole[11_200:17_600]).max() < 1e-5


@pytest.mark.parametrize("name", [*SOUNDFILE_FORMATS, *AV_FORMATS])
def test_probe_is_the_decoded_length(name: str) -> None:
    data = encode(name, tone(16_000), 16_000) if name != "webm" else encode(name, tone(48_000), 48_000)
    assert probe_seconds(data) == pytest.approx(len(load_waveform(data)) / SAMPLE_RATE, abs=0.06)


def test_probe_of_arrays() -> None:
    assert probe_seconds({"array": tone(8_000, channels=2), "sampling_rate": 8_000}) == SECONDS


def test_a_slice_decodes_only_what_it_needs(tmp_path, monkeypatch) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(600 * 8_000, np.int16), 8_000)
    read = []
    original = soundfile.SoundFile.read

    def counting(self, frames=-1, *args, **kwargs):
        block = original(self, frames, *args, **kwargs)
        read.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    assert len(load_waveform(path, start=500.0, end=501.0)) == SAMPLE_RATE
    assert sum(read) < 2 * 8_000


def _cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def _nan_wav() -> bytes:
    samples = tone(16_000)
    samples[8_000] = np.nan
    return encode("wavfloat", samples, 16_000)


def _video_only() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


NOISY = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 0.1
BAD_BYTES = {
    "empty": (b"", "0 bytes"),
    "text": (b"hello, I am no audio. " * 100, "not audio"),
    "random": (np.random.default_rng(1).bytes(5_000), "not audio"),
    "riff only": (b"RIFF\x00\x00\x00\x00WAVE", "not audio"),
    "cut wav": (_cut(encode("wav16", NOISY, 16_000), 0.5), r"promises 2\.000 s, 0\.99\d s"),
    "cut flac": (_cut(encode("flac", NOISY, 16_000), 0.5), r"promises 2\.000 s, 0\.768 s"),
    "cut opus": (_cut(encode("opus", NOISY, 16_000), 0.55), "truncated"),
    "cut vorbis header": (_cut(encode("vorbis", NOISY, 16_000), 0.05), "truncated"),
    "cut mp3": (_cut(encode("mp3", NOISY, 16_000), 0.5), "truncated"),
    "cut m4a": (_cut(encode("m4a", NOISY, 16_000), 0.5), "not audio|truncated"),
    "cut webm": (_cut(encode("webm", NOISY, 48_000), 0.5), "truncated"),
    "nan": (_nan_wav(), r"1 samples are NaN or infinite, the first at 0\.500 s"),
    "no samples": (encode("wav16", np.zeros(0, np.float32), 16_000), "holds no audio samples"),
    "50 ms": (encode("wav16", tone(16_000, 0.05), 16_000), r"0\.050 s of audio; expected at least 0\.1 s"),
    "video": (_video_only(), "without an audio stream"),
}


@pytest.mark.parametrize("case", BAD_BYTES)
def test_bad_files_are_one_line_from_bytes_and_from_path(case: str, tmp_path) -> None:
    data, reason = BAD_BYTES[case]
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    for source, name in ((data, "<bytes>"), (path, "clip.wav"), (io.BytesIO(data), "<file object>")):
        with pytest.raises(AudioError, match=reason) as caught:
            load_waveform(source)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["wav16", "flac"])
def test_a_slice_before_the_cut_is_whole(name: str) -> None:
    data = encode(name, NOISY, 16_000)
    piece = load_waveform(_cut(data, 0.6), start=0.1, end=0.9)
    assert np.array_equal(piece, load_waveform(data, start=0.1, end=0.9))
    with pytest.raises(AudioError, match="truncated"):
        load_waveform(_cut(data, 0.6), start=0.5, end=1.9)


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF], ids=["zero", "all ones"])
def test_a_streamed_wav_promises_nothing(size: int) -> None:
    data = bytearray(encode("wav16", NOISY, 16_000))
    place = data.index(b"data") + 4
    data[place : place + 4] = struct.pack("<I", size)
    if size:
        assert len(load_waveform(bytes(data))) == len(NOISY)
    else:
        with pytest.raises(AudioError):
            load_waveform(bytes(data))


def test_a_flac_without_length_is_read_to_its_end() -> None:
    data = bytearray(encode("flac", NOISY, 16_000))
    data[21] &= 0xF0  # STREAMINFO: 36 bits of total samples, 0 means unknown
    data[22:26] = bytes(4)
    assert len(load_waveform(bytes(data))) == len(NOISY)
    assert len(load_waveform(bytes(data), start=0.5, end=1.0)) == 8_000
    assert probe_seconds(bytes(data)) == 2.0
    with pytest.raises(AudioError, match="the clip is"):
        load_waveform(bytes(data), start=1.0, end=3.0)


def test_missing_file_and_folder(tmp_path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        load_waveform(tmp_path / "absent.wav")
    with pytest.raises(AudioError, match="is a folder"):
        load_waveform(tmp_path)
    with pytest.raises(AudioError, match="no such file"):
        probe_seconds(tmp_path / "absent.wav")


@pytest.mark.parametrize(
    ("start", "end", "reason"),
    [
        (1.0, 0.5, "not before"),
        (1.0, 1.0, "not before"),
        (-1.0, None, "start=-1.0"),
        (float("nan"), None, "start=nan"),
        (2.5, None, r"start=2.5 s, but the clip is 2.\d+ s"),
        (0.5, 2.6, r"end=2.6 s, but the clip is 2.\d+ s"),
        (0.5, 0.55, r"\[0.5 s to 0.55 s\] holds 0.050 s"),
    ],
)
@pytest.mark.parametrize("name", ["wav16", "opus", "m4a", "webm"])
def test_impossible_slices(name: str, start: float, end: float | None, reason: str) -> None:
    data = encode(name, tone(48_000), 48_000)
    with pytest.raises(AudioError, match=reason):
        load_waveform(data, start=start, end=end)


def test_an_end_rounded_up_to_centiseconds_is_taken() -> None:
    samples = tone(16_000)[:31_900]  # 1.99375 s, which a manifest writes as 2.0
    assert len(load_waveform(encode("wav16", samples, 16_000), start=1.0, end=2.0)) == 15_900


@pytest.mark.parametrize(
    ("source", "options", "reason"),
    [
        (tone(16_000), {}, "sampling_rate=None"),
        (tone(16_000), {"sampling_rate": 0}, "sampling_rate=0"),
        (np.zeros((2, 3, 4), np.float32), {"sampling_rate": 16_000}, r"shape \(2, 3, 4\)"),
        (np.zeros((80, 3000), np.float32), {"sampling_rate": 16_000}, r"shape \(80, 3000\)"),
        (np.zeros(16_000, complex), {"sampling_rate": 16_000}, "complex"),
        (np.full(16_000, np.inf, np.float32), {"sampling_rate": 16_000}, "NaN or infinite"),
        (np.zeros(0, np.float32), {"sampling_rate": 16_000}, "no audio samples"),
        ({"path": None, "bytes": None}, {}, "none is set"),
        (3, {}, "int is no audio source"),
        (encode("wav16", tone(8_000), 8_000), {"sampling_rate": 8_000}, "for arrays only"),
    ],
)
def test_impossible_sources(source, options: dict, reason: str) -> None:
    with pytest.raises(AudioError, match=reason):
        load_waveform(source, **options)


def test_names() -> None:
    assert name_of("a/b.wav") == "a/b.wav"
    assert name_of(b"RIFF") == "<bytes>"
    assert name_of(np.zeros(3)) == "<array>"
    assert name_of({"bytes": b"", "path": "x.wav"}) == "x.wav"
    assert name_of({"array": np.zeros(3), "sampling_rate": 1}) == "<array>"


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    """ffmpeg would follow it to files and addresses that nobody meant to hear."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    soundfile.write(tmp_path / "secret.mp3", noise, 16_000)
    playlist = tmp_path / "list.m3u8"
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXT-X-MEDIA-SEQUENCE:0\n"
    playlist.write_text(head + "#EXTINF:2.0,\nsecret.mp3\n#EXT-X-ENDLIST\n")
    with av.open(str(playlist)) as container:
        assert container.format.name == "hls"  # so ffmpeg itself would
    for source in (str(playlist), playlist.read_bytes()):
        with pytest.raises(AudioError, match="not audio that can be decoded"):
            load_waveform(source)


def test_a_wav_cut_inside_its_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    path.write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00")
    with pytest.raises(AudioError):
        load_waveform(str(path))
