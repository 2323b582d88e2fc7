from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from balanced_grad.balancer import Balancer
from balanced_grad.capture import JOINT
from balanced_grad.choices import check_choice
from balanced_grad.models._experts import ProductOfExperts
from balanced_grad.models._experts_fit import WeightFit, fit_temperature, fit_weights
from balanced_grad.models._experts_predictions import Batch, predictions
from balanced_grad.models._experts_stage import MakeOptimizer, Stage, check_clip, check_rates, refuse_shared, sgd

Mode = Literal["pretrain", "scratch", "frozen"]
Calibrate = Literal["weights", "temperature"]


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
    rates: Mapping[str, float] | None = None,
    clip: float | None = None,
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
    ``"scratch"`` for some of them. Its AV-MNIST settings, rates of 0.01 for single modalities and 0.1 for the joint
    expert, then 0.01 for all of them, are two calls: ``mode="frozen", lr=0.01, rates={"image+audio": 10}, clip=8``,
    then ``mode="scratch", lr=0.01, clip=8``.

    Source: Madaan et al. (NeurIPS 2024). One tenth for the joint stage is the ratio of the released AV-MNIST
    settings; selection by loss rather than by accuracy, and the defaults below, are our reading.

    Args:
        product: on the device of the batches.
        train: batches ``(inputs, targets)`` or ``(inputs, targets, present)``, gone through once per epoch.
        val: likewise.
        mode: see above.
        balancer: combines ``product.losses(...)`` in stage 2; ``bg.Uniform()`` is their sum. Default: the joint loss.
        optimizer: parameters, learning rate -> optimizer. Default: SGD with momentum 0.9, weight decay 1e-4. Where
            ``rates`` differ between experts that train together, the parameters come as groups
            ``{"params": ..., "lr": ...}``, which torch's optimizers take as they are.
        lr: learning rate of stage 1. Default 0.01.
        joint_lr: that of stage 2. Default: ``lr / 10``, from scratch ``lr``.
        rates: expert's name -> factor on its learning rate in both stages, positive. Default: 1.
        clip: longest gradient, over all parameters of a stage: a longer one is scaled down to it
            (``torch.nn.utils.clip_grad_norm_``). Default: no limit; the released code has 8.
        epochs: at most so many per stage and expert. Default 30.
        patience: a stage ends after so many epochs in a row that did not improve. Default 7.
        calibrate: ``"weights"`` for ``fit_weights``, ``"temperature"`` for ``fit_temperature``. Default: neither.

    Raises:
        ValueError: for an unknown mode, no training or validation items, experts that share parameters where they are
            to be trained alone or at different rates, a balancer where nothing is trained together, ``rates`` of no
            expert, a rate or ``clip`` that is not positive and finite.
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
    check_clip(clip)
    stage = Stage(product, train, val, optimizer or sgd, epochs, patience, check_rates(product, rates), clip)
    history = ExpertHistory()
    if mode != "scratch":
        refuse_shared(product)
        for name in product.subsets:
            history.val[name] = stage.run(name, lr)
    if mode != "frozen":
        usual = lr if mode == "scratch" else lr / 10
        history.val[JOINT] = stage.run(None, usual if joint_lr is None else joint_lr, balancer)
    if calibrate is not None:
        outputs, targets, present = predictions(product, val)
        fitter = fit_weights if calibrate == "weights" else fit_temperature
        history.fit = fitter(product, outputs, targets, present)
    return history
