"""What a balancer asks of the ways by which gradients are taken and delivered."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from balanced_grad.records import Problem


class Route(Protocol):
    """One batch's way from the losses to ``.grad``, chosen in ``forward`` and gone in ``backward``."""

    @property
    def through(self) -> tuple[Tensor, ...]:
        """What the scalar keeps an ordinary edge to, for wrappers that look through it."""

    @property
    def left_out(self) -> str | None:
        """What to say of parameters that get no gradient; None if all do."""


class Capture(Route, Protocol):
    """A route on which a method sees the gradients of each loss before it weighs them."""

    @property
    def problems(self) -> tuple[str, ...]:
        """The label of each problem."""

    @property
    def batches(self) -> int:
        """How many batches the gradients are sums of."""

    def run(self, scale: Tensor) -> None:
        """Take the gradients of every loss, each seeded with ``scale``."""

    def losses(self) -> tuple[tuple[str, ...], Tensor]:
        """Names and ``(K,)`` values after ``run``: of all processes and of all batches."""

    def gramian(self, *, exclusive: bool = False) -> Tensor:
        """``(..., K, K)`` inner products, of each problem."""

    def reach(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the losses that take part in each problem."""

    def write(self, weights: Tensor) -> Sequence[Tensor] | None:
        """Accumulate the weighted gradients into ``.grad``; or what the backward goes on with."""


class Balancing(NamedTuple):
    """A route, and what ``backward()`` does on it with the losses' values, weights (None: not chosen yet) and scale."""

    route: Route
    backward: Callable[[Problem, Tensor | None, Tensor], Sequence[Tensor] | None]
