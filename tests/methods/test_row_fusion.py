"""Methods that make one gradient of the rows themselves."""

import pytest
import torch
from torch import nn

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, NoHostReads, make_batch


class Sum(bg.RowFusion):
    def fuse(self, rows, problem):
        return rows.sum(0)


class Median(bg.RowFusion):
    def fuse(self, rows, problem):
        return len(rows) * rows.median(0).values


class SignDrop(bg.RowFusion):
    """Keep of each entry what has the sign of the sum (Chen et al. 2020, without the draw)."""

    def fuse(self, rows, problem):
        return torch.where(rows.sign() == rows.sum(0).sign(), rows, 0).sum(0)


class Project(bg.RowFusion):
    """Take from each row what goes against another one (Yu et al. 2020, in a fixed order)."""

    def fuse(self, rows, problem):
        out = torch.zeros_like(rows[0])
        for i, row in enumerate(rows):
            for j, other in enumerate(rows):
                against = (row @ other).clamp_max(0) / (other @ other).clamp_min(1e-30)
                row = row - against * other if i != j else row
            out = out + row
        return out


METHODS = [Sum, Median, SignDrop, Project]


def model_and_losses(modalities=MODALITIES[:2], present=None):
    model = LateFusion(modalities).double()
    inputs, label = make_batch(modalities, dtype=torch.float64)
    inputs = {name: inputs[name] for name in present or modalities}
    return model, lambda: model.losses(inputs, label)


def by_hand(method, model, losses, divide=lambda name: 0):
    """Each loss alone, on a graph of its own; parameters together that the same losses reach."""
    names, parameters = list(losses()), list(model.named_parameters())
    rows = [torch.autograd.grad(losses()[n], [p for _, p in parameters], allow_unused=True) for n in names]
    sets = {}
    for place, (name, _) in enumerate(parameters):
        reach = tuple(i for i, row in enumerate(rows) if row[place] is not None)
        sets.setdefault((reach, divide(name)), []).append(place)
    out = {}
    for (reach, _), places in sets.items():
        stacked = [torch.cat([rows[i][place].reshape(-1) for place in places]) for i in reach]
        if not reach:
            continue
        fused = stacked[0] if len(reach) == 1 else method.fuse(torch.stack(stacked), None)
        parts = fused.split([parameters[place][1].numel() for place in places])
        out |= {parameters[place][0]: part for place, part in zip(places, parts, strict=True)}
    return out


def agree(model, expected):
    for name, parameter in model.named_parameters():
        if name not in expected:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad.reshape(-1), expected[name], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("present", [None, MODALITIES[:2]])
def test_it_is_what_a_loop_over_the_losses_makes(method, present):
    model, losses = model_and_losses(MODALITIES, present)
    balancer = method()
    scalar = balancer(losses())
    assert scalar.item() == pytest.approx(sum(losses().values()).item())
    scalar.backward()
    agree(model, by_hand(balancer, model, losses))
    assert balancer.last.weights is None
    assert balancer.last.to_dict().keys() == {"losses"}


@pytest.mark.parametrize("method", METHODS)
def test_one_call_per_tensor(method):
    model, losses = model_and_losses()
    balancer = method(groups="tensor", params=model.named_parameters())
    balancer(losses()).backward()
    agree(model, by_hand(balancer, model, losses, divide=lambda name: name))


@pytest.mark.parametrize("groups", ["all", "reach", "tensor", "mapping"])
def test_a_sum_of_rows_is_the_plain_gradient(groups):
    model, losses = model_and_losses(MODALITIES)
    balancer = Sum(groups={"trunk": model.trunk} if groups == "mapping" else groups)
    balancer(losses()).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    sum(losses().values()).backward()
    torch.testing.assert_close(grads, [p.grad for p in model.parameters()], rtol=1e-12, atol=1e-15)


def test_what_no_group_names_is_summed_plainly():
    model, losses = model_and_losses()
    Median(groups={"audio": model.encoders["audio"]})(losses()).backward()
    trunk = model.trunk.weight.grad.clone()
    encoder = model.encoders["audio"][0].weight.grad.clone()
    model.zero_grad()
    sum(losses().values()).backward()
    torch.testing.assert_close(trunk, model.trunk.weight.grad)
    assert not torch.allclose(encoder, model.encoders["audio"][0].weight.grad)


