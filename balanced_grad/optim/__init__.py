"""Around the optimizer: which parameters belong to which modality, and a wrapper that keeps the balancer's state."""

from balanced_grad.moved import moved
from balanced_grad.optim._activity import ActivityWatch
from balanced_grad.optim._rates import Rate, freeze, warm_up
from balanced_grad.optim._scale_invariance import is_scale_invariant
from balanced_grad.optim._wrapper import BalancedOptimizer

__all__ = ["ActivityWatch", "BalancedOptimizer", "Rate", "freeze", "is_scale_invariant", "warm_up"]

__getattr__ = moved(__name__, {"ModalityGroups": "balanced_grad.modulation"})
