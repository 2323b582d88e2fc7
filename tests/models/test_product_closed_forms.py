"""The loss of a product in closed form: against autograd, and its minimum against scipy's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from balanced_grad.labels import Labels
from balanced_grad.models._experts_likelihood import likelihood
from balanced_grad.models._experts_validation import Validation, finite
from balanced_grad.models._experts_weights import Fitter, fit

N, C = 40, 5
KINDS = ["classification", "soft", "multilabel", "regression"]


def items(kind, seed, *, experts=3, missing=False, uncounted=False, prior=0.0):
    """Experts that know something, and err."""
    torch.manual_seed(seed)
    outputs = torch.randn(experts, N, 2 * C if kind == "regression" else C, dtype=torch.double)
    counted = torch.rand(N, C) > 0.2 if kind in ("multilabel", "regression") else torch.rand(N) > 0.2
    if kind == "classification":
        values = (outputs.sum(0) + torch.randn(N, C)).argmax(-1)
    elif kind == "soft":
        values = (outputs.sum(0) + torch.randn(N, C)).softmax(-1)
    elif kind == "multilabel":
        values = (outputs.sum(0) + torch.randn(N, C) > 0).double()
    else:
        values = outputs[0, :, :C] + 0.5 * torch.randn(N, C, dtype=torch.double)
    task = "classification" if kind == "soft" else kind
    before = torch.randn(1, N, outputs.shape[-1], dtype=torch.double)
    floor = -torch.inf
    if task == "classification":
        (outputs, floor), before = finite(outputs), before.log_softmax(-1)
    present = torch.ones(experts, N, dtype=torch.double)
    if missing:
        present[1:] = (torch.rand(experts - 1, N) > 0.3).double()
    labels = Labels(values, counted if uncounted else None, kind == "soft")
    return Validation(task, outputs, present, labels, before, prior, floor)


@pytest.mark.parametrize("options", [{}, {"missing": True}, {"uncounted": True}, {"prior": -1.5}], ids=str)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_value_slope_and_curvature_are_those_of_autograd(kind, seed, options):
    if kind == "regression" and options.get("prior"):
        options = {"prior": 0.7}  # a precision is positive
    given = items(kind, seed, **options)
    weights = torch.rand(3, dtype=torch.double) + 0.2
    found = likelihood(given, 0.0)(weights)
    assert found.value == pytest.approx(float(given.loss(weights)), rel=1e-9)
    slope = torch.autograd.functional.jacobian(given.loss, weights)
    curvature = torch.autograd.functional.hessian(given.loss, weights)
    torch.testing.assert_close(found.slope, slope, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.curvature, curvature, rtol=1e-7, atol=1e-9)


def answers(given):
    """The labels that an unknown one may have, each as likely: the classes left, yes and no, the value of any item."""
    values = given.labels.values
    if given.task == "regression":
        return [values[j].expand_as(values) for j in range(N)]
    if given.task == "multilabel":
        return [torch.zeros_like(values), torch.ones_like(values)]
    left = (given.outputs > given.floor).all(0).all(0).nonzero()[:, 0]
    return [torch.full((N,), int(c)) for c in left]


@pytest.mark.parametrize("doubt", [1e-3, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_share_of_a_label_is_any_answer(kind, doubt):
    given = items(kind, 4, missing=True)
    if given.task == "classification":  # one class is excluded by an expert
        given.outputs[0, :, 2] = given.floor

    def oracle(weights):
        of_answers = [replace(given, labels=Labels(values, None)).loss(weights) for values in answers(given)]
        return (1 - doubt) * given.loss(weights) + doubt * torch.stack(of_answers).mean()

    weights = torch.rand(3, dtype=torch.double) + 0.2
    found = likelihood(given, doubt)(weights)
    assert found.value == pytest.approx(float(oracle(weights)), rel=1e-9)
    slope = torch.autograd.functional.jacobian(oracle, weights)
    curvature = torch.autograd.functional.hessian(oracle, weights)
    torch.testing.assert_close(found.slope, slope, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.curvature, curvature, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_is_scipys(kind, seed):
    given = items(kind, seed)

    def objective(weights):
        w = torch.tensor(weights).requires_grad_()
        value = given.loss(w)
        value.backward()
        return float(value.detach()), w.grad.numpy()

    scipys = minimize(objective, np.ones(3), jac=True, bounds=[(1e-9, None)] * 3, options={"ftol": 1e-14})
    assert float(given.loss(fit(given, 0.0))) == pytest.approx(scipys.fun, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_where_a_fit_starts_does_not_matter(kind):
    """From the last fit of a path, or from scratch."""
    given = items(kind, 0, missing=True)
    path = Fitter(given)
    for shrinkage in (1.0, 0.1, 0.01, 0.0):
        torch.testing.assert_close(path.exponents(shrinkage), fit(given, shrinkage), rtol=1e-5, atol=1e-6)
