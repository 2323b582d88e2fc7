"""BOGC: the fused gradient against a brute-force one, and everything that must not change it."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from balanced_grad.evidence import Laplace, MicroBatchVariance, SampleVariance, StepVariance, fuse_gradients
from tests.conftest import MODALITIES, LateFusion, NoHostReads, make_batch


class SharedHead(nn.Module):
    """One head that every modality and their mean go through."""

    def __init__(self, modalities=MODALITIES[:2], width=4, classes=3):
        super().__init__()
        self.encoders = nn.ModuleDict({m: nn.Sequential(nn.Linear(5, width), nn.Tanh()) for m in modalities})
        self.head = nn.Linear(width, classes)

    def losses(self, inputs, label):
        features = {m: encoder(inputs[m]) for m, encoder in self.encoders.items() if m in inputs}
        joint = self.head(torch.stack(list(features.values())).mean(0))
        own = {m: cross_entropy(self.head(z), label) for m, z in features.items()}
        return {"joint": cross_entropy(joint, label), **own}


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def plain(model, losses):
    model.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    out = grads(model)
    model.zero_grad()
    return out


def per_loss_rows(model, layer, batch, names):
    """Gradients at a layer, and their sampling variance, from one backward per item."""
    inputs, label = batch
    parameters = list(layer.parameters())

    def row(losses, name):
        return torch.cat([g.flatten() for g in torch.autograd.grad(losses[name], parameters, retain_graph=True)])

    whole = model.losses(inputs, label)
    items = [model.losses({m: x[n : n + 1] for m, x in inputs.items()}, label[n : n + 1]) for n in range(len(label))]
    each = torch.stack([torch.stack([row(item, name) for item in items]) for name in names])
    return torch.stack([row(whole, name) for name in names]), each.var(1) / len(label)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shared_head_against_brute_force(count):
    names = MODALITIES[:count]
    model, batch = SharedHead(names), make_batch(names)
    want = plain(model, model.losses(*batch))
    rows, variance = per_loss_rows(model, model.head, batch, ("joint", *names))
    balancer = bg.BOGC(model.head, decay=0.0, unit="site")
    balancer(model.losses(*batch)).backward()
    if count == 1:  # then the joint loss is a source too, and both are the same
        fused = fuse_gradients(rows, variance)[0]
    else:
        median = variance[1:].median()
        fused = rows[0] + fuse_gradients(rows[1:], variance[1:] / median, reference=torch.ones(()))[0]
    got = grads(model)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.head.parameters()]), fused)
    for name in got:
        if not name.startswith("head"):
            torch.testing.assert_close(got[name], want[name], msg=name)


def test_encoders_own_and_joint_loss_meet():
    model, batch = LateFusion(trunk=False), make_batch()
    layer = model.encoders["video"][0]
    rows, variance = per_loss_rows(model, layer, batch, ("joint", "video"))
    want = fuse_gradients(rows, variance / variance.median(), reference=torch.ones(()))[0]
    balancer = bg.BOGC(model.encoders, decay=0.0, unit="site")
    balancer(model.losses(*batch)).backward()
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in layer.parameters()]), want)
    trust = balancer.last.trust
    assert balancer.last.names == ("joint", "audio", "video")
    assert (trust.belief > 0).all()
    assert trust.leading[0] * 2 + trust.leading[1] + trust.leading[2] == pytest.approx(2)
    assert 0 < trust.uncertainty < 1
    log = balancer.last.to_dict()
    assert log["belief"]["uncertainty"] == pytest.approx(trust.uncertainty.item())


ESTIMATORS = [SampleVariance(), Laplace(), StepVariance(), MicroBatchVariance(2)]


@pytest.mark.parametrize("variance", ESTIMATORS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("layers", ["last", "all"])
def test_without_evidence_it_is_the_plain_sum(variance, layers):
    model, batch = LateFusion(MODALITIES), make_batch(MODALITIES)
    block = model.encoders if layers == "last" else model
    balancer = bg.BOGC(block, variance, layers=layers, kappa=0.0)
    for _ in range(3):
        losses = model.losses(*batch)
        want = plain(model, model.losses(*batch))
        value = balancer(losses)
        value.backward()
        torch.testing.assert_close(value.detach(), torch.stack(list(losses.values())).sum().detach())
        torch.testing.assert_close(grads(model), want)
        model.zero_grad()


def test_with_much_evidence_it_is_inverse_variance_weighting():
    model, batch = SharedHead(), make_batch()
    rows, variance = per_loss_rows(model, model.head, batch, MODALITIES[:2])
    balancer = bg.BOGC(model.head, kappa=1e6, cap=1e12, decay=0.0, joint="add", unit="site")
    losses = model.losses(*batch)
    del losses["joint"]
    balancer(losses).backward()
    want = 2 * (rows / variance).sum(0) / (1 / variance).sum(0)
    torch.testing.assert_close(
        torch.cat([p.grad.flatten() for p in model.head.parameters()]), want, rtol=1e-3, atol=1e-5
    )


def test_by_default_every_source_has_its_own_unit():
    """So that a loss whose gradient is small, and its variance with it, is not trusted more for that."""
    torch.manual_seed(0)
    model, batch = SharedHead(), make_batch()
    rows, variance = per_loss_rows(model, model.head, batch, MODALITIES[:2])
    own = variance / variance.median(1, keepdim=True).values
    want = fuse_gradients(rows, own, reference=torch.ones(()))[0]
    weights = []
    for factor in (1.0, 1e-2):
        model.zero_grad()
        balancer = bg.BOGC(model.head, decay=0.0)
        losses = model.losses(*batch)
        balancer({"audio": factor * losses["audio"], "video": losses["video"]}).backward()
        weights.append(balancer.last.trust.weights)
        if factor == 1.0:
            torch.testing.assert_close(torch.cat([p.grad.flatten() for p in model.head.parameters()]), want)
    torch.testing.assert_close(weights[0], weights[1])


def run(model, balancer, steps, modalities=MODALITIES[:2], seed=0, scale=1.0, optimizer=None):
    """Some steps on different batches; the gradients of the last."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
    for number in range(steps):
        optimizer.zero_grad()
        balancer(model.losses(*make_batch(modalities, seed=seed + number))).backward(torch.tensor(scale))
        if scale == 1.0:
            optimizer.step()
    return grads(model)