def test_rows_are_whole_and_of_unit_scale():
    """No padding between parameters, no loss scale, a copy, at least float32, in a training step."""
    seen = []

    class Look(bg.RowFusion):
        def fuse(self, rows, problem):
            seen.append((rows.clone(), problem))
            assert torch.is_grad_enabled()
            assert not rows.requires_grad
            return rows.mul_(2).sum(0)

    model = model_and_losses()[0].to(torch.bfloat16)
    inputs, label = make_batch(dtype=torch.bfloat16)
    for scale in (1.0, 1024.0):
        model.zero_grad()
        (scale * Look()(model.losses(inputs, label))).backward()
        seen.append([p.grad / scale for p in model.parameters()])
    half = len(seen) // 2
    for (rows, problem), (again, _) in zip(seen[: half - 1], seen[half:-1], strict=True):
        torch.testing.assert_close(rows, again)
        assert rows.dtype == torch.float32
        assert len(problem.names) == len(problem.losses) == len(rows)
    torch.testing.assert_close(seen[half - 1], seen[-1])
    sizes = {rows.shape[1] for rows, problem in seen[: half - 1]}
    encoder = sum(p.numel() for p in model.encoders["audio"].parameters())
    assert sizes == {encoder, sum(p.numel() for p in model.trunk.parameters())}


def test_accumulated_rows_are_those_of_the_large_batch():
    model, _ = model_and_losses()
    inputs, label = make_batch(dtype=torch.float64)
    optimizer = bg.BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=0.0), SignDrop(), accumulate="rows")
    for half in (slice(0, 4), slice(4, 8)):
        part = {name: x[half] for name, x in inputs.items()}
        (optimizer.balancer(model.losses(part, label[half])) / 2).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    SignDrop()(model.losses(inputs, label)).backward()
    torch.testing.assert_close(grads, [p.grad for p in model.parameters()], rtol=1e-10, atol=1e-13)


def test_factors_multiply_the_rows():
    model, losses = model_and_losses()
    balancer = Sum()
    balancer.factors = {"audio": torch.tensor(0.25, dtype=torch.float64)}
    balancer(losses()).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    each = losses()
    (each["joint"] + each["video"] + each["audio"] / 4).backward()
    torch.testing.assert_close(grads, [p.grad for p in model.parameters()])


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (lambda rows: None, TypeError, r"Mine.fuse\(\) returned None"),
        (lambda rows: rows, ValueError, r"Mine.fuse\(\) returned shape \(2, 30\), not \(30,\)"),
        (lambda rows: rows.sum(), ValueError, r"returned shape \(\)"),
        (lambda rows: rows[0] > 0, TypeError, "returned dtype torch.bool"),
        (lambda rows: rows[0].to("meta"), ValueError, "on meta"),
    ],
)
def test_what_may_not_be_returned(returned, error, message):
    class Mine(bg.RowFusion):
        def fuse(self, rows, problem):
            return returned(rows)

    model = nn.ModuleDict({"a": nn.Linear(5, 5), "b": nn.Linear(5, 5)})
    losses = {"joint": model["a"](torch.ones(5)).sum(), "audio": model["a"](torch.ones(5)).square().sum()}
    with pytest.raises(error, match=message):
        Mine()(losses).backward()
    assert all(p.grad is None for p in model.parameters())


def test_options_without_effect():
    with pytest.raises(ValueError, match="level='features' gives no rows"):
        Sum(level="features")
    with pytest.raises(ValueError, match="uses no features"):
        Sum()({"joint": torch.ones((), requires_grad=True)}, features={"audio": torch.ones(2)})


def test_nothing_is_read_on_the_host():
    losses = model_and_losses()[1]
    balancer = SignDrop()
    balancer(losses()).backward()
    scalar = balancer(losses())
    with NoHostReads():
        scalar.backward()


def test_under_a_guard():
    losses = model_and_losses()[1]
    guard = bg.HeldOut(Sum(), every=1)
    for _ in range(2):
        if guard.due:
            guard.observe(losses())
        guard(losses()).backward()
    assert guard.needs == "rows"
    assert guard.last.names == ("joint", "audio", "video")
