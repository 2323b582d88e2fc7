"""One step of a kind of method beside separate backwards on fresh graphs."""

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from balanced_grad.capture import ParameterFilter, Plan
from balanced_grad.check._compare import errors, kept
from balanced_grad.check._replay import Call, Replay
from balanced_grad.check._separate import Separate
from balanced_grad.check._text import said
from balanced_grad.check._verification import Verdict
from balanced_grad.methods import Gramian, Uniform
from balanced_grad.notices import InactiveBalancerWarning

_SCALE = 4.0  # of the loss, as GradScaler has one; a power of two, like the weights, so that neither costs precision

LOSSES_ONLY, PER_LOSS, FEATURES, TOKENS = (
    "losses only (MIMO, Uniform)",
    "per-loss gradients (MinNorm, MMPareto)",
    "level='features'",
    "level=bg.Tokens(model)",
)
_SETTINGS: dict[str, dict[str, Any]] = {
    LOSSES_ONLY: {},
    PER_LOSS: {"record_gramian": True},
    FEATURES: {"record_gramian": True, "level": "features"},
}


def judge(replay: Replay, separate: Separate, tolerances: Mapping[str, float], tolerance: float) -> list[Verdict]:
    """All kinds of methods, features and groups of tokens only where they are given."""
    kinds = [LOSSES_ONLY, PER_LOSS, *([FEATURES] if separate.features else [])]
    verdicts = [_verdict(replay, separate, kind, tolerances, tolerance) for kind in kinds]
    return [*verdicts, *([_of_tokens(replay, separate, tolerances, tolerance)] if separate.tokens else [])]


def _verdict(
    replay: Replay, separate: Separate, kind: str, tolerances: Mapping[str, float], tolerance: float
) -> Verdict:
    balancer = Uniform(separate.weights, **_SETTINGS[kind])
    balancer.process_group = None
    with replay.step() as step:
        step.require(separate.names)
        features = step.batch.features if kind == FEATURES else None
        meeting = _meeting(step) if kind == PER_LOSS else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InactiveBalancerWarning)
                (balancer(step.losses_by_name, features=features) * _SCALE).backward()
        except Exception as error:
            return Verdict(kind, refused=said(error))
        grads = {name: grad / _SCALE for name, grad in kept(step.tensors).items()}
    wrong = _wrong(grads, separate, tolerances, tolerance)
    gramian = None
    assert balancer.last is not None
    if balancer.last.gramian is not None:
        rows = separate.features if kind == FEATURES else separate.grads
        distance = _distance(balancer.last.gramian, _gramian(rows, meeting))
        gramian = distance if distance > 2 * max([tolerance, *tolerances.values()]) else None
    return Verdict(kind, wrong, gramian)


def _of_tokens(replay: Replay, separate: Separate, tolerances: Mapping[str, float], tolerance: float) -> Verdict:
    """Rows of one loss that all have the weight 1 are its plain gradient."""
    with replay.step() as step:
        step.require(separate.names)
        assert step.batch.tokens is not None
        try:
            balancer = Gramian(lambda gramian: torch.ones_like(gramian.diagonal()), level=step.batch.tokens)
            balancer.process_group = None
            (balancer(step.losses_by_name) * _SCALE).backward()
        except Exception as error:
            return Verdict(TOKENS, refused=said(error))
        (weight,) = separate.weights.values()
        grads = {name: weight * grad / _SCALE for name, grad in kept(step.tensors).items()}
    return Verdict(TOKENS, _wrong(grads, separate, tolerances, tolerance))


def _wrong(
    grads: Mapping[str, Tensor], separate: Separate, tolerances: Mapping[str, float], tolerance: float
) -> dict[str, float]:
    found = errors(grads, separate.balanced, separate.sizes)
    return {name: error for name, error in found.items() if error > tolerances.get(name, tolerance)}


def _meeting(step: Call) -> Collection[str] | None:
    """Names of the parameters that the engine takes into its Gramian; None where it refuses."""
    try:
        plan = Plan.of(step.losses, ParameterFilter())
    except Exception:
        return None
    shared = {parameter for group in plan.groups if group.shared for parameter in group.parameters}
    return {name for name, tensor in step.tensors.items() if tensor in shared}


def _gramian(rows: list[dict[str, Tensor]], names: Collection[str] | None) -> Tensor:
    """Inner products of the losses' gradients over these tensors, or over all that two of them reach."""
    out = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    everything = {name for row in rows for name in row}
    for name in everything if names is None else names:
        if names is None and sum(name in row for row in rows) < 2:
            continue
        for i, first in enumerate(rows):
            for j, second in enumerate(rows):
                if name in first and name in second:
                    out[i, j] += torch.sum(first[name] * second[name].conj()).real
    return out


def _distance(actual: Tensor, expected: Tensor) -> float:
    size = float(expected.norm())
    distance = float((actual.detach().to("cpu", torch.float64) - expected).norm())
    return distance / size if size > 0 else distance
