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

Audio understanding for the LLM `{base}`, learnt as LoRA with [aura](https://arxiv.org/abs/2606.11033): no speech encoder
at run time. This folder holds the adapter and the audio embedding only; the LLM is loaded from where it lives, under its
own licence.

```python
import aura

engine = aura.load("this-folder")
print(engine.transcribe("clip.wav").text)
```

| | |
|---|---|
| LLM | `{base}` |
| teacher (training only) | `{recipe.teacher.encoder}` |
| LoRA | rank {recipe.lora.rank}, gate `{recipe.lora.gate}` |
| audio | {100 / recipe.audio.patch_frames:g} positions a second, stem `{recipe.audio.stem}`, attention `{recipe.audio.attention}` |
| training data | {", ".join(f"`{name}`" for name in recipe.data.train)} |
| steps, audio heard, wall time | {progress.step}, {progress.audio_seconds / 3600:.2f} h, {progress.minutes:.1f} min |

{table}
`recipe.yaml` is the resolved recipe of the run. Figures are from the validation data named in it, at the step they were
taken; nothing is known about languages, accents and noise beyond that data.
"""
