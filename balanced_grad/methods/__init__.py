"""Methods that implement ``weigh``, one file each: from losses or a Gramian to weights."""

from balanced_grad.methods._alternate import Alternate
from balanced_grad.methods._equal_norms import EqualNorms
from balanced_grad.methods._gramian import Gramian
from balanced_grad.methods._mimo import MIMO
from balanced_grad.methods._min_norm import MinNorm
from balanced_grad.methods._mmpareto import MMPareto
from balanced_grad.methods._project import Project
from balanced_grad.methods._row_fusion import RowFusion
from balanced_grad.methods._uniform import Uniform
from balanced_grad.moved import moved

__all__ = ["MIMO", "Alternate", "EqualNorms", "Gramian", "MMPareto", "MinNorm", "Project", "RowFusion", "Uniform"]

_MODULATION = ("AGM", "DGL", "MLB", "OGM", "TaskScores", "score", "scores")
__getattr__ = moved(
    __name__,
    {"BOGC": "balanced_grad.evidence", "Task": "balanced_grad.labels"}
    | dict.fromkeys(_MODULATION, "balanced_grad.modulation"),
)
