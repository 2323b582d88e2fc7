"""``accumulate="rows"``: several micro-batches are balanced as the one batch that they make up."""

import copy

import pytest
import torch
from torch import nn

import balanced_grad as bg
from tests.conftest import LateFusion, make_batch
from tests.distributed.test_data_parallel import TOLERANCE, half

METHODS = {
    "min-norm": lambda **given: bg.MinNorm(**given),
    "loss+": lambda **given: bg.MinNorm(normalize="loss+", rescale="none", **given),
    "exclusive": lambda **given: bg.MinNorm(include_exclusive=True, **given),
    "encoders": lambda **given: bg.MinNorm(groups="reach", **given),
    "mmpareto": lambda **given: bg.MMPareto(**given),
}


def setup(make, **options):
    torch.manual_seed(0)
    model = LateFusion()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, bg.BalancedOptimizer(base, make(), **options)


def parameters(model):
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("kind", METHODS)
def test_micro_batches_are_balanced_as_one_batch(kind, set_to_none):
    one, large = setup(METHODS[kind])
    other, small = setup(METHODS[kind], accumulate="rows")
    for step in range(3):
        large.zero_grad(set_to_none)
        large.balancer(one.losses(*make_batch(seed=step))).backward()
        large.step()
        small.zero_grad(set_to_none)
        for micro in range(2):
            (small.balancer(other.losses(*half(make_batch(seed=step), micro))) / 2).backward()
        small.step()
        torch.testing.assert_close(small.balancer.last.gramian, large.balancer.last.gramian, **TOLERANCE)
        torch.testing.assert_close(small.balancer.last.losses, large.balancer.last.losses, **TOLERANCE)
        torch.testing.assert_close(parameters(other), parameters(one), **TOLERANCE)


def test_a_loss_scale_and_clipping():
    one, large = setup(bg.MinNorm)
    other, small = setup(bg.MinNorm, accumulate="rows")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        large.zero_grad()
        large.balancer(one.losses(*make_batch(seed=step))).backward()
        nn.utils.clip_grad_norm_(one.parameters(), 0.1)
        large.step()
        for micro in range(2):
            losses = other.losses(*half(make_batch(seed=step), micro))
            scaler.scale(small.balancer(losses) / 2).backward()
        scaler.unscale_(small)
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        scaler.step(small)
        scaler.update()
        other.zero_grad()  # not through the optimizer: the step has ended already
    torch.testing.assert_close(parameters(other), parameters(one), **TOLERANCE)


def test_a_skipped_step_leaves_nothing_behind():
    model, optimizer = setup(bg.MinNorm, accumulate="rows")
    reference, plain = setup(bg.MinNorm)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = model.losses(*make_batch())
    scaler.scale(optimizer.balancer({name: loss * torch.inf for name, loss in losses.items()})).backward()
    scaler.step(optimizer)
    scaler.update()
    torch.testing.assert_close(parameters(model), parameters(reference), rtol=0, atol=0)
    optimizer.zero_grad()
    scaler.scale(optimizer.balancer(model.losses(*make_batch()))).backward()
    scaler.step(optimizer)
    plain.balancer(reference.losses(*make_batch())).backward()
    plain.step()
    torch.testing.assert_close(parameters(model), parameters(reference), **TOLERANCE)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("clip", [True, False])
def test_gradients_dropped_by_the_model_begin_a_new_step(set_to_none, clip):
    model, optimizer = setup(bg.MinNorm, accumulate="rows")
    optimizer.balancer(model.losses(*make_batch(seed=1))).backward()
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    model.zero_grad(set_to_none)
    optimizer.balancer(model.losses(*make_batch())).backward()
    reference, plain = setup(bg.MinNorm)
    plain.balancer(reference.losses(*make_batch())).backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in reference.parameters()])


def test_gradients_of_other_losses_are_kept():
    model, optimizer = setup(bg.MinNorm, accumulate="rows")
    twin, alone = setup(bg.MinNorm, accumulate="rows")
    for micro in range(2):
        model.trunk.weight.square().sum().backward()
        optimizer.balancer(model.losses(*half(make_batch(), micro))).backward()
        model.trunk.weight.square().sum().backward()
        alone.balancer(twin.losses(*half(make_batch(), micro))).backward()
    penalty = 8 * model.trunk.weight.detach()
    torch.testing.assert_close(model.trunk.weight.grad, twin.trunk.weight.grad + penalty, **TOLERANCE)


