import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

import balanced_grad as bg
from balanced_grad.modulation._shapley import shapley
from tests.conftest import MODALITIES, NoHostReads


class Mixing(nn.Module):
    """A model whose logits do not split over the modalities."""

    def __init__(self, modalities=MODALITIES[:2], classes=3):
        super().__init__()
        self.encoders = nn.ModuleDict({m: nn.Linear(4, 5) for m in modalities})
        self.head = nn.Linear(5, classes)
        self.inputs = {m: torch.randn(6, 4) for m in modalities}
        self.labels = torch.randint(classes, (6,))

    def forward(self, present=None):
        z = 1.0
        for name, encoder in self.encoders.items():
            x = self.inputs[name]
            z = z * (1 + encoder(x if present is None or name in present else torch.zeros_like(x)).tanh())
        return self.head(z)


def step(model, balancer):
    logits = balancer.logits(model(), model, model.labels)
    balancer({"joint": cross_entropy(logits, model.labels)}).backward()
    return balancer.last


def warm(balancer, *means):
    """Give the balancer running means."""
    balancer.total.copy_(torch.tensor(means))
    balancer.count.fill_(1)
    return balancer


def test_the_first_step_is_plain_training():
    model = Mixing()
    wanted = torch.autograd.grad(cross_entropy(model(), model.labels), list(model.parameters()))
    last = step(model, bg.AGM(MODALITIES[:2]))
    assert last.coefficients == {"audio": 1, "video": 1}
    torch.testing.assert_close([p.grad for p in model.parameters()], list(wanted))


def test_paths_receive_half_sum_and_half_difference():
    passes = {key: torch.randn(6, 3, requires_grad=True) for key in (None, ("audio",), ("video",))}
    balancer = warm(bg.AGM(MODALITIES[:2], 2.0), 0.3, 0.9)
    labels = torch.randint(3, (6,))
    logits = balancer.logits(passes[None], passes.__getitem__, labels)
    assert torch.equal(logits, passes[None])
    d = torch.randn(6, 3)
    balancer({"joint": (logits * d).sum()}).backward()
    audio, video = balancer.last.coefficients.values()
    assert abs(audio - video) > 0.1
    torch.testing.assert_close(passes[None].grad, (audio + video) / 2 * d)
    torch.testing.assert_close(passes["audio",].grad, (audio - video) / 2 * d)
    torch.testing.assert_close(passes["video",].grad, (video - audio) / 2 * d)


def test_coefficients_are_the_published_rule():
    model = Mixing()
    with torch.no_grad():
        full, audio, video = model(), model(("audio",)), model(("video",))
        s_a = cross_entropy((full - video + audio) / 2, model.labels).item()
        s_v = cross_entropy((full - audio + video) / 2, model.labels).item()
    alpha, mean_a, mean_v = 1.5, 0.4, 1.1
    last = step(model, warm(bg.AGM(MODALITIES[:2], alpha), mean_a, mean_v))
    k_a = math.exp(alpha * min(math.exp(mean_v - mean_a) - math.exp(s_v - s_a), 10))
    k_v = math.exp(alpha * min(math.exp(mean_a - mean_v) - math.exp(s_a - s_v), 10))
    assert last.to_dict()["scores"] == pytest.approx({"audio": s_a, "video": s_v})
    assert last.to_dict()["coefficients"] == pytest.approx({"audio": k_a, "video": k_v}, rel=1e-4)


def test_who_falls_behind_its_usual_self_speeds_up():
    """Usually level, and in this batch audio has the larger loss: audio must gain. (A port has the sign reversed.)"""
    model = Mixing()
    last = step(model, warm(bg.AGM(MODALITIES[:2]), 1.0, 1.0))
    behind = max(last.scores, key=last.scores.get)
    ahead = min(last.scores, key=last.scores.get)
    assert last.coefficients[behind] > 1 > last.coefficients[ahead]


