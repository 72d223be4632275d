"""The page of a comparison: one file, nothing from outside, every text escaped, audio that plays."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
from fake_routes import fake

from aura.data.manifest import read_utterances
from aura.evaluation import charts, page
from aura.evaluation.compare import CompareOptions, compare
from aura.evaluation.report_table import bytes_text, count_text, fairness, headline, markdown, p_text, seconds_text
from aura.evaluation.word_diff import Piece, diff_words

EVIL = '<script>alert("x")</script><img src=http://evil/x onerror=alert(1)>'
NAME = 'aura "<b>'


class Page(html.parser.HTMLParser):
    """Elements and their text; complains about tags that are not closed in order."""

    VOID = frozenset({"meta", "input", "br", "img", "link", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"an attribute twice in <{tag}>"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


TRUTH = {"one": "turn on the light", "two": EVIL, "three": "seven"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A comparison in which ids, transcripts, answers, errors and route names try to break out."""
    here = tmp_path_factory.mktemp("page")
    lines = []
    for n, (id_, text) in enumerate(TRUTH.items()):
        soundfile.write(here / f"{n}.wav", tiny.tiny_speech(0.5 + n, seed=n), 16_000)
        lines.append(json.dumps({"id": f"{id_} <i>&", "audio": f"{n}.wav", "transcript": text}))
    (here / "rows.jsonl").write_text("\n".join(lines))
    answers = {f"{id_} <i>&": text for id_, text in TRUTH.items()}
    other = {**answers, "one <i>&": f"turn {EVIL} the lamp", "three <i>&": "Seven!"}
    del other["two <i>&"]
    return compare(
        [fake(NAME, answers), fake("cascade", other, kind="cascade", setting=EVIL)],
        list(read_utterances(here / "rows.jsonl")),
        out=here / "out",
        options=CompareOptions(isolate=False, first_token_items=3),
        command=f"aura evaluate --prompt '{EVIL}'",
        settings={"manifests": ["rows.jsonl"]},
    )


@pytest.fixture(scope="module")
def parsed(made: Any) -> Page:
    return Page(made.page.read_text(encoding="utf-8"))


def test_the_page_is_well_formed_and_has_its_parts(parsed: Page) -> None:
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids)) and {"numbers", "quality", "latency", "significance", "listen", "made"} <= set(ids)
    links = [attrs["href"] for attrs in parsed.all("a")]
    assert links and all(link and link[0] == "#" and link[1:] in ids for link in links)
    assert parsed.all("html")[0]["lang"] == "en" and parsed.all("title")
    assert {attrs.get("name") for attrs in parsed.all("meta")} >= {"viewport", "color-scheme"}
    assert all(attrs.get("for") in ids for attrs in parsed.all("label"))
    labelled = [attrs.get("aria-labelledby") for _, attrs in parsed.tags if "aria-labelledby" in attrs]
    assert labelled and all(label in ids for label in labelled)


def test_nothing_comes_from_outside_and_nothing_runs(made: Any, parsed: Page) -> None:
    for tag, attrs in parsed.tags:
        for name, value in attrs.items():
            if name in ("src", "href", "action", "data", "poster", "srcset"):
                assert str(value).startswith(("#", "data:")), (tag, name)
            assert not name.startswith("on"), (tag, name)
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "iframe", "object", "embed", "img", "form"}
    text = made.page.read_text()
    assert "url(" not in text and "@import" not in text
    policy = next(m["content"] for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy)


def test_evil_texts_are_shown_as_texts(made: Any, parsed: Page) -> None:
    shown = made.page.read_text()
    assert EVIL not in shown and "<script" not in shown and f"<b>{NAME}" not in shown
    words = parsed.words
    assert words.count('<script>alert("x")</script>') >= 3  # truth, answer, settings, command
    assert "one <i>&" in words and NAME in words and "the route gave up" in words
    assert {tag for tag, _ in parsed.tags} & {"i"} == set()


def test_the_audio_in_the_page_is_the_recording(parsed: Page) -> None:
    players = parsed.all("audio")
    assert len(players) == 3 and all("controls" in player and player.get("aria-label") for player in players)
    for n, player in enumerate(players):
        kind, coded = re.fullmatch(r"data:audio/(ogg|wav);base64,(.+)", str(player["src"])).groups()  # type: ignore[union-attr]
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(coded, validate=True)))
        assert len(samples) / rate == pytest.approx(0.5 + n, abs=0.05)
        assert kind == "wav" or len(coded) < (0.5 + n) * 16_000 * 2 * 4 / 3 / 2


