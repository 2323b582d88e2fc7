"""Rows of one loss by groups of tokens: against a loop of autograd with the other groups' gradients zeroed."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import balanced_grad as bg
from tests.conftest import NoHostReads

B, T, F = 3, 7, 6


def masks(seed=0, names=("image", "text"), gaps=True):
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(len(names) + gaps, (B, T), generator=generator)
    return {name: kind == number for number, name in enumerate(names)}


class Block(nn.Module):
    """A transformer block with every kind of layer that is split, and parameters that are not."""

    def __init__(self, width=F):
        super().__init__()
        self.norm, self.last = nn.LayerNorm(width), nn.RMSNorm(width)
        self.mix = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.local = nn.Conv1d(width, width, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        z = self.norm(x)
        x = x + torch.softmax(z @ z.mT, -1) @ self.mix(z)
        x = x + self.down(self.up(self.last(x)).relu()) * self.gain
        return x + self.local(x.mT).mT


class Model(nn.Module):
    """Ids in, a loss out; the head is tied to the embedding, or not."""

    def __init__(self, tied=False, checkpointed=False, vocabulary=11):
        super().__init__()
        self.checkpointed = checkpointed
        self.embed = nn.Embedding(vocabulary, F, padding_idx=0)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(F, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointed else block(x)
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), ids.roll(1, 1).flatten())


def ids(seed=0):
    return torch.randint(11, (B, T), generator=torch.Generator().manual_seed(seed))


class Masked(torch.autograd.Function):
    """The gradient of the loss at a layer's output, at the positions of one group only, for its parameters."""

    @staticmethod
    def forward(ctx, inside, outside, mask):
        ctx.save_for_backward(mask)
        return inside.clone()

    @staticmethod
    def backward(ctx, grad):
        (mask,) = ctx.saved_tensors
        return grad * mask, grad, None


