"""The losses of CrossModalVI: what they are, what they leave out, and that training on them teaches."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from balanced_grad.models import Bernoulli, Categorical, CrossModalVI, Gaussian
from balanced_grad.models._vi_objective import plan
from balanced_grad.models._vi_presence import read
from tests.models.test_cross_modal import SIZES, batch, network, without

ALL = tuple(SIZES)


def nll(vi, inputs, name):
    """``-log p(x | the others)`` of each item, from a plain call."""
    return bce(vi(without(inputs, name)).predictions[name], inputs[name], reduction="none").sum(1)


def gradients(vi, loss):
    return torch.autograd.grad(loss, list(vi.parameters()), retain_graph=True, allow_unused=True)


class TestLikelihoods:
    def test_they_are_those_of_torch(self):
        parameters = torch.randn(5, 6)
        x = torch.randint(2, (5, 6)).float()
        torch.testing.assert_close(Bernoulli(6).nll(parameters, x), -TorchBernoulli(logits=parameters).log_prob(x))
        codes = torch.randint(3, (5, 2))
        likelihood = Categorical(3, variables=2)
        torch.testing.assert_close(
            likelihood.nll(parameters, likelihood.encode(codes)),
            -TorchCategorical(logits=parameters.reshape(5, 2, 3)).log_prob(codes),
        )

    @pytest.mark.parametrize("variance", ["unit", "learnt", "predicted"])
    def test_gaussian(self, variance):
        likelihood, x = Gaussian(3, variance=variance), torch.randn(5, 3)
        parameters = torch.randn(5, likelihood.width)
        deviation = (likelihood.log_variance(parameters) / 2).exp().expand(5, 3)
        want = -Normal(parameters[:, :3], deviation).log_prob(x)
        torch.testing.assert_close(likelihood.nll(parameters, x), want)
        assert (variance == "unit") == (deviation == 1).all().item()

    def test_an_entry_that_does_not_vary_cannot_sink_the_loss(self):
        likelihood = Gaussian(1)
        optimizer = torch.optim.SGD(likelihood.parameters(), lr=10.0)
        for _ in range(200):
            optimizer.zero_grad()
            loss = likelihood.nll(torch.zeros(1, 1), torch.zeros(1, 1)).sum()
            loss.backward()
            optimizer.step()
        assert loss.item() > (math.log(2 * math.pi) - 6) / 2


class TestLosses:
    @pytest.mark.parametrize("names", [("audio", "video"), ALL])
    def test_each_is_the_conditional_given_the_others(self, names):
        vi, inputs = network(names, steps=3), batch(names)
        got = vi.objective(inputs, reduction="sum").losses
        assert list(got) == list(names)
        for name in names:
            torch.testing.assert_close(got[name], nll(vi, inputs, name).mean())
        per_entry = vi.objective(inputs).losses
        for name in names:
            torch.testing.assert_close(per_entry[name] * SIZES[name], got[name])

    def test_renaming_the_modalities_renames_the_losses(self):
        vi, inputs = network(steps=2), batch()
        twin = CrossModalVI({"audio": Bernoulli(4), "video": Bernoulli(5)}, 6, steps=2).double()
        state = vi.state_dict()
        turn = {"branches.0": "branches.1", "branches.1": "branches.0"}
        twin.load_state_dict({turn.get(key[:10], key[:10]) + key[10:]: value for key, value in state.items()})
        one = vi.objective(inputs).losses
        two = twin.objective({"audio": inputs["video"], "video": inputs["audio"]}).losses
        torch.testing.assert_close([one["audio"], one["video"]], [two["video"], two["audio"]])

    def test_fills_are_the_runs(self):
        vi, inputs = network(steps=3), batch()
        fills = vi.objective(inputs).fills
        for name in vi.names:
            torch.testing.assert_close(fills[name].hidden, vi(without(inputs, name)).hidden)

    def test_only_items_with_another_modality_count(self):
        vi, inputs = network(ALL, steps=2), batch(ALL, 4)
        present = {  # item 0 has all, 1 audio only, 2 audio and video, 3 nothing
            "audio": torch.tensor([True, True, True, False]),
            "video": torch.tensor([True, False, True, False]),
            "text": torch.tensor([True, False, False, False]),
        }
        losses = vi.objective(inputs, present, reduction="sum").losses
        first = {name: x[:1] for name, x in inputs.items()}
        third = {name: inputs[name][2:3] for name in ("audio", "video")}
        for name in ("audio", "video"):
            want = (nll(vi, first, name) + nll(vi, third, name)).squeeze() / 2
            torch.testing.assert_close(losses[name], want)
        torch.testing.assert_close(losses["text"], nll(vi, first, "text").squeeze())

    def test_nothing_is_drawn_where_nothing_is_revealed(self):
        vi, inputs = network(steps=2), batch()
        before = torch.get_rng_state()
        vi.objective(inputs)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_modality_never_present_has_no_loss(self):
        vi, inputs = network(ALL, steps=2), batch(ALL)
        never = torch.zeros(7, dtype=torch.bool)
        one = vi.objective(inputs, {"text": never}).losses
        two = vi.objective(without(inputs, "text")).losses
        assert set(one) == set(two) == {"audio", "video"}
        torch.testing.assert_close(one, two)
        for kind in ("vi", "subsets", "predict-all"):
            assert vi.objective({"audio": inputs["audio"]}, kind=kind).losses == {}
            assert vi.objective({}, {"audio": never}, kind=kind) == ({}, {})

    def test_where_only_the_device_knows_the_loss_is_zero_without_gradient(self):
        """What a mask on a device does, on the CPU: the collapse of masks there is bypassed."""
        vi, inputs = network(ALL, steps=2), batch(ALL)
        read_batch = vi._read(inputs, None)
        read_batch.known["text"] = torch.zeros(7, dtype=torch.bool)
        vi._read = lambda *_: read_batch
        losses = vi.objective(inputs).losses
        assert losses["text"].item() == 0
        assert all(g is None or (g == 0).all() for g in gradients(vi, losses["text"]))

    def test_predict_all_adds_what_was_observed(self):
        vi, inputs = network(steps=2), batch()
        losses = vi.objective(inputs, kind="predict-all", reduction="sum").losses
        audio, video = vi.branches
        for name, branch, other in (("audio", audio, "video"), ("video", video, "audio")):
            hidden = vi(without(inputs, other)).hidden
            seen = bce(branch.predict(hidden), inputs[name], reduction="none").sum(1).mean()
            torch.testing.assert_close(losses[name], nll(vi, inputs, name).mean() + seen)

    def test_autoencoder_reconstructs_what_it_sees(self):
        vi, inputs = network(steps=0, start="zero"), batch()
        losses = vi.objective(inputs, kind="autoencoder", reduction="sum").losses
        hidden = vi(inputs).hidden
        for name, branch in zip(vi.names, vi.branches, strict=True):
            torch.testing.assert_close(
                losses[name], bce(branch.predict(hidden), inputs[name], reduction="none").sum(1).mean()
            )

    def test_sparsity_is_the_divergence_of_the_mean_activations(self):
        vi, inputs = network(steps=2), batch()
        plain, sparse = (vi.objective(inputs, reduction="sum", sparsity=s, sparsity_target=0.2) for s in (0.0, 0.3))
        for name in vi.names:
            mean = plain.fills[name].hidden.mean(0)
            kl = torch.distributions.kl_divergence(TorchBernoulli(0.2), TorchBernoulli(mean)).sum()
            torch.testing.assert_close(sparse.losses[name], plain.losses[name] + 0.3 * kl)

    def test_back_steps_cut_the_graph_before_the_last(self):
        vi, inputs = network(steps=3), batch()
        audio, video = vi.branches
        a = audio.drive(inputs["audio"])
        h = vi(without(inputs, "video"), steps=2).hidden.detach()
        last = torch.sigmoid(a + video.drive(video.predict(h).sigmoid()) + vi.bias)
        want = gradients(vi, bce(video.predict(last), inputs["video"]))
        full, cut, more = (vi.objective(inputs, back_steps=t).losses["video"] for t in (None, 1, 9))
        torch.testing.assert_close(cut, full)
        torch.testing.assert_close(gradients(vi, cut), want)
        torch.testing.assert_close(gradients(vi, more), gradients(vi, full))
        assert not torch.allclose(gradients(vi, full)[0], want[0])


class TestReveal:
    def test_what_is_revealed_is_clamped_and_not_counted(self):
        """With equal masks drawn again: the loss of the entries left over, at the state they lead to."""
        vi, inputs = network(steps=2), batch()
        got = vi.objective(inputs, reveal=0.5, reduction="sum", generator=torch.Generator().manual_seed(3))
        again = torch.Generator().manual_seed(3)
        audio, video = vi.branches
        for name, hidden_one, other in (("audio", audio, video), ("video", video, audio)):
            x, y = inputs[name], inputs["video" if name == "audio" else "audio"]
            share = 0.5 * torch.rand(7, 1, generator=again)
            r = torch.rand(x.shape, generator=again) < share
            h = torch.sigmoid(1.5 * other.drive(y) + hidden_one.drive(r * x) + vi.bias)  # gain 2 - p
            for _ in range(2):
                z = torch.where(r, x, hidden_one.predict(h).sigmoid())
                h = torch.sigmoid(other.drive(y) + hidden_one.drive(z) + vi.bias)
            want = (bce(hidden_one.predict(h), x, reduction="none") * ~r).sum(1).mean()
            torch.testing.assert_close(got.losses[name], want)
            assert torch.equal(got.fills[name].filled[name][r], x[r])

    def test_the_share_is_uniform_up_to_its_limit(self):
        vi = CrossModalVI({"a": Bernoulli(400), "b": Categorical(2, variables=400)}, 2, steps=0)
        inputs = {"a": torch.full((500, 400), 0.25), "b": torch.zeros(500, 400, dtype=torch.long)}
        fills = vi.objective(inputs, reveal=0.6).fills
        for shares in (
            (fills["a"].filled["a"] == 0.25).float().mean(1),
            (fills["b"].filled["b"][..., 0] == 1).float().mean(1),
        ):
            assert shares.mean().item() == pytest.approx(0.3, abs=0.04)
            assert shares.std().item() == pytest.approx(0.6 / math.sqrt(12), abs=0.02)
            assert shares.max() < 0.7

    def test_a_generator_repeats_it(self):
        vi, inputs = network(ALL), batch(ALL)

        def losses(seed, kind):
            generator = torch.Generator().manual_seed(seed)
            return list(vi.objective(inputs, reveal=0.3, kind=kind, generator=generator).losses.values())

        for kind in ("vi", "subsets", "predict-all"):
            torch.manual_seed(0)
            one = losses(1, kind)
            torch.manual_seed(1)
            assert losses(1, kind) == one
            assert losses(2, kind) != one


class TestSubsets:
    def draw(self, present=None, size=3000):
        vi = network(ALL)
        likelihoods = {name: b.likelihood for name, b in zip(vi.names, vi.branches, strict=True)}
        inputs = {name: torch.zeros(size, width, dtype=torch.float64) for name, width in SIZES.items()}
        (run,) = plan("subsets", read(likelihoods, inputs, present, vi.bias), None)
        return torch.stack([torch.as_tensor(run.visible[name]).expand(size) for name in ALL], 1), run.targets

    def test_every_proper_subset_is_drawn(self):
        visible, targets = self.draw()
        codes = (visible * torch.tensor([1, 2, 4])).sum(1)
        share = codes.bincount(minlength=8) / len(codes)
        assert share[0] == share[7] == 0  # nothing seen, nothing hidden
        torch.testing.assert_close(share[1:7], torch.full((6,), 1 / 6), atol=0.04, rtol=0)
        for i, name in enumerate(ALL):
            assert torch.equal(targets[name], ~visible[:, i])

    def test_only_of_what_an_item_has(self):
        one = torch.arange(3000) % 2 == 0  # every second item has audio only
        visible, targets = self.draw({"video": ~one, "text": torch.zeros(3000, dtype=torch.bool)})
        assert torch.equal(visible[one], torch.tensor([True, False, False]).expand(1500, 3))
        assert not (targets["audio"] & one).any()
        assert (visible[~one].sum(1) == 1).all()
        assert "text" not in targets

    def test_losses_are_those_of_what_was_hidden(self):
        vi, inputs = network(ALL, steps=2), batch(ALL)
        got = vi.objective(inputs, kind="subsets", reduction="sum", generator=torch.Generator().manual_seed(2))
        fill = got.fills["subsets"]
        for name, branch in zip(vi.names, vi.branches, strict=True):
            seen = (fill.filled[name] == inputs[name]).all(1)
            want = bce(branch.predict(fill.hidden), inputs[name], reduction="none").sum(1)[~seen].mean()
            torch.testing.assert_close(got.losses[name], want)


def correlated(items=256, seed=0):
    """Two noisy views of one of four patterns."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(4, 20, generator=generator) < 0.5
    kind = torch.randint(4, (items,), generator=generator)
    x = torch.where(torch.rand(items, 20, generator=generator) < 0.1, ~patterns[kind], patterns[kind]).float()
    return {"left": x[:, :10], "right": x[:, 10:]}, kind


