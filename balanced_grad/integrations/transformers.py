"""A mix-in and a callback for the Hugging Face ``Trainer``; needs ``transformers``."""

from balanced_grad.integrations._hugging_face_logger import BalanceLogger
from balanced_grad.integrations._hugging_face_trainer import BalancedTrainerMixin

__all__ = ["BalanceLogger", "BalancedTrainerMixin"]
