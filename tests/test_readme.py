"""The README and the docs run: their commands parse, their files exist, their Python compiles, their recipe fields are real."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from aura.config import Recipe
from aura.recipes import read_recipe
from aura.typed_tree import fields_with_help

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FIELDS = {name for name, _, _ in fields_with_help(Recipe)}


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, text) of every fenced block of a language."""
    found = []
    for page in PAGES:
        for text in re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.S):
            found.append((page.name, text))
    return found


def aura_commands() -> list[tuple[str, list[str]]]:
    """(page, words behind `aura`) of every command."""
    found = []
    for page, text in blocks("(?:sh)?"):
        for line in text.replace("\\\n", " ").splitlines():  # a backslash continues a command
            words = shlex.split(line, comments=True) if line.strip() and "'" not in line else line.split()
            if words[:1] == ["aura"]:
                found.append((page, words[1:]))
            elif "-m" in words and "aura" in words:
                found.append((page, words[words.index("aura") + 1 :]))
    return found


@lru_cache
def help_of(*verb: str) -> str:
    done = subprocess.run([sys.executable, "-m", "aura", *verb, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_commands() -> None:
    assert len(aura_commands()) > 10


@pytest.mark.parametrize(("page", "words"), aura_commands(), ids=lambda value: str(value)[:60])
def test_command_exists(page: str, words: list[str]) -> None:
    verb = words[:2] if words[0] == "data" else words[:1]
    text = help_of(*verb)
    for word in words:
        if not word.startswith("--"):
            continue
        name = word.lstrip("-").split("=")[0]
        assert word in text or name in FIELDS, f"{page}: aura {' '.join(verb)} has no {word}"


@pytest.mark.parametrize(("page", "text"), blocks("python"), ids=lambda value: value[:20])
def test_python_compiles(page: str, text: str) -> None:
    compile(text, page, "exec")


def test_recipes_of_commands_exist_and_validate() -> None:
    named = {word for _, words in aura_commands() for word in words if word.startswith("recipes/")}
    assert named
    for name in named:
        read_recipe(ROOT / name)


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_tree_glosses_every_folder_and_names_no_other() -> None:
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    rooms = re.findall(r"^  (\w+)/ ", tree, flags=re.M)
    there = sorted(path.name for path in (ROOT / "aura").iterdir() if (path / "__init__.py").is_file())
    assert sorted(rooms) == there
    for name in re.findall(r"^([\w/.]+?)/?  ", tree, flags=re.M):
        assert (ROOT / name).exists(), name


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(text for _, text in blocks("sh")), flags=re.M):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
