"""CrossModalVI: the recurrence against explicit mean-field, masks, early stops, what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from balanced_grad.models import Bernoulli, Categorical, CrossModalVI, Gaussian, Modality
from tests.conftest import NoHostReads

quick = settings(deadline=None, max_examples=40)
SIZES = {"audio": 5, "video": 4, "text": 3}


def network(names=("audio", "video"), *, scale=0.7, **options):
    vi = CrossModalVI({name: Bernoulli(SIZES[name]) for name in names}, 6, **options).double()
    with torch.no_grad():
        for p in vi.parameters():
            p.normal_(std=scale)
    return vi


def batch(names=("audio", "video"), size=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(size, SIZES[name], generator=generator, dtype=torch.float64) for name in names}


def without(inputs, name):
    return {key: x for key, x in inputs.items() if key != name}


class TestRecurrence:
    @pytest.mark.parametrize("steps", [0, 1, 2, 5])
    @pytest.mark.parametrize("missing", ["audio", "video"])
    def test_tied_network_is_mean_field_of_a_two_modality_rbm(self, steps, missing):
        vi, inputs = network(steps=steps), batch()
        seen = "video" if missing == "audio" else "audio"
        branches = dict(zip(vi.names, vi.branches, strict=True))
        w, u = branches[seen].up.weight, branches[missing].up.weight
        c, b = branches[missing].bias, vi.bias
        h = torch.sigmoid(2 * inputs[seen] @ w.T + b)
        for _ in range(steps):
            z = torch.sigmoid(h @ u + c)
            h = torch.sigmoid(inputs[seen] @ w.T + z @ u.T + b)
        out = vi({seen: inputs[seen]})
        torch.testing.assert_close(out.hidden, h)
        torch.testing.assert_close(out.predictions[missing], h @ u + c)
        torch.testing.assert_close(out.filled[missing], torch.sigmoid(h @ u + c))
        assert out.residuals.shape == (steps, 7)

    def test_the_steps_go_down_the_free_energy(self):
        """Mean-field steps on h and x are coordinate descent on the variational free energy of the machine."""
        vi, inputs = network(steps=1, scale=0.3), batch()
        audio, video = vi.branches

        def free_energy(h, z):
            def entropy(p):
                return -(torch.xlogy(p, p) + torch.xlogy(1 - p, 1 - p)).sum(1)

            drive = audio.drive(inputs["audio"]) + video.drive(z) + vi.bias
            return -((h * drive).sum(1) + z @ video.bias) - entropy(h) - entropy(z)

        before = None
        for steps in range(6):
            out = vi(without(inputs, "video"), steps=steps)
            energy = free_energy(out.hidden, out.filled["video"])
            if before is not None and steps > 1:  # h⁰ is scaled: no such step
                assert (energy <= before + 1e-12).all()
            before = energy

    def test_without_steps_it_is_a_feed_forward_network(self):
        vi, inputs = network(steps=0), batch()
        net = nn.Sequential(nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 4)).double()
        audio, video = vi.branches
        net.load_state_dict(
            {
                "0.weight": 2 * audio.up.weight,
                "0.bias": vi.bias,
                "2.weight": video.up.weight.T,
                "2.bias": video.bias,
            }
        )
        torch.testing.assert_close(vi(without(inputs, "video")).predictions["video"], net(inputs["audio"]))

    def test_with_everything_observed_it_is_a_joint_encoder(self):
        vi, inputs = network(steps=5), batch()
        out = vi(inputs)
        drive = sum(b.drive(inputs[name]) for name, b in zip(vi.names, vi.branches, strict=True))
        torch.testing.assert_close(out.hidden, torch.sigmoid(drive + vi.bias))
        assert out.predictions == {}
        assert len(out.residuals) == 0

    def test_nothing_observed_starts_from_the_bias(self):
        vi = network(steps=0)
        nothing = dict.fromkeys(SIZES, torch.zeros(3, dtype=torch.bool))
        out = vi({}, {name: nothing[name] for name in vi.names})
        torch.testing.assert_close(out.hidden, torch.sigmoid(vi.bias).expand(3, 6))
        assert set(out.filled) == {"audio", "video"}

    @pytest.mark.parametrize("loop", ["input", "latent"])
    def test_untied_weights_and_loops(self, loop):
        vi, inputs = network(tied=False, loop=loop, steps=1), batch()
        audio, video = vi.branches
        a = audio.drive(inputs["audio"])
        features = torch.sigmoid(2 * a + vi.bias) @ video.down.weight.T + video.bias
        back = features if loop == "latent" else features.sigmoid()
        torch.testing.assert_close(
            vi(without(inputs, "video")).hidden, torch.sigmoid(a + back @ video.up.weight.T + vi.bias)
        )

    def test_zero_start_has_no_gain(self):
        vi, inputs = network(steps=0, start="zero"), batch()
        zeros = vi(inputs | {"video": torch.zeros_like(inputs["video"])})
        torch.testing.assert_close(vi(without(inputs, "video")).hidden, zeros.hidden)

    def test_gain_of_three_modalities(self):
        vi, inputs = network(tuple(SIZES), steps=0), batch(tuple(SIZES))
        two = vi.branches[0].drive(inputs["audio"]) + vi.branches[1].drive(inputs["video"])
        torch.testing.assert_close(vi(without(inputs, "text")).hidden, torch.sigmoid(1.5 * two + vi.bias))

    def test_damping_keeps_that_share_of_the_old_state(self):
        plain, damped = network(steps=1), network(steps=1, damping=0.25)
        damped.load_state_dict(plain.state_dict())
        inputs = without(batch(), "video")
        h0, h1 = (plain(inputs, steps=k).hidden for k in (0, 1))
        torch.testing.assert_close(damped(inputs).hidden, 0.75 * h1 + 0.25 * h0)

    def test_damping_settles_what_swings(self):
        """``h <- tanh(x - 2 h)`` has a fixed point that repels and a cycle of two."""

        def changes(damping):
            parts = {name: Gaussian(1, variance="unit") for name in ("audio", "video")}
            vi = CrossModalVI(parts, 1, steps=60, tied=False, activation=nn.Tanh(), damping=damping)
            audio, video = vi.branches
            with torch.no_grad():
                for weight, value in ((audio.up.weight, 1.0), (video.up.weight, 1.0), (video.down.weight, -2.0)):
                    weight.fill_(value)
            return vi({"audio": torch.full((1, 1), 0.3)}).residuals

        assert changes(0.0)[-1] > 0.5
        assert changes(0.5)[-1] < 1e-6

    def test_evaluation_stops_once_settled_and_training_does_not(self):
        vi, inputs = network(steps=200, scale=0.3), without(batch(), "video")
        full = vi(inputs)
        early = vi.eval()(inputs)
        assert len(full.residuals) == 200
        assert 1 < len(early.residuals) < 50
        assert early.residuals[-1].max() < 1e-5 <= early.residuals[-2].max()
        torch.testing.assert_close(early.hidden, full.hidden, atol=1e-4, rtol=0)

    def test_gradients_are_finite_for_ten_steps(self):
        vi, inputs = network(steps=10), batch()
        sum(vi.objective(inputs).losses.values()).backward()
        assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in vi.parameters())


@st.composite
def masks(draw):
    names = tuple(SIZES)
    rows = draw(st.lists(st.tuples(*[st.booleans()] * 3), min_size=1, max_size=6))
    return {name: torch.tensor(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


class TestMasks:
    @quick
    @given(present=masks())
    def test_a_mixed_batch_is_its_items_one_by_one(self, present):
        vi = network(tuple(SIZES), steps=3)
        size = len(present["audio"])
        clean = batch(tuple(SIZES), size)
        dirty = {name: torch.where(present[name][:, None], x, torch.nan) for name, x in clean.items()}
        out = vi(dirty, present)
        for i in range(size):
            seen = {name: x[i : i + 1] for name, x in clean.items() if present[name][i]}
            every = {name: flag[i : i + 1] for name, flag in present.items()}
            alone = vi(seen, every)
            torch.testing.assert_close(out.hidden[i : i + 1], alone.hidden)
            for name in SIZES:
                torch.testing.assert_close(out.filled[name][i : i + 1], alone.filled[name])

    @quick
    @given(present=masks())
    def test_what_is_observed_comes_back_untouched(self, present):
        vi, clean = network(tuple(SIZES), steps=2), batch(tuple(SIZES), len(present["audio"]))
        out = vi(clean, present)
        for name, flag in present.items():
            assert torch.equal(out.filled[name][flag], clean[name][flag])
            assert out.filled[name].isfinite().all()

    @quick
    @given(present=masks())
    def test_absent_slots_reach_neither_losses_nor_gradients(self, present):
        vi, clean = network(tuple(SIZES), steps=2), batch(tuple(SIZES), len(present["audio"]))

        def result(fill):
            vi.zero_grad()
            inputs = {name: torch.where(present[name][:, None], x, fill) for name, x in clean.items()}
            losses = vi.objective(inputs, present).losses
            if losses:
                sum(losses.values()).backward()
            return losses, [p.grad for p in vi.parameters()]

        torch.testing.assert_close(result(torch.nan), result(-7.0))

    def test_an_empty_batch_is_no_item(self):
        vi, inputs = network(steps=2), batch(size=0)
        assert vi(without(inputs, "audio")).filled["audio"].shape == (0, 5)
        assert [loss.item() for loss in vi.objective(inputs).losses.values()] == [0, 0]

    def test_masks_are_not_read_where_that_would_wait(self):
        """Meta tensors have no values: whoever looks fails. So does a host read on any device."""
        vi = network(tuple(SIZES), steps=2).to("meta")
        inputs = {name: x.to("meta") for name, x in batch(tuple(SIZES)).items()}
        present = {"text": torch.ones(7, dtype=torch.bool, device="meta")}
        with NoHostReads():
            losses = vi.objective(inputs, present, reveal=0.2).losses
            vi.eval()(inputs, present)
        assert set(losses) == set(SIZES)
        on_host = {"text": torch.arange(7) > 2, "audio": torch.ones(7, dtype=torch.bool)}
        assert set(vi.objective(inputs, on_host).losses) == set(SIZES)  # masks of a loader, data on a device


class TestWithNetworks:
    def test_encoders_and_decoders_of_ones_own(self):
        encoder = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 2 * 4, 5))
        vi = CrossModalVI(
            {"image": Modality(Bernoulli((1, 4, 6)), encoder, features=5), "tags": Categorical(3, variables=2)},
            8,
            tied=False,
            activation=nn.Sequential(nn.LayerNorm(8), nn.SiLU()),
        )
        inputs = {"image": torch.rand(6, 1, 4, 6), "tags": torch.randint(3, (6, 2))}
        out = vi({"tags": inputs["tags"]})
        assert out.filled["image"].shape == (6, 1, 4, 6)
        filled = vi({"image": inputs["image"]}).filled["tags"]
        torch.testing.assert_close(filled.sum(-1), torch.ones(6, 2))
        losses = vi.objective(inputs, reveal=0.3).losses
        sum(losses.values()).backward()
        assert encoder[0].weight.grad.abs().sum() > 0

    def test_state_and_copies_carry_on(self):
        one, two = network(tied=False), network(tied=False)
        two.load_state_dict(one.state_dict())
        inputs = without(batch(), "audio")
        assert torch.equal(one(inputs).hidden, two(inputs).hidden)
        assert len(network().state_dict()) < len(one.state_dict())  # tied weights are stored once

    def test_autocast(self):
        vi = CrossModalVI({"a": Bernoulli(5), "b": Gaussian(4)}, 6)
        inputs = {"a": torch.rand(3, 5), "b": torch.randn(3, 4)}
        mask = {"b": torch.tensor([True, False, True])}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = vi.objective(inputs, mask, reveal=0.2).losses
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        sum(losses.values()).backward()
        assert vi.bias.grad.isfinite().all()

    def test_truncation_under_autocast_loses_no_gradient(self):
        vi = CrossModalVI({"a": Bernoulli(5), "b": Bernoulli(4)}, 6, steps=3, tied=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = vi.objective({"a": torch.rand(3, 5), "b": torch.rand(3, 4)}, back_steps=1).losses["b"]
        loss.backward()
        a, b = vi.branches
        assert all(p.grad.abs().sum() > 0 for p in (a.up.weight, b.up.weight, b.down.weight, vi.bias))

    @pytest.mark.parametrize(
        "likelihood",
        [
            Bernoulli(3),
            Categorical(3, variables=2),
            *(Gaussian(3, variance=v) for v in ("unit", "learnt", "predicted")),
        ],
        ids=str,
    )
    def test_fitted_biases_are_the_best_constant(self, likelihood):
        vi = CrossModalVI({"x": likelihood, "other": Bernoulli(1)}, 4, steps=0)
        generator = torch.Generator().manual_seed(1)
        if isinstance(likelihood, Categorical):
            x = torch.randint(3, (50, 2), generator=generator)
        else:
            x = torch.rand(50, 3, generator=generator) * torch.tensor([1.0, 0.5, 0.2])
        inputs = {"x": x, "other": torch.zeros(50, 1)}
        with torch.no_grad():
            for branch in vi.branches:
                branch.up.weight.zero_()
                if isinstance(branch.decoder, nn.Linear):
                    branch.decoder.weight.zero_()
        vi.fit_biases(inputs)
        filled = vi({"other": inputs["other"]}).filled["x"]
        torch.testing.assert_close(filled[0], likelihood.encode(x).float().mean(0), atol=1e-5, rtol=1e-5)
        own = [p for b in vi.branches for p in (b.bias, *b.decoder.parameters(), *b.likelihood.parameters())]
        grads = torch.autograd.grad(vi.objective(inputs).losses["x"], own, allow_unused=True)
        assert all(g is None or g.abs().max() < 1e-4 for g in grads)  # a stationary point

    def test_fitted_variances_with_a_decoder_of_ones_own(self):
        decoder = nn.Sequential(nn.Tanh(), nn.Linear(2, 3))
        part = Modality(Gaussian(3), nn.Linear(3, 2), features=2, decoder=decoder)
        vi = CrossModalVI({"x": part, "other": Bernoulli(1)}, 4)
        x = torch.randn(400, 3) * torch.tensor([1.0, 0.5, 0.0])
        bias = decoder[1].bias.clone()
        vi.fit_biases({"x": x})
        assert torch.equal(decoder[1].bias, bias)
        variance = part.likelihood.log_variance(torch.zeros(1, 3)).exp()
        torch.testing.assert_close(variance[:2], x.var(0, correction=0)[:2])
        assert 0 < variance[2] < 0.01  # a constant entry: the floor


class TestRefusals:
    @pytest.mark.parametrize(
        ("modalities", "options", "words"),
        [
            ({"a": Bernoulli(2)}, {}, "at least two"),
            ({"a": Bernoulli(2), "joint": Bernoulli(2)}, {}, "'joint'"),
            ({"a": Bernoulli(2), "b": Bernoulli(2)}, {"hidden": 0}, "hidden=0"),
            ({"a": Bernoulli(2), "b": Bernoulli(2)}, {"steps": -1}, "steps=-1"),
            ({"a": Bernoulli(2), "b": Bernoulli(2)}, {"damping": 1.0}, "damping=1.0"),
            ({"a": Bernoulli(2), "b": Bernoulli(2)}, {"loop": "outer"}, "loop='outer'"),
            ({"a": Bernoulli(2), "b": Bernoulli(2)}, {"start": "mean"}, "start='mean'"),
            ({"a": Bernoulli(2), "b": Bernoulli(2)}, {"tolerance": float("nan")}, "tolerance=nan"),
        ],
    )
    def test_constructor(self, modalities, options, words):
        with pytest.raises(ValueError, match=words):
            CrossModalVI(modalities, **({"hidden": 4} | options))

    @pytest.mark.parametrize("make", [lambda: Bernoulli(0), lambda: Bernoulli(()), lambda: Gaussian(2, variance="x")])
    def test_likelihoods(self, make):
        with pytest.raises(ValueError, match=r"give|choose"):
            make()

    @pytest.mark.parametrize(
        ("inputs", "present", "words"),
        [
            ({}, None, "at least one"),
            ({"audio": None}, None, "at least one"),
            ({"sound": torch.rand(2, 5)}, None, "'sound' is not one of"),
            ({"audio": torch.rand(2, 5), "video": torch.rand(3, 4)}, None, "differ in their number"),
            ({"audio": torch.rand(2, 4)}, None, r"items of shape \(4,\)"),
            ({"audio": torch.rand(2, 5) + 1}, None, "outside"),
            ({"audio": torch.full((2, 5), torch.nan)}, None, "NaN"),
            ({"audio": torch.rand(2, 5)}, {"audio": torch.ones(2)}, "boolean"),
            ({"audio": torch.rand(2, 5)}, {"video": torch.ones(2, dtype=torch.bool)}, "do not hold it"),
        ],
    )
    def test_batches(self, inputs, present, words):
        with pytest.raises(ValueError, match=words):
            network()(inputs, present)

    def test_a_code_without_a_class(self):
        vi = CrossModalVI({"a": Categorical(3), "b": Bernoulli(2)}, 4)
        with pytest.raises(ValueError, match=r"no code in 0 \.\. 2"):
            vi({"a": torch.tensor([0, 3])})
        vi({"a": torch.tensor([0, -1])}, {"a": torch.tensor([True, False])})  # in an absent slot it may stand

    def test_networks_of_the_wrong_width(self):
        half = Modality(Bernoulli(3), nn.Linear(3, 5), features=4)
        with pytest.raises(ValueError, match="encoder of 'a' gave"):
            CrossModalVI({"a": half, "b": Bernoulli(2)}, 4)({"a": torch.rand(2, 3)})
        half = Modality(Bernoulli(3), nn.Linear(3, 4), features=4, decoder=nn.Linear(4, 2))
        with pytest.raises(ValueError, match="decoder of 'a' gave"):
            CrossModalVI({"a": half, "b": Bernoulli(2)}, 4)({"b": torch.rand(2, 2)})

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"kind": "joint"}, "kind='joint'"),
            ({"reduction": "none"}, "reduction='none'"),
            ({"reveal": 1.0}, "reveal=1.0"),
            ({"reveal": 0.1, "kind": "autoencoder"}, "hides nothing"),
            ({"sparsity": -1.0}, "sparsity=-1.0"),
            ({"sparsity_target": 0.0}, "sparsity_target=0.0"),
            ({"back_steps": 0}, "back_steps=0"),
            ({"steps": -2}, "steps=-2"),
        ],
    )
    def test_objective(self, options, words):
        with pytest.raises(ValueError, match=words):
            network().objective(batch(), **options)

    def test_combinations(self):
        with pytest.raises(ValueError, match="loop='input'"):
            network(loop="latent").objective(batch(), reveal=0.1)
        with pytest.raises(ValueError, match="sigmoid"):
            network(activation=nn.Tanh()).objective(batch(), sparsity=0.1)
