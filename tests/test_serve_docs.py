"""The examples of docs/serving.md run as they stand, against a server with a tiny adapter called demo."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import checkpoints, load_all, serving, wav

from aura.serve.server import Server

PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
ADDRESS = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.S)


CURLS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("curl ")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models = load_all({"demo": checkpoints(tmp_path_factory.mktemp("serve"))["one"]})
    with serving(models, default_new_tokens=12) as running:
        yield running


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.wav").write_bytes(wav(1.0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aura.serve.transcription.WINDOW_TOKENS", 12)


def test_there_are_examples() -> None:
    assert len(blocks("python")) == 2 and len(CURLS) >= 4


@pytest.mark.parametrize("example", blocks("python"), ids=["http", "realtime"])
def test_python_examples(server: Server, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(example.replace(ADDRESS, server.url), str(PAGE), "exec"), {})
    assert len(capsys.readouterr().out) > 5


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
@pytest.mark.parametrize("line", CURLS)
def test_curl_examples(server: Server, line: str) -> None:
    done = subprocess.run(line.replace(ADDRESS, server.url).split(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout and '"error"' not in done.stdout
    if "response_format" not in line and "/metrics" not in line:
        assert json.loads(done.stdout)
