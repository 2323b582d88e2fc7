"""The plan of one loss that splits by groups of tokens."""

import textwrap

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from balanced_grad.__main__ import main
from balanced_grad.check import check, verify
from balanced_grad.tokens import TokenCapture


class Reader(nn.Module):
    """Words and patches through one layer; a tower with positions of its own; a head on the last word."""

    def __init__(self):
        super().__init__()
        self.tower = nn.Linear(3, 4)
        self.words = nn.Embedding(7, 4)
        self.layer = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(4, 2)

    def forward(self, image, ids):
        joined = torch.cat([self.tower(image), self.words(ids)], 1)
        return self.head(self.scale * self.frozen(self.layer(joined).relu())[:, -1])


IMAGE = torch.arange(5).expand(4, -1) < 2


def loss_of(model):
    return {"joint": cross_entropy(model(torch.randn(4, 2, 3), torch.randint(7, (4, 3))), torch.tensor([0, 1, 0, 1]))}


@pytest.fixture
def watched():
    model = Reader()
    tokens = bg.Tokens(model, modules={"image": model.tower})
    losses = loss_of(model)
    tokens.note({"image": IMAGE, "text": ~IMAGE})
    return model, tokens, losses


def test_every_layer_is_listed(watched):
    model, tokens, losses = watched
    report = check(losses, model, tokens=tokens)
    assert report.split.positions == {"image": 8, "text": 12}
    found = {where: share.groups for share in report.split.shares for where in share.where}
    assert found == {
        "layer.*": ("image", "text"),
        "tower.*": ("image",),
        "words.*": (),  # of the words only: not the positions of the masks
        "head.*": (),
        "scale": (),
    }
    because = {share.where: share.why for share in report.split.shares}
    assert because["words.*",] == "its positions are (4, 3), those of the masks (4, 5)"
    assert because["head.*",] == "its positions are (4,), those of the masks (4, 5)"
    assert because["scale",] == "not of a layer that is watched"
    assert sum(share.entries for share in report.split.shares) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_rows_and_traffic_are_those_of_a_step(watched):
    model, tokens, losses = watched
    report = check(losses, model, tokens=tokens)
    split = 4 * (16 + 4)
    assert report.rows == 2 * split
    assert report.traffic["parameters"] - report.traffic["losses"] == split


def test_nothing_looks_like_a_mistake_and_the_anchor_is_no_ones(watched):
    model, tokens, losses = watched
    report = check(losses, model, tokens=tokens)
    assert report.advice == []
    assert report.bystanders == ()
    assert "image + text" in str(report)
    assert "one backward" in str(report)


def test_masks_and_graph_are_left_for_a_balancer(watched):
    model, tokens, losses = watched
    balancer = bg.EqualNorms(level=tokens)
    check(losses, model, tokens=tokens)
    balancer(losses).backward()
    assert balancer.last.names == ("image", "text")


def test_one_loss_without_tokens_is_told_of_them():
    model = Reader()
    assert "level=bg.Tokens(model)" in check(loss_of(model), model).advice[0]


def test_without_masks():
    model = Reader()
    tokens = bg.Tokens(model)
    with pytest.raises(ValueError, match="nothing says which position is of which modality"):
        check(loss_of(model), model, tokens=tokens)


class TestVerify:
    def function(self):
        torch.manual_seed(0)
        model = Reader()
        tokens = bg.Tokens(model, modules={"image": model.tower})
        losses = loss_of(model)
        tokens.note({"image": IMAGE, "text": ~IMAGE})
        return model, losses, tokens

    def test_right(self):
        verdicts = verify(self.function).verdicts
        assert [(each.methods, each.says) for each in verdicts][-1] == ("level=bg.Tokens(model)", "right")

    def test_wrong_rows_are_seen(self, monkeypatch):
        honest = TokenCapture.receive

        def twice(self, layer, inputs, grad):
            honest(self, layer, inputs, grad)
            honest(self, layer, inputs, grad)

        monkeypatch.setattr(TokenCapture, "receive", twice)
        verdict = verify(self.function).verdicts[-1]
        assert set(verdict.errors) == {"layer.weight", "layer.bias"}

    def test_refused(self):
        def two():
            model, losses, tokens = self.function()
            return model, losses | {"other": losses["joint"] * 2}, tokens

        assert "splits the gradient of one loss" in verify(two).verdicts[-1].refused


def test_command(tmp_path, capsys):
    file = tmp_path / "train.py"
    file.write_text(
        textwrap.dedent("""
        import torch
        import balanced_grad as bg

        def first_batch():
            model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 2))
            tokens = bg.Tokens(model, lambda inputs: {"image": inputs["input"] == 0, "text": inputs["input"] > 0})
            return model, {"joint": model(torch.tensor([[0, 0, 1, 2]])).square().sum()}, tokens
        """)
    )
    assert main(["check", f"{file}:first_batch"]) == 0
    out = capsys.readouterr().out
    assert "positions     image 2, text 2" in out
    assert "image + text" in out
