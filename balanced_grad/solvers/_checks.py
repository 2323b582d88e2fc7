"""What the user wrote, checked; every error names it and says what to write instead."""

import torch
from torch import Tensor

from balanced_grad.solvers._faces import MAX_ROWS

METHODS = ("auto", "closed", "faces", "active_set", "cvxpy", "scipy")
MOST_ROWS = {"closed": 3, "faces": MAX_ROWS}


def check_gramian(gramian: Tensor, method: str) -> None:
    """Shape, dtype and method."""
    if not isinstance(gramian, Tensor):
        raise TypeError(f"gramian is a {type(gramian).__name__}: pass a tensor of shape (..., M, M)")
    shape = tuple(gramian.shape)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise ValueError(f"gramian has shape {shape}: pass (..., M, M) with M >= 1, for rows J that is J @ J.mT")
    if not gramian.is_floating_point():
        raise ValueError(f"gramian has dtype {gramian.dtype}: pass a real floating one, for example gramian.double()")
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: choose one of {', '.join(map(repr, METHODS))}")
    if shape[-1] > MOST_ROWS.get(method, shape[-1]):
        raise ValueError(
            f"method={method!r} takes at most {MOST_ROWS[method]} rows and gramian has {shape[-1]}: "
            "choose 'auto' or 'active_set'"
        )


def check_active(active: Tensor, gramian: Tensor) -> Tensor:
    """`active` as a mask of the Gramian's rows, `(..., M)`, on its device."""
    if not isinstance(active, Tensor) or active.dtype is not torch.bool:
        kind = active.dtype if isinstance(active, Tensor) else type(active).__name__
        raise TypeError(f"active is {kind}: pass a bool tensor of shape (..., M), True for rows in the problem")
    wanted = gramian.shape[:-1]
    try:
        return active if active.shape == wanted else active.expand(wanted)
    except RuntimeError:
        raise ValueError(
            f"active has shape {tuple(active.shape)}: it must broadcast to {tuple(wanted)}, gramian.shape[:-1]"
        ) from None
