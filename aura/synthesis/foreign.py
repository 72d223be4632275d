"""Sentences of our own in languages other than English (`foreign.yaml`), and who speaks them.

No language and no throat is in two parts (train, valid, test). espeak-ng speaks all of them; voices of Piper and
Kokoro, made for English, speak them from its phonemes, as somebody with a strong accent would.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from aura.synthesis.engine import ACCENT

THROATS: Mapping[str, tuple[str, ...]] = {
    "train": ("", "+m1", "+m3", "+f2", "+f4"),
    "valid": ("+m2", "+m4", "+m6", "+m8"),
    "test": ("+m5", "+m7", "+f1", "+f3", "+f5"),
}
ESPEAK_NAMES = {"fr": "fr-fr", "zh": "cmn-latn-pinyin"}  # where they differ from the two letters

# part -> language -> sentences
SENTENCES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    split: {language: tuple(sentences) for language, sentences in languages.items()}
    for split, languages in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")).items()
}


def line_of(split: str, number: int) -> tuple[str, str]:
    """(language, sentence) of a clip: languages in turn, and all sentences of each before one comes again."""
    languages = list(SENTENCES[split])
    turn, place = divmod(number, len(languages))
    sentences = SENTENCES[split][languages[place]]
    return languages[place], sentences[(turn + place) % len(sentences)]


def espeak_voice(language: str, throat: str) -> str:
    """Its name for espeak-ng."""
    return ESPEAK_NAMES.get(language, language) + throat


def accented_voice(voice: str, language: str) -> str:
    """The voice of another engine, speaking that language."""
    return voice + ACCENT + espeak_voice(language, "")


def espeak_voices(split: str) -> tuple[str, ...]:
    """All that may speak in that part."""
    return tuple(espeak_voice(language, throat) for language in SENTENCES[split] for throat in THROATS[split])
