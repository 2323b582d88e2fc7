"""Around the optimizer: which parameters belong to which modality, and a wrapper that keeps the balancer's state."""

from balanced_grad.optim._groups import ModalityGroups
from balanced_grad.optim._scale_invariance import is_scale_invariant
from balanced_grad.optim._wrapper import BalancedOptimizer

__all__ = ["BalancedOptimizer", "ModalityGroups", "is_scale_invariant"]
