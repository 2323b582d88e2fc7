"""What per-loss capture must not take for granted of a graph, its operators and its parameters."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

import balanced_grad as bg
from tests.check.operators import Graphed, Halve, Recompute
from tests.conftest import LateFusion, make_batch

INACTIVE = "ignore::balanced_grad.InactiveBalancerWarning"
CAPTURING = {
    "MinNorm": lambda model: bg.MinNorm(),
    "MMPareto": lambda model: bg.MMPareto(),
    "MIMO(record_gramian=True)": lambda model: bg.MIMO(record_gramian=True),
}
EVERY = CAPTURING | {
    "Uniform": lambda model: bg.Uniform(),
    "MIMO(params=)": lambda model: bg.MIMO(params=model),
    "MinNorm(params=)": lambda model: bg.MinNorm(params=model),
    "MinNorm(level='features')": lambda model: bg.MinNorm(level="features"),
    "MinNorm(level='features', params=)": lambda model: bg.MinNorm(level="features", params=model),
    "OGM": lambda model: bg.OGM(model.modalities(), noise=0.0),
    "MLB": lambda model: bg.MLB(model.modalities()),
    "DGL": lambda model: bg.DGL(model.modalities()),
    "BOGC": lambda model: bg.BOGC(model.modalities()),
}
capturing = pytest.mark.parametrize("make", CAPTURING.values(), ids=CAPTURING)
every = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)


class Model(nn.Module):
    """One encoder, a part between it and the heads that the tests replace, and two losses."""

    def __init__(self, between=torch.tanh):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8))
        self.heads = nn.ModuleDict({"joint": nn.Linear(8, 3), "audio": nn.Linear(8, 3)})
        self.between = between
        self.x, self.y = torch.randn(16, 6), torch.randint(3, (16,))

    def modalities(self):
        return {"audio": self.encoder}

    def losses(self):
        self.z = self.encoder(self.x)
        h = self.between(self.z)
        return {name: cross_entropy(head(h), self.y) for name, head in self.heads.items()}


def scalar(balancer, model, losses):
    return balancer(losses, features={"audio": model.z}) if balancer.level == "features" else balancer(losses)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def trained(make, between=torch.tanh):
    model = Model(between)
    balancer = make(model)
    scalar(balancer, model, model.losses()).backward()
    return model, balancer


class TestMovedAndFrozen:
    @every
    def test_parameters_moved_between_forward_and_backward(self, make):
        want = gradients(trained(make)[0])
        model = Model()
        balancer = make(model)
        loss = scalar(balancer, model, model.losses())
        model.double()
        model.float()  # there and back: each parameter has another accumulator now
        loss.backward()
        torch.testing.assert_close(gradients(model), want)

    @every
    def test_frozen_between_forward_and_backward_is_skipped_as_by_autograd(self, make):
        model = Model()
        balancer = make(model)
        loss = scalar(balancer, model, model.losses())
        model.heads["audio"].requires_grad_(False)
        loss.backward()
        got = gradients(model)
        assert got["heads.audio.weight"] is None
        assert got["encoder.0.weight"].any()

    @every
    def test_frozen_between_forward_and_balancer(self, make):
        model = Model()
        balancer = make(model)
        losses = model.losses()
        model.heads["audio"].requires_grad_(False)
        scalar(balancer, model, losses).backward()
        assert gradients(model)["heads.audio.weight"] is None

    @every
    def test_an_encoder_frozen_late_in_training(self, make):
        model = Model()
        balancer = make(model)
        for frozen in ("", "encoder.1.bias", "encoder.1.weight", "encoder.0.weight"):
            for name, p in model.named_parameters():
                p.grad = None
                p.requires_grad_(p.requires_grad and name != frozen)
            scalar(balancer, model, model.losses()).backward()
            assert (model.encoder[1].bias.grad is None) == (frozen != "")
            assert model.heads["joint"].weight.grad.any()

    def test_bogc_with_its_whole_block_frozen_is_the_plain_sum(self):
        model = Model()
        balancer = bg.BOGC(model.modalities())
        model.encoder[1].requires_grad_(False)
        balancer(model.losses()).backward()
        plain = Model()
        plain.encoder[1].requires_grad_(False)
        sum(plain.losses().values()).backward()
        torch.testing.assert_close(gradients(model), gradients(plain))


class TestReferences:
    """Parameters that were replaced after the balancer was made."""

    @staticmethod
    def reload(model):
        state = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        model.requires_grad_(True)

    @every
    def test_replaced_parameters_are_trained(self, make):
        want = gradients(trained(make)[0])
        model = Model()
        balancer = make(model)
        scalar(balancer, model, model.losses()).backward()
        model.zero_grad()
        self.reload(model)
        scalar(balancer, model, model.losses()).backward()
        got = gradients(model)
        assert all(grad is not None for grad in got.values())
        torch.testing.assert_close(got["heads.joint.weight"], want["heads.joint.weight"])

    @pytest.mark.parametrize("method", [bg.Uniform, bg.MIMO, bg.MinNorm, lambda **k: bg.MinNorm(level="features", **k)])
    def test_parameters_that_are_none_of_the_models_any_more_are_refused(self, method):
        model = Model()
        balancer = method(params=model.named_parameters())
        self.reload(model)
        with pytest.raises(ValueError, match="params=model"):
            scalar(balancer, model, model.losses())

    @pytest.mark.parametrize("method", [bg.Uniform, bg.MIMO, bg.MinNorm])
    def test_a_copy_of_the_balancer_alone_is_refused(self, method):
        model = Model()
        with pytest.raises(ValueError, match="changed, loaded or copied"):
            copy.deepcopy(method(params=model.parameters()))(model.losses())

    @pytest.mark.parametrize("method", [bg.Uniform, bg.MIMO, bg.MinNorm])
    def test_a_new_layer_that_params_does_not_name_is_said_once(self, method):
        model = Model()
        balancer = method(params=model.named_parameters())
        balancer(model.losses()).backward()
        model.heads["joint"] = nn.Linear(8, 3)
        with pytest.warns(bg.InactiveBalancerWarning, match=r"leaves out 2 .*\(3, 8\).*'joint'"):
            balancer(model.losses()).backward()
        balancer(model.losses()).backward()  # a second warning would be an error

    @pytest.mark.parametrize("method", [bg.Uniform, bg.MIMO, bg.MinNorm])
    def test_a_module_as_params_is_asked_in_every_step(self, method):
        model = Model()
        balancer = method(params=model)
        model.heads["joint"] = nn.Linear(8, 3)
        balancer(model.losses()).backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_groups_ask_their_modules(self):
        model = Model()
        balancer = bg.MinNorm(groups={"encoder": model.encoder})
        self.reload(model)
        balancer(model.losses()).backward()
        assert balancer.last.problems == ("encoder",)

    def test_groups_that_nothing_reaches_are_said_once(self):
        model = Model()
        balancer = bg.MinNorm(groups={"encoder": list(model.encoder.parameters())})
        self.reload(model)
        with pytest.warns(bg.InactiveBalancerWarning, match=r"groups=\['encoder'\].*plain sum"):
            balancer(model.losses()).backward()
        balancer(model.losses()).backward()

    def test_a_replaced_layer_of_a_block_is_refused(self):
        model = Model()
        balancer = bg.BOGC(model.modalities())
        model.encoder[1] = nn.Linear(8, 8)
        with pytest.raises(ValueError, match=r"'audio\.1' was replaced after the balancer was made"):
            balancer(model.losses())


HOLDS = {
    "module": lambda module: module,
    "list": lambda module: [module],
    "closure": lambda module: lambda x: module(x),
    "method": lambda module: module.forward,
}


class TestHidden:
    """Parameters that the graph does not lead to."""

    @every
    @pytest.mark.parametrize("holds", HOLDS.values(), ids=HOLDS)
    def test_refused_by_name_or_right(self, make, holds):
        hidden = nn.Linear(8, 8)

        def between(z):
            return Recompute.apply(holds(hidden), z)

        model = Model(between)
        balancer = make(model)
        losses = model.losses()
        try:
            loss = scalar(balancer, model, losses)
        except RuntimeError as refusal:
            assert "autograd Function Recompute" in str(refusal)  # noqa: PT017
            assert "Uniform or MIMO" in str(refusal)  # noqa: PT017
            return
        loss.backward()
        # Those with one backward: the hidden layer gets the gradient of the weighted sum.
        weights = balancer.last.weights
        twin = Model(lambda z: hidden(z))
        got = hidden.weight.grad.clone()
        hidden.zero_grad()
        sum(w * loss for w, loss in zip(weights, twin.losses().values(), strict=True)).backward()
        torch.testing.assert_close(got, hidden.weight.grad)

    def test_below_the_features_it_is_traversed_once(self):
        model = Model()
        hidden = nn.Linear(6, 6)
        model.x.requires_grad_()
        z = model.encoder(Recompute.apply(hidden, model.x))
        balancer = bg.MinNorm(level="features")
        balancer({n: cross_entropy(h(z), model.y) for n, h in model.heads.items()}, features={"audio": z}).backward()
        assert hidden.weight.grad.any()

    def test_a_function_whose_parameters_are_in_the_graph_is_welcome(self):
        class Held(torch.autograd.Function):
            @staticmethod
            def forward(ctx, z, weight, module):
                ctx.module = module
                ctx.save_for_backward(z, weight)
                return z @ weight

            @staticmethod
            def backward(ctx, dy):
                z, weight = ctx.saved_tensors
                return dy @ weight.t(), z.t() @ dy, None

        module = nn.Linear(8, 8, bias=False)
        model = Model(lambda z: Held.apply(z, module.weight, module))
        bg.MinNorm()(model.losses()).backward()
        assert module.weight.grad.any()


class TestHooks:
    @capturing
    @pytest.mark.parametrize("register", ["register_hook", "register_prehook"])
    def test_hooks_on_accumulators_are_refused_by_name(self, make, register):
        model = Model()
        node = model.heads["audio"].weight.expand_as(model.heads["audio"].weight).grad_fn.next_functions[0][0]
        getattr(node, register)(lambda *_: None)
        with pytest.raises(RuntimeError, match=r"shape \(3, 8\) \(reached by 'audio'\) has a hook on the node"):
            make(model)(model.losses())

    def test_they_fire_for_losses_only_and_at_the_features(self):
        for make in (EVERY["Uniform"], EVERY["MinNorm(level='features')"]):
            model, fired = Model(), []
            weight = model.heads["audio"].weight
            node = weight.expand_as(weight).grad_fn.next_functions[0][0]
            node.register_hook(lambda *_, fired=fired: fired.append(1))
            scalar(make(model), model, model.losses()).backward()
            assert fired == [1]

    @capturing
    def test_each_loss_has_a_seed_of_its_own(self, make):
        def run(halve):
            torch.manual_seed(0)
            model = LateFusion()
            losses = model.losses(*make_batch())
            losses["audio"] = halve(losses["audio"])
            balancer = make(model)
            balancer(losses).backward()
            return balancer.last.gramian, [p.grad for p in model.parameters()]

        gramian, grads = run(Halve.apply)
        want_gramian, want = run(lambda loss: 0.5 * loss + 0.5 * loss.detach())
        torch.testing.assert_close(gramian, want_gramian)
        torch.testing.assert_close(grads, want)

    def test_an_output_hook_registered_before_bogc(self):
        def run(hook):
            model = Model()
            layer = model.encoder[1]
            if hook:
                layer.register_forward_hook(lambda module, args, output: 3 * output)
            else:
                model.between = lambda z: torch.tanh(3 * z)
            bg.BOGC(model.modalities())(model.losses()).backward()
            return gradients(model)

        torch.testing.assert_close(run(True), run(False))

    def test_a_layer_of_a_block_called_by_keyword(self):
        class Wrapped(nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.layer = layer

            def forward(self, x):
                return self.layer(input=x)

        want = gradients(trained(EVERY["BOGC"])[0])
        model = Model()
        model.encoder[1] = Wrapped(model.encoder[1])
        bg.BOGC(model.modalities())(model.losses()).backward()
        torch.testing.assert_close(list(gradients(model).values()), list(want.values()))

    def test_retain_grad_of_a_feature_shows_the_weighted_gradient(self):
        model = Model()
        losses = model.losses()
        model.z.retain_grad()
        balancer = bg.MinNorm(level="features", joint_floor=0)
        balancer(losses, features={"audio": model.z}).backward()
        got, weights = model.z.grad, balancer.last.weights.float()
        losses = model.losses()  # the same batch again
        rows = [torch.autograd.grad(loss, model.z, retain_graph=True)[0] for loss in losses.values()]
        torch.testing.assert_close(got, weights[0] * rows[0] + weights[1] * rows[1])


@every
def test_static_gradient_buffers(make):
    Graphed.buffers = None
    weight = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))

    def run(between):
        model = Model()
        model.weight = weight
        model.between = between
        weight.grad = None
        balancer = make(model)
        scalar(balancer, model, model.losses()).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    torch.testing.assert_close(run(lambda z: Graphed.apply(z, weight).tanh()), run(lambda z: (z @ weight).tanh()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every
def test_the_dtype_that_a_user_wants_gradients_in(make, dtype):
    model = Model()
    model.bfloat16()
    model.x = model.x.bfloat16()
    if not hasattr(model.encoder[0].weight, "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    for p in model.parameters():
        p.grad_dtype = dtype
    balancer = make(model)
    for _ in range(2):
        scalar(balancer, model, model.losses()).backward()
    assert {p.grad.dtype for p in model.parameters()} == {dtype}


class TestBalancersAmongLosses:
    @pytest.mark.parametrize("inner", [bg.MinNorm, bg.MMPareto, lambda: bg.MIMO(record_gramian=True)])
    @capturing
    def test_refused_by_name(self, make, inner):
        model = Model()
        losses = model.losses()
        with pytest.raises(RuntimeError, match="'uni' is made of the scalar of another balancer"):
            make(model)({"joint": losses["joint"], "uni": 0.5 * inner()({"audio": losses["audio"]})})

    @pytest.mark.parametrize("outer", [bg.Uniform, bg.MIMO])
    def test_one_backward_through_it_is_right(self, outer):
        model = Model()
        losses = model.losses()
        balancer = outer()
        balancer({"joint": losses["joint"], "uni": bg.MinNorm()({"audio": losses["audio"]})}).backward()
        got, weights = gradients(model), balancer.last.weights
        model = Model()
        losses = model.losses()
        (weights[0] * losses["joint"] + weights[1] * losses["audio"]).backward()
        torch.testing.assert_close(got, gradients(model))


@capturing
def test_module_trackers_get_a_message(make):
    encoder, p = nn.Linear(6, 8), nn.Parameter(torch.randn(4, 6))
    with FlopCounterMode(display=False):
        z = encoder(p)
        loss = make(None)({"joint": z.sum(), "audio": z.square().sum()})
        with pytest.raises(RuntimeError, match=r"FlopCounterMode.*losses-only balancer"):
            loss.backward()


@capturing
def test_tools_that_expect_one_backward_are_told_apart(make):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.state = [1]
            return z.clone()

        @staticmethod
        def backward(ctx, dy):
            ctx.state.pop()
            return dy

    model = Model(Once.apply)
    with pytest.raises(IndexError, match=r"backward of loss 'joint' by itself.*check --verify"):
        make(model)(model.losses()).backward()


@pytest.mark.parametrize("make", [bg.MinNorm, bg.MMPareto])
def test_a_gradient_dropped_within_a_window_takes_its_own_part_only(make):
    """As DINO does with its last layer: ``.grad`` set to None after each backward."""

    def run(mode, parts, drop):
        model = Model().double()
        model.x = model.x.double()
        balancer = make()
        bg.BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), balancer, accumulate=mode)
        x, y = model.x, model.y
        for model.x, model.y in zip(x.chunk(parts), y.chunk(parts), strict=True):
            (balancer(model.losses()) / parts).backward()
            if drop:
                for p in model.heads["joint"].parameters():
                    p.grad = None
        return model.encoder[0].weight.grad, model.heads["audio"].weight.grad

    torch.testing.assert_close(run("rows", 4, True), run("gradients", 1, False))
    assert not torch.allclose(run("gradients", 4, True)[0], run("gradients", 1, False)[0], rtol=1e-6)
