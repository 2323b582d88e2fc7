"""One backward for all losses through what they share, where activation checkpointing makes that the better way."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

import balanced_grad as bg
from balanced_grad.capture import _parameters
from tests.releases import hooks_shown

pytestmark = hooks_shown

WIDTH, DTYPE = 8, torch.float64


class Block(nn.Module):
    """Attention and a gated layer, as in today's language models."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.dropout = nn.Dropout(dropout)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        q, k, v = (part[:, None] for part in self.qkv(self.norms[0](x)).chunk(3, -1))
        x = x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
        return x + self.dropout(self.down(nn.functional.silu(self.up(self.norms[1](x)))))


class Stack(nn.Sequential):
    def __init__(self, depth=2, **options):
        super().__init__(*(Block(**options) for _ in range(depth)))

    def forward(self, x):
        for block in self:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def run(parts, losses, *, batched=True, balancer=None):
    """Gramian and gradients; fails unless the batched backward was taken, or not, as told."""
    parts = nn.ModuleDict(parts).to(DTYPE)
    balancer = bg.MinNorm(params=parts.named_parameters()) if balancer is None else balancer
    taken = []
    original = _parameters.ParameterCapture._batched

    def spy(self, scale):
        out = original(self, scale)
        taken.append(out is not None)
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_parameters.ParameterCapture, "_batched", spy)
        balancer(losses()).backward()
    assert taken == [batched]
    return balancer.last


def reference(parameters, losses, weights):
    """Each loss alone, on a graph of its own."""
    rows = []
    for name in losses():
        grads = torch.autograd.grad(losses()[name], parameters, allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)])
    return [sum(w * row[i] for w, row in zip(weights, rows, strict=True)) for i in range(len(parameters))], rows


def agree(parts, losses, *, batched=True):
    last = run(parts, losses, batched=batched)
    parameters = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
    expected, rows = reference(parameters, losses, last.weights)
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-11, atol=1e-13)
    meet = [i for i in range(len(parameters)) if sum(bool(row[i].any()) for row in rows) > 1]
    flat = torch.stack([torch.cat([row[i].reshape(-1) for i in meet]) for row in rows])
    torch.testing.assert_close(last.gramian, flat @ flat.mT, rtol=1e-11, atol=1e-13)


@pytest.fixture
def x():
    return torch.randn(3, 5, WIDTH, dtype=DTYPE)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_one_trunk(x, count):
    trunk = Stack(4)
    heads = nn.ModuleList([nn.Linear(WIDTH, 2) for _ in range(count)])

    def losses():
        z = trunk(x)
        return {f"task {i}": head(z[:, i]).square().mean() for i, head in enumerate(heads)}

    agree({"trunk": trunk, "heads": heads}, losses)


def test_losses_that_meet_at_once(x):
    """No head: what they share begins at the losses."""
    trunk = Stack()

    def losses():
        each = trunk(x).square().mean(-1)
        return {"joint": each.mean(), "image": each[:, :2].mean(), "text": each[:, 2:].mean()}

    agree({"trunk": trunk}, losses)


def test_a_loss_that_is_part_of_another(x):
    trunk = Stack()

    def losses():
        z = trunk(x)
        image = z[:, :2].square().mean()
        return {"joint": image + z[:, 2:].abs().sum(), "image": image}

    agree({"trunk": trunk}, losses)


def test_encoders_that_only_some_losses_reach_are_not_computed_for_all(x):
    audio, video = Stack(3), Stack(3)
    heads = nn.ModuleDict({name: nn.Linear(WIDTH, 2) for name in ("audio", "video")})
    fused = nn.Linear(2 * WIDTH, 2)

    def losses():
        z = {"audio": audio(x).mean(1), "video": video(-x).mean(1)}
        joint = fused(torch.cat(list(z.values()), 1)).square().mean()
        return {"joint": joint} | {name: heads[name](z[name]).square().mean() for name in z}

    agree({"audio": audio, "video": video, "heads": heads, "fused": fused}, losses, batched=False)


