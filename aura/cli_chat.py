"""`aura chat`: a conversation in the terminal, by text and audio files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aura.cli_speech import LoadOptions
from aura.errors import AuraError

if TYPE_CHECKING:
    from aura.inference.engine import Engine

AUDIO_SUFFIXES = (
    ".wav",
    ".flac",
    ".ogg",
    ".oga",
    ".opus",
    ".mp3",
    ".m4a",
    ".mp4",
    ".aac",
    ".webm",
    ".aiff",
    ".wma",
)
HELP = (
    "Type a message and press Enter. A path to an audio file (or /audio PATH) adds the recording to your "
    "next message; an empty line sends it alone. /reset forgets the conversation, /quit ends it."
)


def chat(
    checkpoint: str,
    /,
    *,
    system: str | None = None,
    max_new_tokens: int = 512,
    options: LoadOptions = LoadOptions(),  # noqa: B008  # frozen
) -> None:
    """Talk with the model: lines of text, paths of audio files, /audio PATH, /reset, /quit.

    Args:
        checkpoint: folder of a trained adapter, or a Hub id.
        system: system message in front of the conversation.
        max_new_tokens: tokens of an answer at most.
    """
    engine = options.load(checkpoint)
    conversation = Conversation(engine, system=system, max_new_tokens=max_new_tokens)
    if interactive := sys.stdin.isatty():
        print(HELP)
    while True:
        try:
            line = input("> " if interactive else "")
        except EOFError:
            return
        if line.strip() == "/quit":
            return
        try:
            conversation.take(line, write=lambda text: print(text, end="", flush=True))
        except AuraError as error:
            print(f"aura: error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\n(stopped; this turn is forgotten)")


class Conversation:
    """Turns so far, and the recordings that wait for the next one.

    A turn that fails or is stopped leaves the conversation as it was, its recordings still waiting.
    """

    def __init__(self, engine: Engine, *, system: str | None, max_new_tokens: int) -> None:
        self.engine = engine
        self.max_new_tokens = max_new_tokens
        self.start: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.start)
        self.waiting: list[dict[str, Any]] = []

    def take(self, line: str, write: Callable[[str], None]) -> None:
        """One line of the user.

        Raises:
            AuraError: audio that cannot be heard, or a turn that cannot be answered.
        """
        text = line.strip()
        path = audio_path(text)
        if path is not None:
            self._add_audio(path, write)
        elif text == "/reset":
            self.messages, self.waiting = list(self.start), []
            write("(forgotten)\n")
        elif text.startswith("/") and text.split()[0] in ("/help", "/audio", "/?"):
            write(HELP + "\n")
        elif text or self.waiting:
            self._answer(text, write)

    def _add_audio(self, path: str, write: Callable[[str], None]) -> None:
        from aura.audio.waveform import SAMPLE_RATE
        from aura.inference.messages import load_limited

        # Decoded once, now: a bad file is said while its name is still on the screen.
        waveform = load_limited(path, max_seconds=self.engine.model.config.max_seconds)
        self.waiting.append({"type": "audio", "audio": waveform, "sampling_rate": SAMPLE_RATE})
        write(f"({len(waveform) / SAMPLE_RATE:.1f} s of audio added; type a message, or send it with Enter)\n")

    def _answer(self, text: str, write: Callable[[str], None]) -> None:
        parts = self.waiting + ([{"type": "text", "text": text}] if text else [])
        turn = {"role": "user", "content": parts if self.waiting else text}
        answer = self.engine.chat([*self.messages, turn], max_new_tokens=self.max_new_tokens, stream=write)
        write("\n")
        self.messages += [turn, {"role": "assistant", "content": answer}]
        self.waiting = []


def audio_path(text: str) -> str | None:
    """The path in `/audio PATH`, or the line itself where it is an audio file; else None."""
    command, _, rest = text.partition(" ")
    if command == "/audio" and rest.strip():
        return str(Path(_unquoted(rest.strip())).expanduser())
    path = Path(_unquoted(text)).expanduser()
    try:
        is_audio = path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    except OSError:  # a long line is no path
        return None
    return str(path) if is_audio else None


def _unquoted(text: str) -> str:
    # Terminals quote the names of dragged files.
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text.replace("\\ ", " ")