OPTIONS = [
    {},
    {"variance": Laplace(num_data=500)},
    {"variance": StepVariance()},
    {"precision": "relative"},
    {"unit": "site"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_order_of_the_losses_is_irrelevant(options):
    results = []
    for order in itertools.permutations(["joint", *MODALITIES]):
        torch.manual_seed(0)
        model = LateFusion(MODALITIES, trunk=False)
        balancer = bg.BOGC(model.encoders, **options)
        for seed in range(3):
            losses = model.losses(*make_batch(MODALITIES, seed=seed))
            model.zero_grad()
            balancer({name: losses[name] for name in order}).backward()
        results.append(grads(model))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_loss_scale_is_divided_out_of_the_statistics(options):
    torch.manual_seed(0)
    model = LateFusion()
    other = copy.deepcopy(model)
    one, two = bg.BOGC(model.encoders, **options), bg.BOGC(other.encoders, **options)
    for number in range(3):
        model.zero_grad()
        other.zero_grad()
        one(model.losses(*make_batch(seed=number))).backward()
        two(other.losses(*make_batch(seed=number))).backward(torch.tensor(1024.0))
        for name, grad in grads(other).items():
            torch.testing.assert_close(grad / 1024, grads(model)[name])
    for a, b in zip(one._histories, two._histories, strict=True):
        torch.testing.assert_close(a.tensors, b.tensors)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_rescaling_every_loss_rescales_the_result(factor):
    model = SharedHead()
    other = copy.deepcopy(model)
    one, two = bg.BOGC(model.head), bg.BOGC(other.head)
    for seed in range(3):
        model.zero_grad()
        other.zero_grad()
        one(model.losses(*make_batch(seed=seed))).backward()
        two({name: factor * loss for name, loss in other.losses(*make_batch(seed=seed)).items()}).backward()
        torch.testing.assert_close(two.last.trust.weights, one.last.trust.weights)
        for name, grad in grads(other).items():
            torch.testing.assert_close(grad / factor, grads(model)[name])


@pytest.mark.parametrize("variance", [*ESTIMATORS, Laplace("softmax", draws=4)], ids=str)
def test_resume_is_bitwise(variance):
    torch.manual_seed(0)
    model = SharedHead()
    block = model.head
    balancer = bg.BOGC(block, variance)
    run(model, balancer, 3)
    saved = copy.deepcopy((model.state_dict(), balancer.state_dict()))
    want = run(model, balancer, 2, seed=7)
    again = SharedHead()
    fresh = bg.BOGC(again.head, variance)
    again.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    got = run(again, fresh, 2, seed=7)
    for name, grad in want.items():
        assert torch.equal(got[name], grad), name


def test_missing_modality_is_left_out_and_its_statistics_rest():
    torch.manual_seed(0)
    model = SharedHead(MODALITIES)
    balancer = bg.BOGC(model.head)
    run(model, balancer, 2, MODALITIES)
    before = copy.deepcopy(balancer._histories[0])
    inputs, label = make_batch(MODALITIES, seed=5)
    losses = model.losses(inputs, label)
    model.zero_grad()
    balancer({**losses, "audio": None}).backward()
    assert balancer.last.names == ("joint", "video", "text")
    assert all(p.grad is not None for p in model.encoders["audio"].parameters())  # through the joint loss
    after, audio = balancer._histories[0], before.names.index("audio")
    for key, kept in before.tensors.items():
        assert torch.equal(after.tensors[key][audio], kept[audio])
        if key == "variance":
            assert not torch.equal(after.tensors[key], kept)


def test_a_loss_that_comes_later_joins():
    model = SharedHead(MODALITIES)
    balancer = bg.BOGC(model.head)
    for names in (MODALITIES[:2], MODALITIES, MODALITIES[1:]):
        losses = model.losses(*make_batch(names))
        model.zero_grad()
        balancer(losses).backward()
        assert balancer.last.trust.belief[1:].gt(0).all()
        assert all(p.grad.isfinite().all() for p in model.head.parameters())


def test_non_finite_gradients_stay_visible_and_out_of_the_statistics():
    torch.manual_seed(0)
    model = SharedHead()
    balancer = bg.BOGC(model.head, precision="relative")
    run(model, balancer, 2)
    before = copy.deepcopy(balancer.state())
    model.zero_grad()
    losses = model.losses(*make_batch(seed=3))
    balancer({name: loss * torch.inf if name == "audio" else loss for name, loss in losses.items()}).backward()
    assert not all(p.grad.isfinite().all() for p in model.head.parameters())
    kept, after = before["sites"]["linear"], balancer.state()["sites"]["linear"]
    audio = kept["names"].index("audio")
    assert all(torch.equal(after["tensors"][key][audio], value[audio]) for key, value in kept["tensors"].items())
    assert all(value.isfinite().all() for value in after["tensors"].values())


def test_grad_scaler_skips_and_recovers():
    torch.manual_seed(0)
    model = SharedHead()
    balancer, optimizer = bg.BOGC(model.head), torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for number in range(3):
        optimizer.zero_grad()
        before = copy.deepcopy(model.state_dict())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model.losses(*make_batch(seed=number))
        if number == 1:
            losses["video"] = losses["video"] * torch.inf
        scaler.scale(balancer(losses)).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(p, before[name]) for name, p in model.state_dict().items())
        assert moved == (number != 1)
    assert all(value.isfinite().all() for value in balancer._histories[0].tensors.values())
    assert balancer._histories[0].tensors["variance"].dtype == torch.float64


def test_bfloat16_parameters_have_wide_statistics():
    model = SharedHead().bfloat16()
    balancer = bg.BOGC(model.head)
    balancer(model.losses(*make_batch(dtype=torch.bfloat16))).backward()
    assert model.head.weight.grad.dtype == torch.bfloat16
    assert balancer._histories[0].tensors["variance"].dtype == torch.float64


def test_whole_model_by_step_variance_also_of_other_layers():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.Flatten(), nn.Linear(6, 3))
    linear = nn.Linear(5, 3)
    model = nn.ModuleDict({"audio": conv, "video": linear})
    balancer = bg.BOGC(model, StepVariance(), layers="all")
    for seed in range(4):
        inputs, label = make_batch(seed=seed)
        audio, video = conv(inputs["audio"][:, None]), linear(inputs["video"])
        model.zero_grad()
        losses = {"audio": audio, "video": video, "joint": audio + video}
        balancer({name: cross_entropy(x, label) for name, x in losses.items()}).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
    names = [site.name for site in balancer.block.sites]
    assert names[:4] == ["audio.0.weight", "audio.0.bias", "audio.1.weight", "audio.1.bias"]
    assert balancer.last.trust.uncertainty < 1


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_step_variance_is_the_weighted_variance_of_the_gradients_so_far(decay):
    torch.manual_seed(0)
    model = SharedHead()
    balancer = bg.BOGC(model.head, StepVariance(decay), decay=0.1)
    rows = []
    for seed in range(5):
        batch = make_batch(seed=seed)
        rows.append(per_loss_rows(model, model.head, batch, MODALITIES[:2])[0])
        balancer(model.losses(*batch)).backward()
    stacked = torch.stack(rows)
    weights = decay ** torch.arange(4, -1, -1.0)
    weights = (weights / weights.sum())[:, None, None]
    mean = (weights * stacked).sum(0)
    history = balancer._histories[0].tensors
    torch.testing.assert_close(history["mean"], mean)
    torch.testing.assert_close(history["variance"], (weights * (stacked - mean).square()).sum(0), rtol=1e-4, atol=1e-8)