def test_an_encoder_below_a_trunk(x):
    """A vision tower with a loss of its own, below a language model that two losses share."""
    tower, trunk, head = Stack(3), Stack(3), nn.Linear(WIDTH, 2)

    def losses():
        seen = tower(x)
        z = trunk(torch.cat([seen, x], 1))
        return {
            "joint": z.square().mean(),
            "text": z[:, 5:].abs().mean(),
            "image": head(seen.mean(1)).square().mean(),
        }

    agree({"tower": tower, "trunk": trunk, "head": head}, losses, batched=False)


@pytest.mark.parametrize("case", ["deep supervision", "tied", "used twice"])
def test_parameters_that_several_parts_of_the_graph_use(x, case):
    lower, upper, head = Stack(3), Stack(3), nn.Linear(WIDTH, WIDTH, bias=False)

    def losses():
        if case == "tied":
            z = upper(lower(head(x)))
            return {"joint": head(z).square().mean(), "text": z.abs().mean()}
        if case == "used twice":
            z = lower(upper(lower(x)))
            return {"joint": z.square().mean(), "text": (2 * z).exp().mean(), "image": head(z).square().mean()}
        low = lower(x)
        high = upper(low)
        return {"joint": (head(high) + low).square().mean(), "text": high.abs().mean()}

    agree({"lower": lower, "upper": upper, "head": head}, losses)


def test_frozen_weights_and_an_input_that_wants_a_gradient(x):
    """As under PEFT: adapters in a frozen model, whose embeddings require grad."""
    trunk = Stack(3).requires_grad_(False)
    trunk[1].down.requires_grad_(True)
    x.requires_grad_()

    def losses():
        z = trunk(x)
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean()}

    last = run({"trunk": trunk}, losses, balancer=bg.MinNorm())
    adapter = trunk[1].down.weight
    expected, _ = reference([adapter, x], losses, last.weights)
    torch.testing.assert_close([adapter.grad, x.grad], expected)
    assert trunk[0].down.weight.grad is None


@pytest.mark.parametrize("losses_count", [2, 3])
def test_what_was_dropped_is_computed_once(x, losses_count):
    trunk = Stack(3)

    def losses():
        z = trunk(x)
        return {f"task {i}": z[:, i].square().mean() for i in range(losses_count)}

    run({"trunk": trunk}, losses)
    assert [block.calls for block in trunk] == [2, 2, 2]


def test_dropout_is_that_of_the_forward_pass(x):
    trunk = Stack(3, dropout=0.5)

    def losses():
        torch.manual_seed(3)
        z = trunk(x)
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean()}

    agree({"trunk": trunk}, losses)


def test_without_checkpointing_there_is_one_pass_per_loss(x):
    blocks = nn.Sequential(*(Block() for _ in range(4)))

    def losses():
        z = blocks(x)
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean()}

    agree({"blocks": blocks}, losses, batched=False)


@pytest.mark.parametrize("layer", [nn.Conv1d(5, 5, 3, padding=1), nn.GroupNorm(5, 5), nn.Softplus(), nn.MaxPool1d(1)])
def test_all_of_torch_s_own_operators(x, layer):
    trunk = Stack(3)

    def losses():
        z = checkpoint(layer, trunk(x), use_reentrant=False)
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean()}

    agree({"trunk": trunk, "layer": layer}, losses)


def test_running_averages_of_what_is_computed_anew_move_once_more(x):
    trunk, norm = Stack(3), nn.BatchNorm1d(5)

    def losses():
        z = checkpoint(norm, trunk(x), use_reentrant=False)
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean(), "image": z[:, :1].abs().mean()}

    run({"trunk": trunk, "norm": norm}, losses)
    assert int(norm.num_batches_tracked) == 2


