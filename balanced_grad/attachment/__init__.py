"""Uni-modal losses and scores for models that offer none: hooks, light heads, and nothing left behind."""

from balanced_grad.attachment._attach import attach
from balanced_grad.attachment._attachment import Attachment
from balanced_grad.attachment._features import encoder_features

__all__ = ["Attachment", "attach", "encoder_features"]