def test_micro_batches_are_compared_within_a_window():
    torch.manual_seed(0)
    model = SharedHead()
    balancer = bg.BOGC(model.head, MicroBatchVariance(3), joint="add")
    rows = []
    for seed in range(4):
        batch = make_batch(seed=seed)
        rows.append(per_loss_rows(model, model.head, batch, MODALITIES[:2])[0])
        balancer(model.losses(*batch)).backward()
        uncertainty = balancer.last.trust.uncertainty
        assert (uncertainty == 1) == (seed < 2)
    history = balancer._histories[0].tensors
    want = torch.stack(rows[:3]).var(0)
    torch.testing.assert_close(history["variance"], want, rtol=1e-3, atol=1e-7)


class TestHeadsByIndex:
    def test_every_head_receives_what_a_shared_head_would(self):
        torch.manual_seed(0)
        model, batch = LateFusion(trunk=False), make_batch()
        rows, variance = [], []
        for name, head in model.heads.items():
            row, spread = per_loss_rows(model, head, batch, (name,))
            rows.append(row)
            variance.append(spread)
        spread = torch.cat(variance)
        want = fuse_gradients(torch.cat(rows), spread / spread.median(), reference=torch.ones(()))[0]
        balancer = bg.BOGC(model.heads, by_index=True, decay=0.0, unit="site")
        balancer(model.losses(*batch)).backward()
        for head in model.heads.values():
            torch.testing.assert_close(torch.cat([p.grad.flatten() for p in head.parameters()]), want)

    def test_the_head_of_a_missing_modality_keeps_none(self):
        model = LateFusion(MODALITIES, trunk=False)
        balancer = bg.BOGC(model.heads, by_index=True)
        balancer({**model.losses(*make_batch(MODALITIES)), "audio": None}).backward()
        assert model.heads["audio"].weight.grad is None
        assert model.heads["video"].weight.grad is not None

    def test_other_losses_are_added(self):
        torch.manual_seed(0)
        model, batch = LateFusion(trunk=False), make_batch()
        own = plain(model, {m: loss for m, loss in model.losses(*batch).items() if m != "joint"})
        joint = plain(model, {"joint": self.mean_of_heads(model, batch)})
        balancer = bg.BOGC(model.heads, by_index=True, kappa=0.0)
        balancer({**model.losses(*batch), "joint": self.mean_of_heads(model, batch)}).backward()
        total = own["heads.audio.weight"] + own["heads.video.weight"]
        for name, head in model.heads.items():
            torch.testing.assert_close(head.weight.grad, total + joint[f"heads.{name}.weight"])

    @staticmethod
    def mean_of_heads(model, batch):
        inputs, label = batch
        logits = [model.heads[m](model.encoders[m](x)) for m, x in inputs.items()]
        return cross_entropy(torch.stack(logits).mean(0), label)

    def test_heads_of_different_shape_are_refused(self):
        heads = {"audio": nn.Linear(3, 2), "video": nn.Linear(4, 2)}
        with pytest.raises(ValueError, match="equal shape"):
            bg.BOGC(heads, by_index=True)


