"""Methods that act on each modality's encoder apart: scores or encoders in, a factor per modality out."""

from balanced_grad.modulation._agm import AGM, Muted
from balanced_grad.modulation._arl import ARL
from balanced_grad.modulation._base import Modulation, Target
from balanced_grad.modulation._dgl import DGL
from balanced_grad.modulation._mlb import MLB
from balanced_grad.modulation._modalities import Modalities, ModalityGroups, grouped
from balanced_grad.modulation._ogm import OGM
from balanced_grad.modulation._scores import TaskScores, score, scores

__all__ = [
    "AGM",
    "ARL",
    "DGL",
    "MLB",
    "OGM",
    "Modalities",
    "ModalityGroups",
    "Modulation",
    "Muted",
    "Target",
    "TaskScores",
    "grouped",
    "score",
    "scores",
]
