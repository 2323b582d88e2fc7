"""Published methods, one file each: from losses or a Gramian to weights."""

from balanced_grad.methods._agm import AGM
from balanced_grad.methods._bogc import BOGC
from balanced_grad.methods._dgl import DGL
from balanced_grad.methods._gramian import Gramian
from balanced_grad.methods._mimo import MIMO
from balanced_grad.methods._min_norm import MinNorm
from balanced_grad.methods._mlb import MLB
from balanced_grad.methods._mmpareto import MMPareto
from balanced_grad.methods._ogm import OGM
from balanced_grad.methods._scores import TaskScores, score, scores
from balanced_grad.methods._uniform import Uniform

__all__ = [
    "AGM",
    "BOGC",
    "DGL",
    "MIMO",
    "MLB",
    "OGM",
    "Gramian",
    "MMPareto",
    "MinNorm",
    "TaskScores",
    "Uniform",
    "score",
    "scores",
]
