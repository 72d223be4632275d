"""Pictures: whole or not at all, and one line where matplotlib is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aura.errors import MissingExtraError
from aura.pictures import pyplot, save_figure

PNG = b"\x89PNG"


def test_a_picture_is_written_into_a_new_folder_and_closed(tmp_path: Path) -> None:
    plt = pyplot("a test")
    figure, axis = plt.subplots()
    axis.plot([0, 1])
    path = save_figure(figure, tmp_path / "new" / "a.png")
    assert path.read_bytes().startswith(PNG)
    assert not plt.fignum_exists(figure.number)


def test_the_older_picture_stays_when_drawing_fails(tmp_path: Path) -> None:
    plt = pyplot("a test")
    path = tmp_path / "a.png"
    path.write_bytes(b"older")
    figure, axis = plt.subplots()
    axis.set_title("$\\nothing$")  # no such symbol: drawing it raises
    with pytest.raises(ValueError, match="nothing"):
        save_figure(figure, path, bbox_inches="tight")
    assert path.read_bytes() == b"older"
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
    assert not plt.fignum_exists(figure.number)


def test_without_matplotlib_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"drawing needs .*'matplotlib'.* pip install 'aura-lora\[train\]'"):
        pyplot("drawing")