def reference(model, mask, inputs):
    """The gradients that one group sends, by plain autograd: each layer twice, parameters see masked gradients only."""
    handles = []
    for layer in model.modules():
        if next(layer.children(), None) is None and next(layer.parameters(recurse=False), None) is not None:

            def hook(module, args, output):
                alone = module.forward(args[0].detach() if args[0].is_floating_point() else args[0])
                frozen = {name: p.detach() for name, p in module.named_parameters()}
                through = torch.func.functional_call(Bare(module), {f"inner.{n}": p for n, p in frozen.items()}, args)
                where = mask[:, None] if isinstance(module, nn.Conv1d) else mask[..., None]
                return Masked.apply(alone, through, where)

            handles.append(layer.register_forward_hook(hook))
    loss = model(inputs)
    for handle in handles:
        handle.remove()
    parameters = [p for p in model.parameters() if p.requires_grad]
    return dict(zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


class Bare(nn.Module):
    """A layer without its hooks."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner.forward(x)


def build(model, **options):
    return bg.MinNorm(level=bg.Tokens(model), **options)


class Ones(bg.Balancer):
    """Weights all 1, beside a Gramian."""

    needs = "gramian"

    def weigh(self, problem):
        return bg.Weighting(torch.ones_like(problem.losses))


class Only(Ones):
    """One group alone."""

    def __init__(self, name, **options):
        super().__init__(**options)
        self.name = name

    def weigh(self, problem):
        return bg.Weighting(torch.tensor([float(name == self.name) for name in problem.names]))


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_one_give_the_plain_gradient(tied, checkpointed):
    torch.manual_seed(0)
    model = Model(tied, checkpointed)
    balancer = Ones(level=bg.Tokens(model))
    model(ids()).backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    scalar = balancer({"joint": model(ids())}, tokens=masks())
    scalar.backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, want[name], rtol=1e-5, atol=1e-6)
    assert balancer.last.names == ("image", "text", "rest")


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", ["image", "text", "rest"])
def test_rows_against_masked_autograd(name, tied, checkpointed):
    torch.manual_seed(0)
    model, given = Model(tied, checkpointed).double(), masks()
    balancer = Only(name, level=bg.Tokens(model))
    balancer({"joint": model(ids())}, tokens=given).backward()
    mask = given.get(name, ~(given["image"] | given["text"]))
    plain = Model(tied).double()
    plain.load_state_dict(model.state_dict())
    want = reference(plain, mask, ids())
    for (label, p), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if not label.endswith("gain"):  # summed plainly
            torch.testing.assert_close(p.grad, want[other], msg=label)


def test_the_gramian_is_that_of_the_rows():
    torch.manual_seed(0)
    model, given = Model().double(), masks()
    found = []
    for name in ("image", "text", "rest"):
        model.zero_grad()
        balancer = Only(name, level=bg.Tokens(model))
        balancer({"joint": model(ids())}, tokens=given).backward()
        found.append(torch.cat([p.grad.flatten() for n, p in model.named_parameters() if not n.endswith("gain")]))
    rows = torch.stack(found)
    balancer = build(model)
    balancer({"joint": model(ids())}, tokens=given).backward()
    torch.testing.assert_close(balancer.last.gramian, rows @ rows.T)


@pytest.mark.parametrize("groups", ["tensor", "blocks"])
def test_groups_of_parameters_have_their_own_weights(groups):
    torch.manual_seed(0)
    model, given = Model(), masks()
    chosen = "tensor" if groups == "tensor" else {str(k): block for k, block in enumerate(model.blocks)}
    balancer = build(model, params=model.named_parameters(), groups=chosen)
    balancer({"joint": model(ids())}, tokens=given).backward()
    count = sum(not n.endswith("gain") for n, _ in model.named_parameters()) if groups == "tensor" else 2
    assert balancer.last.weights.shape == (count, 3)
    got = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    rows = {}
    for name in balancer.last.names:
        model.zero_grad()
        alone = Only(name, level=bg.Tokens(model))
        alone({"joint": model(ids())}, tokens=given).backward()
        rows[name] = {label: p.grad.clone() for label, p in model.named_parameters()}
    place = {label: k for k, label in enumerate(balancer.last.problems)}
    for label in got:
        where = label if groups == "tensor" else label.removeprefix("blocks.")[0]
        weights = balancer.last.weights[place[where]] if where in place else torch.ones(3)
        if not label.endswith("gain"):
            want = sum(w * rows[name][label] for w, name in zip(weights, balancer.last.names, strict=True))
            torch.testing.assert_close(got[label], want.float(), rtol=1e-4, atol=1e-6)


def test_a_batch_without_an_image():
    model = Model()
    balancer = build(model)
    none = torch.zeros(B, T, dtype=torch.bool)
    balancer({"joint": model(ids())}, tokens={"image": none, "text": ~none}).backward()
    assert dict(zip(balancer.last.names, balancer.last.weights.tolist(), strict=True))["image"] == 1
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model(ids()).backward()
    for p, grad in zip(model.parameters(), got, strict=True):
        torch.testing.assert_close(grad, p.grad, rtol=1e-4, atol=1e-6)


def test_packed_sequences():
    model, given = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)), torch.arange(10) % 3 == 0
    x = torch.randn(10, 4)
    balancer = build(model)
    for shaped in (x, x[None]):
        balancer({"joint": model(shaped).square().sum()}, tokens={"image": given, "text": ~given}).backward()
        assert balancer.last.reach == ((0, 1),)


@pytest.mark.parametrize("name", ["image", "text"])
def test_layers_called_twice_add_up(name):
    layer, given = nn.Linear(F, F).double(), masks(gaps=False)
    x = torch.randn(B, T, F, dtype=torch.float64)
    first = layer(x)
    second = layer(first.tanh())
    grads = torch.autograd.grad(second.square().sum(), [first, second])
    mask = given[name][..., None]
    calls = zip(grads, (x, first.tanh()), strict=True)
    want = sum((grad * mask).flatten(0, 1).T @ inputs.flatten(0, 1) for grad, inputs in calls)
    Only(name, level=bg.Tokens(layer))({"joint": layer(layer(x).tanh()).square().sum()}, tokens=given).backward()
    torch.testing.assert_close(layer.weight.grad, want)


def test_nothing_is_read_on_the_host_but_masks_on_the_cpu():
    model = Model()
    balancer = Ones(level=bg.Tokens(model))
    loss = model(ids())
    scalar = balancer({"joint": loss}, tokens=masks())
    with NoHostReads():
        scalar.backward()


class Twice(nn.Module):
    """One layer that is called twice, and whose weight is used once more outside of it, or not."""

    def __init__(self, outside):
        super().__init__()
        self.layer, self.head, self.outside = nn.Linear(F, F), nn.Linear(F, 1), outside

    def forward(self, x):
        x = self.layer(self.layer(x).relu())
        return self.head(nn.functional.linear(x, self.layer.weight) if self.outside else x).float().square().mean()


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_weight_that_is_used_outside_of_its_layer_is_not_split(autocast, outside):
    """Under autocast all uses share one cast of it."""
    torch.manual_seed(0)
    model, x = Twice(outside), torch.randn(B, T, F)
    tokens = bg.Tokens(model)
    balancer = Ones(level=tokens)

    def loss():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return model(x)

    balancer({"joint": loss()}, tokens=masks()).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss().backward()
    close = {"rtol": 2e-2, "atol": 1e-3} if autocast else {}
    for parameter, grad in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(grad, parameter.grad, **close)
    assert tokens.unsplit() == ({"layer.weight": "it is used outside of its layer too"} if outside else {})
