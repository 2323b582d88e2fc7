"""One stage of training experts: one of them alone, or all together."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn, optim

from balanced_grad.balancer import Balancer
from balanced_grad.capture import JOINT
from balanced_grad.models._experts import ProductOfExperts
from balanced_grad.models._experts_predictions import Batch, predictions

MakeOptimizer = Callable[[Iterable[Any], float], optim.Optimizer]  # parameters, or groups of them; learning rate


@dataclass
class Stage:
    """What stages share; ``run`` is one of them."""

    product: ProductOfExperts
    train: Iterable[Batch]
    val: Iterable[Batch]
    make_optimizer: MakeOptimizer
    epochs: int
    patience: int
    rates: Mapping[str, float]
    clip: float | None

    def run(self, only: str | None, lr: float, balancer: Balancer | None = None) -> list[float]:
        """Train one expert on its loss, or all on the product's; leave them at their best validation loss."""
        module = self.product.experts if only is None else dict(self.product.named_experts())[only]
        losses = [self._validate(only)]
        best, state = losses[0], copy.deepcopy(module.state_dict())
        groups = self._groups(only)
        if not groups:
            return losses
        optimizer = self._optimizer(groups, lr)
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

    def _groups(self, only: str | None) -> dict[float, list[nn.Parameter]]:
        """Rate -> what is trained at it."""
        rate_of: dict[nn.Parameter, float] = {}
        for name, expert in self.product.named_experts():
            for parameter in expert.parameters() if only in (None, name) else ():
                rate = self.rates.get(name, 1.0)
                if parameter.requires_grad and rate_of.setdefault(parameter, rate) != rate:
                    raise ValueError(
                        f"rates gives expert {name!r} {rate:g}, but it shares parameters with one at "
                        f"{rate_of[parameter]:g}; give both the same"
                    )
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter, rate in rate_of.items():
            if parameter.requires_grad:
                groups.setdefault(rate, []).append(parameter)
        return groups

    def _optimizer(self, groups: Mapping[float, list[nn.Parameter]], lr: float) -> optim.Optimizer:
        if len(groups) > 1:
            return self.make_optimizer([{"params": own, "lr": rate * lr} for rate, own in groups.items()], lr)
        ((rate, parameters),) = groups.items()
        return self.make_optimizer(parameters, rate * lr)

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
            if self.clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), self.clip)
            optimizer.step()

    def _validate(self, only: str | None) -> float:
        outputs, targets, present = predictions(self.product, self.val, only=only)
        losses = self.product.losses(outputs, targets, present) if outputs else {}
        if losses.keys() <= {JOINT}:
            whose = f"expert {only!r}" if only else "any expert"
            raise ValueError(f"no validation item that is labelled has the modalities of {whose}")
        return float(losses[only or JOINT])


def check_rates(product: ProductOfExperts, rates: Mapping[str, float] | None) -> Mapping[str, float]:
    """Rates of experts that exist, each positive and finite; none: an empty mapping."""
    for name, rate in (rates or {}).items():
        if name not in product.subsets:
            raise ValueError(f"rates has {name!r}, which is no expert; the experts are {list(product.subsets)}")
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(
                f"rates[{name!r}]={rate!r}: give a positive factor; requires_grad_(False) keeps an expert as it is"
            )
    return rates or {}


def check_clip(clip: float | None) -> None:
    """A longest gradient that leaves something of it."""
    if clip is not None and not (math.isfinite(clip) and clip > 0):
        raise ValueError(f"clip={clip!r}: give the longest gradient, a positive number, or None for no limit")


def refuse_shared(product: ProductOfExperts) -> None:
    """Experts that share parameters cannot be trained alone."""
    owner: dict[nn.Parameter, str] = {}
    for name, expert in product.named_experts():
        for parameter in expert.parameters():
            other = owner.setdefault(parameter, name)
            if other != name and parameter.requires_grad:
                raise ValueError(
                    f"experts {other!r} and {name!r} share parameters, so neither can be trained alone; "
                    "use mode='scratch', or give each its own"
                )


def sgd(parameters: Iterable[Any], lr: float) -> optim.Optimizer:
    """The default optimizer."""
    return optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-4)
