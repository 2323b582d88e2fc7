import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn, optim

from balanced_grad.balancer import Balancer
from balanced_grad.capture import JOINT
from balanced_grad.choices import check_choice
from balanced_grad.models._experts import ProductOfExperts
from balanced_grad.models._experts_fit import WeightFit, fit_temperature, fit_weights
from balanced_grad.models._experts_predictions import Batch, predictions

Mode = Literal["pretrain", "scratch", "frozen"]
Calibrate = Literal["weights", "temperature"]
MakeOptimizer = Callable[[Iterable[nn.Parameter], float], optim.Optimizer]


@dataclass
class ExpertHistory:
    """What ``train_experts`` saw.

    Attributes:
        val: per stage (an expert's name, or ``"joint"``) the validation loss in nats before and after every epoch.
        fit: what calibration found; None without.
    """

    val: dict[str, list[float]] = field(default_factory=dict)
    fit: WeightFit | None = None


def train_experts(
    product: ProductOfExperts,
    train: Iterable[Batch],
    val: Iterable[Batch],
    *,
    mode: Mode = "pretrain",
    balancer: Balancer | None = None,
    optimizer: MakeOptimizer | None = None,
    lr: float = 0.01,
    joint_lr: float | None = None,
    epochs: int = 30,
    patience: int = 7,
    calibrate: Calibrate | None = None,
) -> ExpertHistory:
    """Train a product of experts in stages; every stage ends at its best validation loss.

    1. ``"pretrain"`` (default) and ``"frozen"``: each expert alone on its own loss.
    2. ``"pretrain"`` and ``"scratch"``: all experts together on the loss of the product, after stage 1 at a
       lower rate; with a balancer, on the product's and each expert's loss as it weighs them.
    3. With ``calibrate``, exponents or a temperature on the validation items.

    The paper reports that training alone first is better on all of its data sets; its released code starts
    ``"scratch"`` for some of them.

    Source: Madaan et al. (NeurIPS 2024). One tenth for the joint stage is the ratio of the released AV-MNIST
    settings; selection by loss rather than by accuracy, and the defaults below, are our reading.

    Args:
        product: on the device of the batches.
        train: batches ``(inputs, targets)`` or ``(inputs, targets, present)``, gone through once per epoch.
        val: likewise.
        mode: see above.
        balancer: combines ``product.losses(...)`` in stage 2; ``bg.Uniform()`` is their sum. Default: the joint loss.
        optimizer: parameters, learning rate -> optimizer. Default: SGD with momentum 0.9, weight decay 1e-4.
        lr: learning rate of stage 1. Default 0.01.
        joint_lr: that of stage 2. Default: ``lr / 10``, from scratch ``lr``.
        epochs: at most so many per stage and expert. Default 30.
        patience: a stage ends after so many epochs in a row that did not improve. Default 7.
        calibrate: ``"weights"`` for ``fit_weights``, ``"temperature"`` for ``fit_temperature``. Default: neither.

    Raises:
        ValueError: for an unknown mode, no training or validation items, experts that share parameters where they are
            to be trained alone, a balancer where nothing is trained together.
        RuntimeError: where no epoch of a stage gives a finite validation loss.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> import balanced_grad as bg
        >>> from balanced_grad.models import ProductOfExperts, train_experts
        >>> _ = torch.manual_seed(0)
        >>> class Fused(nn.Linear):
        ...     def forward(self, *inputs):
        ...         return super().forward(torch.cat(inputs, 1))
        >>> product = ProductOfExperts(
        ...     {"audio": nn.Linear(3, 2), "video": nn.Linear(3, 2), ("audio", "video"): Fused(6, 2)}
        ... )
        >>> x = {"audio": torch.randn(200, 3), "video": torch.randn(200, 3)}
        >>> label = (x["audio"].sum(1) + x["video"].sum(1) > 0).long()
        >>> history = train_experts(product, [(x, label)], [(x, label)], balancer=bg.MIMO(), lr=0.3, epochs=20)
        >>> list(history.val)
        ['audio', 'video', 'audio+video', 'joint']
        >>> history.val["joint"][-1] < history.val["audio"][-1]
        True
    """
    check_choice("mode", mode, Mode)
    if calibrate is not None:
        check_choice("calibrate", calibrate, Calibrate, ", or None")
    if mode == "frozen" and balancer is not None:
        raise ValueError("mode='frozen' trains every expert alone: there is nothing to balance; leave balancer out")
    stage = _Stage(product, train, val, optimizer or _sgd, epochs, patience)
    history = ExpertHistory()
    if mode != "scratch":
        _refuse_shared(product)
        for name, expert in product.named_experts():
            history.val[name] = stage.run(expert, name, lr, None)
    if mode != "frozen":
        usual = lr if mode == "scratch" else lr / 10
        history.val[JOINT] = stage.run(product.experts, None, usual if joint_lr is None else joint_lr, balancer)
    if calibrate is not None:
        outputs, targets, present = predictions(product, val)
        fitter = fit_weights if calibrate == "weights" else fit_temperature
        history.fit = fitter(product, outputs, targets, present)
    return history


