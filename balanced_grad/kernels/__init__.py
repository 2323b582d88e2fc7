"""Passes over the flat ``(M, D)`` rows: pure functions of tensors, one read each."""

from balanced_grad.kernels._combine import combine
from balanced_grad.kernels._gramian import gramian

__all__ = ["combine", "gramian"]
