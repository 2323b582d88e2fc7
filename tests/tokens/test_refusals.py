"""What is refused, and by which words."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import balanced_grad as bg
from tests.tokens.test_rows import B, Model, Ones, T, ids, masks

MASK = torch.arange(B * T).view(B, T) % 2 == 0


def step(tokens=None, losses=None, balancer=None, **options):
    model = Model()
    balancer = bg.MinNorm(level=bg.Tokens(model, **options)) if balancer is None else balancer(model)
    loss = model(ids())
    balancer({"joint": loss} if losses is None else losses(loss), tokens=tokens).backward()
    return balancer


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: step(), ValueError, "nothing says which position is of which modality: write balancer"),
        (lambda: step({"image": MASK, "text": MASK}), ValueError, r"'image' and 'text' share 11 positions"),
        (lambda: step({"image": MASK.int()}), TypeError, r"tokens\['image'\] is .*give a boolean mask"),
        (lambda: step({"image": MASK, "text": ~MASK[:, 1:]}), ValueError, r"tokens\['text'\] is .*over the same"),
        (lambda: step({"rest": MASK}), ValueError, "choose another name"),
        (lambda: step({}), TypeError, "give a mapping of modality -> mask"),
        (lambda: step({"image": MASK[:, 1:]}), ValueError, r"is split into \['image'\]: its positions are"),
        (
            lambda: step({"image": MASK}, losses=lambda loss: {"joint": loss, "image": 2 * loss}),
            ValueError,
            r"splits the gradient of one loss, and there are \['joint', 'image'\]; add them up",
        ),
        (lambda: step({"image": MASK}, balancer=lambda _: bg.MinNorm()), ValueError, "splits nothing by tokens; write"),
        (lambda: step({"image": MASK}, balancer=lambda _: bg.MIMO()), ValueError, "splits nothing by tokens"),
        (lambda: bg.Tokens(nn.Bilinear(2, 2, 2)), ValueError, "has no layer whose gradient splits by position"),
        (lambda: bg.Tokens("model"), TypeError, "model is a str; give the module"),
        (lambda: bg.Tokens(Model(), {"image": MASK}), TypeError, "masks is a dict; give a function"),
        (lambda: bg.MinNorm(level=bg.Tokens(Model()), every=2), ValueError, "weights of tokens"),
        (lambda: bg.MinNorm(level="tokens"), ValueError, r"level='tokens': choose .* or give bg.Tokens\(model\)"),
        (lambda: copy.deepcopy(bg.Tokens(Model())), TypeError, "make a new one"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_method_without_a_gramian_has_no_use_for_them():
    class Mine(bg.Balancer):
        def weigh(self, problem):
            return bg.Weighting(torch.ones_like(problem.losses))

    with pytest.raises(ValueError, match="Mine"):
        Mine(level=bg.Tokens(Model()))
    with pytest.raises(ValueError, match="Mine"):
        Mine(level=bg.Tokens(Model()), record_gramian=True)


def test_reentrant_checkpointing_is_refused_by_name():
    class Reentrant(Model):
        def forward(self, ids):
            x = self.embed(ids)
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=True)
            return self.head(x).square().mean()

    model = Reentrant()
    balancer = bg.MinNorm(level=bg.Tokens(model))
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        balancer({"joint": model(ids())}, tokens=masks()).backward()


def test_a_weight_used_outside_of_its_layer_is_summed_plainly():
    class Tied(Model):
        def forward(self, ids):
            x = self.embed(ids)
            for block in self.blocks:
                x = block(x)
            return nn.functional.linear(x, self.embed.weight).square().mean()

    torch.manual_seed(0)
    model = Tied()
    balancer = Ones(level=bg.Tokens(model))
    balancer({"joint": model(ids())}, tokens=masks()).backward()
    got = model.embed.weight.grad.clone()
    model.zero_grad()
    model(ids()).backward()
    torch.testing.assert_close(got, model.embed.weight.grad)
    assert any("outside" in why for why in balancer._source.tokens.unsplit().values())


def test_masks_are_of_one_batch():
    """They do not serve the next call too."""
    model = Model()
    balancer = bg.MinNorm(level=bg.Tokens(model))
    balancer({"joint": model(ids())}, tokens=masks()).backward()
    with pytest.raises(ValueError, match="nothing says"):
        balancer({"joint": model(ids())})


def test_hooks_go_when_they_are_told_to():
    model = Model()
    tokens = bg.Tokens(model)
    tokens.remove()
    with pytest.raises(ValueError, match=r"none of those that bg\.Tokens"):
        bg.MinNorm(level=tokens)({"joint": model(ids())}, tokens=masks())
