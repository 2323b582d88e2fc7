"""The min-norm subproblem: pure functions of a Gramian."""

from balanced_grad.solvers._dispatch import min_norm
from balanced_grad.solvers._result import MinNormResult, Status

__all__ = ["MinNormResult", "Status", "min_norm"]
