"""balanced_grad: balanced gradients for multi-modal PyTorch models, by one line in the training loop."""

from balanced_grad.attachment import Attachment, attach
from balanced_grad.balancer import Balancer
from balanced_grad.capture import Parameters
from balanced_grad.diagnosis import Diagnosis, diagnose
from balanced_grad.dropout import ModalityDropout, drop_modalities
from balanced_grad.evidence import BOGC
from balanced_grad.guard import GradientBlending, HeldOut, endless, hold_out
from balanced_grad.integrations import plot_depth, plot_history
from balanced_grad.methods import MIMO, Alternate, EqualNorms, Gramian, MinNorm, MMPareto, Project, RowFusion, Uniform
from balanced_grad.modulation import AGM, ARL, DGL, MLB, OGM, ModalityGroups, Modulation, scores
from balanced_grad.notices import InactiveBalancerWarning
from balanced_grad.optim import BalancedOptimizer, freeze, warm_up
from balanced_grad.records import Problem, Step, Trust, Weighting
from balanced_grad.state import Stateful
from balanced_grad.tokens import Tokens

__version__ = "0.2.0"

__all__ = [
    "AGM",
    "ARL",
    "BOGC",
    "DGL",
    "MIMO",
    "MLB",
    "OGM",
    "Alternate",
    "Attachment",
    "BalancedOptimizer",
    "Balancer",
    "Diagnosis",
    "EqualNorms",
    "GradientBlending",
    "Gramian",
    "HeldOut",
    "InactiveBalancerWarning",
    "MMPareto",
    "MinNorm",
    "ModalityDropout",
    "ModalityGroups",
    "Modulation",
    "Parameters",
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
    "drop_modalities",
    "endless",
    "freeze",
    "hold_out",
    "plot_depth",
    "plot_history",
    "scores",
    "warm_up",
]