def test_the_difference_is_limited():
    model = Mixing()
    last = step(model, warm(bg.AGM(MODALITIES[:2], 0.5, limit=2.0), 0.0, 50.0))
    assert last.coefficients["audio"].item() == pytest.approx(math.exp(1.0))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_three_and_more_scale_the_gradient_of_each_share(count):
    modalities = (*MODALITIES, "touch")[:count]
    model = Mixing(modalities)
    balancer = warm(bg.AGM(modalities, 0.7), *torch.rand(count).tolist())
    last = step(model, balancer)
    found = [p.grad.clone() for p in model.parameters()]
    subsets, weights = shapley(count, torch.device("cpu"))
    passes = torch.stack([model([modalities[i] for i in subset]) for subset in subsets])
    shares = torch.tensordot(weights.t(), passes, 1)
    torch.testing.assert_close(shares.sum(0), model())
    scaled = 0
    for share, k in zip(shares, last.coefficients.values(), strict=True):
        scaled = scaled + share.detach() + k * (share - share.detach())
    wanted = torch.autograd.grad(cross_entropy(scaled, model.labels), list(model.parameters()))
    torch.testing.assert_close(found, list(wanted))


@given(st.integers(1, 5), st.data())
def test_shapley_values_of_an_additive_game_are_its_terms(count, data):
    terms = data.draw(st.lists(st.floats(-5, 5), min_size=count, max_size=count))
    subsets, weights = shapley(count, torch.device("cpu"))
    worth = torch.tensor([sum(terms[player] for player in subset) for subset in subsets])
    torch.testing.assert_close(worth @ weights, torch.tensor(terms), atol=1e-4, rtol=1e-4)


def test_running_means_and_resuming():
    model = Mixing()
    balancer = bg.AGM(MODALITIES[:2])
    seen = torch.stack([torch.stack(list(step(model, balancer).scores.values())) for _ in range(3)])
    torch.testing.assert_close(balancer.total / balancer.count, seen.mean(0))
    resumed = bg.AGM(MODALITIES[:2])
    resumed.load_state_dict(balancer.state_dict())
    model.inputs["audio"] = model.inputs["audio"] + 1
    assert step(model, resumed).coefficients == step(model, balancer).coefficients


def test_a_missing_modality_is_neither_muted_nor_averaged():
    model = Mixing(MODALITIES)
    balancer = warm(bg.AGM(MODALITIES), 0.5, 0.7, 0.9)
    asked = []

    def muted(present):
        asked.append(present)
        return model(present)

    full = model(("audio", "text"))
    balancer({"joint": cross_entropy(balancer.logits(full, muted, model.labels, ("text", "audio")), model.labels)})
    assert sorted(asked) == [("audio",), ("text",)]
    assert balancer.last.coefficients["video"] == 1
    assert balancer.count.tolist() == [2, 1, 2]
    alone = balancer.logits(model(("audio",)), muted, model.labels, ("audio",))
    torch.testing.assert_close(*(torch.autograd.grad(f.sum(), model.head.bias)[0] for f in (alone, full)))


def test_regression_with_a_loss_of_its_own():
    model = Mixing(classes=1)
    target = torch.randn(6, 1)
    balancer = bg.AGM(MODALITIES[:2], loss=mse_loss)
    for _ in range(2):
        balancer({"joint": mse_loss(balancer.logits(model(), model, target), target)}).backward()
    assert all(math.isfinite(k) and k > 0 for k in balancer.last.to_dict()["coefficients"].values())


def factors(scores, means, present=MODALITIES, **options):
    """Coefficients where these are the losses of the shares."""
    balancer = warm(bg.AGM(MODALITIES, **options), *means)
    given = iter(scores)
    balancer.loss = lambda share, labels: share.sum() * 0 + next(given)
    passes = torch.zeros(2, 2, requires_grad=True)
    balancer({"joint": balancer.logits(passes, lambda _: passes * 1, None, present).sum()})
    return balancer.last.to_dict()["coefficients"]


numbers = st.floats(-1e30, 1e30) | st.floats(-200, 200)


@given(st.lists(numbers, min_size=3, max_size=3), st.lists(numbers, min_size=3, max_size=3), st.sampled_from([0, 1.5]))
def test_every_loss_has_a_factor(scores, means, alpha):
    found = factors(scores, means, alpha=alpha)
    assert all(0 <= k <= math.exp(15) * 1.001 for k in found.values())
    for limit in (0.0, math.inf):
        assert all(math.isfinite(k) for k in factors(scores, means, alpha=alpha, limit=limit).values())
    if alpha == 0:
        assert set(found.values()) == {1}


def test_far_from_its_usual_self_the_factor_is_the_limit():
    """Where both exponentials overflow, too."""
    far = factors((0.0, 200.0, 400.0), (0.0, 300.0, 400.0))
    assert far["text"] == 1  # both vanish
    assert far["audio"] == pytest.approx(math.exp(15))  # it used to lead by more
    assert factors((0.0, 400.0, 400.0), (0.0, 300.0, 300.0))["audio"] == 0
    assert factors((0.0, 300.0, 300.0), (0.0, 300.0, 300.0))["audio"] == 1
    assert factors((math.inf, 0.3, 0.3), (0.3, 0.3, 0.3))["video"] == 0


