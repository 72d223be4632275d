"""flite and espeak-ng: programs that write a wav file."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from aura.errors import AuraError, MissingExtraError
from aura.synthesis.engine import Prosody, Voice

TIMEOUT = 120  # seconds for one text
FLITE_VOICES = ("slt", "rms", "awb", "kal16")  # of the Debian build; `kal` has 8 kHz only
# Accents with a variant of the throat: few, since they all sound like one robot
ESPEAK_VOICES = ("en-us", "en-us+f2", "en-gb", "en-gb-x-rp+f5", "en-gb-scotland+m3", "en-029+m7")
ESPEAK_WORDS_A_MINUTE = 175  # its default


class FliteEngine:
    """flite, by its command."""

    name = "flite"
    licence = "flite: BSD-like (CMU)"

    def __init__(self) -> None:
        self.program = _find("flite", "apt install flite")
        listed = _run([self.program, "-lv"], None)
        names = re.findall(r"[\w-]+", listed.stdout.decode(errors="replace").partition(":")[2])
        self._voices = tuple(name for name in FLITE_VOICES if name in names)
        said = _run([self.program, "--version"], None).stdout.decode(errors="replace")
        self.version = (re.findall(r"flite-[\d.]+", said) or ["flite"])[0]

    def voices(self) -> Sequence[Voice]:
        return [Voice(name=name, licence="CMU, free for any use") for name in self._voices]

    def speak(self, text: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, int]:
        _check_voice(self.name, voice, self._voices)
        with tempfile.TemporaryDirectory() as folder:
            # The text from a file: as an argument, a word with a blank before it could be taken for a file name.
            source, target = Path(folder) / "text", Path(folder) / "speech.wav"
            source.write_text(text + "\n", encoding="utf-8")
            stretch = f"duration_stretch={1.0 / prosody.rate:.4f}"
            _run([self.program, "-voice", voice, "--setf", stretch, "-f", str(source), "-o", str(target)], text)
            return _read_wav(target.read_bytes(), text)


class EspeakEngine:
    """espeak-ng, by its command; its English voices, or those that are named, e.g. `de+f2`."""

    name = "espeak-ng"
    licence = "espeak-ng: GPL-3.0 (the program; not what it says)"

    def __init__(self, voices: Sequence[str] = ESPEAK_VOICES) -> None:
        self.program = _find("espeak-ng", "apt install espeak-ng")
        said = _run([self.program, "--version"], None).stdout.decode(errors="replace")
        self.version = "espeak-ng-" + (re.findall(r"\d+\.\d+(?:\.\d+)?", said) or ["unknown"])[0]
        self._voices = tuple(voices)

    def voices(self) -> Sequence[Voice]:
        return [Voice(name=name, licence="formant synthesis, no recordings") for name in self._voices]

    def speak(self, text: str, voice: str, prosody: Prosody) -> tuple[np.ndarray, int]:
        _check_voice(self.name, voice, self._voices)
        words = str(round(ESPEAK_WORDS_A_MINUTE * prosody.rate))
        done = _run([self.program, "-v", voice, "-s", words, "--stdin", "--stdout"], text)
        return _read_wav(done.stdout, text)


def _find(program: str, install: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise MissingExtraError(f"the program '{program}' is not installed. Install it with: {install}")
    return path


def _check_voice(engine: str, voice: str, voices: Sequence[str]) -> None:
    if voice not in voices:
        raise AuraError(f"{engine} has no voice {voice!r}; expected one of {', '.join(voices)}")


def _run(command: Sequence[str], text: str | None) -> subprocess.CompletedProcess[bytes]:
    try:
        given = None if text is None else text.encode()
        done = subprocess.run(command, input=given or b"", capture_output=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise AuraError(f"{command[0]} did not speak {text!r:.60}: {error}") from error
    # flite answers --version and -lv with status 1
    if done.returncode and text is not None:
        reason = " ".join(done.stderr.decode(errors="replace").split())[-200:]
        raise AuraError(f"{command[0]} could not speak {text!r:.60}: {reason or f'status {done.returncode}'}")
    return done


def _read_wav(data: bytes, text: str) -> tuple[np.ndarray, int]:
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise AuraError(f"no speech came out for {text!r:.60}: {error}") from error
    return samples.mean(axis=1), rate