def test_opus_keeps_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    time = np.arange(16_000) / 16_000
    tone = (0.3 * np.sin(2 * np.pi * 440 * time)).astype(np.float32)

    def loudest(uri: str) -> tuple[str, float]:
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(uri.split(",")[1])))
        spectrum = np.abs(np.fft.rfft(samples))
        return uri.split(";")[0], float(np.argmax(spectrum)) * rate / len(samples)

    kind, frequency = loudest(page.data_uri(tone))
    assert kind == "data:audio/ogg" and frequency == pytest.approx(440, abs=5)
    monkeypatch.setattr(soundfile, "check_format", lambda *_: False)
    kind, frequency = loudest(page.data_uri(tone * 10))  # too loud is cut, not wrapped
    assert kind == "data:audio/wav" and frequency == pytest.approx(440, abs=5)


def test_errors_are_marked_with_more_than_colour(parsed: Page, made: Any) -> None:
    assert parsed.all("del") and parsed.all("ins")
    assert "[missing: " in parsed.words or "[instead of: " in parsed.words
    css = made.page.read_text().split("<style>")[1].split("</style>")[0]
    assert re.search(r"del \{[^}]*line-through", css) and re.search(r"ins \{[^}]*underline", css)
    assert "✓ right" in parsed.words and "✗ wrong" in parsed.words and "! failed" in parsed.words
    assert "prefers-color-scheme: dark" in css and "max-width" in css


def test_the_filter_hides_what_agrees_without_a_script(parsed: Page, made: Any) -> None:
    kinds = [attrs["class"] for attrs in parsed.all("article")]
    assert kinds == ["apart", "apart", "agree"]  # "Seven!" is "seven"
    assert "Only the 2 disagreements" in parsed.words
    assert "#only:checked ~ .rows .agree { display: none; }" in made.page.read_text()


def test_command_versions_machine_and_settings_are_there(parsed: Page, made: Any) -> None:
    report = made.content
    for text in (report["versions"]["torch"], report["machine"]["cpu"], "rows.jsonl", "max new tokens", "setting"):
        assert " ".join(str(text).split()) in parsed.words


def test_rows_are_limited_with_disagreements_first(made: Any) -> None:
    def items_and_rows(apart: set[int]) -> Any:
        items = [page.Item(id=str(n), utterance=_Utterance(), reference="x") for n in range(50)]  # type: ignore[arg-type]
        right = [{"hypothesis": "x", "failed": False}] * 50
        other = [{"hypothesis": "y" if n in apart else "X.", "failed": False} for n in range(50)]
        return items, {"a": right, "b": other}

    class _Utterance:
        lang = None

    few = {3, 40, 41}
    chosen, count = page.choose_items(*items_and_rows(few), limit=10, seed=0)
    assert count == 3 and len(chosen) == 10 and few < set(chosen) and chosen == sorted(chosen)
    assert page.choose_items(*items_and_rows(few), limit=10, seed=0)[0] == chosen
    chosen, count = page.choose_items(*items_and_rows(set(range(30))), limit=10, seed=0)
    assert count == 30 and len(chosen) == 10 and set(chosen) < set(range(30)) and chosen != list(range(10))
    assert len(page.choose_items(*items_and_rows(few), limit=100, seed=0)[0]) == 50


def test_a_page_that_shows_a_part_says_so(made: Any) -> None:
    text = page.render(made.content, [], disagreements=2)
    assert "0 of 3 items, a fixed-seed sample with disagreements first" in " ".join(Page(text).words.split())


# --- words --------------------------------------------------------------------------------------------------------


def marked(truth: Any, answer: str, lang: str | None = "en") -> str:
    shown = {"same": "{0}", "extra": "+{0}", "missing": "-{1}", "wrong": "{1}>{0}"}
    return " | ".join(shown[p.kind].format(p.answer, p.truth) for p in diff_words(truth, answer, lang=lang))


@pytest.mark.parametrize(
    ("truth", "answer", "expected"),
    [
        ("a small mocha please", "A small mocha, please!", "A small mocha, please!"),
        ("a small mocha", "a small mocca", "a small | mocha>mocca"),
        ("a small mocha", "small mocha", "-a | small mocha"),
        ("a mocha", "a very hot mocha", "a | +very hot | mocha"),
        ("one two three", "one three", "one | -two | three"),
        ("seven", "7", "7"),
        ("colour", "color", "color"),
        ("yes", "uh yes -", "uh | yes | -"),  # what scores ignore is no error
        ("yes", "", "-yes"),
        ("", "thank you", "+thank you"),
        ("", "", ""),
        (["blue", "dark blue"], "dark blue", "dark blue"),
        (["red", "dark green"], "dark blue", "dark | green>blue"),
    ],
)
def test_words_are_aligned(truth: Any, answer: str, expected: str) -> None:
    assert marked(truth, answer) == expected


