"""What `import aura` offers, what it costs, and which way the arrows point."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

import aura

PACKAGE = Path(aura.__file__).parent
LIGHT = (
    "aura",
    "aura.config",
    "aura.errors",
    "aura.data.manifest",
    "aura.audio.waveform",
    "aura.audio.patches",
    "aura.references",
)


@functools.cache
def imported_by(module: str) -> frozenset[str]:
    """aura modules that a module imports anywhere, inside functions too; imports for type checkers aside."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    typing_only = {inner for block in blocks for inner in ast.walk(block)}
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            found |= below if len(below) == len(node.names) else below | {node.module}
    return frozenset(found & MODULES)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path) for path in PACKAGE.rglob("*.py")}


@functools.cache
def reachable(module: str) -> frozenset[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imported_by(name)
    return frozenset(seen)


def test_public_names_are_sorted_and_there() -> None:
    assert aura.__all__ == sorted(aura.__all__)
    assert aura.__all__ == ["AuraError", "Engine", "__version__", "load"]
    assert dir(aura) == aura.__all__
    assert all(getattr(aura, name) is not None for name in aura.__all__)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'aura' has no attribute 'lode'"):
        aura.lode  # noqa: B018


def test_version_is_the_distributions() -> None:
    pyproject = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{aura.__version__}"' in pyproject


def test_light_modules_do_not_import_torch() -> None:
    heavy = "[m for m in ('torch', 'transformers', 'peft') if m in sys.modules]"
    code = f"import sys, {', '.join(LIGHT)}; print({heavy})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", sorted(m for m in MODULES if m.split(".")[1:2] and m.split(".")[1] in ("inference", "serve"))
)
def test_inference_imports_no_teacher(module: str) -> None:
    """The paper's claim in code: the encoder is gone at run time."""
    found = {name for name in reachable(module) if name.split(".")[1:2] in (["teacher"], ["distill"], ["training"])}
    assert not found, f"{module} reaches {sorted(found)}"


def test_no_import_circles() -> None:
    circles = {module for module in MODULES for name in imported_by(module) if module in reachable(name)}
    # The package itself hands out `load` when it is asked for; nothing below may need that to be imported.
    assert circles <= {"aura"}, sorted(circles)
