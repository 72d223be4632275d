"""A GGUF file -> a Hugging Face folder, through the GGUF support of transformers."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from aura.errors import ModelReferenceError, require


def write_huggingface_folder(gguf_file: Path, folder: Path) -> None:
    """Unpack a GGUF language model into `config.json`, float32 `model.safetensors` and tokenizer files.

    The quantised blocks become the float32 numbers they stand for: what was lost when the file was
    quantised stays lost.

    Raises:
        ModelReferenceError: transformers knows no such architecture.
        MissingExtraError: the `gguf` package is not installed.
    """
    gguf = require("gguf", extra="embedded", purpose=f"Reading the model file {gguf_file.name}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with _without_bars(), _read_once(gguf):
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
            model: Any = AutoModelForCausalLM.from_pretrained(
                gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32, **_plain_weights()
            )
        except (ValueError, KeyError, NotImplementedError) as error:
            raise ModelReferenceError(
                f"transformers cannot read the GGUF file {gguf_file.name}: {error}. "
                "Name the model's Hugging Face folder or Hub id instead."
            ) from error
        # The weights are plain float32 now, but transformers 5.23 still calls the model quantised by GGUF
        # and refuses to save it; nor may the config say so, or loading would look for the GGUF file.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    del model
    gc.collect()  # unmaps the GGUF file, which Windows could not delete otherwise


def _plain_weights() -> dict[str, Any]:
    """What tells transformers to unpack the blocks; with `kernels` installed it would keep some packed."""
    try:
        from transformers import GgufConfig
    except ImportError:  # before 5.23 it always unpacks
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def _read_once(gguf: Any) -> Iterator[None]:
    """Let transformers parse the file once.

    It opens a new `gguf.GGUFReader` for tokenizer, config and weights; each parses a vocabulary of 262k
    tokens in Python, 9 s with slices of a `numpy.memmap`, 3 s with slices of a plain view of it.
    """
    original: Any = gguf.GGUFReader
    readers: dict[str, Any] = {}

    class PlainReader(original):  # type: ignore[misc, valid-type]
        @property
        def data(self) -> np.ndarray:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = np.asarray(mapped)

    def shared_reader(path: Any, *rest: Any) -> Any:
        if str(path) not in readers:
            readers[str(path)] = PlainReader(path, *rest)
        return readers[str(path)]

    gguf.GGUFReader = shared_reader
    try:
        yield
    finally:
        gguf.GGUFReader = original


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of transformers: the cache says what goes on in one line."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
