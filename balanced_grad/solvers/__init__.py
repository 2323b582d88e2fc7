"""The min-norm subproblem: the shortest vector in the convex hull of M gradients, given their Gramian.

Pure functions of tensors: nothing here knows of modules, losses or optimizers. Importing this package imports neither
scipy nor cvxpy.
"""

from balanced_grad.solvers._dispatch import min_norm
from balanced_grad.solvers._result import MinNormResult, Status

__all__ = ["MinNormResult", "Status", "min_norm"]
