"""The LLM that routes share: weights in memory once, a module tree of its own for each route."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from aura.config import AudioConfig
from aura.errors import ModelError
from aura.inference.engine import DTYPES, pick_device
from aura.inference.generate import end_tokens
from aura.references import resolve
from aura.student.checkpoint import new_processor
from aura.student.configuration import AuraConfig
from aura.student.gate import attach_gate
from aura.student.llm import fingerprint, load_llm, load_tokenizer
from aura.student.model import AuraForConditionalGeneration
from aura.student.processor import PLAIN_TEMPLATE, AuraProcessor

WEIGHT_FORMATS = ("*.safetensors", "model.bin", "*.gguf", "pytorch_model*.bin", "*.pt")
"""Forms of weights; a folder that holds several holds the same model several times."""

LINES_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.content }}"
    "{{ '\\n\\n' if message.role == 'assistant' else '\\n' }}{% endfor %}"
)
"""How examples are shown to an LLM without a chat template: a line for each turn, an empty line behind each answer."""


class LlmShelf:
    """LLMs by reference; each is read from disk once.

    Args:
        device: where they lie: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1` ...
        dtype: of their weights: float32, bfloat16 or float16.
        attention: kernel, see `load_llm`.

    Raises:
        ModelError: no such device or dtype.
    """

    def __init__(self, *, device: str = "auto", dtype: str = "float32", attention: str = "sdpa") -> None:
        if dtype not in DTYPES:
            raise ModelError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        self.device = pick_device(device)
        self.dtype = dtype
        self.attention = attention
        self._stock: dict[str, PreTrainedModel] = {}

    def take(self, reference: str) -> PreTrainedModel:
        """A stock LLM of the caller's own; its weights are those of everybody who took the same one.

        An adapter attached to it (which wraps the linear layers of this tree) is not seen by the others.

        Raises:
            ModelReferenceError: nothing loadable there.
        """
        path = resolve(reference)
        if path not in self._stock:
            model = load_llm(reference, dtype=self.dtype, attention=self.attention)
            self._stock[path] = model.to(self.device)  # type: ignore[arg-type]  # its decorator hides the signature
        return with_same_weights(self._stock[path])

    def tokenizer(self, reference: str) -> PreTrainedTokenizerBase:
        """A tokenizer of the caller's own."""
        return load_tokenizer(reference)


def with_same_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the modules around the very same tensors."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def text_reader(
    llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[AuraForConditionalGeneration, AuraProcessor]:
    """A stock LLM in the clothes that `generate_texts` and `build_prompt` know; it never hears anything.

    The forward path is that of a checkpoint's text positions, and the logits are the stock LLM's, bit for bit. An LLM
    without a chat template has never ended a turn: it gets the conversation in lines, and its answer ends with the
    line, as everybody reads answers off such a model.
    """
    processor = new_processor(tokenizer, AudioConfig())
    config = AuraConfig(
        text_config=llm.config,
        audio_token_id=int(processor.audio_token_id),
        stem="linear",  # the smallest; no audio ever gets there
        gate="audio",
    )
    attach_gate(llm)  # takes the gate's keyword out before an attention kernel sees it
    model = AuraForConditionalGeneration(config, llm)
    model.to(llm.device)  # type: ignore[arg-type]
    if not tokenizer.chat_template:
        processor.chat_template = str(processor.chat_template).removesuffix(PLAIN_TEMPLATE) + LINES_TEMPLATE
        model.generation_config = copy.deepcopy(model.generation_config) or GenerationConfig()
        model.generation_config.eos_token_id = sorted({*end_tokens(model, tokenizer), *line_breaks(tokenizer)})
    return model.eval(), processor


def line_breaks(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens with a line break in them."""
    written = ("\n", "\u010a", "<0x0A>")  # as it is, in byte-level alphabets, and as a byte of its own
    able = [id_ for token, id_ in tokenizer.get_vocab().items() if any(form in token for form in written)]
    return {id_ for id_ in able if "\n" in tokenizer.decode([id_])}


def template_digest(processor: AuraProcessor) -> str:
    """Hash of the template that prompts are rendered with."""
    return hashlib.sha256(str(processor.chat_template).encode()).hexdigest()[:16]


def llm_digest(model: PreTrainedModel) -> str:
    """Hash of an LLM's shapes and a sample of its weights: another model at the same reference has another."""
    return hashlib.sha256(json.dumps(fingerprint(model), sort_keys=True).encode()).hexdigest()[:16]


def count_parameters(model: torch.nn.Module) -> int:
    """Weights of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(reference: str) -> int | None:
    """Bytes of the weight files behind a model reference; None where they cannot be seen."""
    found = resolve(reference)
    path = Path(found) if Path(found).is_dir() else _snapshot(found)
    return None if path is None else folder_weight_bytes(path)


def folder_weight_bytes(folder: Path) -> int | None:
    """Bytes of the weight files in a folder, in the first form that it holds; None where it holds none."""
    for pattern in WEIGHT_FORMATS:
        if files := list(folder.glob(pattern)):
            return sum(file.stat().st_size for file in files)
    return None


def _snapshot(hub_id: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None
