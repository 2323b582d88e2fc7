"""balanced_grad: balanced gradients for multi-modal PyTorch models, by one line in the training loop."""

from balanced_grad.balancer import Balancer
from balanced_grad.methods import MIMO, Gramian, MinNorm, MMPareto, Uniform
from balanced_grad.records import Problem, Step, Weighting

__version__ = "0.1.0"

__all__ = ["MIMO", "Balancer", "Gramian", "MMPareto", "MinNorm", "Problem", "Step", "Uniform", "Weighting"]
