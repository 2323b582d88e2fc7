"""The passes as Triton kernels; the only place that imports triton, and itself imported when one first runs."""

from balanced_grad.kernels._triton._combine import combine
from balanced_grad.kernels._triton._evidential import Streams, evidential
from balanced_grad.kernels._triton._gramian import gramian
from balanced_grad.kernels._triton._launch import probe

__all__ = ["Streams", "combine", "evidential", "gramian", "probe"]
