"""Balancing in a trainer's own logs. Training needs nothing from here: the balancer's scalar is an ordinary loss.

``log_values`` serves any logger. ``balanced_grad.integrations.lightning`` and
``balanced_grad.integrations.transformers`` hold a callback each, and only they import their trainer.
"""

from balanced_grad.integrations._values import log_values

__all__ = ["log_values"]
