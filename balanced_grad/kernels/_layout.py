"""What rows may be, what they are computed in, and in which parts."""

import torch
from torch import Tensor

BLOCK = 1 << 16  # columns of one row per step on the CPU: what a step reads again is still in the cache
MOST = 1e30  # evidence: sums and products of it stay in float32's range
LEAST = 1e-37  # floor on a variance, in units of the typical one


def wide(dtype: torch.dtype) -> torch.dtype:
    """What rows of this dtype are computed in: at least float32."""
    return dtype if dtype.itemsize >= 4 else torch.float32


def blocks(rows: Tensor, width: int = BLOCK) -> list[slice]:
    """The columns in cache-sized parts on the CPU, all at once elsewhere."""
    size = rows.shape[-1]
    width = width if rows.is_cpu else max(size, 1)
    return [slice(start, min(start + width, size)) for start in range(0, size, width)]


def check_rows(rows: Tensor) -> None:
    """Raises for what is no ``(M, D)`` tensor of real floating point numbers with a row."""
    if type(rows).__name__ == "DTensor":  # by name: its module is not imported for those who have none
        raise TypeError("rows are a DTensor; give the columns of this process, rows.to_local(), and add up the results")
    if rows.dim() != 2 or rows.shape[0] == 0:
        raise ValueError(f"rows have shape {tuple(rows.shape)}; give (M, D), one gradient per row, M >= 1")
    if not rows.is_floating_point():
        raise TypeError(
            f"rows are {rows.dtype}; give real floating point numbers (torch.view_as_real for complex ones)"
        )
