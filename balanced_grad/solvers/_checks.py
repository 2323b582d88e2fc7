"""What the user wrote, checked; every error names it and says what to write instead."""

import torch
from torch import Tensor

from balanced_grad.solvers._faces import MAX_ROWS

METHODS = ("auto", "closed", "faces", "active_set", "cvxpy", "scipy")
MOST_ROWS = {"closed": 3, "faces": MAX_ROWS}
Bound = Tensor | float | None
Inequalities = tuple[Tensor, Tensor] | None
Terms = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


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
    return _expand("active", active, gramian)


def check_terms(
    gramian: Tensor, method: str, linear: Tensor | None, lower: Bound, upper: Bound, inequalities: Inequalities
) -> Terms:
    """`linear`, `lower`, `upper` `(..., M)`, and `A` `(K, M)`, `b` `(K,)`: fp64, on the host, defaults filled in."""
    if method not in ("auto", "cvxpy", "scipy"):
        raise ValueError(
            f"method={method!r} solves the plain simplex problem only: "
            "with linear, lower, upper or inequalities choose 'auto', 'cvxpy' or 'scipy'"
        )
    given = (("linear", linear, 0.0), ("lower", lower, 0.0), ("upper", upper, 1.0))
    terms = []
    for name, value, default in given:
        tensor = torch.as_tensor(default if value is None else value, dtype=torch.float64, device="cpu")
        if tensor.isnan().any() or (name == "linear" and tensor.isinf().any()):
            raise ValueError(f"{name}={value!r} is not finite: leave it out to have none")
        terms.append(_expand(name, tensor.cpu(), gramian))
    M = gramian.shape[-1]
    A, b = inequalities or (torch.zeros(0, M, device="cpu"), torch.zeros(0, device="cpu"))
    if A.dim() != 2 or A.shape[1] != M or b.shape != A.shape[:1]:
        raise ValueError(
            f"inequalities=(A, b) have shapes {tuple(A.shape)} and {tuple(b.shape)}: "
            f"A w <= b needs A (K, {M}) and b (K,)"
        )
    A, b = (x.detach().to("cpu", torch.float64) for x in (A, b))
    for name, bad in (("A", ~A.isfinite()), ("b", b.isnan())):
        if bad.any():
            raise ValueError(f"inequalities=(A, b): {name} is not finite; for no constraint leave its row out")
    A, b = A[b < torch.inf], b[b < torch.inf]  # inf: no constraint
    low, high = terms[1].clamp_min(0.0), terms[2].clamp_max(1.0)
    if (low > high).any():
        raise ValueError(f"lower={lower!r} is above upper={upper!r} for some row: weights are between both and 0..1")
    return terms[0], low, high, A, b


def _expand(name: str, tensor: Tensor, gramian: Tensor) -> Tensor:
    wanted = gramian.shape[:-1]
    if tensor.shape == wanted:
        return tensor
    try:
        return tensor.expand(wanted)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}: it must broadcast to {tuple(wanted)}, gramian.shape[:-1]"
        ) from None
