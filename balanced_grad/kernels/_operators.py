"""The per-dimension passes as operators with a schema, so that a compiled graph can hold them."""

import torch
from torch import Tensor

from balanced_grad.kernels._pass import run


def moments(
    rows: Tensor,
    mean: Tensor | None,
    variance: Tensor,
    rate: Tensor,
    new_variance: Tensor | None,
    scale: Tensor | None,
    implementation: str,
) -> None:
    run(
        rows,
        variance,
        mean=mean,
        rate=rate,
        new_variance=new_variance,
        scale=scale,
        implementation=implementation,
    )


def fuse(
    rows: Tensor,
    variance: Tensor,
    reference: Tensor,
    present: Tensor | None,
    out: Tensor,
    evidence: list[float],
    sums: bool,
    implementation: str,
) -> Tensor:
    return run(
        rows,
        variance,
        reference=reference,
        present=present,
        out=out,
        evidence=evidence,
        sums=sums,
        implementation=implementation,
    )


def step(
    rows: Tensor,
    mean: Tensor | None,
    variance: Tensor,
    rate: Tensor,
    new_variance: Tensor | None,
    scale: Tensor | None,
    reference: Tensor,
    present: Tensor | None,
    out: Tensor,
    evidence: list[float],
    sums: bool,
    implementation: str,
) -> Tensor:
    return run(
        rows,
        variance,
        mean=mean,
        rate=rate,
        new_variance=new_variance,
        scale=scale,
        reference=reference,
        present=present,
        out=out,
        evidence=evidence,
        sums=sums,
        implementation=implementation,
    )


# Schemas are written out: older releases of torch cannot read annotations such as ``Tensor | None``.
_MOVING = "Tensor(a!)? mean, Tensor(b!) variance, Tensor rate, Tensor? new_variance, Tensor? scale"
_FUSING = "Tensor reference, Tensor? present, Tensor(c!) out, float[] evidence, bool sums"
moments_operator = torch.library.custom_op(
    "balanced_grad::moments",
    mutates_args=("mean", "variance"),
    schema=f"(Tensor rows, {_MOVING}, str implementation) -> ()",
)(moments)
fuse_operator = torch.library.custom_op(
    "balanced_grad::fuse",
    mutates_args=("out",),
    schema=f"(Tensor rows, Tensor variance, {_FUSING}, str implementation) -> Tensor",
)(fuse)
step_operator = torch.library.custom_op(
    "balanced_grad::step",
    mutates_args=("mean", "variance", "out"),
    schema=f"(Tensor rows, {_MOVING}, {_FUSING}, str implementation) -> Tensor",
)(step)


@moments_operator.register_fake
def _(*_: object) -> None:
    return None


def _no_sums_or_all(rows: Tensor, *others: object) -> Tensor:
    sums = others[-2]
    return rows.new_empty(2 * len(rows) + 1 if sums else 0, dtype=torch.float64)


fuse_operator.register_fake(_no_sums_or_all)
step_operator.register_fake(_no_sums_or_all)