def test_gradients_accumulate():
    torch.manual_seed(0)
    model = SharedHead()
    balancer = bg.BOGC(model.head, decay=0.0)
    balancer(model.losses(*make_batch(seed=0))).backward()
    first = grads(model)
    balancer(model.losses(*make_batch(seed=1))).backward()
    both = grads(model)
    model.zero_grad()
    balancer(model.losses(*make_batch(seed=1))).backward()
    for name, grad in grads(model).items():
        torch.testing.assert_close(first[name] + grad, both[name])


def test_what_no_loss_reaches_keeps_none():
    model = LateFusion(MODALITIES, trunk=False)
    balancer = bg.BOGC(model.encoders)
    balancer({"audio": model.losses(*make_batch(MODALITIES))["audio"]}).backward()
    reached = {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"audio"}


@pytest.mark.parametrize("variance", [*ESTIMATORS, Laplace("softmax", draws=4)], ids=str)
def test_nothing_is_read_on_the_host(variance, monkeypatch):
    """As on a GPU: after the first step no tensor's value is needed by Python."""
    model = SharedHead()
    monkeypatch.setattr("balanced_grad.evidence._laplace._check_cross_entropy", lambda call: None)  # CPU only
    balancer = bg.BOGC(model.head, variance)
    run(model, balancer, 2)
    losses = model.losses(*make_batch(seed=3))
    model.zero_grad()
    with NoHostReads():
        balancer(losses).backward()


