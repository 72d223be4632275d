"""Spoken questions: exact match, contains, numeric match and word F1 of a free answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from aura.evaluation.normalise import normalise, numbers
from aura.evaluation.scores import Interval, Languages, Score, aligned, ratio, share_interval

ARTICLES = frozenset({"a", "an", "the"})  # left out of the word F1, as in SQuAD's own scorer


@dataclass(frozen=True, kw_only=True)
class AnswerItem:
    """One answer. `numeric` is None where the reference holds no number, all four for a failed item."""

    failed: bool
    reference: tuple[str, ...]  # normalised, one per accepted answer
    hypothesis: str | None
    exact: bool | None
    contains: bool | None
    numeric: bool | None
    f1: float | None


@dataclass(frozen=True, kw_only=True)
class AnswerScore(Score):
    """Shares of the scored items; `numeric_match` of the `numeric_items`, whose reference has a number."""

    exact_match: float | None
    exact_match_interval: Interval | None
    contains: float | None
    numeric_match: float | None
    numeric_items: int
    f1: float | None  # mean over items


def answers(
    references: Sequence[str | Sequence[str]], hypotheses: Sequence[str | None], *, lang: Languages = "en"
) -> AnswerScore:
    """Exact, contains and numeric match and word F1 after Whisper's normalisation.

    - exact: normalised texts are equal, so "Seven." matches "7".
    - contains: the reference's words stand in a row, as whole words, in the hypothesis. An empty reference is
      contained in an empty hypothesis only.
    - numeric: the hypothesis *ends* in the reference's numbers, compared by value, so "3 plus 4 is seven"
      matches "7" and "7 or 8" does not; units and currency do not count. Our choice, after the last-number
      convention of arithmetic benchmarks.
    - f1: of the words, each as often as it stands there, articles left out; the best over the accepted answers.
      The rule of Rajpurkar et al. 2016, *SQuAD*; Whisper's normaliser in the place of theirs is our choice, so
      that "twenty one" and "21" are one word.

    Args:
        references: the accepted answer, or several of which any one will do.
        hypotheses: the model's texts, None for an item that failed.
        lang: language code of all items, or one per item. Number words are read for English only.

    Raises:
        DataError: lengths differ, or a reference is missing.
    """
    langs = aligned(references, hypotheses, lang)
    rows = [
        _answer_item([reference] if isinstance(reference, str) else list(reference), hypothesis, code)
        for reference, hypothesis, code in zip(references, hypotheses, langs, strict=True)
    ]
    scored = [row for row in rows if not row.failed]
    numeric = [row.numeric for row in scored if row.numeric is not None]
    return AnswerScore(
        items=len(rows),
        scored=len(scored),
        failed=len(rows) - len(scored),
        rows=tuple(rows),
        exact_match=ratio(sum(bool(row.exact) for row in scored), len(scored)),
        exact_match_interval=share_interval([int(not row.exact) for row in scored]),
        contains=ratio(sum(bool(row.contains) for row in scored), len(scored)),
        numeric_match=ratio(sum(numeric), len(numeric)),
        numeric_items=len(numeric),
        f1=ratio(sum(row.f1 or 0.0 for row in scored), len(scored)),
    )


def _answer_item(accepted: Sequence[str], hypothesis: str | None, lang: str | None) -> AnswerItem:
    references = tuple(normalise(reference, lang) for reference in accepted)
    if hypothesis is None:
        return AnswerItem(
            failed=True, reference=references, hypothesis=None, exact=None, contains=None, numeric=None, f1=None
        )
    text = normalise(hypothesis, lang)
    wanted = [values for reference in accepted if (values := numbers(reference, lang))]
    given = numbers(hypothesis, lang)
    return AnswerItem(
        failed=False,
        reference=references,
        hypothesis=text,
        exact=text in references,
        contains=any(f" {ref} " in f" {text} " if ref else not text for ref in references),
        numeric=any(given[-len(values) :] == values for values in wanted) if wanted else None,
        f1=max(_word_f1(ref, text) for ref in references),
    )


def _word_f1(reference: str, text: str) -> float:
    wanted, given = (Counter(word for word in side.split() if word not in ARTICLES) for side in (reference, text))
    if not wanted or not given:
        return float(wanted == given)
    return 2 * (wanted & given).total() / (wanted.total() + given.total())
