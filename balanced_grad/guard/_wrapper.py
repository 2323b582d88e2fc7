from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from balanced_grad.balancer import Balancer
from balanced_grad.records import Problem, Weighting


def _of_inner(name: str) -> Any:
    """The attribute of the balancer inside, to read and to set."""
    return property(
        lambda self: getattr(self.balancer, name),
        lambda self, value: setattr(self.balancer, name, value),
        doc=f"``{name}`` of the balancer inside.",
    )


class Wrapper(Balancer):
    """Base of a balancer around another one: what it does not decide itself is answered by the one inside.

    That holds for all that is public in ``Balancer``, declared here, and for what a method has beside it, such as
    ``logits`` of ``AGM`` or ``modalities``; to read and to set.
    """

    needs = _of_inner("needs")
    level = _of_inner("level")
    include_exclusive = _of_inner("include_exclusive")
    record_gramian = _of_inner("record_gramian")
    last = _of_inner("last")
    processes = _of_inner("processes")
    process_group = _of_inner("process_group")
    factors = _of_inner("factors")
    notices = _of_inner("notices")
    item_weights = _of_inner("item_weights")

    balancer: Balancer

    def __init__(self) -> None:
        """A subclass sets ``balancer`` last: from then on, only attributes that it has are its own."""
        nn.Module.__init__(self)  # what a balancer has, this one takes from the one inside

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get("balancer")
            if inner is None or name.startswith("_") or not hasattr(inner, name):
                raise
            return getattr(inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        inner = self.__dict__.get("_modules", {}).get("balancer")
        mine = name.startswith("_") or name in self.__dict__ or name in self._modules or hasattr(type(self), name)
        if inner is None or mine or not hasattr(inner, name):
            super().__setattr__(name, value)
        else:
            setattr(inner, name, value)

    def forward(
        self, losses: Mapping[str, Tensor | None], features: Mapping[str, Tensor] | None = None, **options: Any
    ) -> Tensor:
        """The scalar of the balancer inside; see its ``forward``."""
        scalar: Tensor = self.balancer(losses, features, **options)
        return scalar

    def weigh(self, problem: Problem) -> Weighting:
        """Of the balancer inside."""
        return self.balancer.weigh(problem)

    def choose(self, problem: Problem) -> Weighting:
        """Of the balancer inside."""
        return self.balancer.choose(problem)

    def update_scales(self) -> Mapping[str, Tensor]:
        """Of the balancer inside."""
        return self.balancer.update_scales()

    def resolve_target(self, scale_invariant: bool) -> None:
        """Called by a ``BalancedOptimizer``."""
        self.balancer.resolve_target(scale_invariant)

    def accumulate_rows(self, on: bool) -> None:
        """Called by a ``BalancedOptimizer``."""
        self.balancer.accumulate_rows(on)

    def end_step(self) -> None:
        """Called by a ``BalancedOptimizer`` when it has stepped, or dropped the gradients."""
        self.balancer.end_step()