def test_languages_without_spaces_are_marked_by_character() -> None:
    assert marked("你好世界", "你好世间", "zh") == "你好世 | 界>间"


def test_no_word_of_an_answer_is_lost() -> None:
    answer = "Well, uh, the the small - mocha and, um, 7 cups!"
    pieces = diff_words("small mocha and seven big cups", answer)
    assert " ".join(piece.answer for piece in pieces if piece.answer) == answer
    assert Piece(kind="missing", answer="", truth="big") in pieces


# --- tables and plots ---------------------------------------------------------------------------------------------


def test_the_markdown_table_holds_together(made: Any) -> None:
    text = made.table.read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in table]
    assert set(cells) == {4} and table[1] == "|---|---|---|"
    assert "Word error rate (lower is better)" in text and "2 of 3 items" in text and "Failed" in text
    assert "**0.0 %** (0.0 to 0.0)" in text
    report = json.loads(json.dumps(made.content).replace("cascade", "a|b"))
    assert "a\\|b" in markdown(report)


def test_the_best_of_a_line_is_marked_once_it_can_be_told(made: Any) -> None:
    lines = {line.label: line for line in headline(made.content)}
    assert [cell.best for cell in lines["Word error rate"].cells] == [True, False]
    assert [cell.best for cell in lines["Parameters at run time"].cells] == [False, False]
    assert [cell.text for cell in lines["Failed"].cells] == ["0", "1"]


def test_the_ceiling_is_never_the_best(made: Any) -> None:
    content = json.loads(json.dumps(made.content))
    content["routes"][NAME]["kind"] = "text"
    assert not any(cell.best for line in headline(content) for cell in line.cells)
    content["routes"]["bridge"] = {**content["routes"]["cascade"], "kind": "bridge", "parameters": 1}
    best = {line.label: [cell.best for cell in line.cells] for line in headline(content)}
    assert best["Word error rate"] == [False] * 3 and best["Parameters at run time"] == [False, False, True]


def test_what_routes_were_trained_on_is_said(made: Any) -> None:
    content = made.content
    assert "the stock LLM and no example of the task" in fairness(content)
    content = json.loads(json.dumps(content))
    content["routes"]["cascade"]["settings"]["shots"] = 4
    assert "4 examples in the prompt" in fairness(content)
    content["routes"]["cascade"]["settings"]["asr_only"] = True
    assert fairness(content) == ""


def test_numbers_for_people() -> None:
    assert [seconds_text(v) for v in (None, 0.0123, 1.5, 12.34)] == ["-", "12 ms", "1.50 s", "12.3 s"]
    assert [bytes_text(v) for v in (None, 25_000_000, 1_540_000_000)] == ["-", "25 MB", "1.54 GB"]
    assert [count_text(v) for v in (None, 900, 270_000_000, 1_700_000_000)] == ["-", "900", "270 M", "1.70 B"]
    assert [p_text(v) for v in (None, 0.0004, 0.0421, 1.0)] == ["-", "< 0.001", "0.042", "1.000"]


def test_ticks_are_round_and_reach_far_enough() -> None:
    assert charts.ticks(0.87, 4) == [0, 0.25, 0.5, 0.75, 1.0]
    assert charts.ticks(10, 5) == [0, 2, 4, 6, 8, 10]
    for largest in np.geomspace(1e-4, 1e4, 50):
        found = charts.ticks(float(largest), 5)
        assert found[0] == 0 and found[-1] >= largest * (1 - 1e-6) and 2 <= len(found) <= 7


def test_plots_lie_inside_their_frame(made: Any) -> None:
    scatter = charts.latency_scatter(made.content)
    assert scatter is not None and len(scatter.points) == 4  # two items that both routes answered
    for point in scatter.points:
        assert charts.LEFT <= point.x <= charts.WIDTH - charts.RIGHT
        assert charts.TOP <= point.y <= charts.HEIGHT - charts.BOTTOM
    for chart in charts.bar_charts(made.content, lambda *_: "", lambda _: ""):
        for bar in chart.bars:
            assert 0 <= bar.length <= 100 and (bar.high is None or 0 <= bar.low <= bar.high <= 100)  # type: ignore[operator]