@dataclass
class _Stage:
    """What stages share; ``run`` is one of them."""

    product: ProductOfExperts
    train: Iterable[Batch]
    val: Iterable[Batch]
    make_optimizer: MakeOptimizer
    epochs: int
    patience: int

    def run(self, module: nn.Module, only: str | None, lr: float, balancer: Balancer | None) -> list[float]:
        """Train ``module`` on the loss of one expert, or of the product; leave it at its best validation loss."""
        losses = [self._validate(only)]
        best, state = losses[0], copy.deepcopy(module.state_dict())
        trainable = [p for p in module.parameters() if p.requires_grad]
        if not trainable:
            return losses
        optimizer = self.make_optimizer(trainable, lr)
        since = 0
        for _ in range(self.epochs):
            self._epoch(module, only, optimizer, balancer)
            losses.append(self._validate(only))
            since += 1
            if losses[-1] < best or not math.isfinite(best):
                best, state, since = losses[-1], copy.deepcopy(module.state_dict()), 0
            if since >= self.patience:
                break
        if not math.isfinite(best):
            raise RuntimeError(f"no epoch of stage {only or JOINT!r} has a finite validation loss; lower the rate {lr}")
        module.load_state_dict(state)
        return losses

    def _epoch(
        self, module: nn.Module, only: str | None, optimizer: optim.Optimizer, balancer: Balancer | None
    ) -> None:
        self.product.eval()
        module.train()
        for inputs, targets, *rest in self.train:
            outputs = self.product.outputs(inputs, *rest, only=only)
            if not outputs:
                continue
            losses = self.product.losses(outputs, targets, *rest)
            if losses.keys() <= {JOINT}:  # nothing is labelled
                continue
            losses = {name: loss for name, loss in losses.items() if loss.requires_grad}
            if balancer is not None:
                loss = balancer(losses)
            elif (only or JOINT) in losses:
                loss = losses[only or JOINT]
            else:
                continue
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _validate(self, only: str | None) -> float:
        outputs, targets, present = predictions(self.product, self.val, only=only)
        losses = self.product.losses(outputs, targets, present) if outputs else {}
        if losses.keys() <= {JOINT}:
            whose = f"expert {only!r}" if only else "any expert"
            raise ValueError(f"no validation item that is labelled has the modalities of {whose}")
        return float(losses[only or JOINT])


def _refuse_shared(product: ProductOfExperts) -> None:
    owner: dict[nn.Parameter, str] = {}
    for name, expert in product.named_experts():
        for parameter in expert.parameters():
            other = owner.setdefault(parameter, name)
            if other != name and parameter.requires_grad:
                raise ValueError(
                    f"experts {other!r} and {name!r} share parameters, so neither can be trained alone; "
                    "use mode='scratch', or give each its own"
                )


def _sgd(parameters: Iterable[nn.Parameter], lr: float) -> optim.Optimizer:
    return optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)
