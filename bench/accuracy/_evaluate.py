"""Predictions of a trained model under three rules, and what they are worth."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, nll_loss

from balanced_grad.demo._data import Dataset, Split
from balanced_grad.demo._model import LateFusion
from balanced_grad.models import ProductOfExperts, fit_weights
from bench.accuracy._methods import ALONE, Method
from bench.accuracy._objectives import JOINT
from bench.experts import calibration_error

RULES = ("fused", "product", "fitted")
WHOLE = "*"  # no modality is called that
Outputs = dict[str, Tensor | None]  # of an expert; None where it needs a missing modality


def experts(method: Method, model: LateFusion, features: list[Tensor]) -> Outputs:
    """Logits of every prediction the model makes; networks trained alone have no fused one."""
    fused: Outputs = {} if method is ALONE else {JOINT: model.fuse(features)}
    return fused | model.unimodal(features)


def average(outputs: Outputs) -> Tensor:
    """Log of the mean of the probabilities."""
    return torch.stack([x.softmax(1) for x in outputs.values() if x is not None]).mean(0).log()


def product(outputs: Outputs) -> Tensor:
    """The normalised product of the probabilities."""
    return log_softmax(torch.stack([log_softmax(x, 1) for x in outputs.values() if x is not None]).sum(0), 1)


def own(method: Method, outputs: Outputs) -> Tensor:
    """Log-probabilities by the method's own rule."""
    if method.own == "fused":
        return log_softmax(outputs[JOINT], 1)
    return average(outputs) if method.own == "average" else product(outputs)


@torch.no_grad()
def evaluate_own(model: LateFusion, method: Method, split: Split) -> dict[str, Tensor]:
    """Log-probabilities of the method's own prediction (``WHOLE``) and of each uni-modal head."""
    model.eval()
    outputs = experts(method, model, model.features(split.inputs))
    return {WHOLE: own(method, outputs)} | {name: log_softmax(outputs[name], 1) for name in model.names}


