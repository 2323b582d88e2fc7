"""Variance estimators: against gradients per item, against BackPACK, and against each other."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from balanced_grad.evidence import (
    Laplace,
    MicroBatchVariance,
    SampleVariance,
    StepVariance,
    fisher_curvature,
    laplace_variance,
    sample_variance,
    softmax_curvature,
)
from balanced_grad.evidence._history import typical_variance
from balanced_grad.records import LinearCall


def linear_call(items=9, positions=1, features=4, classes=3, dtype=torch.float64, seed=0):
    """A linear layer under a mean cross-entropy: the layer, what went through it, gradients per item."""
    torch.manual_seed(seed)
    layer = nn.Linear(features, classes, dtype=dtype)
    x = torch.randn(items, positions, features, dtype=dtype)
    y = torch.randint(classes, (items, positions))
    out = layer(x)
    each = cross_entropy(out.flatten(0, 1), y.flatten(), reduction="none").view(items, positions).mean(1)
    (grad,) = torch.autograd.grad(each.mean(), out, retain_graph=True)
    rows = [torch.autograd.grad(loss, list(layer.parameters()), retain_graph=True) for loss in each]
    return layer, LinearCall(grad, x, out.detach()), [torch.stack(own) for own in zip(*rows, strict=True)], y


@pytest.mark.parametrize("positions", [1, 5])
def test_fisher_and_sample_variance_against_gradients_per_item(positions):
    _, call, (weight, bias), _ = linear_call(positions=positions)
    ones = torch.ones_like(call.inputs[..., :1])
    for each, inputs in ((weight, call.inputs), (bias[..., None], ones)):
        torch.testing.assert_close(fisher_curvature(call.gradients, inputs), each.square().mean(0))
        torch.testing.assert_close(sample_variance(call.gradients, inputs), each.var(0) / len(each))


def test_many_positions_are_taken_in_parts(monkeypatch):
    _, call, _, _ = linear_call(items=11, positions=3)
    want = fisher_curvature(call.gradients, call.inputs)
    monkeypatch.setattr("balanced_grad.evidence._linear._BUDGET", 30)
    torch.testing.assert_close(fisher_curvature(call.gradients, call.inputs), want)


def test_one_item_has_no_known_variance():
    _, call, _, _ = linear_call(items=1)
    assert sample_variance(call.gradients, call.inputs).isnan().all()


def test_against_backpack():
    """An independent library: exact GGN diagonal, summed squares and variance of gradients per item."""
    reason = "BackPACK is not installed; run.py installs it (without its dependencies, which ask for torchvision)"
    backpack = pytest.importorskip("backpack", reason=reason)
    from backpack import extensions

    layer, call, _, y = linear_call(dtype=torch.float32)
    twin, criterion = backpack.extend(layer), backpack.extend(nn.CrossEntropyLoss())
    loss = criterion(twin(call.inputs[:, 0]), y[:, 0])
    quantities = extensions.DiagGGNExact(), extensions.SumGradSquared(), extensions.Variance()
    with warnings.catch_warnings(), backpack.backpack(*quantities):
        warnings.simplefilter("ignore")  # BackPACK's hooks on inputs that need no gradient
        loss.backward()
    items = len(y)
    for parameter, inputs in ((twin.weight, call.inputs), (twin.bias, torch.ones_like(call.inputs[..., :1]))):
        shape = parameter.shape
        curvature = softmax_curvature(call.outputs[:, 0], inputs[:, 0]).view(shape)
        torch.testing.assert_close(curvature, parameter.diag_ggn_exact)
        fisher = fisher_curvature(call.gradients, inputs).view(shape)
        torch.testing.assert_close(fisher, items * parameter.sum_grad_squared)
        # Its variance is that of the per-item parts of the mean, with a divisor of N, not N - 1.
        sampled = sample_variance(call.gradients, inputs).view(shape)
        torch.testing.assert_close(sampled * (items - 1), items**2 * parameter.variance, rtol=1e-4, atol=1e-7)


def moments(estimator, call, generator=None):
    weight = call.gradients.flatten(0, 1).mT @ call.inputs.flatten(0, 1)
    gradient = torch.cat([weight.flatten(), call.gradients.sum((0, 1))])[None]
    classes, features = weight.shape
    shapes = [torch.Size((classes, features)), torch.Size((classes,))]
    return gradient, estimator.moments(gradient, [call], shapes, {}, generator)


def test_laplace_in_closed_form():
    _, call, _, _ = linear_call()
    ones = torch.ones_like(call.inputs[..., :1])
    for curvature in ("fisher", "softmax"):
        gradient, got = moments(Laplace(curvature, num_data=200, prior_precision=2.0), call)
        if curvature == "fisher":
            parts = [fisher_curvature(call.gradients, x) for x in (call.inputs, ones)]
        else:
            parts = [softmax_curvature(call.outputs[:, 0], x[:, 0]) for x in (call.inputs, ones)]
        want = torch.cat([laplace_variance(h, 200, 2.0).flatten() for h in parts])
        torch.testing.assert_close(got.variance[0], want)
        assert torch.equal(got.mean, gradient)


def test_draws_against_the_closed_form_on_softmax_regression():
    """With a diagonal posterior the drawn variance is Σ_k H_dk² s_k², of which the closed form is the diagonal part."""
    layer, call, _, y = linear_call(items=400, seed=1)
    estimator = Laplace("softmax", num_data=2000, draws=4000)
    gradient, got = moments(estimator, call, torch.Generator().manual_seed(0))
    _, closed = moments(Laplace("softmax", num_data=2000), call)
    shapes = [p.shape for p in layer.parameters()]

    def flat_gradient(theta):
        weight, bias = theta[: shapes[0].numel()].view(shapes[0]), theta[shapes[0].numel() :]
        p = (call.inputs[:, 0] @ weight.T + bias).softmax(-1)
        rest = (p - nn.functional.one_hot(y[:, 0], p.shape[1])) / len(p)
        return torch.cat([(rest.T @ call.inputs[:, 0]).flatten(), rest.sum(0)])

    theta = torch.cat([p.detach().flatten() for p in layer.parameters()])
    hessian = torch.func.jacrev(flat_gradient)(theta)
    spread = 1 / (2000 * hessian.diagonal() + 1.0)
    torch.testing.assert_close(got.variance[0], hessian.square() @ spread, rtol=0.15, atol=0)
    assert (got.variance > 0.85 * closed.variance).all()
    assert (got.mean - gradient).abs().max() < 0.1 * got.variance.sqrt().max()  # second order only: antithetic pairs


def test_draws_are_those_of_their_own_generator():
    _, call, _, _ = linear_call()
    estimator = Laplace("softmax", draws=4)
    first, again, other = (moments(estimator, call, torch.Generator().manual_seed(s))[1].variance for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def sequence(estimator, rows):
    state, results = {}, []
    for row in rows:
        result = estimator.moments(row, (), (), state)
        state = result.state
        results.append(result.variance)
    return results


def test_step_variance_finds_the_noise():
    torch.manual_seed(0)
    sigma = torch.tensor([[0.1, 1.0], [3.0, 0.5]])
    found = sequence(StepVariance(), 5.0 + sigma * torch.randn(4000, 2, 2))
    assert found[0].isnan().all()
    # The running mean has (1 - β) / (1 + β) of the variance itself: a factor common to all.
    want = sigma.square() * 2 / (1 + 0.9)
    torch.testing.assert_close(torch.stack(found[50:]).mean(0), want, rtol=0.1, atol=0)


def test_micro_batch_variance_is_that_of_the_window():
    rows = torch.randn(6, 2, 5, dtype=torch.float64)
    found = sequence(MicroBatchVariance(3), rows)
    assert [bool(variance.isnan().all()) for variance in found] == [True, True, False, True, True, False]
    torch.testing.assert_close(found[2], rows[:3].var(0))
    torch.testing.assert_close(found[5], rows[3:].var(0))


def test_sample_variance_is_the_empirical_fishers_up_to_the_mean():
    _, call, _, _ = linear_call()
    gradient, sampled = moments(SampleVariance(), call)
    items = len(call.gradients)
    fisher = torch.cat(
        [fisher_curvature(call.gradients, x).flatten() for x in (call.inputs, torch.ones_like(call.inputs[..., :1]))]
    )
    torch.testing.assert_close(sampled.variance[0], (fisher - gradient[0].square()) / (items - 1))


class TestTypicalVariance:
    def test_small_problems_have_the_median_itself(self):
        variance = torch.rand(3, 1000)
        variance[0, :10] = torch.tensor([0.0, torch.nan, torch.inf, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        known = variance[variance.isfinite() & (variance > 0)]
        assert typical_variance(variance).item() == known.median()
        assert torch.equal(typical_variance(variance, per_source=True)[1:, 0], variance[1:].median(1).values)

    def test_nothing_known(self):
        assert typical_variance(torch.zeros(2, 3)).item() == 1
        assert typical_variance(torch.full((2, 3), torch.nan), per_source=True).tolist() == [[1], [1]]

    @pytest.mark.parametrize("size", [5000, 100_003, 1_000_000])
    @pytest.mark.parametrize("seed", range(5))
    def test_a_sample_changes_weights_by_less_than_a_hundredth(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        variance = torch.randn(2, size, generator=generator).mul(1.1).exp()  # one deviation: a factor of 3
        sampled, exact = typical_variance(variance), variance.median()
        assert abs(sampled / exact - 1) < 0.08

        def weights(typical):
            evidence = typical / variance + 1
            return evidence / evidence.sum(0)

        assert (weights(sampled) - weights(exact)).abs().max() < 0.01
