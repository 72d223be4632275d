"""The slot types that Picovoice grammars may use without defining them: numbers, ordinals, percent, letters."""

from __future__ import annotations

ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINALS = {
    **{"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"},
    "twelve": "twelfth",
}


def spell(number: int) -> str:
    """0 to 999,999 in English words: `42` -> `forty two`, `365` -> `three hundred sixty five`."""
    for size, name in ((1000, "thousand"), (100, "hundred")):
        if number >= size:
            head, rest = divmod(number, size)
            return f"{spell(head)} {name}" + (f" {spell(rest)}" if rest else "")
    if number < 20:
        return ONES[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f" {ONES[ones]}" if ones else "")


def spell_ordinal(number: int) -> str:
    """1 to 99: `42` -> `forty second`."""
    *head, last = spell(number).split()
    if last in _ORDINALS:
        last = _ORDINALS[last]
    else:
        last = (last[:-1] + "ieth") if last.endswith("y") else f"{last}th"
    return " ".join([*head, last])


def builtin_values(type: str) -> list[tuple[str, str]] | None:
    """(spoken, value) of a built-in slot type; None where we do not know it."""
    kind = type.removeprefix("pv.")
    if kind == "SingleDigitInteger":
        return [(spell(n), str(n)) for n in range(10)]
    if kind == "TwoDigitInteger":
        return [(spell(n), str(n)) for n in range(100)]
    if kind == "SingleDigitOrdinal":
        return [(spell_ordinal(n), str(n)) for n in range(1, 10)]
    if kind == "TwoDigitOrdinal":
        return [(spell_ordinal(n), str(n)) for n in range(1, 100)]
    if kind == "Percent":
        return [(f"{spell(n)} percent", f"{n}%") for n in range(101)]
    if kind == "Alphabetic":
        return [(letter, letter.upper()) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return None
