"""The greedy token without reading the whole output layer: a shortlist from an 8-bit copy, decided by the weights themselves.

The output layer of a small LLM with a large vocabulary is most of what a step of decoding reads: 671 of the 1070 MB of
Gemma 3 270M. A copy w~ of its rows w, and a hidden state rounded to h~, give each logit up to a known error (rows v):

    |h.w_v - h~.w~_v|  <=  |h~| |w_v - w~_v|  +  |h - h~| |w_v|                                    (Cauchy-Schwarz)

to which a float32 sum of K products, in any order, adds at most g |h| |w_v| with g = K u / (1 - K u), u = 2^-24 (Higham,
Accuracy and Stability of Numerical Algorithms, 3.1). The row norms are taken in float64 when the copy is made. Rows whose
upper bound reaches the largest lower bound are the shortlist; no other row can be the argmax of the plain float32 product.
The shortlist is computed in float64. Where its winner leads by more than float32 sums may be off, it is the plain
product's argmax, whatever order that sums in; where it does not (equal rows, say), the plain product itself is computed.
So the token is the plain one always, and not nearly always.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch

from aura.errors import ModelError
from aura.inference.matvec import multiplies_bytes, pack_bytes, packed

LIMIT = 4096  # rows of a shortlist, beyond which the whole product is computed: 1.6 % of Gemma's. Our choice
MIN_ROWS = 32_768  # of an output layer that is worth a copy. Our choice
WAIT = 96  # plain products in front of the copy: about what making it costs. Our choice
BLOCK = 512  # logits; our choice
FINE = 254  # fine steps of a hidden state in a coarse one: half a coarse step is 127 of them
CHUNK = 4096  # rows copied at once; our choice
U = 2.0**-24  # unit roundoff of float32
LEAST = 1e-12  # of a row's norm and of a hidden state's largest number: keeps underflow below the bound
MOST = 1e37  # of |h| |w|: keeps overflow out

Kind = Literal["int8", "float16"]


class ScreenedArgmax:
    """Greedy tokens of one output layer, on CPU in float32.

    One object serves all sessions of an engine, from any thread. Its copy takes a byte a weight (int8, where the CPU
    multiplies bytes: 171 MB for Gemma 3 270M) or two (float16: 338 MB), norms included, besides the weights, and up to
    four times that while it is made. That takes seconds and happens once, in `prepare` or when `WAIT` products have been
    computed without: a single short answer does not pay for it.

    Args:
        weight: (V, K) float32, which stays as it is.
        full: (B, K) -> (B, V), the plain product, with the family's scaling or capping.
        cap: of the family's `final_logit_softcapping`: tanh rounds different logits to equal ones.
        kind: of the copy.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        full: Callable[[torch.Tensor], torch.Tensor],
        *,
        cap: float | None = None,
        kind: Kind = "int8",
    ) -> None:
        self._weight, self._full, self._cap, self._kind = weight.detach(), full, cap, kind
        terms = weight.shape[1] + 16  # the sum's, and the roundings of scales and bounds
        self._gamma = terms * U / (1 - terms * U)
        self._copy: _Copy | None = None
        self._sizes_2V = torch.empty(2, 0)  # |w - w~| and |w| of each row, no smaller than they are
        self._most_2 = torch.empty(2)  # the largest of each
        self._largest = 0.0
        self._tried = False
        self._lock = threading.Lock()
        self.plain = 0  # calls that computed the whole product
        self.screened = 0  # calls that did not
        self.shortlisted = 0  # rows on their shortlists, in all

    @property
    def nbytes(self) -> int:
        """Of the copy, which one call reads; 0 before it is made."""
        return 0 if self._copy is None else self._copy.nbytes + self._sizes_2V.nbytes

    def prepare(self) -> None:
        """Make the copy now, if it can be made: weights that are infinite or NaN, or too large for float16, have none."""
        with self._lock:
            if not self._tried:
                self._make()
            self._tried = True

    def __call__(self, hidden_BK: torch.Tensor) -> torch.Tensor:
        """Final hidden states -> token ids (B,), those of `full(hidden_BK).argmax(-1)`."""
        token_B = self._screen(hidden_BK) if self._is_ready(hidden_BK) else None
        if token_B is None:
            self.plain += 1
            return first_largest(self._full(hidden_BK))
        self.screened += 1
        return token_B

    def _is_ready(self, hidden_BK: torch.Tensor) -> bool:
        if hidden_BK.dtype != torch.float32 or hidden_BK.device.type != "cpu":  # the model was moved since
            return False
        if not self._tried and self.plain >= WAIT:
            self.prepare()
        return self._copy is not None

    def _make(self) -> None:
        try:
            copy: _Copy = _Bytes(self._weight) if self._kind == "int8" else _Halves(self._weight)
        except ModelError:
            return
        norm_V = _row_norms(self._weight, lambda chunk, out: out.copy_(self._weight[chunk]))
        sizes_2V = torch.stack([copy.error_V, norm_V.clamp_(min=LEAST)])
        self._largest = float(sizes_2V.sum(dim=0).max())
        if self._largest < MOST:  # and not NaN
            self._sizes_2V = (sizes_2V * (1 + 4 * U)).float()
            self._most_2 = self._sizes_2V.amax(dim=1)
            self._copy = copy  # last: another thread may look

    def _screen(self, hidden_BK: torch.Tensor) -> torch.Tensor | None:
        """The tokens, or None where the bounds do not decide all of them."""
        exact_BK = hidden_BK.double()
        norm_B = exact_BK.norm(dim=1)
        if not (bool((hidden_BK.abs().amax(dim=1) > LEAST).all()) and float(norm_B.max()) * self._largest < MOST):
            return None  # zero, infinite, NaN
        logits_BV, factors_B2, unit_B = self._rough(hidden_BK, exact_BK, norm_B)
        best_B = first_largest(logits_BV)
        least_B = logits_BV.gather(1, best_B[:, None])[:, 0] - (factors_B2 * self._sizes_2V[:, best_B].T).sum(dim=1)
        # First with the largest margin of all rows, which is one pass over them; what is left, with its own.
        at_n = self._reaching(logits_BV, least_B, factors_B2, unit_B)
        if at_n is None:
            return None
        row_n, token_n = at_n
        logit_n = logits_BV[row_n, token_n]
        margin_n = (factors_B2[row_n] * self._sizes_2V[:, token_n].T).sum(dim=1)
        least_B = self._uncapped(least_B.scatter_reduce(0, row_n, logit_n - margin_n, "amax"), unit_B)
        is_near_n = logit_n + margin_n >= least_B[row_n]
        row_n, token_n = row_n[is_near_n], token_n[is_near_n]
        if len(row_n) > LIMIT:
            return None
        self.shortlisted += len(row_n)
        if len(row_n) == len(hidden_BK):  # one each
            return token_n
        return self._decide(exact_BK, row_n, token_n)

    def _reaching(
        self, logits_BV: torch.Tensor, least_B: torch.Tensor, factors_B2: torch.Tensor, unit_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Rows and tokens whose logits, with the largest margin there is, reach the lower bounds; None if those are not finite."""
        least_B = self._uncapped(least_B, unit_B)
        margin_B = (factors_B2 * self._most_2).sum(dim=1)
        from_B = least_B - margin_B - 8 * U * (least_B.abs() + margin_B)  # its own roundings
        if not bool(from_B.isfinite().all()):
            return None
        return (logits_BV >= from_B[:, None]).nonzero(as_tuple=True)  # type: ignore[return-value]

    def _uncapped(self, least_B: torch.Tensor, unit_B: torch.Tensor) -> torch.Tensor:
        """The lower bounds, lowered to what capping may make equal to them."""
        return least_B if self._cap is None else _below_cap(least_B.double() * unit_B, self._cap).div(unit_B).float()

    def _rough(
        self, hidden_BK: torch.Tensor, exact_BK: torch.Tensor, norm_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rough logits (B, V) and factors (B, 2) of the rows' sizes, which say how far off they may be, in units of (B,)."""
        assert self._copy is not None
        logits_BV, unit_B, near_B, miss_B = self._copy(hidden_BK, exact_BK, norm_B)
        # The last factor holds the roundings of the bound itself.
        off_B = (miss_B + self._gamma * (norm_B + near_B)) / unit_B
        factors_B2 = torch.stack([near_B / unit_B, off_B], dim=1) * (1 + 2 * self._gamma)
        return logits_BV, factors_B2.float(), unit_B

    def _decide(self, exact_BK: torch.Tensor, row_n: torch.Tensor, token_n: torch.Tensor) -> torch.Tensor | None:
        products_nK = self._weight[token_n].double() * exact_BK[row_n]
        logit_n, slack_n = products_nK.sum(dim=1), self._gamma * products_nK.abs().sum(dim=1)
        low_n, high_n = logit_n - slack_n, logit_n + slack_n
        if self._cap is not None:
            low_n, high_n = (self._cap * torch.tanh(x / self._cap) for x in (low_n, high_n))
            high_n = high_n + 2 * _cap_slack(self._cap)
        found = []
        for row in range(len(exact_BK)):
            at = (row_n == row).nonzero()[:, 0]
            best = int(at[low_n[at].argmax()])
            if bool((high_n[at[at != best]] >= low_n[best]).any()):
                return None
            found.append(token_n[best])
        return torch.stack(found)


class _Copy(Protocol):
    error_V: torch.Tensor
    """|w - w~| in float64."""
    nbytes: int

    def __call__(
        self, hidden_BK: torch.Tensor, exact_BK: torch.Tensor, norm_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """h~.w~ (B, V) float32 in units of: unit (B,); then |h~| and |h - h~|, all float64."""


class _Bytes:
    """8 bits with a scale for each row; two times 8 for a hidden state, which read the rows once. The sums are exact."""

    def __init__(self, weight: torch.Tensor) -> None:
        rows, scale_V = torch.empty(weight.shape, dtype=torch.int8), torch.empty(len(weight))
        steps = torch.empty(min(CHUNK, len(weight)), weight.shape[1])
        for first in range(0, len(weight), CHUNK):
            chunk = slice(first, first + CHUNK)
            part = weight[chunk]
            torch.clamp(torch.linalg.vector_norm(part, math.inf, dim=1) / 127, min=1e-30, out=scale_V[chunk])
            rows[chunk] = torch.div(part, scale_V[chunk, None], out=steps[: len(part)]).round_().clamp_(-127, 127)

        def write_errors(chunk: slice, out: torch.Tensor) -> None:
            torch.mul(rows[chunk], scale_V[chunk, None].double(), out=out)
            out.sub_(weight[chunk])

        self.error_V = _row_norms(weight, write_errors)
        self._product = pack_bytes(rows, scale_V)
        self.nbytes = rows.nbytes + scale_V.nbytes

    def __call__(
        self, hidden_BK: torch.Tensor, exact_BK: torch.Tensor, norm_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        unit_B = exact_BK.abs().amax(dim=1) / 127
        steps_BK = exact_BK / unit_B[:, None]
        coarse_BK = steps_BK.round()
        fine_BK = ((steps_BK - coarse_BK) * FINE).round_()
        sums = self._product(torch.cat([coarse_BK, fine_BK]).float(), 1.0)
        logits_BV = sums[: len(unit_B)].add_(sums[len(unit_B) :], alpha=1 / FINE)
        near_BK = (coarse_BK + fine_BK / FINE) * unit_B[:, None]
        return logits_BV, unit_B, near_BK.norm(dim=1), (exact_BK - near_BK).norm(dim=1)


class _Halves:
    """11 bits, the hidden state as it is, sums in float32."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._product = packed(weight, None, "float16")
        # The kernel's packing rounds as `half` does.
        self.error_V = _row_norms(weight, lambda chunk, out: out.copy_(weight[chunk].half()).sub_(weight[chunk]))
        self.nbytes = 2 * weight.numel()

    def __call__(
        self, hidden_BK: torch.Tensor, exact_BK: torch.Tensor, norm_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        return self._product(hidden_BK), torch.ones_like(norm_B), norm_B, torch.zeros_like(norm_B)


def _row_norms(weight: torch.Tensor, write: Callable[[slice, torch.Tensor], Any]) -> torch.Tensor:
    """Norms (V,) in float64 of what `write` puts into the buffer for each chunk of rows.

    One buffer for all of them: of one each, glibc kept more than the weights' own size to itself.
    """
    norm_V = torch.empty(len(weight), dtype=torch.float64)
    buffer = torch.empty(min(CHUNK, len(weight)), weight.shape[1], dtype=torch.float64)
    for first in range(0, len(weight), CHUNK):
        chunk = slice(first, min(first + CHUNK, len(weight)))
        part = buffer[: chunk.stop - first]
        write(chunk, part)
        torch.linalg.vector_norm(part, dim=1, out=norm_V[chunk])
    return norm_V


def open_screen(model: Any) -> ScreenedArgmax | None:
    """The screened argmax of an aura model's output layer; None where it would not be exact, or not pay.

    That is: not on CPU in float32, an output layer that is small or no plain `nn.Linear` (one that carries LoRA, or a bias), or
    a CPU for which torch has no kernel.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or head.bias is not None or head.out_features < MIN_ROWS:
        return None
    if head.weight.dtype != torch.float32 or head.weight.device.type != "cpu":
        return None
    kind = _kind()
    if kind is None:
        return None
    cap = getattr(model.language_model.config, "final_logit_softcapping", None)
    return ScreenedArgmax(head.weight, model.logits, cap=cap, kind=kind)


def first_largest(logits_BV: torch.Tensor) -> torch.Tensor:
    """`argmax` over the last dimension; of 262k logits in a twentieth of its time, which was 6 % of an int8 step."""
    batch, size = logits_BV.shape
    if size % BLOCK or size < 2 * BLOCK:
        return logits_BV.argmax(dim=-1)
    blocks = logits_BV.view(batch, -1, BLOCK)
    block_B = blocks.amax(dim=-1).argmax(dim=-1)
    return block_B * BLOCK + blocks[torch.arange(batch), block_B].argmax(dim=-1)


def _kind() -> Kind | None:
    if multiplies_bytes():
        return "int8"
    try:
        packed(torch.ones(2, 16), None, "float16")(torch.ones(1, 16))
    except (ModelError, RuntimeError):
        return None
    return "float16"


def _cap_slack(cap: float) -> float:
    """How far float32 may be off in cap * tanh(x / cap), besides the rounding of x / cap: a few units of the last place."""
    return 8 * U * cap


def _below_cap(logit_B: torch.Tensor, cap: float) -> torch.Tensor:
    """Logits, in float64, that capping may round to the same number as these or to a larger one."""
    return cap * torch.atanh(torch.tanh(logit_B / cap) - 2 * _cap_slack(cap) / cap)
