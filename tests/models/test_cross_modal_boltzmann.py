"""The Boltzmann machine of the bench against sums over all of its states."""

from itertools import product

import pytest
import torch

from balanced_grad.models import Bernoulli, CrossModalVI
from bench._boltzmann import Boltzmann

STATES = torch.tensor(list(product((0.0, 1.0), repeat=4)), dtype=torch.float64)  # of two modalities of two entries


def machine(seed=0, hidden=3):
    torch.manual_seed(seed)
    vi = CrossModalVI({"x": Bernoulli(2), "z": Bernoulli(2)}, hidden).double()
    for parameter in vi.parameters():
        parameter.data.normal_()
    return Boltzmann(vi, torch.Generator().manual_seed(seed))


def share(samples):
    """How often each state occurs."""
    codes = (samples * torch.tensor([8.0, 4.0, 2.0, 1.0])).sum(1).long()
    return codes.bincount(minlength=16) / len(codes)


def test_free_energy_is_the_sum_over_hidden_states():
    rbm = machine()
    hidden = torch.tensor(list(product((0.0, 1.0), repeat=3)), dtype=torch.float64)
    drive = STATES @ rbm.weight().T + rbm.vi.bias
    want = -(STATES @ rbm.visible_bias()) - (drive @ hidden.T).logsumexp(1)
    torch.testing.assert_close(rbm.free_energy(STATES), want)


def test_hidden_layer_is_the_networks():
    rbm = machine()
    found = (STATES @ rbm.weight().T + rbm.vi.bias).sigmoid()
    torch.testing.assert_close(found, rbm.vi({"x": STATES[:, :2], "z": STATES[:, 2:]}).hidden)


def test_gibbs_steps_sample_the_model():
    rbm = machine()
    v = STATES.repeat(1000, 1)
    for _ in range(30):
        v = rbm.gibbs(v)
    torch.testing.assert_close(share(v), (-rbm.free_energy(STATES)).softmax(0).float(), atol=0.015, rtol=0)


def test_clamped_steps_sample_the_conditional():
    rbm = machine()
    given = torch.tensor([1.0, 0.0], dtype=torch.float64)
    v = torch.cat([given.expand(16000, 2), torch.zeros(16000, 2, dtype=torch.float64)], 1)
    clamped = torch.tensor([True, True, False, False]).expand_as(v)
    for _ in range(30):
        v = rbm.gibbs(v, clamped)
    assert (v[:, :2] == given).all()
    fits = (STATES[:, :2] == given).all(1)
    want = (-rbm.free_energy(STATES)).masked_fill(~fits, -torch.inf).softmax(0).float()
    torch.testing.assert_close(share(v), want, atol=0.015, rtol=0)


def test_maximum_likelihood_follows_the_exact_gradient():
    rbm, data = machine(), STATES[[0, 3, 3, 12, 15]]
    parameters = list(rbm.vi.parameters())
    probability = (-rbm.free_energy(STATES)).log_softmax(0)
    rows = [0, 3, 3, 12, 15]
    want = torch.autograd.grad(-probability[rows].mean(), parameters)
    states = torch.multinomial(probability.exp().detach(), 20000, replacement=True, generator=rbm.order)
    rbm.chains = STATES[states]
    found = torch.autograd.grad(rbm.likelihood_loss(data), parameters)
    torch.testing.assert_close(found, want, atol=0.02, rtol=0)


@pytest.mark.parametrize("steps", [1, 6])
def test_negatives_are_the_lowest_of_their_chains(steps):
    rbm, twin, v = machine(1), machine(1), STATES.repeat(20, 1)
    clamped = torch.tensor([False, False, True, True]).expand_as(v)
    chain = [v]
    for _ in range(steps):
        chain.append(twin.gibbs(chain[-1], clamped))
    energies = torch.stack([twin.free_energy(x) for x in chain[1:]])
    found = rbm.lowest(v, clamped, steps)
    torch.testing.assert_close(rbm.free_energy(found), energies.min(0).values)
    assert torch.equal(found[:, 2:], v[:, 2:])


def test_perception_loss_is_zero_where_chains_cannot_leave_the_data():
    """With a bias that leaves one state, the negatives are the data, given either half."""
    rbm = machine()
    with torch.no_grad():
        rbm.vi.bias.zero_()
        for branch, sign in zip(rbm.vi.branches, (1, -1), strict=True):
            branch.up.weight.zero_()
            branch.bias.fill_(80.0 * sign)
    right = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    assert rbm.perception_loss(right).item() == 0
    wrong = 1 - right  # its negatives keep one half, and mend the other
    assert rbm.perception_loss(wrong).item() == pytest.approx(160.0)
