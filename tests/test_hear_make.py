"""`make hear`: what each of its commands reads is made by one before it."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
NUMERALS = "hear/numerals.py"
DATA = "runs/hear/data/"
# Of hear/prepare.py, from what the user has (hear/README.md)
PREPARED = {"barista_train", "barista_valid", "barista_train_cut", "digits_valid", "librispeech_valid"}
PREPARED |= {"librispeech_test_other_100", "speechocean762_valid"}


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    speech = tmp_path_factory.mktemp("speech")
    (speech / "noise").mkdir()
    (speech / "noise" / "kitchen.wav").touch()
    told = ["make", "-n", "-o", ".venv/installed", "hear", f"SPEECH={speech}", "KOKORO=voices"]
    done = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if re.match(r"\S+/(aura|python) ", line)]


def after(words: list[str], flag: str) -> list[str]:
    """What follows a flag, up to the next one."""
    if flag not in words:
        return []
    behind = words[words.index(flag) + 1 :]
    ends = [place for place, word in enumerate(behind) if word.startswith("--")]
    return behind[: ends[0]] if ends else behind


def plain(name: str) -> str:
    """A manifest or a folder of the data, whoever names it."""
    return name.removeprefix(DATA).removesuffix(".jsonl")


def of_recipe(file: Path) -> tuple[set[str], list[str], list[str]]:
    """Manifests and noise that a recipe's stages read; what they begin from; where their checkpoints go."""
    recipe = yaml.safe_load(file.read_text())
    manifests: set[str] = set()
    for stage in [recipe, *recipe.get("stages", [])]:
        data = stage.get("data", {})
        manifests |= set(data.get("train", [])) | set(data.get("valid", []))
        manifests |= set(stage.get("augment", {}).get("noise_files", []))
    begun = [recipe["run"]["init_from"]] if "init_from" in recipe["run"] else []
    ended = ["checkpoint"]
    ended += [f"{number}-{stage['name']}/checkpoint" for number, stage in enumerate(recipe.get("stages", []), start=1)]
    return {name for name in manifests if name.startswith(DATA)}, begun, ended


def test_no_command_reads_what_none_before_it_made(commands: list[list[str]]) -> None:
    folders: set[str] = set()  # of clips, in the data
    manifests: set[str] = set()  # and other files of the data
    checkpoints: set[str] = set()
    trained = 0
    for words in commands:
        out = (after(words, "--out") or [""])[0]
        script = words[1]
        if script == "hear/prepare.py":
            manifests |= {"phrases.txt"} if "--texts-only" in words else PREPARED | {"kitchen_train.flac"}
            for folder in folders if "--texts-only" not in words else ():
                endings = {"orders": ("_intent", "_words"), "phrases": ("_words",)}.get(folder.split("_")[0], ("",))
                manifests |= {folder + ending for ending in endings}
        elif words[1:3] == ["data", "no-speech"]:
            folders.add(plain(words[3]))
        elif words[1:3] == ["data", "questions"]:
            manifests.add(plain(words[3]))
        elif script in ("data", "hear/recorded.py", "hear/chains.py", "hear/spans.py", "hear/splices.py", NUMERALS):
            read = {plain(word) for word in words if word.startswith(DATA) and word != out}
            assert read <= manifests, words
            folders.add(plain(out))
            made = {"hear/spans.py": ("spans", "intents", "words", "uncut"), "hear/recorded.py": (), NUMERALS: ()}
            manifests |= {f"{plain(out)}/{name}" for name in made.get(script, ("manifest",))}
        elif script == "hear/ship.py":
            source, target = words[2:4]
            assert {source, *after(words, "--average"), *after(words, "--after")} <= checkpoints, words
            checkpoints.add(target)
        elif script == "train":
            file = ROOT / after(words, "--recipe")[0]
            heard, begun, ended = of_recipe(file)
            missing = {plain(name) for name in heard} - manifests
            assert not missing and set(begun) <= checkpoints, (file.name, missing, begun)
            run = (after(words, "--run.out") or [yaml.safe_load(file.read_text())["run"]["out"]])[0]
            checkpoints |= {f"{run}/{name}" for name in ended}
            trained += 1
    assert trained == 13
    measured = re.findall(r'manifest="(\w+)\.jsonl"', (ROOT / "hear" / "measure.py").read_text())
    assert measured and set(measured) <= manifests


def test_what_is_shipped_is_trained_and_the_data_that_decides_is_made(commands: list[list[str]]) -> None:
    """The commands behind `make hear` in hear/README.md."""
    page = (ROOT / "hear" / "README.md").read_text()
    outs = {word for words in commands for word in (*after(words, "--out"), *after(words, "--run.out"))}
    outs |= {word for words in commands if words[1:3] == ["data", "no-speech"] for word in words[3:4]}
    outs |= {of for words in commands if words[1] == "hear/ship.py" for of in words[3:4]}
    for words in commands:
        if words[1] == "train":
            outs.add(yaml.safe_load((ROOT / after(words, "--recipe")[0]).read_text())["run"]["out"])
    ship = re.search(r'^SHIP="(.*)"', page, flags=re.M)
    before = re.search(r"^BEFORE=(\S+)", page, flags=re.M)
    assert ship and before
    for word in shlex.split(ship[1].replace("$BEFORE", before[1])):
        if word.startswith("runs/"):
            assert word.removesuffix("/checkpoint") in outs, word
    quiet = re.search(r'^QUIET="(.*)"', page, flags=re.M)
    assert quiet and "--quiet $QUIET" in page
    for name in quiet[1].split():
        assert name.replace("$DATA/", DATA).removesuffix(".jsonl") in outs, name
