# mypy: disable-error-code="untyped-decorator,no-untyped-def"
# ruff: noqa: ANN001, ANN202
"""What all launches share: alignment, block sizes, and the choice among them."""

import os
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_TYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


class Config(NamedTuple):
    """Columns per tile, and warps that work on it."""

    block: int
    warps: int


@triton.jit
def finite(x):
    """Where ``x`` is finite."""
    return tl.abs(x) < float("inf")


_chosen: dict[Hashable, Config] = {}


def tuned(key: Hashable, count: int, on_scratch: Callable[[], Callable[[Config], object]]) -> Config:
    """The fastest tile for this kind of launch, measured once per process with what ``on_scratch`` gives.

    ``count`` is the number of rows in a tile. While a CUDA graph is captured, and in the interpreter, nothing can be
    measured: the first candidate is taken, and not kept.
    """
    candidates = [Config(b, w) for b, w in ((512, 4), (1024, 4), (2048, 4), (2048, 8), (256, 4), (128, 4))]
    fitting = [c for c in candidates if c.block * count <= 4096 * c.warps] or candidates[-1:]
    if INTERPRETED or torch.cuda.is_current_stream_capturing():
        return fitting[0]
    if key not in _chosen:
        launch = on_scratch()
        _chosen[key] = min(fitting, key=lambda c: triton.testing.do_bench(lambda: launch(c), warmup=2, rep=10))
    return _chosen[key]


def vector(bounds: tuple[int, ...], *tensors: Tensor | None) -> int:
    """4 where every row and every bound is a multiple of 4 numbers, so that loads may be vectors; else 1."""
    numbers = [*bounds, *(t.stride(0) for t in tensors if t is not None and t.dim() == 2)]
    return 4 if all(n % 4 == 0 for n in numbers) else 1


def element(dtype: torch.dtype) -> tl.dtype:
    """The Triton dtype to compute in."""
    return _TYPES.get(dtype, tl.float32)


def dense(rows: Tensor) -> Tensor:
    """Rows whose columns lie side by side: a copy if they do not."""
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def probe(device: torch.device) -> None:
    """Run one small kernel of each file and compare: raises where Triton does not work."""
    from balanced_grad.kernels._triton import combine, gramian

    rows = torch.arange(6.0, device=device).view(2, 3)
    out = torch.empty(3, device=device)
    combine(rows, torch.ones(2, device=device), out, (0, 3))
    found = gramian(rows, (0, 3))[0]
    expected = rows.double() @ rows.double().T
    if not (torch.equal(out.cpu(), rows.sum(0).cpu()) and torch.equal(found.cpu(), expected.cpu())):
        raise RuntimeError("a first kernel gave a wrong result")
