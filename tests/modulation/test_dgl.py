import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, NoHostReads, make_batch


def gradient(loss, parameters):
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


class SharedHead(nn.Module):
    """DGL's own setting: uni-modal logits from the fused head with the other half of the features zeroed."""

    def __init__(self):
        super().__init__()
        self.encoders = nn.ModuleDict({m: nn.Linear(5, 4) for m in MODALITIES[:2]})
        self.head = nn.Linear(8, 3)

    def losses(self, inputs, label):
        z = {m: encoder(inputs[m]).tanh() for m, encoder in self.encoders.items()}
        seen = {"joint": z} | {m: {n: v if n == m else torch.zeros_like(v) for n, v in z.items()} for m in z}
        return {name: cross_entropy(self.head(torch.cat(list(v.values()), 1)), label) for name, v in seen.items()}


def test_shared_head_gets_the_joint_gradient_and_encoders_their_own():
    model, batch = SharedHead(), make_batch()
    losses = model.losses(*batch)
    head = gradient(losses["joint"], list(model.head.parameters()))
    own = {m: gradient(losses[m], list(e.parameters())) for m, e in model.encoders.items()}
    balancer = bg.DGL(model.encoders, alpha=5.0)
    scalar = balancer(losses)
    assert scalar.item() == pytest.approx((losses["joint"] + 5 * losses["audio"] + 5 * losses["video"]).item())
    scalar.backward()
    torch.testing.assert_close([p.grad for p in model.head.parameters()], list(head))
    for name, encoder in model.encoders.items():
        torch.testing.assert_close([p.grad for p in encoder.parameters()], [5 * g for g in own[name]])


@pytest.mark.parametrize("modalities", [MODALITIES[:2], MODALITIES])
def test_heads_of_their_own_are_trained_by_their_loss(modalities):
    model, batch = LateFusion(modalities), make_batch(modalities)
    losses = model.losses(*batch)
    wanted = {}
    for name, parameter in model.named_parameters():
        owner = next((m for m in modalities if name.startswith((f"encoders.{m}", f"heads.{m}"))), None)
        loss = losses["joint"] if owner is None else 3 * losses[owner]
        wanted[name] = gradient(loss, [parameter])[0]
    bg.DGL(model.encoders, alpha=3.0)(losses).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], msg=name)


def test_accumulates_and_carries_the_loss_scale():
    model, batch = LateFusion(), make_batch()
    balancer = bg.DGL(model.encoders)
    balancer(model.losses(*batch)).backward()
    once = [p.grad.clone() for p in model.parameters()]
    (1024 * balancer(model.losses(*batch))).backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [1025 * g for g in once])


def test_a_missing_modality_learns_nothing():
    model, (inputs, label) = LateFusion(), make_batch()
    del inputs["video"]
    bg.DGL(model.encoders)(model.losses(inputs, label)).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    # no joint loss in this batch: the trunk belongs to the uni-modal one
    assert trained == {
        n for n, _ in model.named_parameters() if n.startswith(("encoders.audio", "heads.audio", "trunk"))
    }


def test_an_encoder_never_sees_another_modalitys_loss():
    encoders = {m: nn.Linear(3, 3) for m in MODALITIES[:2]}
    z = {m: e(torch.randn(4, 3)) for m, e in encoders.items()}
    losses = {"joint": (z["audio"] * z["video"]).sum(), "audio": z["audio"].sum() + z["video"].sum()}
    bg.DGL(encoders)(losses).backward()
    assert encoders["video"].weight.grad is None
    assert encoders["audio"].weight.grad is not None


def test_post_accumulate_hooks_fire_once_per_parameter():
    model, batch = LateFusion(), make_batch()
    fired = []
    handles = [p.register_post_accumulate_grad_hook(lambda p: fired.append(id(p))) for p in model.parameters()]
    bg.DGL(model.encoders)(model.losses(*batch)).backward()
    for handle in handles:
        handle.remove()
    assert sorted(fired) == sorted(id(p) for p in model.parameters())


def test_nothing_is_read_on_the_host():
    model, batch = LateFusion(), make_batch()
    losses = model.losses(*batch)
    with NoHostReads():
        bg.DGL(model.encoders)(losses).backward()


def test_bad_input():
    model, batch = LateFusion(), make_batch()
    losses = model.losses(*batch)
    with pytest.raises(ValueError, match=r"loss 'video' has no encoder; the modalities are \['audio'\]"):
        bg.DGL({"audio": model.encoders["audio"]})(losses)
    swapped = {"audio": model.encoders["video"], "video": model.encoders["audio"]}
    with pytest.raises(ValueError, match=r"loss 'audio' reaches no parameter of modalities\['audio'\]"):
        bg.DGL(swapped)(losses)
    with pytest.raises(ValueError, match="alpha=0"):
        bg.DGL(model.encoders, alpha=0)
    balancer = bg.DGL(model.encoders)
    with torch.no_grad():
        assert balancer(losses).item() == pytest.approx(balancer(losses).item())
    assert balancer.last is None
