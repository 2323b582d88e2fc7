"""A callback for Lightning; needs ``lightning``."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from balanced_grad.integrations._logger import BalancerLog

_CURE = "return balancer(losses) from training_step, and give the logger the very balancer that is called"


class BalanceLogger(BalancerLog, Callback):
    """Adds losses, weights and conflict of every training batch to the module's logs; see ``log_values``.

    Give it to the trainer: ``Trainer(callbacks=[BalanceLogger(balancer)])``. Nothing waits for the device: Lightning
    reads values when it logs them, every ``log_every_n_steps``. A balancer that is not called is said once, as a
    ``bg.InactiveBalancerWarning``.

    Args:
        balancer: the balancer whose scalar ``training_step`` returns.
        prefix: of every name. Default ``"balance/"``.

    Examples: see the page on trainers.
    """

    cure = _CURE

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called by Lightning."""
        if trainer.global_step:  # there has been a step of the optimizer
            self._activity.look()
        pl_module.log_dict({name: value.float() for name, value in self.values().items()}, batch_size=1)
