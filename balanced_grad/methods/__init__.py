"""Published methods, one file each: from losses or a Gramian to weights."""

from balanced_grad.methods._bogc import BOGC
from balanced_grad.methods._gramian import Gramian
from balanced_grad.methods._mimo import MIMO
from balanced_grad.methods._min_norm import MinNorm
from balanced_grad.methods._mmpareto import MMPareto
from balanced_grad.methods._uniform import Uniform

__all__ = ["BOGC", "MIMO", "Gramian", "MMPareto", "MinNorm", "Uniform"]
