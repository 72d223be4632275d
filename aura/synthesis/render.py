"""One job -> one audio file: speech, another throat, a room, noise, and the level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from aura.audio.resample import change_tempo_and_pitch
from aura.audio.waveform import MIN_SECONDS, SAMPLE_RATE
from aura.data.augment import Augment
from aura.data.converters import write_whole
from aura.errors import AuraError
from aura.synthesis.engine import Engine
from aura.synthesis.plan import Job, Settings, Style, draw_settings
from aura.synthesis.rooms import place_in_room

QUIET_DB = 45.0  # below the loudest 10 ms is silence, which engines leave around the speech in very different amounts
PEAK = 0.98  # of full scale: lossy coding overshoots a little
CODING = {"opus": ("OGG", "OPUS"), "flac": ("FLAC", "PCM_16")}


def render(job: Job, engine: Engine, style: Style) -> tuple[np.ndarray, Settings]:
    """Speak a job.

    Returns:
        wave_N: float32 at 16 kHz, and what was drawn for it.

    Raises:
        AuraError: nothing audible came out.
    """
    import soxr

    settings = draw_settings(job, style)
    # Resampling by the pitch factor makes it that much faster too, so it is spoken that much slower.
    prosody = type(settings.prosody)(
        rate=settings.prosody.rate / settings.pitch,
        liveliness=settings.prosody.liveliness,
        seed=settings.prosody.seed,
    )
    speech, rate = engine.speak(job.line.text, job.voice, prosody)
    wave_N = soxr.resample(np.asarray(speech, dtype=np.float32), rate, SAMPLE_RATE, quality="HQ")
    if settings.pitch != 1.0:
        wave_N = change_tempo_and_pitch(wave_N, settings.pitch)
    wave_N = trim(wave_N)
    if len(wave_N) < MIN_SECONDS * SAMPLE_RATE or not np.isfinite(wave_N).all():
        raise AuraError(f"{job.engine}:{job.voice} said nothing audible for {job.line.text!r:.60}")
    wave_N = np.pad(wave_N, (round(settings.before * SAMPLE_RATE), round(settings.after * SAMPLE_RATE)))
    if settings.room is not None:
        wave_N = place_in_room(wave_N, settings.room)
    wave_N = Augment(style.noise())(wave_N, np.random.default_rng(settings.noise_seed))
    peak = float(np.abs(wave_N).max())
    return (wave_N * np.float32(PEAK / peak) if peak > PEAK else wave_N), settings


def trim(wave_N: np.ndarray) -> np.ndarray:
    """Without the silence at both ends."""
    window = SAMPLE_RATE // 100  # 10 ms
    if len(wave_N) < window:
        return wave_N
    power = np.convolve(np.square(wave_N, dtype=np.float64), np.ones(window) / window, "same")
    loud = np.flatnonzero(power > power.max() * 10.0 ** (-QUIET_DB / 10.0))
    return wave_N[loud[0] : loud[-1] + 1] if len(loud) else wave_N[:0]


def write_audio(wave_N: np.ndarray, stem: Path, format: str) -> Path:
    """Write `<stem>.<format>`, whole or not at all."""
    import soundfile

    container, coding = CODING[format]
    file = stem.with_name(f"{stem.name}.{format}")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda partial: soundfile.write(partial, wave_N, SAMPLE_RATE, format=container, subtype=coding))
    return file


def make_row(job: Job, engine: Engine, style: Style, folder: Path) -> dict[str, Any]:
    """Speak a job, write its audio, and return its row of the log; a text that cannot be spoken is a failed row."""
    row: dict[str, Any] = {"id": job.id, "engine": job.engine, "voice": job.voice}
    try:
        wave_N, settings = render(job, engine, style)
    except AuraError as error:
        return {**row, "failed": True, "text": job.line.text, "error": str(error)}
    file = write_audio(wave_N, folder / job.file, style.format)
    drawn = {"rate": round(settings.prosody.rate, 3), "pitch": round(settings.pitch, 3)}
    if settings.room is not None:
        drawn["reverberation"] = round(settings.room.reverberation, 3)
    return {
        "id": job.id,
        "audio": file.relative_to(folder).as_posix(),
        "seconds": round(len(wave_N) / SAMPLE_RATE, 4),
        **job.line.fields,
        "speaker": f"{job.engine}:{job.voice}",
        "lang": job.lang,
        "engine": job.engine,
        "voice": job.voice,
        **drawn,
    }
