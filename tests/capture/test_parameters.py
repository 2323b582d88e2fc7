"""Which gradient arrives at which parameter, and in which memory."""

import copy

import pytest
import torch
from torch import nn

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, make_batch


class TestCapture:
    def test_exclusive_sparse_gradients_stay_sparse(self):
        table, w = nn.Embedding(4, 2, sparse=True), torch.ones(2, requires_grad=True)
        for _ in range(2):
            losses = {"joint": w.sum(), "audio": (table(torch.tensor([1, 1])) * w).sum()}
            bg.Uniform({"audio": 3.0}, record_gramian=True)(losses).backward()
        assert table.weight.grad.is_sparse
        torch.testing.assert_close(table.weight.grad.to_dense()[1], torch.tensor([12.0, 12.0]))

    def test_a_reached_parameter_without_a_gradient_keeps_none(self):
        class Severed(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, w):
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                return grad, None

        x, w = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        z = Severed.apply(x, w)
        bg.Uniform(record_gramian=True)({"joint": z.sum(), "audio": (2 * z).sum()}).backward()
        torch.testing.assert_close(x.grad, torch.full((2,), 3.0))
        assert w.grad is None

    def test_aliased_and_zero_stride_gradients_are_copied(self):
        a, b = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
        bg.Uniform(record_gramian=True)(
            {"joint": (a + b).sum(), "audio": 2 * (a + b).sum(), "video": a.sum()}
        ).backward()
        torch.testing.assert_close(a.grad, torch.full((3,), 4.0))
        torch.testing.assert_close(b.grad, torch.full((3,), 3.0))
        a.grad.zero_()
        torch.testing.assert_close(b.grad, torch.full((3,), 3.0))

    def test_gradients_do_not_live_in_the_arena(self):
        model, balancer = LateFusion(), bg.MinNorm()
        balancer(model.losses(*make_batch(seed=0))).backward()
        held = [p.grad for p in model.parameters()]
        copies = [grad.clone() for grad in held]
        model.zero_grad()
        balancer(model.losses(*make_batch(seed=1))).backward()
        for grad, before in zip(held, copies, strict=True):
            torch.testing.assert_close(grad, before, rtol=0, atol=0)

    def test_a_detached_view_of_a_gradient_outlives_zero_grad(self):
        model, balancer = LateFusion(), bg.MinNorm()
        balancer(model.losses(*make_batch(seed=0))).backward()
        held = model.trunk.weight.grad.detach()[1:]
        before = held.clone()
        for seed in (1, 2, 3):
            model.zero_grad()
            balancer(model.losses(*make_batch(seed=seed))).backward()
        torch.testing.assert_close(held, before, rtol=0, atol=0)

    def test_memory_of_dropped_gradients_is_used_again(self):
        model, balancer = LateFusion(), bg.MinNorm()
        addresses = set()
        for seed in range(4):
            model.zero_grad()
            balancer(model.losses(*make_batch(seed=seed))).backward()
            addresses.add(model.trunk.weight.grad.data_ptr())
        assert len(addresses) == 1

    def test_gramian_is_that_of_the_per_loss_gradients_over_shared_parameters(self):
        model, balancer = LateFusion(MODALITIES), bg.MinNorm()
        losses = model.losses(*make_batch(MODALITIES))
        shared = [p for name, p in model.named_parameters() if "encoders" in name or "trunk" in name]
        for scope, make in (
            (shared, bg.MinNorm),
            (list(model.parameters()), lambda: bg.MinNorm(include_exclusive=True)),
        ):
            rows = []
            for loss in losses.values():
                grads = torch.autograd.grad(loss, scope, retain_graph=True, allow_unused=True)
                rows.append(
                    torch.cat(
                        [
                            torch.zeros(p.numel()) if g is None else g.flatten()
                            for p, g in zip(scope, grads, strict=True)
                        ]
                    )
                )
            want = torch.stack(rows).double() @ torch.stack(rows).double().T
            balancer = make()
            balancer(model.losses(*make_batch(MODALITIES))).backward()
            torch.testing.assert_close(balancer.last.gramian, want, rtol=1e-5, atol=1e-8)

    def test_any_weights_give_the_weighted_sum_of_the_gradients(self):
        class Fixed(bg.Balancer):
            needs_gramian = True

            def weigh(self, problem):
                return bg.Weighting(torch.tensor([0.25, 3.0, -1.0]))

        weights = Fixed().weigh(None).weights
        for level in ("parameters", "features"):
            model = LateFusion()
            losses = model.losses(*make_batch())
            Fixed(level=level)(losses, features=model.features if level == "features" else None).backward()
            got = [p.grad.clone() for p in model.parameters()]
            model.zero_grad()
            sum(w * loss for w, loss in zip(weights, model.losses(*make_batch()).values(), strict=True)).backward()
            for p, grad in zip(model.parameters(), got, strict=True):
                torch.testing.assert_close(grad, p.grad)

    @pytest.mark.filterwarnings("ignore::balanced_grad.InactiveBalancerWarning")  # meant
    def test_params_restricts_what_receives_a_gradient(self):
        for balancer_of in (bg.MinNorm, lambda params: bg.Uniform(params=params, record_gramian=True)):
            model = LateFusion()
            balancer_of(params=model.encoders.parameters())(model.losses(*make_batch())).backward()
            reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
            assert reached == {"encoders"}

    @pytest.mark.parametrize("make", [bg.Uniform, bg.MIMO])
    @pytest.mark.filterwarnings("ignore::balanced_grad.InactiveBalancerWarning")
    def test_params_restricts_losses_only_methods_too(self, make):
        model = LateFusion()
        make(params=model.encoders.parameters())(model.losses(*make_batch())).backward()
        reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
        assert reached == {"encoders"}

    @pytest.mark.parametrize(
        ("params", "error", "message"),
        [
            ([], ValueError, "params is empty"),
            (torch.ones(2), TypeError, r"write params=\[tensor\]"),
            (["weight"], TypeError, r"params\[0\] is a str"),
            ([("w", torch.ones(2, requires_grad=True) * 2)], ValueError, "w is not a leaf"),
        ],
    )
    def test_bad_params(self, params, error, message):
        with pytest.raises(error, match=message):
            bg.MinNorm(params=params)

    def test_a_modality_without_a_parameter(self):
        model = LateFusion(trunk=False)
        balancer = bg.MinNorm(params=model.encoders["audio"].parameters())
        with pytest.raises(ValueError, match="'video' reaches none of the parameters"):
            balancer(model.losses(*make_batch()))

    def test_the_arena_is_kept_and_bounded(self):
        model, balancer = LateFusion(MODALITIES), bg.MinNorm()
        sizes = set()
        for seed in range(12):
            inputs, label = make_batch(MODALITIES, seed=seed)
            if seed % 4:
                del inputs[MODALITIES[seed % 4 - 1]]
            balancer(model.losses(inputs, label)).backward()
            sizes.add(balancer._source.memory.arena.nbytes)
        full = 4 * (3 * 36 * 2 + 4 * 44)  # encoders: joint and own; trunk: all four; rows padded to 16 bytes
        assert max(sizes) <= 2 * full
        assert copy.deepcopy(balancer)._source.memory.arena.nbytes == 0
