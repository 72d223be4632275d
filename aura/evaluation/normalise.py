"""Text as it is compared: Whisper's normalisers, the ones published word error rates use.

Source: Radford et al. 2022, *Robust Speech Recognition via Large-Scale Weak Supervision*, appendix C, through
the `whisper-normalizer` package (a copy of the normalisers in openai/whisper). Choosing the normaliser by
language follows that paper; reading numbers out of an answer is our choice.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache

from aura.errors import require

# Written without spaces between words, so a "word" is a grapheme, as in the Whisper paper (appendix C).
UNSPACED = frozenset({"zh", "yue", "ja", "th", "lo", "my", "km"})

_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
# A digit that stands alone, not one inside 3.5, 1/2, 6:30, 1,000, 7th or mp3.
_LONE_DIGIT = re.compile(r"(?<![\w.,:/$¢€£])\d(?!\w|[.,:/]\d)")
_OPERATOR = re.compile(r"[=+*×÷]")  # the normaliser drops them, and 3 + 4 = 7 would be one number
_MINUS_SIGN = re.compile(r"(?<![\w)])[-−](?=\d)")


def language(lang: str | None) -> str:
    """`"en-US"`, `"en_GB"`, `"EN"` and `"English"` are all `"en"`; None is unknown and gives `""`."""
    code = re.split(r"[-_]", (lang or "").strip().lower())[0]
    return "en" if code in ("eng", "english") else code


@lru_cache(maxsize=64)
def _normaliser(code: str) -> Callable[[str], str]:
    purpose = "Scoring text"
    if code == "en":
        english = require("whisper_normalizer.english", extra="eval", purpose=purpose)
        return english.EnglishTextNormalizer()
    basic = require("whisper_normalizer.basic", extra="eval", purpose=purpose)
    return basic.BasicTextNormalizer(split_letters=code in UNSPACED)


def normalise(text: str, lang: str | None = "en") -> str:
    """`text` as it is compared: words between single spaces; `""` where no letter and no digit is left.

    Args:
        text: a reference or a model's output.
        lang: language code. `en` gets Whisper's English normaliser (numbers to digits, contractions spelled
            out, American spelling); any other, and None, gets the basic one (case, punctuation, brackets).
            Languages in `UNSPACED` come back with a space between graphemes.

    Raises:
        MissingExtraError: `whisper-normalizer` is not installed.
    """
    words = _normaliser(language(lang))(text).split()
    # Whisper's English normaliser turns "..." into ".", which would be a word heard in silence.
    return " ".join(words) if any(char.isalnum() for word in words for char in word) else ""


def characters(normalised: str, lang: str | None = "en") -> str:
    """What a character error rate counts: the text with its spaces, without them for `UNSPACED` languages."""
    return normalised.replace(" ", "") if language(lang) in UNSPACED else normalised


def numbers(text: str, lang: str | None = "en") -> tuple[Decimal, ...]:
    """The numbers in `text`, in order, as values: "seven", "7", "7th" and "7.0" are all 7.

    Number words are read for English only; elsewhere only digits count. Our choices: a spelled-out run of
    digits is one number ("one two three" and "1 2 3" are 123), and units and signs of currency are dropped.
    """
    text = _OPERATOR.sub(" by ", _MINUS_SIGN.sub("minus ", text))
    if language(lang) != "en":
        return _values(re.sub(r"(?<=\d),(?=\d{3}\b)", "", text).replace("minus ", "-"))
    # The normaliser joins digits that are words and leaves digits that are digits apart: make them all words.
    text = _LONE_DIGIT.sub(lambda match: _DIGIT_WORDS[int(match[0])], text)
    # It also writes a 1 that stands alone as "one", and so 1.5 may come out as "one.5".
    return _values(re.sub(r"\bone\b", "1", normalise(text, "en")))


def _values(text: str) -> tuple[Decimal, ...]:
    return tuple(Decimal(match) for match in _NUMBER.findall(text))