class _Twice(torch.autograd.Function):
    """Code of which nobody knows what it does with a batch."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return torch.tensor(2.0, dtype=grad.dtype) * grad


def test_custom_functions_are_taken_loss_by_loss(x):
    trunk = Stack(3)

    def losses():
        z = _Twice.apply(trunk(x))
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean()}

    agree({"trunk": trunk}, losses, batched=False)


def test_a_hook_that_takes_no_batch_is_met_once(x):
    trunk = Stack(3)
    read = []

    def losses():
        z = trunk(x)
        z.register_hook(lambda grad: read.append(float(grad.sum())))
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean()}

    parts = {"trunk": trunk}
    balancer = bg.MinNorm(params=nn.ModuleDict(parts).to(DTYPE).named_parameters())
    run(parts, losses, batched=False, balancer=balancer)
    assert len(read) == 2  # the batched attempt failed before it read
    run(parts, losses, batched=False, balancer=balancer)
    assert len(read) == 4


def test_an_error_of_the_user_s_is_raised_as_it_is(x):
    trunk = Stack(3)

    def refuse(grad):
        raise KeyError("this is mine")

    def losses():
        z = trunk(x)
        z.register_hook(refuse)
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean()}

    with pytest.raises(KeyError, match="this is mine"):
        run({"trunk": trunk}, losses)
    assert all(p.grad is None for p in trunk.parameters())


def test_a_hook_of_a_parameter_sees_each_loss(x):
    trunk, seen = Stack(3), []
    trunk[0].down.weight.register_hook(seen.append)

    def losses():
        z = trunk(x)
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean()}

    agree({"trunk": trunk}, losses, batched=False)
    rows = torch.stack(seen[:2]).flatten(1)
    assert rows.shape == (2, 2 * WIDTH * WIDTH)
    assert bool(rows.isfinite().all())


def test_accumulated_rows_and_loss_scale(x):
    """The incoming gradient scales everything alike, and halves of a batch are balanced together."""
    trunk = Stack(3)
    inputs = x.chunk(3)

    def losses(part):
        z = trunk(part)
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean()}

    trunk.to(DTYPE)
    optimizer = bg.BalancedOptimizer(torch.optim.SGD(trunk.parameters(), lr=0.0), bg.MinNorm(), accumulate="rows")
    for part in inputs:
        (8.0 * optimizer.balancer(losses(part))).backward()
    grads = [p.grad / 8.0 for p in trunk.parameters()]
    gramian = optimizer.balancer.last.gramian
    whole = bg.MinNorm()
    trunk.zero_grad()
    whole(losses(x)).backward()
    torch.testing.assert_close(gramian, whole.last.gramian, rtol=1e-9, atol=1e-12)
    for p, grad in zip(trunk.parameters(), grads, strict=True):
        torch.testing.assert_close(grad / 3, p.grad, rtol=1e-9, atol=1e-12)


def test_torch_shows_which_hook_a_saved_tensor_has(x):
    """Private, and named here: without it every pass computes anew, which is slower and nothing else."""
    out = checkpoint(torch.tanh, x.requires_grad_(), use_reentrant=False)  # which a saved tensor does not keep alive
    assert out.grad_fn._raw_saved_result.unpack_hook.__module__ == "torch.utils.checkpoint"


@pytest.mark.parametrize(("dropout", "left"), [(0.0, 2), (0.5, 1)])
def test_random_numbers_that_are_drawn_anew_take_the_second_way(x, dropout, left):
    trunk = Stack(3, dropout=dropout)

    def losses():
        z = trunk(x)
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean()}

    parts = {"trunk": trunk}
    balancer = bg.MinNorm(params=nn.ModuleDict(parts).to(DTYPE).named_parameters())
    run(parts, losses, balancer=balancer)
    assert len(balancer._source.memory.batching.ways) == left


class TestAsked:
    """level=bg.Parameters(batched=...)."""

    @pytest.fixture
    def blocks(self):
        return nn.Sequential(*(Block() for _ in range(2))).to(DTYPE)

    @staticmethod
    def losses(z):
        return {"joint": z.square().mean(), "text": z[:, 1:].abs().mean()}

    @staticmethod
    def balancer(blocks, batched):
        return bg.MinNorm(params=blocks.named_parameters(), level=bg.Parameters(batched=batched))

    @pytest.mark.parametrize("method", [bg.MinNorm, bg.EqualNorms])
    def test_side_by_side_what_is_the_same_one_by_one(self, x, blocks, method):
        found = []
        for batched in (True, False):
            balancer = method(params=blocks.named_parameters(), level=bg.Parameters(batched=batched))
            blocks.zero_grad()
            run({"b": blocks}, lambda: self.losses(blocks(x)), batched=batched, balancer=balancer)
            found.append(([p.grad for p in blocks.parameters()], balancer.last.gramian))
        torch.testing.assert_close(*found, rtol=1e-11, atol=1e-13)

    def test_late_fusion(self, x):
        """Parameters of one loss alone, of some and of all; two losses each do not reach."""
        encoders = nn.ModuleDict({name: nn.Linear(WIDTH, 3) for name in "abc"}).to(DTYPE)

        def losses():
            z = {name: encoder(x.mean(1)) for name, encoder in encoders.items()}
            return {"joint": sum(z.values()).square().mean()} | {n: z[n].exp().mean() for n in "ab"}

        balancer = self.balancer(encoders, True)
        last = run({"e": encoders}, losses, balancer=balancer)
        expected, _ = reference(list(encoders.parameters()), losses, last.weights)
        plain, _ = reference(list(encoders["c"].parameters()), losses, last.weights)
        torch.testing.assert_close([p.grad for p in encoders.parameters()], expected)
        torch.testing.assert_close([p.grad for p in encoders["c"].parameters()], plain)

    def test_operators_that_are_slow_in_a_batch_are_right_in_one(self, x, blocks):
        layer = nn.Conv1d(5, 5, 3, padding=1).to(DTYPE)
        blocks.append(layer)
        balancer = self.balancer(blocks, True)
        last = run({"b": blocks}, lambda: self.losses(blocks(x)), balancer=balancer)
        expected, _ = reference(list(blocks.parameters()), lambda: self.losses(blocks(x)), last.weights)
        torch.testing.assert_close([p.grad for p in blocks.parameters()], expected)

    def test_what_takes_no_batch_is_said_once(self, x, blocks):
        balancer = self.balancer(blocks, True)

        def losses():
            z = blocks(x)
            z.register_hook(lambda grad: print(float(grad.sum())))
            return self.losses(z)

        with pytest.warns(UserWarning, match=r"Parameters\(batched=True\): an operator or a hook takes no batch"):
            run({"b": blocks}, losses, batched=False, balancer=balancer)
        run({"b": blocks}, losses, batched=False, balancer=balancer)

    def test_an_activation_keeps_its_gradient_one_by_one(self, x):
        """Also under checkpointing, where the default is a batch."""
        trunk, kept = Stack(3).to(DTYPE), []

        def losses():
            kept[:] = [trunk(x)]
            kept[0].retain_grad()
            return self.losses(kept[0])

        run({"t": trunk}, losses, batched=False, balancer=self.balancer(trunk, False))
        z = kept[0]
        expected = torch.autograd.grad(sum(losses().values()), kept[0])[0]
        torch.testing.assert_close(z.grad, expected)

    def test_one_loss_is_no_batch(self, x, blocks):
        run({"b": blocks}, lambda: {"joint": blocks(x).mean()}, batched=False, balancer=self.balancer(blocks, True))

    def test_shown_where_it_is_not_the_default(self):
        assert "level" not in repr(bg.MinNorm(level=bg.Parameters()))
        assert "level=Parameters(batched=False)" in repr(bg.MinNorm(level=bg.Parameters(batched=False)))
        assert bg.MinNorm(level=bg.Parameters(batched=False)).level == "parameters"

    def test_refusals(self):
        with pytest.raises(TypeError, match=r"batched=1: give True, False, or None"):
            bg.Parameters(batched=1)
        with pytest.raises(TypeError, match=r"give one of .*bg.Tokens\(model\) or bg.Parameters\(\)"):
            bg.MinNorm(level=bg.Parameters)
        with pytest.raises(ValueError, match="takes no per-loss gradients"):
            bg.MIMO(level=bg.Parameters(batched=True))
