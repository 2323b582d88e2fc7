"""Balancing in a trainer's own logs, or in those of a loop. Training needs nothing from here.

``StepLogger`` records a loop of your own, ``log_values`` serves any logger. ``balanced_grad.integrations.lightning``
and ``balanced_grad.integrations.transformers`` hold a callback each, and only they import their trainer.
"""

from balanced_grad.integrations._depth import plot_depth
from balanced_grad.integrations._history import plot_history
from balanced_grad.integrations._step_logger import StepLogger
from balanced_grad.integrations._values import log_values
from balanced_grad.integrations._writers import CSV, JSONLines, TensorBoard, Writer

__all__ = ["CSV", "JSONLines", "StepLogger", "TensorBoard", "Writer", "log_values", "plot_depth", "plot_history"]
