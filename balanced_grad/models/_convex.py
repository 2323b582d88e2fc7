"""Minima of smooth convex functions over the non-negative numbers, which are checked before they are believed.

What is asked of a minimum has no unit: Newton's model of the function, or the bracket, says how many nats it can still
go down at most, and that does not change when an exponent is measured in another unit.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_AIM = 1e-13  # nats above the minimum at which to stop
_ENOUGH = 1e-8  # nats above the minimum beyond which the answer is refused
_FLAT = 1e-8  # of a curvature of one: less is the rounding of outputs in float32, some of which are sums of others
_STEPS = 100
_WIDER = 8.0  # factor by which to look for the other end of a bracket


class Model(NamedTuple):
    """A function near a point: its value, slope ``(E,)`` and curvature ``(E, E)``."""

    value: float
    slope: Tensor
    curvature: Tensor


Function = Callable[[Tensor], Model]


def minimise(function: Function, start: Tensor) -> Tensor:
    """Minimiser ``(E,)``, by projected Newton steps, and one coordinate after the other where they do not descend.

    Raises:
        RuntimeError: where the conditions of a minimum do not hold at the end.
    """
    point, near = start, function(start)
    for _ in range(_STEPS):
        step, left, along = _newton(point, near.slope, near.curvature)
        if left <= _AIM and along <= _ENOUGH:
            return (point + step).clamp_min(0) if left == along == 0 else point
        lower = _descended(function, point, step, near)
        if lower is not None:
            point, near = lower
        elif left + along <= _ENOUGH:  # all that rounding allows
            return point
        else:
            point = _by_coordinates(function, point)
            near = function(point)
    raise RuntimeError(_failure(point.tolist(), left + along))


def minimise_scalar(function: Function, start: float) -> float:
    """Minimiser of a function of ``()``; where it is constant, ``start``.

    Raises:
        RuntimeError: where there is none in reach.
    """
    found, left = _bracketed(function, start)
    if not left <= _ENOUGH:
        raise RuntimeError(_failure(found, left))
    return found


def _failure(point: object, left: float) -> str:
    return (
        f"the fit of the exponents did not reach a minimum: {left:.2g} nats are left at {point}; look for outputs of "
        "extreme size, or experts that leave no error at all, among the validation items"
    )


def _newton(point: Tensor, slope: Tensor, curvature: Tensor) -> tuple[Tensor, float, float]:
    """Newton's step on the free coordinates, to zero on those that push against it, and the nats it promises.

    Apart from those along the ways in which the function is flat: there a step of ours is short.
    """
    # A convex function gains no more by going to zero, and Newton's step along the coordinate goes there.
    blocked = (slope >= 0) & (point * slope <= _AIM) & (point * curvature.diagonal() <= slope)
    scale = torch.where(blocked, 0.0, curvature.diagonal().rsqrt())
    matrix = scale[:, None] * curvature * scale
    if not matrix.isfinite().all():
        return torch.where(blocked, -point, 0.0), math.inf, 0.0
    bends, ways = torch.linalg.eigh(matrix)
    roots = bends.clamp_min(_FLAT).sqrt()
    solved = (ways.T @ (scale * slope)) / roots
    step = torch.where(blocked, -point, -scale * (ways @ (solved / roots)))
    nats, flat = 0.5 * solved.square(), bends < _FLAT
    return step, float(nats[~flat].sum()), float(nats[flat].sum())


def _descended(function: Function, point: Tensor, step: Tensor, near: Model) -> tuple[Tensor, Model] | None:
    """A point along the projected step that is lower by a share of what the slope promises, and the model there."""
    for halvings in range(40):
        candidate = (point + 0.5**halvings * step).clamp_min(0)
        promised = float(near.slope @ (candidate - point))
        if promised < 0 and (there := function(candidate)).value <= near.value + 1e-4 * promised:
            return candidate, there
    return None


def _by_coordinates(function: Function, point: Tensor) -> Tensor:
    for index in range(len(point)):
        before, after = point[:index], point[index + 1 :]

        def along(x: Tensor, i: int = index, before: Tensor = before, after: Tensor = after) -> Model:
            value, slope, curvature = function(torch.cat([before, x[None], after]))
            return Model(value, slope[i], curvature[i, i])

        found, _ = _bracketed(along, float(point[index]))
        point = torch.cat([before, point.new_tensor([found]), after])
    return point


def _bracketed(function: Function, start: float) -> tuple[float, float]:
    """A zero of the slope, by Newton's steps inside a bracket that is halved in log w otherwise; and the nats left."""

    def look(x: float) -> tuple[float, float]:
        _, slope, curvature = function(torch.tensor(x, dtype=torch.double, device="cpu"))
        return float(slope), float(curvature)

    slope, bend = look(0.0)
    if slope >= 0:  # NaN where the function has no value at 0
        return (start if slope == bend == 0 else 0.0), 0.0
    guess = -slope / bend if bend > 0 else math.nan  # Newton's from zero, which knows the unit
    point = guess if 0 < guess < math.inf else start or 1.0
    low, high, left = 0.0, math.inf, math.inf
    for _ in range(400):
        slope, bend = look(point)
        low, high = (point, high) if slope < 0 else (low, point)
        newton = 0.5 * slope * slope / bend if bend > 0 else math.inf
        left = min(newton, abs(slope) * (high - low))
        if left <= _AIM:
            break
        point = point - slope / bend if bend > 0 else high
        if not low < point < high:
            point = high / _WIDER if low == 0 else _WIDER * low if high == math.inf else (low * high) ** 0.5
            if not low < point < high:  # adjacent numbers
                break
    return point, left
