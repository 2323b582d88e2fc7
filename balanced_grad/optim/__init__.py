"""Around the optimizer: which parameters belong to which modality, and a wrapper that keeps the balancer's state."""

from balanced_grad.optim._activity import ActivityWatch
from balanced_grad.optim._groups import ModalityGroups
from balanced_grad.optim._scale_invariance import is_scale_invariant
from balanced_grad.optim._wrapper import BalancedOptimizer

__all__ = ["ActivityWatch", "BalancedOptimizer", "ModalityGroups", "is_scale_invariant"]