def test_the_unit_in_which_a_loss_is_measured_is_that_of_the_rule():
    assert factors((9479.0, 9702.0, 9600.0), (9600.0,) * 3).keys() == set(MODALITIES)
    small = factors((0.9479, 0.9702, 0.96), (0.96,) * 3)
    assert all(0.9 < k < 1.1 for k in small.values())


def test_a_loss_that_is_no_number_leaves_the_others_to_be_compared():
    found = factors((0.2, math.nan, 0.6), (0.4, 0.4, 0.4))
    without = factors((0.2, 0.6), (0.4, 0.4, 0.4), present=("audio", "text"))
    assert found == without
    assert found["video"] == 1
    assert found["audio"] < 1


def test_evaluation_enters_no_running_mean():
    model, balancer = Mixing(), bg.AGM(MODALITIES[:2])
    step(model, balancer)
    before = balancer.total.clone()
    balancer.eval()
    step(model, balancer)
    assert torch.equal(balancer.total, before)
    assert balancer.count.tolist() == [1, 1]


def test_what_is_reported_is_of_this_step():
    """A step without logits reports nothing of the one before."""
    model, balancer = Mixing(), bg.AGM(MODALITIES[:2])
    assert step(model, balancer).scores
    with pytest.warns(bg.InactiveBalancerWarning, match="no logits of this step"):
        balancer({"joint": cross_entropy(model(), model.labels)}).backward()
    assert not balancer.last.scores
    assert not balancer.last.coefficients


def test_the_logits_may_be_written_over():
    """They are a copy of the model's, as a masked_fill_ after them may need."""
    model, balancer = Mixing(), bg.AGM(MODALITIES[:2])
    full = model()
    logits = balancer.logits(full, model, model.labels)
    before = full.detach().clone()
    logits.mul_(2)
    assert torch.equal(full, before)


def test_autocast_leaves_coefficients_alone():
    """A product with the table of shares in bfloat16 would move the factors of the passes."""
    passes = [torch.randn(6, 3, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    labels = torch.randint(3, (6,))
    found = []
    for enabled in (False, True):
        balancer = warm(bg.AGM(MODALITIES[:2], 2.0), 0.3, 0.9)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = balancer.logits(passes[0], lambda present: passes[1 + (present == ("video",))], labels)
            balancer({"joint": logits.float().sum()})
        found.append([k.item() for k in balancer.last.coefficients.values()])
        grads = torch.autograd.grad(logits.float().sum(), passes)
        found[-1] += [grad[0, 0].item() for grad in grads]
    assert found[0] == found[1]
    assert found[0][2] == pytest.approx((found[0][0] + found[0][1]) / 2, rel=1e-2)


def test_no_gradient_no_muted_pass_no_state():
    model, balancer = Mixing(), bg.AGM(MODALITIES[:2])
    with torch.no_grad():
        full = model()
        assert balancer.logits(full, None, model.labels) is full
    assert balancer.count.sum() == 0


def test_nothing_is_read_on_the_host():
    model, balancer = Mixing(), warm(bg.AGM(MODALITIES[:2]), 0.3, 0.4)
    balancer.logits(model(), model, model.labels)  # the table of subsets is made once
    with NoHostReads():
        step(model, balancer)


def test_bad_input():
    model = Mixing()
    for modalities in ("audio", ("audio",), ("audio", "audio")):
        with pytest.raises(ValueError, match="give two or more different names"):
            bg.AGM(modalities)
    with pytest.raises(ValueError, match="alpha=-1"):
        bg.AGM(MODALITIES, -1)
    balancer = bg.AGM(MODALITIES[:2])
    with pytest.raises(
        ValueError, match=r"the logits with only \['audio'\] have shape \(2, 3\), those of all \(6, 3\)"
    ):
        balancer.logits(model(), lambda present: model(present)[:2], model.labels)
    with pytest.raises(TypeError, match="muted is None; give a function"):
        balancer.logits(model(), None, model.labels)
    with pytest.raises(ValueError, match=r"present=\('text',\)"):
        balancer.logits(model(), model, model.labels, ("text",))
    assert balancer.count.sum() == 0