def quality(log_p: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy in percent, and minus the negative log-likelihood."""
    accuracy = 100 * (log_p.argmax(1) == labels).double().mean().item()
    return accuracy, -nll_loss(log_p, labels).item()


class Product:
    """The model's predictions as a product of experts, with weights of one and with weights fitted."""

    def __init__(self, outputs: Outputs, names: tuple[str, ...], labels: Tensor) -> None:
        keys = {JOINT: names} | {name: name for name in names}
        self.names = {expert: "+".join(names) if expert == JOINT else expert for expert in outputs}
        self.pool = ProductOfExperts({keys[expert]: nn.Identity() for expert in outputs})
        found = fit_weights(self.pool, self._renamed(outputs), labels)
        self.exponents = {expert: found.exponents[name] for expert, name in self.names.items()}
        self.shrinkage = found.shrinkage

    def fitted(self, outputs: Outputs) -> Tensor:
        """Log-probabilities under the fitted weights."""
        return self.pool.combine(self._renamed(outputs))

    def _renamed(self, outputs: Outputs) -> Outputs:
        return {self.names[expert]: x for expert, x in outputs.items()}


def metrics(log_p: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Accuracy, macro-F1 and expected calibration error in percent, negative log-likelihood in nats."""
    from sklearn.metrics import f1_score

    accuracy, minus_nll = quality(log_p, labels)
    f1 = f1_score(labels, log_p.argmax(1), labels=range(classes), average="macro", zero_division=0)
    error = calibration_error(log_p.exp(), labels)
    return {"accuracy": accuracy, "f1": 100 * float(f1), "nll": -minus_nll, "ece": 100 * error}


class UnderRules(NamedTuple):
    """What a model predicts: ``features`` and ``outputs`` by split, and the rules that make one prediction of them."""

    features: dict[str, list[Tensor]]
    outputs: dict[str, Outputs]
    pool: Product
    rules: dict[str, Callable[[Outputs], Tensor]]


def under_rules(model: LateFusion, method: Method, data: Dataset) -> UnderRules:
    features = {name: model.features(getattr(data, name).inputs) for name in ("val", "test")}
    outputs = {name: experts(method, model, z) for name, z in features.items()}
    pool = Product(outputs["val"], model.names, data.val.labels)
    rules = {"fused": lambda x: own(method, x), "product": product, "fitted": pool.fitted}
    return UnderRules(features, outputs, pool, rules)


@torch.no_grad()
def evaluate(model: LateFusion, method: Method, data: Dataset) -> dict[str, Any]:
    """Everything that is known of a model from its predictions; ``correct`` packs one bit per test item."""
    model.eval()
    means = stand_ins(model, method, data)
    features, outputs, pool, rules = under_rules(model, method, data)
    report: dict[str, Any] = {rule: {} for rule in RULES}
    heads: dict[str, Any] = {name: {} for name in model.names}
    for split in ("val", "test"):
        labels = getattr(data, split).labels
        for rule, predict in rules.items():
            log_p = predict(outputs[split])
            report[rule][split] = metrics(log_p, labels, data.classes)
            if split == "test":
                report[rule]["correct"] = pack(log_p.argmax(1) == labels)
        for name in model.names:
            heads[name][split] = quality(outputs[split][name], labels)[0]
        for name in model.names:
            imputed, without = missing(method, model, features[split], means, name)
            for rule, predict in rules.items():
                seen = imputed if rule == "fused" and method.own == "fused" else without
                lost = report[rule].setdefault("missing", {}).setdefault(split, {})
                lost[name] = quality(predict(seen), labels)[0]
    return {"rules": report, "heads": heads, "exponents": pool.exponents, "shrinkage": pool.shrinkage}


@torch.no_grad()
def accuracies(model: LateFusion, method: Method, data: Dataset) -> dict[str, dict[str, float]]:
    """Accuracy in percent under each rule, by split."""
    model.eval()
    _, outputs, _, rules = under_rules(model, method, data)
    return {
        rule: {name: quality(predict(outputs[name]), getattr(data, name).labels)[0] for name in outputs}
        for rule, predict in rules.items()
    }


def stand_ins(model: LateFusion, method: Method, data: Dataset) -> list[Tensor]:
    """Features of a missing modality: those of zeros where it was trained with them, else the training mean."""
    inputs = data.train.inputs
    if "drop" in method.space:
        inputs = {name: torch.zeros_like(x[:1]) for name, x in inputs.items()}
    return [z.mean(0) for z in model.features(inputs)]


def missing(
    method: Method, model: LateFusion, features: list[Tensor], means: list[Tensor], name: str
) -> tuple[Outputs, Outputs]:
    """Predictions without a modality: its features at ``means``, and with every expert that needs it out."""
    index, count = model.names.index(name), len(model.names)
    seen = [means[i].expand_as(z) if i % count == index else z for i, z in enumerate(features)]
    imputed = experts(method, model, seen)
    return imputed, {expert: None if expert in (name, JOINT) else x for expert, x in imputed.items()}


def pack(correct: Tensor) -> str:
    """One bit per item, as hexadecimal digits."""
    return np.packbits(correct.numpy()).tobytes().hex()


def unpack(text: str, count: int) -> np.ndarray:
    """What ``pack`` was given."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count).astype(bool)


def shapley_loss(model: LateFusion, method: Method, split: Split) -> Mapping[str, float]:
    """Shapley value of each modality in the fall of the held-out loss, in nats: a modality is taken away by shuffling.

    The items of a modality that is out are permuted, so that its inputs stay what the model knows.
    """
    from balanced_grad.modulation._shapley import shapley

    count = len(model.names)
    with torch.no_grad():
        features = model.features(split.inputs)
    orders = [torch.randperm(len(split), generator=torch.Generator().manual_seed(i)) for i in range(count)]

    def loss(subset: tuple[int, ...]) -> float:
        seen = [z if i % count in subset else z[orders[i % count]] for i, z in enumerate(features)]
        return -quality(own(method, experts(method, model, seen)), split.labels)[1]

    with torch.no_grad():
        subsets, shares = shapley(count, torch.device("cpu"))
        gains = torch.tensor([loss(()) - loss(subset) for subset in subsets])
        return dict(zip(model.names, (gains @ shares).tolist(), strict=True))
