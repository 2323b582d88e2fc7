"""Passes over the flat ``(M, D)`` rows: pure functions of tensors, one read each."""

from balanced_grad.kernels._combine import combine
from balanced_grad.kernels._dispatch import Implementation
from balanced_grad.kernels._fuse import evidential_fuse
from balanced_grad.kernels._gramian import gramian
from balanced_grad.kernels._moments import moments_update

__all__ = [
    "Implementation",
    "combine",
    "evidential_fuse",
    "gramian",
    "moments_update",
]
