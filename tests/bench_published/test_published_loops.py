"""Every re-implemented loop leaves the gradient that its formulas say, which is what our methods compute."""

import math

import pytest
import torch
from torchjd.aggregation import UPGradWeighting

import balanced_grad as bg
from bench.accuracy._objectives import of_losses, with_muted_passes, with_split_scores
from bench.published import _loops as loops
from bench.published._agm import AGM, shapley, subsets
from bench.published._solvers import by_cvxpy, by_slsqp, frank_wolfe

LED_BY_IMAGE = 1  # a seed with which the modality that has convolutions is ahead


def both(network, loop, balancer, objective=of_losses, unimodal=True, steps=1, **options):
    """Gradients by a loop and by a method, over steps on the same weights with new batches."""
    found = []
    for run in (loop, lambda forward: objective(balancer, forward).backward()):
        own = network(**options)
        found.append([(run(own.forward(unimodal)), own.gradients())[1] for _ in range(steps)])
    return zip(*found, strict=True)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("conflict", [False, True])
def test_mmpareto(network, assert_same, modalities, conflict):
    for found, wanted in both(
        network, loops.mmpareto, bg.MMPareto(), modalities=modalities, conflict=conflict, steps=3
    ):
        assert_same(found, wanted)


def test_mmpareto_conflicts_are_conflicts(network, monkeypatch):
    seen = []
    weight = loops.joint_weight
    monkeypatch.setattr(loops, "joint_weight", lambda g, u: seen.append(weight(g, u)) or seen[-1])
    loops.mmpareto(network(conflict=True).forward())
    assert len(seen) == 2
    assert all(0 <= c <= 1 for c in seen)
    assert any(c != 0.5 for c in seen)


def test_joint_weight_is_the_min_norm_point_of_gradients_in_conflict():
    g, u = torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 1.0])
    assert loops.joint_weight(g, u) == pytest.approx(1 / 3)
    assert loops.joint_weight(g, g + u) == 0.5
    assert loops.joint_weight(g, -0.1 * g + 1e-3 * u) < 0.1  # leans to the shorter one


@pytest.mark.parametrize(
    ("solve", "rtol"),
    [(frank_wolfe, 2e-2), (by_cvxpy, 1e-4), (by_slsqp, 1e-4)],
    ids=lambda x: getattr(x, "__name__", ""),
)
@pytest.mark.parametrize("modalities", [2, 3])
def test_mgda(network, assert_same, modalities, solve, rtol):
    method = bg.MinNorm(normalize="none", rescale="none")
    for found, wanted in both(network, loops.mgda(solve), method, modalities=modalities, conflict=True, steps=2):
        scale = max(float(g.abs().max()) for g in wanted.values())
        assert_same(found, wanted, rtol=rtol, atol=rtol * scale)


def test_ogm_ge_scales_convolutions_and_nothing_else(network, assert_same):
    def by_method():
        own = network(seed=LED_BY_IMAGE)
        encoders = dict(zip(own.model.names, own.model.encoders, strict=True))
        balancer = bg.OGM(encoders, alpha=0.3, variant="original", noise=0.0)
        with_split_scores(balancer, own.forward(unimodal=False)).backward()
        return own.gradients(), balancer.last.to_dict()["coefficients"]

    def by_loop():
        own = network(seed=LED_BY_IMAGE)
        loops.ogm_ge(own.forward(unimodal=False), alpha=0.3, noise=0.0)
        return own.gradients()

    def plain():
        own = network(seed=LED_BY_IMAGE)
        own.forward(unimodal=False).losses()["joint"].backward()
        return own.gradients()

    (modulated, coefficients), untouched = by_method(), plain()
    convolution = {name for name, g in untouched.items() if g.ndim == 4}
    assert convolution
    assert coefficients["image"] < 1  # so that there is something to see
    assert_same(by_loop(), {n: (modulated if n in convolution else untouched)[n] for n in untouched}, atol=1e-7)


def test_ogm_ge_noise_has_the_spread_of_the_unscaled_gradient(network):
    def gradients(noise):
        own = network()
        loops.ogm_ge(own.forward(unimodal=False), noise=noise)
        return own.gradients()

    own = network()
    own.forward(unimodal=False).losses()["joint"].backward()
    plain, noisy, quiet = own.gradients(), gradients(1.0), gradients(0.0)
    name = max((n for n, g in plain.items() if g.ndim == 4), key=lambda n: plain[n].numel())
    added = noisy[name] - quiet[name]
    assert float(added.std()) == pytest.approx(float(plain[name].std()), rel=0.05)
    assert abs(float(added.mean())) < 0.05 * float(added.std())


@pytest.mark.parametrize("modalities", [2, 3])
def test_agm(network, assert_same, modalities):
    names = network(modalities).model.names
    steps = both(
        network,
        AGM(clip=math.inf),
        bg.AGM(names),
        with_muted_passes,
        unimodal=False,
        modalities=modalities,
        steps=4,
    )
    for found, wanted in steps:
        assert_same(found, wanted)


def test_agm_clips_the_whole_model_where_the_heads_gradient_is_long(network, assert_same):
    def gradients(clip):
        own = network()
        AGM(clip=clip)(own.forward(unimodal=False))
        return own.gradients()

    whole = gradients(math.inf)
    length = torch.cat([g.flatten() for g in whole.values()]).norm()
    head = torch.cat([g.flatten() for name, g in whole.items() if name.startswith("fused")]).norm()
    clip = 0.5 * float(head)
    assert_same(gradients(clip), {name: g * clip / length for name, g in whole.items()})
    assert_same(gradients(1.5 * float(head)), whole)


def test_shapley_shares_of_two_are_those_of_the_paper():
    assert subsets(2) == [(), (0,), (1,), (0, 1)]
    assert shapley(2).tolist() == [[0.0, 0.5, -0.5, 0.5], [0.0, -0.5, 0.5, 0.5]]


@pytest.mark.parametrize("count", [2, 3, 6])
def test_shapley_shares_add_up_to_the_full_pass(count):
    wanted = torch.zeros(2**count)
    wanted[-1] = 1
    torch.testing.assert_close(shapley(count).sum(0), wanted)


def test_torchjd_balances_the_encoders_and_leaves_the_heads_their_own_loss(network, assert_same):
    found, plain, wanted = ({} for _ in range(3))
    runs = (
        (found, loops.torchjd("UPGrad")),
        (plain, lambda forward: of_losses(None, forward).backward()),
        (wanted, lambda forward: of_losses(bg.Gramian(UPGradWeighting()), forward).backward()),
    )
    for kept, run in runs:
        own = network(conflict=True)
        run(own.forward())
        kept.update(own.gradients())
    assert_same(found, {name: (wanted if "encoder" in name else plain)[name] for name in plain}, rtol=1e-3, atol=1e-5)
