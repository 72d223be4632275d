"""Pictures without a window: matplotlib where it is installed, each file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from aura.errors import require


def pyplot(purpose: str) -> Any:
    """`matplotlib.pyplot`, drawing to files alone.

    Args:
        purpose: what is being drawn, for the message.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="train", purpose=purpose)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Any, path: Path, **how: Any) -> Path:
    """Write a figure as PNG and close it; an older picture there is replaced by a complete one only.

    Args:
        figure: laid out tightly, unless it has a layout of its own or `bbox_inches` is given.
        path: its folder is made where missing.
        how: more for matplotlib's `savefig`.

    Returns:
        The path.
    """
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.png")
    try:
        if figure.get_layout_engine() is None and "bbox_inches" not in how:
            figure.tight_layout()
        figure.savefig(temporary, dpi=110, **how)
        os.replace(temporary, path)
    finally:
        plt.close(figure)
        temporary.unlink(missing_ok=True)
    return path
