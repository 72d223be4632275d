"""Whisper's English normaliser, rule by rule, and against the copy of it that transformers carries."""

from __future__ import annotations

import pytest

pytest.importorskip("whisper_normalizer")

from aura.evaluation.normalise import normalise, numbers

RULES = {  # rule: (written, compared) ...
    "numbers in words": [
        ("three", "3"),
        ("forty two", "42"),
        ("six thirty eight", "638"),
        ("eighteen sixty five", "1865"),
        ("twenty sixteen", "2016"),
        ("four thousand fifty six", "4056"),
        ("ninety one thousand four hundred twelve", "91412"),
        ("ninety one thousand four hundred and twelve", "91412"),
        ("five billion", "5000000000"),
        ("thousands", "1000s"),
        ("nineteen eighties", "1980s"),
    ],
    "ordinals": [
        ("forty second", "42nd"),
        ("twenty two thousand and two hundred and second", "22202nd"),
        ("five thousandth", "5000th"),
        ("june fifth twenty ten", "june 5th 2010"),
        ("may twelfth nineteen sixty eight", "may 12th 1968"),
        ("21st", "21st"),
        ("12 th", "12th"),
    ],
    "decimals and large units": [
        ("one point two million", "1200000"),
        ("seven point five billions", "7500000000s"),
        ("300 thousand", "300000"),
        ("6 28", "6 28"),
        ("6.28", "6.28"),
        ("6 point 5", "6.5"),
        ("twelve point 7", "12.7"),
        ("two and a half million", "2500000"),
        ("1,234,567", "1234567"),
    ],
    "repeated digits": [
        ("one double o four", "1004"),
        ("double oh nine", "009"),
        ("double zero nine", "009"),
        ("one one two", "112"),
        ("seven double three", "733"),
        ("two triple oh six", "20006"),
    ],
    "money, percent, sign": [
        ("300 thousand dollars", "$300000"),
        ("$5 million", "$5000000"),
        ("€12.5 million", "€12500000"),
        ("£8 thousands", "£8000s"),
        ("nine point one five dollars", "$9.15"),
        ("four dollars and thirty cents", "$4.30"),
        ("nine euros and five cents", "€9.05"),
        ("7 cents", "¢7"),
        ("$0.45", "¢45"),
        ("sixty and a half dollars", "$60.5"),
        ("thirty percent", "30%"),
        ("eighty eight per cent", "88%"),
        ("minus 40", "-40"),
        ("positive six thousand", "+6000"),
    ],
    "contractions and titles": [
        ("I'll go", "i will go"),
        ("they've", "they have"),
        ("I'd gone", "i had gone"),
        ("we'd like", "we would like"),
        ("she'd been", "she had been"),
        ("it's done", "it is done"),
        ("won't", "will not"),
        ("ain't", "aint"),
        ("y'all wanna gonna gotta", "you all want to going to got to"),
        ("Dr. Wu and Mrs. Lee", "doctor wu and missus lee"),
        ("St. Paul", "saint paul"),
    ],
    "spelling": [
        ("organise the theatre programme", "organize the theater program"),
        ("grey aluminium", "gray aluminum"),
    ],
    "what is left out": [
        ("hmm mm uh um", ""),
        ("(applause) thanks [laughter]", "thanks"),
        ("<unk> yes", "yes"),
        ("naïve façade", "naive facade"),
        ("well-known", "well known"),
        ("a.m. and p.m.", "a m and p m"),
        ("3:30", "3 30"),
    ],
    "letters beside digits": [("a320", "a 320"), ("5kg", "5 kg"), ("10mm", "10 mm")],
}
TABLE = [(written, compared) for cases in RULES.values() for written, compared in cases]


@pytest.mark.parametrize(("written", "compared"), TABLE)
def test_english_rules(written: str, compared: str) -> None:
    assert normalise(written) == compared


@pytest.mark.parametrize(("written", "compared"), TABLE)
def test_a_normalised_text_of_words_stays_as_it_is(written: str, compared: str) -> None:
    if not any(char.isdigit() for char in compared):  # "005" and "112" are read as new numbers
        assert normalise(compared) == compared


def test_it_is_the_normaliser_that_transformers_scores_whisper_with() -> None:
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    other = EnglishTextNormalizer({})  # its table of spellings comes with a tokenizer
    for rule, cases in RULES.items():
        if rule != "spelling":
            for written, _ in cases:
                assert " ".join(other(written).split()) == normalise(written), (rule, written)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("twenty-one", [21]),
        ("21", [21]),
        ("21 km", [21]),
        ("21km", [21]),
        ("twenty one kilometres", [21]),
        ("twenty-one degrees", [21]),
        ("21 °C", [21]),
        ("$21", [21]),
        ("21 percent", [21]),
        ("21%", [21]),
        ("21st", [21]),
        ("2,100 people", [2100]),
        ("two thousand one hundred people", [2100]),
        ("3 + 4 = 7", [3, 4, 7]),
        ("3+4=7", [3, 4, 7]),
        ("three times four = twelve", [3, 4, 12]),
    ],
)
def test_a_number_is_one_value_in_words_in_digits_and_with_any_unit(text: str, values: list[int]) -> None:
    assert [float(value) for value in numbers(text)] == values
