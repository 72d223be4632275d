"""The tasks an evaluation can score, in one table: `TASKS`, by the name that `--task` takes.

How to use it, for one route or many:

    task = get_task("transcribe")
    references = references_of(task, utterances)      # DataError: the rows without one
    # task.options_of(utterance) is None: the hypothesis is what the route wrote, None where it failed.
    # It is a tuple: `most_likely(options, route.score(question, options))`; a route that cannot score answers in
    # writing, and the same scorer finds the option that the reply names.
    score = task.score(references, hypotheses, lang=[u.lang or "en" for u in utterances])
    score.metrics["accuracy"], score.metrics[task.headline], score.correct
    tables(utterances, score)                         # aura.evaluation.tables: per speaker, length, noise, language

Two routes are compared on `errors` and `weights` of the same items: the headline is `sum(errors) / sum(weights)` of
the scored items where lower is better (`wer`), and one minus that elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aura.data.utterance import Utterance, label_text, no_speech_kind
from aura.errors import DataError
from aura.evaluation.choices import choices, is_choice
from aura.evaluation.metrics import answers, intents, silence, transcription
from aura.evaluation.normalise import numbers
from aura.evaluation.scores import Languages, Score, ratio, share_interval

Scorer = Callable[[Sequence[Any], Sequence[str | None], Languages], "TaskScore"]


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """How one set of answers did.

    Args:
        metrics: of the task, JSON types only; always with `accuracy`, the share of answers right as a whole, and
            `items`, `scored`, `failed`. Rates over nothing are None.
        correct: per item, None for a failed one.
        errors: per item what the headline counts: wrong words (`transcribe`), else 0 or 1; None for a failed one.
        weights: per item what they are counted against: reference words (`transcribe`), else 1.
        rows: per item the metric's own record (a dataclass), e.g. `TranscriptionItem`.
    """

    metrics: Mapping[str, Any]
    correct: tuple[bool | None, ...]
    errors: tuple[float | None, ...]
    weights: tuple[float, ...]
    rows: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of a row, and how the answer is scored.

    Args:
        name: as in `--task`.
        help: one line for people who choose.
        needs: what a row without reference lacks, for the message.
        reference_of: what a row's answer is compared with; None where there is nothing.
        scorer: behind `score`.
        written: the reference as people read it.
        headline: the metric to compare routes by, a key of `TaskScore.metrics`.
        lower_is_better: of the headline.
        options_of: what there is to choose from, for tasks scored by likelihood; None for answers in writing.
    """

    name: str
    help: str
    needs: str
    reference_of: Callable[[Utterance], Any]
    scorer: Scorer
    written: Callable[[Any], str] = str
    headline: str = "accuracy"
    lower_is_better: bool = False
    options_of: Callable[[Utterance], tuple[str, ...] | None] = lambda utterance: None

    def score(
        self, references: Sequence[Any], hypotheses: Sequence[str | None], *, lang: Languages = "en"
    ) -> TaskScore:
        """Score answers against references, in the order of the items.

        Args:
            references: what `reference_of` gave for each item.
            hypotheses: a text each; None for an item that failed (never `""`, which is an answer).
            lang: language code of all items, or one per item.

        Raises:
            DataError: lengths differ, or a reference is missing.
            MissingExtraError: the packages of the `eval` extra are not installed.
        """
        return self.scorer(references, hypotheses, lang)


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        DataError: there is none.
    """
    if name not in TASKS:
        raise DataError(f"task is {name!r}; expected one of {', '.join(TASKS)}")
    return TASKS[name]


def references_of(task: Task, utterances: Sequence[Utterance], ids: Sequence[str] | None = None) -> list[Any]:
    """The reference of each utterance.

    Args:
        ids: names for the message, the utterances' own by default.

    Raises:
        DataError: some have none: the first five by id, and how many there are.
    """
    found = [task.reference_of(utterance) for utterance in utterances]
    names = [utterance.id for utterance in utterances] if ids is None else ids
    missing = [name for name, reference in zip(names, found, strict=True) if reference is None]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{len(missing)} of {len(found)} rows have no {task.needs} to score against: {shown}. "
            "Add it to the manifest, or choose another --task."
        )
    return found


# --- what an answer is compared with ----------------------------------------------------------------------------


def _transcript(utterance: Utterance) -> str | None:
    if no_speech_kind(utterance.label) is not None:
        return ""  # whatever the answer to learn looks like
    return utterance.transcript if utterance.transcript is not None else _answer_turn(utterance)


def _answer_turn(utterance: Utterance) -> str | None:
    return utterance.answer if any(message["role"] == "assistant" for message in utterance.messages) else None


def _accepted(utterance: Utterance) -> str | list[str] | None:
    """The accepted answers: the label's list where it has one, else the assistant's turn."""
    label = utterance.label
    if isinstance(label, Mapping) and isinstance(label.get("answers"), (list, tuple)):
        return [text for text in label["answers"] if isinstance(text, str)] or None
    return _answer_turn(utterance)


def _numeric(utterance: Utterance) -> list[str] | None:
    accepted = _accepted(utterance)
    texts = [accepted] if isinstance(accepted, str) else accepted or []
    return [text for text in texts if numbers(text, utterance.lang or "en")] or None


def _intent(utterance: Utterance) -> Any:
    label = utterance.label
    return label if isinstance(label, str) or (isinstance(label, Mapping) and "intent" in label) else None


def _choice(utterance: Utterance) -> Any:
    return utterance.label if is_choice(utterance.label) else None


def _options(utterance: Utterance) -> tuple[str, ...] | None:
    return tuple(utterance.label["options"]) if is_choice(utterance.label) else None


def _silence(utterance: Utterance) -> str | None:
    # A recording of noise often has no transcript at all; one with words in it is no test of silence.
    return None if (_transcript(utterance) or "").strip() else ""


# --- how it is scored -------------------------------------------------------------------------------------------


def _score_transcripts(references: Sequence[Any], hypotheses: Sequence[str | None], lang: Languages) -> TaskScore:
    score = transcription(references, hypotheses, lang=lang)
    return TaskScore(
        metrics={"accuracy": score.exact_match, **score.as_dict()},
        correct=tuple(row.exact for row in score.rows),
        errors=tuple(None if row.failed else float(row.word_errors) for row in score.rows),
        weights=tuple(float(row.words) for row in score.rows),
        rows=score.rows,
    )


def _score_answers(references: Sequence[Any], hypotheses: Sequence[str | None], lang: Languages) -> TaskScore:
    return _by_share(answers(references, hypotheses, lang=lang), "exact")


def _score_contains(references: Sequence[Any], hypotheses: Sequence[str | None], lang: Languages) -> TaskScore:
    return _by_share(answers(references, hypotheses, lang=lang), "contains")


def _score_numbers(references: Sequence[Any], hypotheses: Sequence[str | None], lang: Languages) -> TaskScore:
    return _by_share(answers(references, hypotheses, lang=lang), "numeric")


def _score_choices(references: Sequence[Any], hypotheses: Sequence[str | None], lang: Languages) -> TaskScore:
    return _by_share(choices(references, hypotheses), "correct")


def _score_intents(references: Sequence[Any], hypotheses: Sequence[str | None], lang: Languages) -> TaskScore:
    return _by_share(intents(references, hypotheses), "command")


def _score_silence(references: Sequence[Any], hypotheses: Sequence[str | None], lang: Languages) -> TaskScore:
    return _by_share(silence(hypotheses), "quiet")


def _by_share(score: Score, right: str) -> TaskScore:
    """A task of right and wrong items; `right` is the field of a row that says which."""
    correct = tuple(getattr(row, right) for row in score.rows)
    errors = tuple(None if one is None else float(not one) for one in correct)
    wrong = [int(error) for error in errors if error is not None]
    return TaskScore(
        metrics={
            "accuracy": ratio(wrong.count(0), len(wrong)),
            "accuracy_interval": share_interval(wrong),
            **score.as_dict(),
        },
        correct=correct,
        errors=errors,
        weights=(1.0,) * len(correct),
        rows=score.rows,
    )


def _shown_answer(reference: str | Sequence[str]) -> str:
    return reference if isinstance(reference, str) else " / ".join(reference)


_ALL = (
    Task(
        name="transcribe",
        help="what is said, by word and character error rate",
        needs="'transcript'",
        headline="wer",
        lower_is_better=True,
        reference_of=_transcript,
        scorer=_score_transcripts,
    ),
    Task(
        name="answer",
        help="the answer to a question, by exact match",
        needs="assistant turn",
        reference_of=_accepted,
        scorer=_score_answers,
        written=_shown_answer,
    ),
    Task(
        name="contains",
        help="the same, right where the reply holds the answer",
        needs="assistant turn",
        reference_of=_accepted,
        scorer=_score_contains,
        written=_shown_answer,
    ),
    Task(
        name="number",
        help="the same, right where the reply ends in the answer's number",
        needs="number in the assistant turn",
        reference_of=_numeric,
        scorer=_score_numbers,
        written=_shown_answer,
    ),
    Task(
        name="choice",
        help="one of the label's options, by likelihood (in writing where a route has none)",
        needs="'label' with 'options' and 'answer'",
        reference_of=_choice,
        scorer=_score_choices,
        written=lambda reference: reference["answer"],
        options_of=_options,
    ),
    Task(
        name="intent",
        help="the label's intent and slots, by whole commands",
        needs="'label'",
        reference_of=_intent,
        scorer=_score_intents,
        written=label_text,
    ),
    Task(
        name="silence",
        help="clips without speech, by false transcripts",
        needs="empty 'transcript' (or none)",
        headline="false_transcript_rate",
        lower_is_better=True,
        reference_of=_silence,
        scorer=_score_silence,
        written=lambda reference: "(no speech)",
    ),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
"""By name, in the order they are listed to people."""
