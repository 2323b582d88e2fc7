import math
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

from balanced_grad.checks import described
from balanced_grad.modulation import ModalityGroups

Rate = float | Callable[[int], Any]  # of the step, to a number or to another function of the step


class Rates:
    """Modality -> its learning rate relative to the optimizer's: numbers, or functions of the steps made so far."""

    def __init__(self, rates: Mapping[str, Rate] | None, modalities: ModalityGroups | None) -> None:
        rates = {} if rates is None else rates
        if not isinstance(rates, Mapping):
            raise TypeError(f"rates is {described(rates)}; give a mapping of modality -> rate, e.g. {{'audio': 2.0}}")
        if rates and modalities is None:
            names = ", ".join(f"{name!r}: model.{name}_encoder" for name in rates)
            raise ValueError(f"rates={{...}} needs to know whose parameters are meant: write modalities={{{names}}}")
        for name, rate in rates.items():
            if modalities is not None and name not in modalities.names:
                raise ValueError(f"rates has {name!r}, which is no modality; known are {list(modalities.names)}")
            if not callable(rate):
                _checked(name, rate)
        self.by_name = dict(rates)
        self.steps = 0

    def now(self) -> dict[str, float]:
        """Those of the step that is about to be made."""
        return {name: _checked(name, _at(rate, self.steps)) for name, rate in self.by_name.items()}


def warm_up(steps: int, start: Rate = 0.0, end: Rate = 1.0) -> Callable[[int], float]:
    """A rate that grows from ``start`` to ``end`` in equal parts, for ``rates=`` of a ``BalancedOptimizer``.

        r(t) = start + (end - start) (t + 1) / steps   for t < steps, then end

    with ``t`` the optimizer steps made so far: the first step is not lost, and the ``steps``-th is made at ``end``.

    Args:
        steps: optimizer steps, 1 or more.
        start: what the rate starts from. Default 0.
        end: what it is afterwards: a number, or a schedule of its own. Default 1, the optimizer's own rate.

    Raises:
        ValueError: for ``steps`` below 1, or no whole number.

    Source: Goyal et al., "Accurate, Large Minibatch SGD" (2017), there for all parameters alike.

    Examples:
        >>> import balanced_grad as bg
        >>> rate = bg.warm_up(4)
        >>> [rate(step) for step in range(6)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """
    if not (hasattr(steps, "__index__") and steps >= 1):
        raise ValueError(f"steps={steps!r}: give a whole number of optimizer steps, 1 or more")
    return partial(_warm_up, steps, start, end)


def freeze(*, until: int = 0, after: int | None = None, rate: Rate = 1.0) -> Callable[[int], float]:
    """A rate of 0 in the first steps, or from some step on, for ``rates=`` of a ``BalancedOptimizer``.

        r(t) = rate(t)   for until ≤ t < after, else 0

    with ``t`` the optimizer steps made so far. Frozen parameters stay bit by bit, but their gradients are computed
    and the optimizer's moments of them go on, as in a parameter group with ``lr=0``.

    Args:
        until: number of first steps without the modality. Default 0.
        after: number of steps after which it stays as it is. Default None: never.
        rate: what it is in between: a number, or a schedule. Default 1.

    Raises:
        ValueError: for numbers that are not whole, negative, or leave no step; for neither.

    Examples:
        >>> import balanced_grad as bg
        >>> rate = bg.freeze(until=2, after=5, rate=bg.warm_up(4))
        >>> [rate(step) for step in range(7)]
        [0.0, 0.0, 0.75, 1.0, 1.0, 0.0, 0.0]
    """
    whole = all(hasattr(step, "__index__") and step >= 0 for step in (until, 0 if after is None else after))
    if not whole or (after is None and until == 0) or (after is not None and after <= until):
        raise ValueError(f"until={until!r}, after={after!r}: give whole numbers of steps, until < after, at least one")
    return partial(_freeze, until, after, rate)


def _warm_up(steps: int, start: Rate, end: Rate, step: int) -> float:
    last = _at(end, step)
    return last if step + 1 >= steps else _at(start, step) + (last - _at(start, step)) * (step + 1) / steps


def _freeze(until: int, after: int | None, rate: Rate, step: int) -> float:
    return 0.0 if step < until or (after is not None and step >= after) else _at(rate, step)


def _at(rate: Rate, step: int) -> float:
    while callable(rate):
        rate = rate(step)
    return rate


def _checked(name: str, rate: object) -> float:
    if not isinstance(rate, Real):
        raise TypeError(f"the rate of {name!r} is {described(rate)}; give a number, or a function of the step to one")
    number = float(rate)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"the rate of {name!r} is {number}; give a finite number, 0 (frozen) or more")
    return number
