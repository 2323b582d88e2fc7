"""The whole contract of the loss scaler is testable on the CPU."""

import copy

import pytest
import torch
from torch import nn

import balanced_grad as bg
from tests.conftest import LateFusion, make_batch

STEPS = 20


class Plain(nn.Module):
    """What the balancer is compared with: the sum of the losses."""

    def forward(self, losses):
        return sum(losses.values())


def learnt(balancer):
    """The state, less what counts calls, whatever becomes of them."""
    state = balancer.state() if isinstance(balancer, bg.Stateful) else {}
    return {name: value for name, value in state.items() if name != "steps"}


class TestGradScaler:
    """The whole contract of the loss scaler is testable on the CPU."""

    def run(self, objective, model, *, infinite_at=()):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=5)
        scales = []
        for step in range(STEPS):
            losses = model.losses(*make_batch(seed=step))
            if step in infinite_at:
                losses["joint"] = losses["joint"] * torch.inf
            optimizer.zero_grad()
            scaler.scale(objective(losses)).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        return scales

    @pytest.mark.parametrize("infinite_at", [(), (3, 11)])
    def test_equals_the_plain_sum_and_skips_infinite_steps(self, infinite_at):
        model = LateFusion()
        reference = copy.deepcopy(model)
        want = self.run(Plain(), reference, infinite_at=infinite_at)
        got = self.run(bg.Uniform(record_gramian=True), model, infinite_at=infinite_at)
        assert got == want
        assert len(set(got)) > 1, "the scale must have changed for this test to say anything"
        for one, other in zip(reference.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("balancer", [bg.MinNorm(), bg.MIMO(ema=0.9)], ids=repr)
    def test_an_infinite_loss_skips_the_step_and_leaves_state_alone(self, balancer):
        model = LateFusion()
        self.run(balancer, model)
        before = copy.deepcopy(model.state_dict()), learnt(balancer)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        losses = model.losses(*make_batch())
        scaler.scale(balancer(losses | {"joint": losses["joint"] * torch.inf})).backward()
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == 4.0
        torch.testing.assert_close(model.state_dict(), before[0], rtol=0, atol=0)
        assert learnt(balancer) == before[1]

    def test_statistics_do_not_see_the_scale(self):
        model = LateFusion()
        grams = []
        for scale in (1.0, 2.0**16, 0.25):
            balancer = bg.MinNorm()
            (scale * balancer(model.losses(*make_batch()))).backward()
            grams.append((balancer.last.gramian, balancer.last.weights))
        for gramian, weights in grams[1:]:
            torch.testing.assert_close(gramian, grams[0][0])
            torch.testing.assert_close(weights, grams[0][1])
