"""Whole steps: accumulation, loss scale, clipping, modules of one modality, functions that make masks."""

import torch
from torch import nn

import balanced_grad as bg
from tests.tokens.test_rows import B, Model, Only, T, ids, masks


def accumulated(parts, scale=1.0):
    torch.manual_seed(0)
    model = Model()
    balancer = bg.MinNorm(level=bg.Tokens(model))
    optimizer = bg.BalancedOptimizer(torch.optim.SGD(model.parameters(), 0.1), balancer, accumulate="rows")
    for seed in range(2):
        inputs, given = ids(seed)[:2], {name: mask[:2] for name, mask in masks(seed).items()}
        for part in torch.arange(2).chunk(parts):
            loss = model(inputs[part]) / parts * scale
            balancer({"joint": loss}, tokens={name: mask[part] for name, mask in given.items()}).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return [p.detach().clone() for p in model.parameters()]


def test_two_micro_batches_are_balanced_as_one_batch():
    torch.testing.assert_close(accumulated(2), accumulated(1), rtol=1e-4, atol=1e-6)


def test_a_loss_scaler_skips_a_step_that_overflowed():
    model = Model()
    balancer = bg.MinNorm(level=bg.Tokens(model))
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=16.0)
    for number in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        loss = model(ids(number)) * (torch.inf if number == 1 else 1)
        scaler.scale(balancer({"joint": loss}, tokens=masks(number))).backward()
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert same == (number == 1)


class Seeing(nn.Module):
    """A picture of patches in front of the text."""

    def __init__(self):
        super().__init__()
        self.vision, self.words = nn.Linear(5, 6), nn.Embedding(11, 6)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 11)

    def forward(self, patches, ids):
        x = torch.cat([self.vision(patches), self.words(ids)], 1)
        x = self.mix(x) + x.mean(1, keepdim=True)
        return self.head(x[:, -ids.shape[1] :]).square().mean()


def picture():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, 4, 5, generator=generator), ids()


def test_what_has_other_positions_belongs_to_a_name_or_is_plain():
    model = Seeing()
    where = {"image": torch.arange(4 + T).expand(B, -1) < 4}
    where["text"] = ~where["image"]
    plain = torch.autograd.grad(model(*picture()), model.vision.weight)[0]
    for modules, factor in ((None, 1.0), ({"image": model.vision}, 0.0)):
        model.zero_grad()
        balancer = Only("text", level=bg.Tokens(model, modules=modules))
        balancer({"joint": model(*picture())}, tokens=where).backward()
        torch.testing.assert_close(model.vision.weight.grad, factor * plain)
        assert balancer.last.names == ("image", "text")


def test_a_function_makes_masks_of_the_models_inputs():
    seen = []

    def of(inputs):
        seen.append(sorted(inputs))
        image = torch.arange(4 + T).expand(B, -1) < 4
        return {"image": image, "text": ~image}

    model = Seeing()
    balancer = bg.MinNorm(level=bg.Tokens(model, of))
    patches, words = picture()
    balancer({"joint": model(patches, ids=words)}).backward()
    assert seen == [["ids", "patches"]]
    assert balancer.last.names == ("image", "text")


def test_guards_and_rows():
    """A rule on rows sees those of the groups, by name."""
    names = []

    class Mean(bg.RowFusion):
        def fuse(self, rows, problem):
            names.append(problem.names)
            return rows.sum(0)

    model = Model()
    want = torch.autograd.grad(model(ids()), model.head.weight)[0]
    Mean(level=bg.Tokens(model))({"joint": model(ids())}, tokens=masks()).backward()
    assert names == [("image", "text", "rest")]
    torch.testing.assert_close(model.head.weight.grad, want, rtol=1e-4, atol=1e-6)