def test_modalities_that_come_and_go_within_a_step():
    """As one batch whose losses are the sums over the micro-batches."""
    model, optimizer = setup(lambda: bg.MinNorm(rescale="none", normalize="none"), accumulate="rows")
    parts = [make_batch(seed=0), make_batch(seed=1)]
    del parts[0][0]["video"]
    for part in parts:
        optimizer.balancer(model.losses(*part)).backward()
    assert optimizer.balancer.last.names == ("audio", "joint", "video")
    reference, plain = setup(lambda: bg.MinNorm(rescale="none", normalize="none"))
    first, second = (reference.losses(*part) for part in parts)
    plain.balancer(
        {"audio": first["audio"] + second["audio"], "joint": second["joint"], "video": second["video"]}
    ).backward()
    for got, want in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, **TOLERANCE)
    torch.testing.assert_close(optimizer.balancer.last.weights, plain.balancer.last.weights, **TOLERANCE)


class Moody(bg.Balancer):
    needs_gramian = True
    fails = False

    def weigh(self, problem):
        if self.fails:
            raise ArithmeticError("no")
        return bg.Weighting(problem.gramian.diagonal().rsqrt())


@pytest.mark.parametrize("place", ["backward", "weigh"])
def test_a_failed_batch_does_not_count(place):
    model, optimizer = setup(Moody, accumulate="rows")
    twin, reference = setup(Moody, accumulate="rows")
    for seed in range(3):
        losses = model.losses(*make_batch(seed=seed))
        if seed == 1:
            before = copy.deepcopy([p.grad for p in model.parameters()])
            optimizer.balancer.fails = place == "weigh"
            if place == "backward":
                losses["joint"].register_hook(lambda grad: 1 / 0)
            with pytest.raises(ArithmeticError):
                optimizer.balancer(losses).backward()
            optimizer.balancer.fails = False
            torch.testing.assert_close([p.grad for p in model.parameters()], before, rtol=0, atol=0)
            continue
        optimizer.balancer(losses).backward()
        reference.balancer(twin.losses(*make_batch(seed=seed))).backward()
    torch.testing.assert_close(optimizer.balancer.last.gramian, reference.balancer.last.gramian, rtol=0, atol=0)
    for got, want in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=0, atol=0)


def test_a_copy_or_checkpoint_within_a_step_begins_a_new_one():
    model, optimizer = setup(bg.MinNorm, accumulate="rows")
    optimizer.balancer(model.losses(*make_batch(seed=1))).backward()
    model.features = {}  # which cannot be copied
    twin_model, twin = copy.deepcopy((model, optimizer))
    twin.zero_grad()
    twin.balancer(twin_model.losses(*make_batch())).backward()
    optimizer.zero_grad()
    optimizer.balancer(model.losses(*make_batch())).backward()
    torch.testing.assert_close(twin.balancer.last.gramian, optimizer.balancer.last.gramian, rtol=0, atol=0)
    fresh = bg.BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), bg.MinNorm())
    fresh.load_state_dict(optimizer.state_dict())


def test_wrapping_again_without_it_turns_it_off():
    model, optimizer = setup(bg.MinNorm, accumulate="rows")
    optimizer = bg.BalancedOptimizer(optimizer, optimizer.balancer)
    for seed in range(2):
        optimizer.balancer(model.losses(*make_batch(seed=seed))).backward()
    last = bg.MinNorm()
    last(model.losses(*make_batch(seed=1))).backward()
    torch.testing.assert_close(optimizer.balancer.last.gramian, last.last.gramian)


@pytest.mark.parametrize(
    "balancer",
    [bg.MIMO(), bg.Uniform(record_gramian=True), bg.MinNorm(level="features")],
    ids=lambda balancer: type(balancer).__name__,
)
def test_refused_where_there_are_no_rows(balancer):
    base = torch.optim.SGD(LateFusion().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"accumulate='rows'.*takes none; leave accumulate out"):
        bg.BalancedOptimizer(base, balancer, accumulate="rows")
    with pytest.raises(ValueError, match=r"accumulate='sums': choose one of \('gradients', 'rows'\)"):
        bg.BalancedOptimizer(base, balancer, accumulate="sums")
