"""What the copies of the weights cost in accuracy: answers to recordings, and cross-entropy on text.

    python benchmarks/decode_accuracy.py CHECKPOINT [--data demo/data/held_out.jsonl] [--items 300] [--out FOLDER]

Each precision answers the same recordings as transformers' generate does in float32; exact match with the transcripts
(lower case), and how many answers differ, are counted; the output layer is screened, as in an engine. The cross-entropy is
that of single decode steps of the stock LLM over built-in sentences, through the copy's own output layer, against the whole
pass in float32. Prints a table and writes `decode_accuracy.json`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from aura.student.cache_key import CACHE_KEY

PRECISIONS = (None, "float32", "float16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", default=str(Path(__file__).parent.parent / "demo" / "data" / "held_out.jsonl"))
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--max-new-tokens", type=int, default=8)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", default="runs/bench/decode")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    result = measure(options)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "decode_accuracy.json"
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    os.replace(temporary, path)
    print(f"{result['items']} recordings, {result['tokens']} tokens of text, gate {result['gate']}")
    print(f"{'':12}{'exact match':>12}{'differ':>8}{'nats a token':>14}{'more':>9}")
    for name, row in result["rows"].items():
        print(
            f"{name:12}{row['exact_match']:12.3f}{row['differ']:8d}{row['cross_entropy']:14.4f}"
            f"{row['cross_entropy'] - result['rows']['generate']['cross_entropy']:+9.4f}"
        )
    print(path)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import aura
    from aura.batch.collate import Example
    from aura.batch.prompt import user_message
    from aura.data.manifest import read_utterances
    from aura.evaluation.retention_texts import TEXTS
    from aura.inference.generate import generate_texts
    from aura.inference.greedy import GreedyDecoder
    from aura.inference.screened import open_screen

    engine = aura.load(options.checkpoint, decode="generate", device="cpu")
    model, processor = engine.model, engine.processor
    utterances = list(read_utterances(options.data))
    utterances = utterances[:: max(1, len(utterances) // options.items)][: options.items]
    examples = [
        Example(id=u.id, messages=[user_message(model.config.prompt or "", 1)], waveforms=[u.audio[0].load()])
        for u in utterances
    ]
    expected = [normal(str(u.messages[-1]["content"])) for u in utterances]
    texts = [torch.tensor([processor.tokenizer(text).input_ids]) for text in TEXTS]

    gate, screen = model.config.gate, open_screen(model)
    if screen is not None:
        screen.prepare()

    def row(precision: Any) -> tuple[list[str], float]:
        def decoder(screen: Any) -> Any:
            return None if precision == "generate" else GreedyDecoder(model, precision, screen=screen)

        limit = options.max_new_tokens
        found = generate_texts(model, processor, examples, max_new_tokens=limit, decoder=decoder(screen))
        model.config.gate = "audio"  # the text goes through the stock weights
        nats = cross_entropy(model, decoder(None), texts)
        model.config.gate = gate
        return [normal(g.text) for g in found], nats

    rows: dict[str, Any] = {}
    own: list[str] = []
    for precision in ("generate", *PRECISIONS):
        answers, nats = row(precision)
        own = own or answers
        rows[precision or "lean"] = {
            "exact_match": sum(a == b for a, b in zip(answers, expected)) / len(expected),
            "differ": sum(a != b for a, b in zip(answers, own)),
            "cross_entropy": nats,
        }
    tokens = sum(ids.shape[1] - 1 for ids in texts)
    return {"items": len(examples), "tokens": tokens, "gate": gate, "rows": rows}


@torch.no_grad()
def cross_entropy(model: Any, decoder: Any, texts: list[torch.Tensor]) -> float:
    """Nats a token, the first of each text given."""
    from aura.inference.lean_step import StepCache

    total = count = 0.0
    for ids in texts:
        if decoder is None:
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        else:
            cache = model(input_ids=ids[:, :1], use_cache=True)[CACHE_KEY]
            state = StepCache(cache, torch.ones(1, 1), ids.shape[1])
            decoder.step.prepare(ids.shape[1])
            steps = [model(input_ids=ids[:, :1]).logits[0, -1]]
            for at in range(1, ids.shape[1] - 1):
                steps.append(decoder.step.logits(decoder.step(ids[:, at], torch.tensor([at]), state))[0])
            logits = torch.stack(steps)
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return total / count


def normal(text: str) -> str:
    return " ".join(text.lower().strip(" .!?").split())


if __name__ == "__main__":
    main()
