from typing import ClassVar

from torch import Tensor

from balanced_grad.balancer import Balancer
from balanced_grad.integrations._values import log_values
from balanced_grad.optim import ActivityWatch


class BalancerLog:
    """What every logger of a balancer has: whose values, under which names, and a word where it is passed by.

    Args:
        balancer: whose last step is logged.
        prefix: of every name. Default ``"balance/"``.
    """

    cure: ClassVar[str] = "give the logger the very balancer that is called, and call it after the first step"

    def __init__(self, balancer: Balancer, prefix: str = "balance/") -> None:
        self.balancer = balancer
        self.prefix = prefix
        self._activity = ActivityWatch(balancer, self.cure, at_once=True)

    def values(self, *, pairs: bool = False) -> dict[str, Tensor]:
        """``log_values`` of the last step: tensors that nothing has waited for."""
        return log_values(self.balancer.last, self.prefix, pairs=pairs)
