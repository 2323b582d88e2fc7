"""What the two passes per dimension share: rows as lists, run in cache-sized blocks or compiled on whole rows.

The functions that run so avoid comparisons and ``where``: on a CPU they take ten times as long as arithmetic.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from balanced_grad.kernels._compiled import compiled
from balanced_grad.kernels._layout import blocks

Rows = list[Tensor]


def by_columns(
    function: Callable[..., Any], chosen: str, streams: tuple[Tensor | None, ...], *constants: object
) -> None:
    """``function(*streams, *constants)``, its streams as lists of their rows; writes into what is among them."""
    rows, *_ = streams
    assert rows is not None
    run = function
    if chosen == "compiled":
        kind = (None if stream is None else stream.dtype for stream in streams)
        run = compiled(function, len(rows), *kind, *(constant is None for constant in constants))
    for part in blocks(rows) if chosen == "reference" else [slice(None)] * (rows.shape[1] > 0):
        run(*(_cut(stream, part) for stream in streams), *constants)


def _cut(stream: Tensor | None, part: slice) -> Rows | None:
    return None if stream is None else [row[part] for row in stream.unbind(0)]


def finite(x: Tensor, *, own: bool = True) -> Tensor:
    """``x``, and 0 where it is not finite: in the form that each way of running it makes fast. In place if ``own``."""
    if torch.compiler.is_compiling():
        return torch.where(x.abs() < torch.inf, x, 0.0)
    return torch.nan_to_num(x, 0.0, 0.0, 0.0, out=x if own else None)
