"""The page in a real browser: a question by voice through a fake microphone, a file, the keyboard, a phone."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import tiny
from serving import RATE, checkpoints, load_all, serving

from aura.serve.app import PAGE
from aura.serve.server import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHOTS = os.environ.get("AURA_SCREENSHOTS")  # a folder to look at them in


def test_the_page_names_nothing_outside_and_labels_its_controls() -> None:
    for path in PAGE.iterdir():
        text = path.read_text()
        outside = re.findall(r"""https?://[^\s"'`]+""", text)
        assert set(outside) <= {"http://www.w3.org/2000/svg"}, (path.name, outside)
    html = (PAGE / "index.html").read_text()
    labelled = set(re.findall(r'for="([\w-]+)"', html))
    for name in re.findall(r'<(?:input|select)[^>]*id="([\w-]+)"', html):
        assert name in labelled or re.search(rf'<label[^>]*>[^/]*id="{name}"', html), name
    assert 'aria-live="polite"' in html and 'role="status"' in html and 'lang="en"' in html


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The tiny adapter, or a real one where AURA_PAGE_CHECKPOINT names it."""
    own = os.environ.get("AURA_PAGE_CHECKPOINT")
    specs = {"demo": own} if own else {"demo": checkpoints(tmp_path_factory.mktemp("serve"))["one"]}
    with serving(load_all(specs), default_new_tokens=12) as running:
        yield running


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the microphone hears: 48 kHz, as browsers want it."""
    import soxr

    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    if own := os.environ.get("AURA_PAGE_CLIP"):
        samples, rate = soundfile.read(own, dtype="float32")
    else:
        samples, rate = tiny.tiny_speech(1.5), RATE
    # The device plays from the moment it is opened, and buzzes behind the end of the file.
    samples = np.pad(soxr.resample(samples, rate, 48_000), (14_400, 48_000 * 8))
    soundfile.write(path, samples, 48_000, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def browser(clip: Path) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    flags = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with playwright.sync_playwright() as play:
        found = play.chromium.launch(
            executable_path=CHROMIUM, args=[*flags, f"--use-file-for-fake-audio-capture={clip}%noloop"]
        )
        yield found
        found.close()


SIZES = {"desktop": {"width": 1280, "height": 860}, "phone": {"width": 390, "height": 844}}


@pytest.fixture(params=list(SIZES))
def page(request: pytest.FixtureRequest, browser: Any, server: Server) -> Iterator[Any]:
    scheme = "dark" if request.param == "phone" else "light"
    context = browser.new_context(
        viewport=SIZES[request.param], has_touch=request.param == "phone", color_scheme=scheme
    )
    context.grant_permissions(["microphone"], origin=server.url)
    found = context.new_page()
    found.problems = []
    found.on("console", lambda line: found.problems.append(line.text) if line.type == "error" else None)
    found.on("pageerror", lambda error: found.problems.append(str(error)))
    found.name = request.param
    found.goto(server.url)
    expect(found.locator("#model option")).not_to_have_count(0)
    yield found
    assert not found.problems
    context.close()


def expect(locator: Any) -> Any:
    """Playwright's patient assertion; its `wait_for_function` would need a page that allows eval."""
    from playwright.sync_api import expect as patient

    return patient(locator)


def answered(page: Any) -> str:
    expect(page.locator("#history li")).not_to_have_count(0, timeout=60_000)
    expect(page.locator("#answer")).to_have_attribute("aria-busy", "false", timeout=60_000)
    return page.inner_text("#answer")


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{page.name}-{name}.png", full_page=True)


@pytest.mark.slow
def test_a_question_by_voice(page: Any) -> None:
    page.focus("#talk")
    page.keyboard.down(" ")
    expect(page.locator("#status")).to_have_text("Speak now.", timeout=30_000)
    assert page.get_attribute("#talk", "aria-pressed") == "true"
    page.wait_for_timeout(float(os.environ.get("AURA_PAGE_HOLD", "2200")))
    shot(page, "listening")
    page.keyboard.up(" ")
    text = answered(page)
    assert text.strip()
    if expected := os.environ.get("AURA_PAGE_ANSWER"):
        assert expected in text
    assert re.search(r"First words after \d+\.\d\d s", page.inner_text("#timing"))
    assert page.get_attribute("#talk", "aria-pressed") == "false"
    assert "seconds" in page.get_attribute("#spectrogram", "aria-label")
    assert text.strip() in page.inner_text("#history li:first-child")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "it must not scroll sideways"
    assert not page.is_visible("#stop")
    expect(page.locator("#history li:first-child")).not_to_contain_text("Heard: –")
    shot(page, "answer")


@pytest.mark.slow
def test_a_file_and_a_bad_one(page: Any, clip: Path, tmp_path: Path) -> None:
    page.fill("#question", "the two")
    page.set_input_files("#file", clip)
    assert answered(page).strip()
    assert "clip.wav" in page.inner_text("#history li:first-child")
    (tmp_path / "letter.wav").write_text("Dear all")
    page.set_input_files("#file", tmp_path / "letter.wav")
    expect(page.locator("#status.bad")).to_contain_text("letter.wav is no audio")
    page.click("#forget")
    assert page.locator("#history li").count() == 0
    page.click("#theme")
    assert page.get_attribute("html", "data-theme") in ("light", "dark")


@pytest.mark.slow
def test_every_control_is_reached_by_the_keyboard(page: Any) -> None:
    seen = []
    page.evaluate("document.activeElement.blur()")
    for _ in range(14):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"model", "theme", "talk", "question", "file", "SUMMARY"} <= set(seen), seen
