"""`aura`: a table of verbs over plain functions; the verbs that need torch import it when they run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from aura import __version__
from aura.cli_bundle import bundle, unbundle
from aura.cli_chat import chat
from aura.cli_data import data
from aura.cli_evaluate import evaluate
from aura.cli_inspect import inspect
from aura.cli_report import report
from aura.cli_retention import retention
from aura.cli_serve import serve
from aura.cli_speech import ask, transcribe
from aura.cli_train import recipe, train
from aura.errors import AuraError

FAILED = 2  # exit status of everything that aura raises on purpose, and of wrong usage
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

app = App(
    name="aura",
    version=__version__,
    help="Give an open LLM ears: audio understanding internalised as LoRA, no encoder at run time.",
    help_epilogue="--debug (or AURA_DEBUG=1) in front of or behind any command shows tracebacks.",
    default_parameter=Parameter(negative=()),
    suppress_keyboard_interrupt=False,
)
VERBS = (
    *(transcribe, ask, chat, serve),
    *(evaluate, report, retention, inspect),
    *(train, recipe, bundle, unbundle, data),
)
for verb in VERBS:
    app.command(verb)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    debug = os.environ.get("AURA_DEBUG", "") not in ("", "0")
    if "--debug" in tokens:
        tokens.remove("--debug")
        debug = True
    if not debug:
        quiet()
    try:
        result = app(tokens, result_action="return_value", exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except CycloptsError as error:
        print(f"aura: error: {_one_line(error)} Show the options with: aura --help", file=sys.stderr)
        return FAILED
    except AuraError as error:
        if debug:
            raise
        print(f"aura: error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        if debug:
            raise
        print("aura: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def quiet() -> None:
    """Leave out what the libraries say to their developers."""
    import warnings

    # Read at import, which is still to come.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|huggingface_hub)\b")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