def test_draws_leave_the_users_randomness_and_layers_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    balancer = bg.BOGC(model[-1], Laplace("softmax", draws=10), joint="source")
    inputs, label = make_batch()
    logits = model(inputs["audio"])
    losses = {"joint": cross_entropy(logits, label), "audio": cross_entropy(logits, label)}
    state, buffers = torch.get_rng_state(), copy.deepcopy(dict(model.named_buffers()))
    balancer(losses).backward()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_evaluation_moves_no_statistics():
    model = SharedHead()
    balancer = bg.BOGC(model.head)
    run(model, balancer, 1)
    before = copy.deepcopy(balancer._histories[0].tensors)
    balancer.eval()
    model.zero_grad()
    balancer(model.losses(*make_batch(seed=4))).backward()
    torch.testing.assert_close(balancer._histories[0].tensors, before, rtol=0, atol=0)


def test_repr_names_the_block():
    assert "'audio.0'" in repr(bg.BOGC(LateFusion().encoders))


def test_heads_by_index_in_a_group_of_one_process(tmp_path):
    """As a script under ``torchrun --nproc-per-node 1``: the same as without a group."""

    def grads():
        torch.manual_seed(0)
        encoder, heads = nn.Linear(5, 4), nn.ModuleDict({name: nn.Linear(4, 3) for name in ("audio", "video")})
        label = torch.arange(6) % 3
        balancer = bg.BOGC.published(heads)
        z = encoder(torch.randn(6, 5))
        balancer({name: nn.functional.cross_entropy(head(z), label) for name, head in heads.items()}).backward()
        return [p.grad for p in (*heads.parameters(), *encoder.parameters())]

    alone = grads()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        grouped = grads()
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(a, b) for a, b in zip(alone, grouped, strict=True))
