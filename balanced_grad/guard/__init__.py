"""A held-out guard: what a loss gains in training counts as far as it carries over to items that were held out."""

from balanced_grad.guard._gradient_blending import GradientBlending
from balanced_grad.guard._held_out import HeldOut
from balanced_grad.guard._split import endless, hold_out
from balanced_grad.guard._transfer import Transfer

__all__ = ["GradientBlending", "HeldOut", "Transfer", "endless", "hold_out"]
