"""Weight matrices as one decode step reads them: a vector, or a few, times the transpose, at four precisions.

Decoding is bound by how fast the weights can be read. The stock layout (one row per output) makes a CPU's BLAS take
dot products at less than half of the rate memory allows; one column per output lets it stream. Half the bytes, or a
quarter, then give most of twice and four times the speed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from aura.errors import ModelError

Matvec = Callable[[torch.Tensor], torch.Tensor]
"""(B, K) float32 -> (B, N) float32."""

Precision = Literal["float32", "float16", "int8"]
PRECISIONS = ("float32", "float16", "int8")
BYTES = {"float32": 4, "float16": 2, "int8": 1}
"""Of one weight, as a step reads it; int8 reads a scale per row as well."""


def stock(weight: torch.Tensor, bias: torch.Tensor | None) -> Matvec:
    """The weight as it is: no memory, and no speed."""
    return lambda x: torch.nn.functional.linear(x, weight, bias)


def packed(weight: torch.Tensor, bias: torch.Tensor | None, precision: Precision) -> Matvec:
    """A copy of a weight, for decoding on CPU.

    Args:
        weight: (N, K) float32.
        bias: (N,) float32 or None.
        precision: `float32`: laid out by columns; `float16`: rounded to 11 bits, summed in float32; `int8`: 8 bits
            with one scale a row, activations rounded to bfloat16.

    Raises:
        ModelError: this torch has no kernel for it on this CPU.
    """
    weight = weight.detach()
    if precision == "float32":
        columns = weight.t().contiguous()
        return (lambda x: x @ columns) if bias is None else (lambda x: torch.addmm(bias, x, columns))
    if precision == "float16":
        return _half(weight, bias)
    return _int8(weight, bias)


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, K) -> int8 (N, K) and the scale of each row (N,), rounded to bfloat16, whose product is nearest the weight."""
    scale_N = (weight.abs().amax(dim=1) / 127).clamp(min=1e-8).bfloat16()
    rows = (weight / scale_N.float()[:, None]).round_().clamp_(-127, 127)
    return rows.to(torch.int8), scale_N


def _half(weight: torch.Tensor, bias: torch.Tensor | None) -> Matvec:
    if float(weight.abs().max()) > torch.finfo(torch.float16).max:
        raise ModelError("a weight of this LLM is larger than float16 holds; expected decode='float32' or 'int8'")
    quantized = torch.ops.quantized
    try:
        half = quantized.linear_prepack_fp16(weight, bias)
    except (AttributeError, RuntimeError) as error:
        raise _no_kernel("float16") from error
    return lambda x: quantized.linear_dynamic_fp16(x, half)


def _int8(weight: torch.Tensor, bias: torch.Tensor | None) -> Matvec:
    rows, scale_N = quantize_rows(weight)
    try:
        kernel = torch.ops.aten._weight_int8pack_mm
        kernel(torch.zeros(1, rows.shape[1], dtype=torch.bfloat16), rows, scale_N)
    except (AttributeError, RuntimeError) as error:
        raise _no_kernel("int8") from error
    if bias is None:
        return lambda x: kernel(x.bfloat16(), rows, scale_N).float()
    return lambda x: kernel(x.bfloat16(), rows, scale_N).float() + bias


def _no_kernel(precision: str) -> ModelError:
    return ModelError(
        f"torch {torch.__version__} has no {precision} kernel for this CPU; expected decode='float32' or 'auto' here"
    )
