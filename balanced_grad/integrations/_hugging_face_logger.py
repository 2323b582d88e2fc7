from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from balanced_grad.integrations._logger import BalancerLog

_CURE = (
    "does the trainer compute a loss of its own? label_smoothing_factor= and compute_loss_func= call the model without "
    "labels, and so does whoever calls it for its logits; return balancer(losses) as the model's loss"
)


class BalanceLogger(BalancerLog, TrainerCallback):
    """Adds losses, weights and conflict of the last batch to what the trainer logs; see ``log_values``.

    Write ``BalanceLogger(balancer).add_to(trainer)``. The values are read from the device when the trainer logs, every
    ``logging_steps``, and reach ``state.log_history``, TensorBoard, W&B and other reports. With
    ``Trainer(callbacks=[BalanceLogger(balancer)])`` they reach the history alone: reports run before the user's
    callbacks. A balancer that the trainer does not call is said once, as a ``bg.InactiveBalancerWarning``.

    Args:
        balancer: the balancer whose scalar is the ``loss`` that the model returns.
        prefix: of every name. Default ``"balance/"``.

    Examples: see the page on trainers.
    """

    cure = _CURE

    def add_to(self, trainer: Trainer) -> None:
        """Put this logger before all callbacks of the trainer, those that report included."""
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(callback for callback in callbacks if callback is not self)]

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Called by the trainer, after each step of the optimizer."""
        self._activity.look()

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
        values = {name: float(value) for name, value in self.values().items()}
        logs |= values
        state.log_history[-1] |= values
