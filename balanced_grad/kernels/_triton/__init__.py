"""The passes as Triton kernels; the only place that imports triton, and itself imported when one first runs."""

from balanced_grad.kernels._triton._combine import combine
from balanced_grad.kernels._triton._fuse import fuse
from balanced_grad.kernels._triton._gramian import gramian
from balanced_grad.kernels._triton._launch import probe
from balanced_grad.kernels._triton._moments import Streams, moments

__all__ = ["Streams", "combine", "fuse", "gramian", "moments", "probe"]
