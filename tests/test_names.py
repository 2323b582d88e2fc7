"""Names of losses: unknown ones are refused where a method must place them, suspicious ones mentioned once."""

import pytest
import torch
from torch import nn

import balanced_grad as bg

NAMED = {
    "DGL": lambda encoders: bg.DGL(encoders),
    "OGM": lambda encoders: bg.OGM(encoders),
    "MLB": lambda encoders: bg.MLB(encoders),
}


def encoders():
    return nn.ModuleDict({"audio": nn.Linear(3, 2), "video": nn.Linear(3, 2)})


def losses_of(encoders, names):
    out = {
        name: encoder(torch.ones(2, 3)).square().mean() for name, encoder in zip(names, encoders.values(), strict=False)
    }
    return {"joint": sum(out.values())} | out


@pytest.mark.parametrize("method", NAMED)
@pytest.mark.parametrize("learning", [True, False])
def test_a_misspelt_modality_is_refused(method, learning):
    model = encoders()
    balancer = NAMED[method](model)
    with (
        torch.set_grad_enabled(learning),
        pytest.raises(ValueError, match=r"loss 'sound' has no encoder.*'audio', 'video'"),
    ):
        balancer(losses_of(model, ("sound", "video")))
    before = balancer.last
    assert before is None
    balancer(losses_of(model, ("audio",)) | {"video": None}).backward()
    assert balancer.last.names == ("joint", "audio")


def test_scores_do_not_excuse_a_misspelt_loss():
    model = encoders()
    with pytest.raises(ValueError, match="loss 'sound' has no encoder"):
        bg.OGM(model)(losses_of(model, ("sound", "video")), scores={"audio": 0.5, "video": 0.5})


def test_a_loss_without_a_head_is_refused_where_heads_are_compared():
    heads = encoders()
    balancer = bg.BOGC(heads, by_index=True)
    with pytest.raises(ValueError, match="loss 'sound' has no head; the heads are"):
        balancer(losses_of(heads, ("sound", "video")))
    balancer(losses_of(heads, ("audio", "video"))).backward()


@pytest.mark.parametrize("make", [bg.Uniform, bg.MIMO, bg.MinNorm, bg.MMPareto])
class TestMentionedOnce:
    @pytest.mark.parametrize(
        "name",
        [
            "Joint",
            "fused",
            "fusion_loss",
            "joint_cls",
            "multimodal",
            "multi-modal",
            "lossJoint",
            "late_fusion",
            "FUSED",
        ],
    )
    def test_a_loss_that_sounds_fused(self, make, name):
        w, balancer = torch.ones(2, requires_grad=True), make()
        with pytest.warns(bg.InactiveBalancerWarning, match=f"loss '{name}' sounds .* name it 'joint'"):
            balancer({name: w.sum(), "audio": w[0]})
        balancer({name: w.sum(), "audio": w[0]}).backward()  # said once

    @pytest.mark.parametrize("name", ["audio", "diffusion", "disjoint", "refused", "text", "depth"])
    def test_other_names_are_not_mentioned(self, make, name):
        w = torch.ones(2, requires_grad=True)
        make()({name: w.sum(), "video": w[0]}).backward()

    def test_nor_are_they_beside_a_joint_loss(self, make):
        w = torch.ones(2, requires_grad=True)
        make()({"joint": w.sum(), "fused": w[0]}).backward()

    def test_one_tensor_under_several_names(self, make):
        w, balancer = torch.ones(2, requires_grad=True), make()
        loss = w.square().sum()
        losses = {"joint": loss, "audio": loss, "video": w[0], "text": None, "depth": None}
        with pytest.warns(bg.InactiveBalancerWarning, match="'joint' and 'audio' are the very same tensor"):
            balancer(losses)
        balancer(losses).backward()  # said once


def test_agm_without_logits():
    w, balancer = torch.ones(2, requires_grad=True), bg.AGM(("audio", "video"))
    with torch.no_grad():
        balancer({"joint": w.sum()})
    with pytest.warns(bg.InactiveBalancerWarning, match="AGM has no logits of this step"):
        balancer({"joint": w.sum()})
    balancer({"joint": w.sum()}).backward()  # said once


def test_agm_whose_logits_are_of_an_earlier_step():
    balancer, labels = bg.AGM(("audio", "video")), torch.tensor([0, 1])
    w = torch.ones(2, 2, requires_grad=True)

    def muted(present):
        return len(present) * w

    logits = balancer.logits(2 * w, muted, labels)
    balancer({"joint": logits.sum()}).backward()  # warnings are errors here
    with pytest.warns(bg.InactiveBalancerWarning, match=r"before every balancer"):
        balancer({"joint": (2 * w).sum()}).backward()
