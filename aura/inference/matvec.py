"""Weight matrices as one decode step reads them: a vector, or a few, times the transpose, at four precisions.

Decoding is bound by how fast the weights can be read. The stock layout (one row per output) makes a CPU's BLAS take
dot products at less than half of the rate memory allows; one column per output lets it stream. Half the bytes, or a
quarter, then give most of twice and four times the speed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch

from aura.errors import ModelError

Matvec = Callable[[torch.Tensor], torch.Tensor]
"""(B, K) float32 -> (B, N) float32."""

Precision = Literal["float32", "float16", "int8"]
PRECISIONS = ("float32", "float16", "int8")
BYTES = {"float32": 4, "float16": 2, "int8": 1}
"""Of one weight, as a step reads it; int8 reads a scale per row as well."""

ONEDNN: Any = None  # torch's own bindings, or None: its compiler uses them, other code may where they are as they were
if torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
    hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
):
    ONEDNN = torch.ops.mkldnn

FEW = (
    8  # rows that `blocked` lays weights out for: a block of streamed audio; as good for one or a thousand. Our choice
)
WIDE = 32_768  # outputs from which int8 takes its activations in 8 bits too: an output layer. Our choice


def stock(weight: torch.Tensor, bias: torch.Tensor | None) -> Matvec:
    """The weight as it is, and no memory."""
    return lambda x: linear(x, weight, bias)


def linear(x_NK: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b in float32, by oneDNN where torch has it: MKL, which torch takes, leaves AMD CPUs without AVX-512.

    Args:
        weight: (N, K), or a copy from `blocked`.
    """
    rows = len(x_NK)
    if ONEDNN is None or (len(weight) >= WIDE and not weight.is_mkldnn):  # it would lay the weight out anew each time
        return torch.nn.functional.linear(x_NK, weight, bias)
    padded_NK = torch.nn.functional.pad(x_NK, (0, 0, 0, _round_up(rows) - rows)).contiguous()
    y_NM: torch.Tensor = ONEDNN._linear_pointwise(padded_NK, weight, bias, "none", [], "")
    return y_NM[:rows]


def _round_up(rows: int) -> int:
    """To one of eight numbers an octave: oneDNN keeps half a megabyte of code and scratch for each number of rows it has seen."""
    step = 1 << max(0, rows.bit_length() - 4)
    return -(-rows // step) * step


def blocked(weight: torch.Tensor) -> torch.Tensor | None:
    """A copy (N, K) in the layout that oneDNN reads fastest, for `linear`; None where there is no oneDNN."""
    copy: torch.Tensor | None = None if ONEDNN is None else ONEDNN._reorder_linear_weight(weight.contiguous(), FEW)
    return copy


def packed(weight: torch.Tensor, bias: torch.Tensor | None, precision: Precision) -> Matvec:
    """A copy of a weight, for decoding on CPU.

    Args:
        weight: (N, K) float32.
        bias: (N,) float32 or None.
        precision: `float32`: laid out anew, for oneDNN or by columns; `float16`: rounded to 11 bits, summed in float32;
            `int8`: 8 bits with one scale a row, activations rounded to bfloat16 (a vocabulary's worth of rows: to 8 bits,
            where the CPU multiplies those).

    Raises:
        ModelError: this torch has no kernel for it on this CPU.
    """
    weight = weight.detach()
    if precision == "float32":
        if (copy := blocked(weight)) is not None:
            return lambda x: linear(x, copy, bias)
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
    if len(rows) >= WIDE and bias is None and multiplies_bytes():
        return _bytes(rows, scale_N)
    try:
        kernel = torch.ops.aten._weight_int8pack_mm
        kernel(torch.zeros(1, rows.shape[1], dtype=torch.bfloat16), rows, scale_N)
    except (AttributeError, RuntimeError) as error:
        raise _no_kernel("int8") from error
    if bias is None:
        return lambda x: kernel(x.bfloat16(), rows, scale_N).float()
    return lambda x: kernel(x.bfloat16(), rows, scale_N).float() + bias


def multiplies_bytes() -> bool:
    """Whether this CPU and torch multiply two matrices of bytes with exact sums."""
    # Without VNNI the sums of two products saturate at 16 bits.
    return (
        bool(getattr(torch.cpu, "_is_vnni_supported", bool)())
        and "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
    )


def pack_bytes(rows: torch.Tensor, scale_N: torch.Tensor) -> Callable[[torch.Tensor, float], torch.Tensor]:
    """int8 (N, K) and the scale of each row -> product with multiples of a step from -127 to 127 of them.

    Call it with (B, K) float32 and the step; (B, N) float32. The sums are exact. Where `multiplies_bytes`.
    """
    zeros = torch.zeros(len(rows), dtype=torch.long)
    with warnings.catch_warnings():  # torch plans to replace its quantised tensors; the kernels are the fastest it has
        warnings.simplefilter("ignore")
        weight = torch._make_per_channel_quantized_tensor(rows, scale_N.double(), zeros, 0)
        engine = torch.backends.quantized.engine
        torch.backends.quantized.engine = "fbgemm"
        try:
            packed_rows = torch.ops.quantized.linear_prepack(weight, None)
        finally:
            torch.backends.quantized.engine = engine
    kernel = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return lambda x, step: kernel(x, step, 128, packed_rows)


def _bytes(rows: torch.Tensor, scale_N: torch.Tensor) -> Matvec:
    """Both sides in 8 bits: twice as fast as `_int8` where the product is wide, and half as exact."""
    kernel = pack_bytes(rows, scale_N)

    def product(x: torch.Tensor) -> torch.Tensor:
        # The kernel has one scale for all rows of a batch: each row brings its own, so that none depends on another.
        size_B = x.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
        return kernel(x / size_B, 1 / 127) * size_B

    return product


def _no_kernel(precision: str) -> ModelError:
    return ModelError(
        f"torch {torch.__version__} has no {precision} kernel for this CPU; expected decode='float32' or 'auto' here"
    )
