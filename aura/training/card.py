"""Model card of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from aura.config import Recipe
from aura.training.state import Progress


def model_card(recipe: Recipe, progress: Progress, scores: Mapping[str, float | None] | None = None) -> str:
    """`README.md` of a checkpoint: base, data, figures, how to load. Licences are those of the base and the data."""
    figures = "\n".join(f"| {name} | {value:.4f} |" for name, value in (scores or {}).items() if value is not None)
    table = f"| held-out figure | value |\n|---|---|\n{figures}\n" if figures else "No held-out figures were taken.\n"
    base = recipe.student.llm
    front = f"base_model: {base}\n" if ":" not in base and not base.startswith((".", "/", "~")) else ""
    return f"""---
library_name: aura-lora
pipeline_tag: any-to-any
tags: [speech, audio, lora, aura]
{front}---

# {recipe.run.name}

{_what_it_is(recipe)}

```python
import aura

engine = aura.load("this-folder")
print(engine.transcribe("clip.wav").text)
```

| | |
|---|---|
| LLM | `{base}` |
{_rows(recipe)}
| training data | {", ".join(f"`{name}`" for name in dict.fromkeys(recipe.data.train))} |
| steps, audio heard, wall time | {progress.step}, {progress.audio_seconds / 3600:.2f} h, {progress.minutes:.1f} min |

{table}
`recipe.yaml` is the resolved recipe of the run. Figures are from the validation data named in it, at the step they were
taken; nothing is known about languages, accents and noise beyond that data.
"""


def _what_it_is(recipe: Recipe) -> str:
    base, encoder = recipe.student.llm, recipe.teacher.encoder
    if recipe.run.route == "bridge":
        learnt = "the adapter and the projector" if recipe.bridge.lora else "the projector"
        return (
            f"A bridge from the frozen speech encoder `{encoder}` to the LLM `{base}`: the baseline of\n"
            "[aura](https://arxiv.org/abs/2606.11033), which needs the encoder at run time. This folder holds "
            f"{learnt} only; the\nLLM and the encoder are loaded from where they live, under their own licences."
        )
    return (
        f"Audio understanding for the LLM `{base}`, learnt as LoRA with [aura](https://arxiv.org/abs/2606.11033): no speech "
        "encoder\nat run time. This folder holds the adapter and the audio embedding only; the LLM is loaded from where it "
        "lives, under its\nown licence."
    )


def _rows(recipe: Recipe) -> str:
    lora = f"rank {recipe.lora.rank}, gate `{recipe.lora.gate}`"
    audio = f"{100 / recipe.audio.patch_frames:g} positions a second"
    if recipe.run.route == "bridge":
        rows = {
            "speech encoder (run time too)": f"`{recipe.teacher.encoder}`, {recipe.bridge.silence_seconds:g} s of silence behind",
            "LoRA": lora if recipe.bridge.lora else "none",
            "audio": f"{audio}, projector of {recipe.bridge.projector_width}, attention `{recipe.audio.attention}`",
        }
    else:
        rows = {
            "teacher (training only)": f"`{recipe.teacher.encoder}`",
            "LoRA": lora,
            "audio": f"{audio}, stem `{recipe.audio.stem}`, attention `{recipe.audio.attention}`",
        }
    if recipe.run.init_from is not None:
        rows["started from"] = f"`{recipe.run.init_from}`"
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())
