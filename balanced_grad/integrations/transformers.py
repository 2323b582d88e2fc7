"""A callback for the Hugging Face ``Trainer``; needs ``transformers``."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balanced_grad.balancer import Balancer
from balanced_grad.integrations._values import log_values


class BalanceLogger(TrainerCallback):
    """Adds losses, weights and conflict of the last batch to what the trainer logs; see ``log_values``.

    Give it to the trainer: ``Trainer(callbacks=[BalanceLogger(balancer)])``. The values are read from the device when
    the trainer logs, every ``logging_steps``, and reach ``state.log_history`` and the callbacks after this one. Those
    that report to TensorBoard and others come before the user's; where they should see the values too, put this
    one first: ``trainer.callback_handler.callbacks.insert(0, BalanceLogger(balancer))``.

    Args:
        balancer: the balancer whose scalar is the ``loss`` that the model returns.
        prefix: of every name. Default ``"balance/"``.

    Examples: see the page on trainers.
    """

    def __init__(self, balancer: Balancer, prefix: str = "balance/") -> None:
        self.balancer = balancer
        self.prefix = prefix

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Called by the trainer."""
        if logs is None or "loss" not in logs:  # evaluation, or the summary at the end
            return
        values = {name: float(value) for name, value in log_values(self.balancer.last, self.prefix).items()}
        logs |= values
        state.log_history[-1] |= values