def trained(inputs, balancer=None, epochs=150, **options):
    vi = CrossModalVI({name: Bernoulli(x.shape[1]) for name, x in inputs.items()}, 16, **options)
    vi.fit_biases(inputs)
    optimizer = torch.optim.Adam(vi.parameters(), lr=0.02)
    balancer = balancer or bg.Uniform()
    for _ in range(epochs):
        balancer(vi.objective(inputs, reveal=0.25).losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    return vi.eval()


class TestTraining:
    @pytest.mark.parametrize("tied", [True, False])
    def test_it_predicts_better_than_the_mean_and_settles(self, tied):
        inputs, _ = correlated()
        test, _ = correlated(items=500)
        vi = trained(inputs, tied=tied)
        constant = {
            name: bce(x.mean(0).logit(eps=1e-3).expand_as(test[name]), test[name]) for name, x in inputs.items()
        }
        losses = vi.objective(test).losses
        for name in inputs:
            assert losses[name] < 0.8 * constant[name]
        changes = vi({"left": test["left"]}).residuals.mean(1)
        assert changes[-1] < 0.5 * changes[0]

    def test_identical_modalities_are_copied(self):
        inputs, _ = correlated()
        same = {"left": inputs["left"], "right": inputs["left"]}
        losses = trained(same).objective(same).losses
        constant = bce(same["left"].mean(0).logit().expand_as(same["left"]), same["left"])
        assert max(losses.values()) < 0.6 * constant

    @pytest.mark.parametrize("balancer", [bg.MIMO(), bg.MinNorm(), bg.MMPareto()], ids=lambda b: type(b).__name__)
    def test_balancers_take_the_losses(self, balancer):
        inputs, _ = correlated()
        before = trained(inputs, epochs=0).objective(inputs).losses
        after = trained(inputs, balancer, epochs=40).objective(inputs).losses
        assert all(after[name] < 0.95 * before[name] for name in inputs)

    def test_beside_a_classifier(self):
        inputs, kind = correlated()
        vi, head = CrossModalVI({"left": Bernoulli(10), "right": Bernoulli(10)}, 16), nn.Linear(16, 4)
        optimizer = torch.optim.Adam([*vi.parameters(), *head.parameters()], lr=0.02)
        balancer = bg.MIMO()
        for _ in range(100):
            out = vi.objective(inputs)
            states = [vi(inputs).hidden, *(fill.hidden for fill in out.fills.values())]
            joint = sum(cross_entropy(head(h), kind) for h in states)
            balancer({"joint": joint} | out.losses).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert set(balancer.last.names) == {"joint", "left", "right"}
        vi.eval()
        for name in inputs:
            assert (head(vi({name: inputs[name]}).hidden).argmax(1) == kind).float().mean() > 0.75
