"""Which implementation of a pass runs: chosen by name, or by the device."""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from balanced_grad.caching import cached
from balanced_grad.choices import check_choice

Implementation = Literal["auto", "reference", "compiled", "triton"]
"""What runs behind the name of a pass: see [Kernels](kernels.md#choosing-an-implementation)."""


def choose(implementation: str, rows: Tensor) -> str:
    """``"reference"``, ``"compiled"`` or ``"triton"``.

    Raises:
        ValueError: for an unknown name.
        RuntimeError: for ``"triton"`` where it cannot run.
    """
    if implementation == "auto":
        return "triton" if rows.is_cuda and triton_works(rows.device) else "reference"
    check_choice("implementation", implementation, Implementation)
    if implementation == "triton":
        _require_triton(rows)
    return implementation


@cached(maxsize=None)
def triton_works(device: torch.device) -> bool:
    """Whether a first small kernel gives the right answer on this device; one warning if not."""
    try:
        from balanced_grad.kernels._triton import probe

        probe(device)
    except torch.OutOfMemoryError:
        raise  # says nothing about Triton, and is not cached
    except Exception as error:  # a broken installation fails in ways of its own
        warnings.warn(
            f"Triton does not work on {device} ({type(error).__name__}: {error}); the kernels run in plain PyTorch, "
            "slower. Install the triton of your PyTorch, or pass implementation='reference' to silence this.",
            RuntimeWarning,
            stacklevel=6,
        )
        return False
    return True


def _require_triton(rows: Tensor) -> None:
    if not (rows.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"):
        raise RuntimeError(
            f"implementation='triton' needs CUDA tensors, and the rows are on {rows.device}; "
            "write implementation='reference', 'compiled' or 'auto'"
        )
    try:
        import balanced_grad.kernels._triton  # noqa: F401
    except ImportError as error:
        raise RuntimeError(
            "implementation='triton' needs the package triton, which cannot be imported here; "
            "pip install triton, or write implementation='auto'"
        ) from error


def plain(rows: Tensor) -> AbstractContextManager[None]:
    """Neither autograd nor autocast: gradients are numbers here, and no number is rounded on the way."""
    kind = rows.device.type
    if not torch.is_grad_enabled() and not torch.is_autocast_enabled(kind):
        return nullcontext()  # as inside of a backward, several times in each step
    return _switched_off(kind)


@contextmanager
def _switched_off(kind: str) -> Iterator[None]:
    with torch.no_grad(), torch.autocast(kind, enabled=False):
        yield
