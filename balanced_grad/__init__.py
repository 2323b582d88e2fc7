"""balanced_grad: balanced gradients for multi-modal PyTorch models, by one line in the training loop."""

from balanced_grad.attachment import Attachment, attach
from balanced_grad.balancer import Balancer
from balanced_grad.diagnosis import Diagnosis, diagnose
from balanced_grad.evidence import BOGC
from balanced_grad.guard import HeldOut, endless, hold_out
from balanced_grad.integrations import plot_history
from balanced_grad.methods import MIMO, EqualNorms, Gramian, MinNorm, MMPareto, Project, RowFusion, Uniform
from balanced_grad.modulation import AGM, DGL, MLB, OGM, ModalityGroups, Modulation, scores
from balanced_grad.notices import InactiveBalancerWarning
from balanced_grad.optim import BalancedOptimizer
from balanced_grad.records import Problem, Step, Trust, Weighting
from balanced_grad.state import Stateful
from balanced_grad.tokens import Tokens

__version__ = "0.1.0"

__all__ = [
    "AGM",
    "BOGC",
    "DGL",
    "MIMO",
    "MLB",
    "OGM",
    "Attachment",
    "BalancedOptimizer",
    "Balancer",
    "Diagnosis",
    "EqualNorms",
    "Gramian",
    "HeldOut",
    "InactiveBalancerWarning",
    "MMPareto",
    "MinNorm",
    "ModalityGroups",
    "Modulation",
    "Problem",
    "Project",
    "RowFusion",
    "Stateful",
    "Step",
    "Tokens",
    "Trust",
    "Uniform",
    "Weighting",
    "attach",
    "diagnose",
    "endless",
    "hold_out",
    "plot_history",
    "scores",
]
