import copy
import gc
import pickle
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from torch.utils.checkpoint import checkpoint

import balanced_grad as bg
from tests.releases import adagrad_state


class Late(nn.Module):
    """Two encoders of different widths and a head on their concatenated outputs; no uni-modal losses."""

    def __init__(self, outputs=3):
        super().__init__()
        self.audio = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.video = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Dropout(0.5))
        self.head = nn.Linear(12, outputs)

    @property
    def encoders(self):
        return {"audio": self.audio, "video": self.video}

    def forward(self, audio, video=None):
        z = [self.audio(audio), audio.new_zeros(len(audio), 7) if video is None else self.video(video)]
        return self.head(torch.cat(z, 1))


def batch(size=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, 4, generator=generator), torch.randn(size, 6, generator=generator)


LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def train(model, optimizer, steps=3, attachment=None, balancer=None):
    for _ in range(steps):
        loss = cross_entropy(model(*batch()), LABELS)
        if attachment is not None:
            loss = balancer(attachment.losses(loss, LABELS))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def same(one, other):
    """Bitwise equality of nested states."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def hooks(model):
    return [len(table) for m in model.modules() for key, table in vars(m).items() if key.endswith("_hooks") and table]


# Heads


def test_heads_give_uni_modal_logits_and_losses_of_the_features():
    model = Late().eval()
    aux = bg.attach(model, model.encoders, num_outputs=3)
    joint = cross_entropy(model(*batch()), LABELS)
    logits = aux.logits()
    losses = aux.losses(joint, LABELS)
    assert list(losses) == ["joint", "audio", "video"]
    assert losses["joint"] is joint
    for name, x in zip(("audio", "video"), batch(), strict=True):
        wanted = aux.heads[name](getattr(model, name)(x))
        torch.testing.assert_close(logits[name], wanted)
        torch.testing.assert_close(losses[name], cross_entropy(wanted, LABELS))
    assert aux.scores(LABELS) == bg.scores(logits, LABELS)


def test_the_loop_gains_one_line_and_the_heads_learn():
    model = Late()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    aux = bg.attach(model, model.encoders, num_outputs=3)
    aux.add_to(optimizer, weight_decay=0.0)
    assert optimizer.param_groups[-1]["weight_decay"] == 0.0
    model(*batch())
    first = {name: loss.item() for name, loss in aux.losses(None, LABELS).items()}
    train(model, optimizer, 60, aux, bg.MIMO())
    model(*batch())
    last = {name: loss.item() for name, loss in aux.losses(None, LABELS).items()}
    assert all(last[name] < 0.7 * first[name] for name in ("audio", "video"))


@pytest.mark.parametrize("stop", [True, False])
def test_stop_gradient_decides_whether_encoders_learn_from_the_heads(stop):
    model = Late()
    aux = bg.attach(model, model.encoders, num_outputs=3, stop_gradient=stop)
    model(*batch())
    sum(aux.losses(None, LABELS).values()).backward()
    assert all(p.grad is not None for p in aux.parameters())
    assert all((p.grad is None) == stop for p in model.audio.parameters())


def test_probing_does_not_change_training_bit_by_bit():
    torch.manual_seed(0)
    plain, probed = Late(), Late()
    probed.load_state_dict(plain.state_dict())
    torch.manual_seed(1)
    train(plain, torch.optim.Adam(plain.parameters()))
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(probed.parameters())
    aux = bg.attach(probed, probed.encoders, num_outputs=3, stop_gradient=True)
    aux.add_to(optimizer)
    train(probed, optimizer, attachment=aux, balancer=bg.Uniform())
    assert same(plain.state_dict(), probed.state_dict())


@pytest.mark.parametrize("before_the_first_batch", [True, False])
def test_detach_leaves_no_trace(before_the_first_batch):
    model = Late()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, 1)
    was = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    aux = bg.attach(model, model.encoders, num_outputs=3)
    aux.add_to(optimizer)
    if not before_the_first_batch:
        model(*batch())
        sum(aux.losses(None, LABELS).values()).backward()
        for p in model.parameters():
            p.grad = None
        optimizer.step()  # of the heads alone
        assert len(optimizer.state) == len(list(model.parameters())) + 4
    for _ in range(2):
        aux.detach()
        assert same((model.state_dict(), optimizer.state_dict()), was)
        assert hooks(model) == []
        assert all(m.training for m in model.modules())


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize(
    "kind",
    [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, pytest.param(torch.optim.Adagrad, marks=adagrad_state)],
)
def test_resumes_bit_by_bit_from_a_checkpoint_loaded_before_the_first_batch(kind, eager, tmp_path):
    def build():
        torch.manual_seed(0)
        model = Late().eval()
        optimizer = kind(model.parameters(), lr=1e-2)
        widths = {"audio": 5, "video": 7} if eager else None
        aux = bg.attach(model, model.encoders, num_outputs=3, widths=widths)
        if kind is torch.optim.Adagrad and not eager:
            model(*batch())  # makes its state when it is given the parameters
            aux.losses(None, LABELS)
        aux.add_to(optimizer)
        return model, optimizer, aux

    model, optimizer, aux = build()
    train(model, optimizer, 2, aux, bg.Uniform())
    torch.save([part.state_dict() for part in (model, optimizer, aux)], tmp_path / "checkpoint.pt")
    resumed = build()
    for part, state in zip(resumed, torch.load(tmp_path / "checkpoint.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    train(model, optimizer, 2, aux, bg.Uniform())
    train(resumed[0], resumed[1], 2, resumed[2], bg.Uniform())
    assert all(same(a.state_dict(), b.state_dict()) for a, b in zip((model, optimizer, aux), resumed, strict=True))


def test_a_checkpoint_from_before_the_first_batch_loads(tmp_path):
    model = Late()
    aux = bg.attach(model, model.encoders, num_outputs=3)
    torch.save(aux.state_dict(), tmp_path / "empty.pt")
    other = bg.attach(model, model.encoders, num_outputs=3)
    other.load_state_dict(torch.load(tmp_path / "empty.pt", weights_only=True))
    model(*batch())
    assert same(aux.logits(), other.logits())


def test_optimizers_of_named_parameters_get_names():
    model = Late()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    aux = bg.attach(model, model.encoders, num_outputs=3)
    aux.add_to(optimizer)
    assert "heads.audio.weight" in optimizer.param_groups[-1]["param_names"]


def test_inside_a_balanced_optimizer():
    model = Late()
    balancer = bg.MLB(model.encoders)
    optimizer = bg.BalancedOptimizer(torch.optim.Adam(model.parameters()), balancer)
    was = copy.deepcopy(optimizer.state_dict())
    aux = bg.attach(model, model.encoders, num_outputs=3)
    aux.add_to(optimizer)
    train(model, optimizer, 2, aux, balancer)
    assert set(balancer.last.coefficients) == {"audio", "video"}
    aux.detach()
    assert len(optimizer.param_groups) == len(was["param_groups"])
    assert set(optimizer.state) == set(model.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_heads_take_the_dtype_of_the_features(dtype):
    model = Late().to(dtype)
    aux = bg.attach(model, model.encoders, num_outputs=3)
    model(*(x.to(dtype) for x in batch()))
    aux.losses(None, LABELS)
    assert {p.dtype for p in aux.parameters()} == {dtype}


def test_heads_are_float32_under_autocast():
    model = Late()
    aux = bg.attach(model, {"audio": model.audio[0]}, num_outputs=3)
    with torch.autocast("cpu", torch.bfloat16):
        model(*batch())
        logits = aux.logits()
    assert logits["audio"].dtype == torch.bfloat16
    assert {p.dtype for p in aux.parameters()} == {torch.float32}


@pytest.mark.parametrize("way", ["lazy", "widths", "split"])
def test_logits_are_taken_where_the_autocast_of_the_forward_has_ended(way):
    """As Accelerate and the trainers on top of it have it."""
    model = Late().eval()
    options = {"lazy": {"num_outputs": 3}, "split": {"split": model.head}}
    options["widths"] = {"num_outputs": 3, "widths": {"audio": 5, "video": 7}}
    aux = bg.attach(model, model.encoders, **options[way])
    model(*batch())
    wanted = aux.logits()
    with torch.autocast("cpu", torch.bfloat16):
        model(*batch())
    logits = aux.logits()
    assert {p.dtype for p in aux.parameters()} <= {torch.float32}
    torch.testing.assert_close(logits, wanted, rtol=0.05, atol=0.05)
    assert all(each.dtype == torch.float32 for each in aux.losses(None, LABELS).values())


def test_initialised_alike_whatever_the_way():
    model = Late()
    lazy = bg.attach(model, model.encoders, num_outputs=3)
    eager = bg.attach(model, model.encoders, num_outputs=3, widths={"audio": 5, "video": 7})
    other = bg.attach(model, model.encoders, num_outputs=3, seed=1)
    model(*batch())
    for aux in (lazy, eager, other):
        aux.logits()
    assert same(lazy.state_dict(), eager.state_dict())
    assert not same(lazy.state_dict(), other.state_dict())
    weight = lazy.heads["video"].weight
    assert weight.abs().max() <= 7**-0.5
    assert not torch.equal(weight[:, :5], lazy.heads["audio"].weight)


# Tasks


def test_detach_edits_the_list_of_groups_that_others_hold():
    model = Late()
    aux = bg.attach(model, model.encoders, num_outputs=3, widths={"audio": 5, "video": 5})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    aux.add_to(optimizer)
    groups = optimizer.param_groups
    aux.detach()
    assert optimizer.param_groups is groups
    assert len(groups) == 1


def test_heads_of_equal_width_start_apart():
    model = Late()
    aux = bg.attach(model, model.encoders, num_outputs=3, widths={"audio": 5, "video": 5})
    assert not torch.equal(aux.heads["audio"].weight, aux.heads["video"].weight)


def test_multilabel_and_regression():
    labels = torch.randint(2, (8, 3))
    for task, loss in (("multilabel", binary_cross_entropy_with_logits), ("regression", mse_loss)):
        model = Late()
        aux = bg.attach(model, model.encoders, num_outputs=3, task=task)
        model(*batch())
        logits = aux.logits()
        losses = aux.losses(None, labels)
        torch.testing.assert_close(losses["video"], loss(logits["video"], labels.float()))
        assert aux.scores(labels) == bg.scores(logits, labels, task)
        assert aux.scores(labels).task == bg.scores(logits, labels, task).task == task


def test_a_single_target_needs_no_extra_dimension():
    model, target = Late(1), torch.randn(8)
    aux = bg.attach(model, model.encoders, num_outputs=1, task="regression")
    model(*batch())
    logits = aux.logits()["audio"]
    torch.testing.assert_close(aux.losses(None, target)["audio"], mse_loss(logits.squeeze(1), target))
    assert aux.scores(target)["audio"].shape == ()


# Which batch


def test_a_missing_modality_is_left_out_also_after_a_batch_that_had_it():
    model = Late()
    aux = bg.attach(model, model.encoders, num_outputs=3)
    model(*batch())
    joint = cross_entropy(model(batch()[0]), LABELS)
    assert list(aux.losses(joint, LABELS)) == ["joint", "audio"]
    assert list(aux.scores(LABELS)) == ["audio"]


def test_a_forward_without_losses_is_held_no_longer_than_the_next():
    model = Late()
    aux = bg.attach(model, model.encoders, num_outputs=3)
    held = []
    probe = model.audio.register_forward_hook(lambda module, args, output: held.append(weakref.ref(output)))
    for _ in range(3):
        model(*batch())
    gc.collect()
    assert [reference() is not None for reference in held] == [False, False, True]
    aux.losses(None, LABELS)
    gc.collect()
    assert held[-1]() is None
    probe.remove()
    with pytest.raises(RuntimeError, match=r"there is no batch since the last losses\(\)"):
        aux.losses(None, LABELS)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_in_backward_is_no_batch(reentrant):
    class Checkpointed(Late):
        def forward(self, audio, video):
            z = checkpoint(lambda x: self.audio[1](self.audio[0](x)), audio, use_reentrant=reentrant)
            return self.head(torch.cat([z, self.video(video)], 1))

    model = Checkpointed()
    aux = bg.attach(model, {"first": model.audio[0], "video": model.video}, num_outputs=3, stop_gradient=reentrant)
    audio, video = batch()
    joint = cross_entropy(model(audio.requires_grad_(), video), LABELS)
    losses = aux.losses(joint, LABELS)
    sum(losses.values()).backward()
    with pytest.raises(RuntimeError, match="there is no batch since"):
        aux.logits()


def test_an_encoder_whose_graph_is_hidden_is_refused():
    class Checkpointed(Late):
        def forward(self, audio, video):
            return self.head(torch.cat([checkpoint(self.audio, audio, use_reentrant=True), self.video(video)], 1))

    model = Checkpointed()
    audio, video = batch()
    for stop in (False, True):
        aux = bg.attach(model, model.encoders, num_outputs=3, stop_gradient=stop)
        joint = cross_entropy(model(audio.requires_grad_(), video), LABELS)
        if stop:
            assert len(aux.losses(joint, LABELS)) == 3
        else:
            with pytest.raises(RuntimeError, match=r"the encoders \['audio'\] returned outputs without a graph"):
                aux.losses(joint, LABELS)
        aux.detach()
    model = Late()
    model.audio.requires_grad_(False)  # then there is nothing to miss
    aux = bg.attach(model, model.encoders, num_outputs=3)
    assert len(aux.losses(cross_entropy(model(*batch()), LABELS), LABELS)) == 3


@pytest.mark.parametrize("way", ["heads", "mute"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_the_model_is_not_attached(copied, way):
    model = Late()
    options = {"num_outputs": 3, "pool": lambda z: z} if way == "heads" else {"mute": {n: n for n in model.encoders}}
    aux = bg.attach(model, model.encoders, **options)
    if way == "heads":
        aux.add_to(torch.optim.SGD(model.parameters()))
    model(*batch())
    average = copied(model)  # with a batch still held
    average(*batch())
    assert list(aux.losses(None, LABELS)) == ["audio", "video"]
    other = copied(aux)
    with pytest.raises(RuntimeError, match="there is no batch"):
        other.logits()
    other.detach()
    model(*batch())
    assert list(aux.logits()) == ["audio", "video"]


def test_evaluation_without_gradients():
    model = Late().eval()
    aux = bg.attach(model, model.encoders, num_outputs=3)
    with torch.no_grad():
        model(*batch())
        assert not any(loss.requires_grad for loss in aux.losses(None, LABELS).values())


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's own look at what crosses a graph break
def test_compiled_models_are_hooked_too():
    model = Late().eval()
    aux = bg.attach(model, model.encoders, num_outputs=3)
    model(*batch())
    plain = aux.losses(None, LABELS)
    torch.compile(model, backend="eager")(*batch())
    compiled = aux.losses(None, LABELS)
    torch._dynamo.reset()
    assert {name: loss.item() for name, loss in compiled.items()} == {name: loss.item() for name, loss in plain.items()}


# Split


def test_split_logits_sum_to_the_joint_prediction():
    model = Late().eval()
    aux = bg.attach(model, model.encoders, split=model.head)
    joint = model(*batch())
    logits = aux.logits()
    torch.testing.assert_close(sum(logits.values()), joint)
    assert list(aux.parameters()) == []
    with torch.no_grad():
        model.head.bias.zero_()
    for name, x in zip(("audio", "video"), batch(), strict=True):
        muted = [x if name == other else None for other in ("audio", "video")]
        alone = [
            enc(v) if v is not None else torch.zeros(8, w)
            for enc, v, w in zip((model.audio, model.video), muted, (5, 7), strict=True)
        ]
        model(*batch())
        torch.testing.assert_close(aux.logits()[name], model.head(torch.cat(alone, 1)))


def test_split_with_a_missing_modality_and_wrong_widths():
    model = Late()
    aux = bg.attach(model, model.encoders, split=model.head)
    model(batch()[0])
    with pytest.raises(ValueError, match="the width of 'video' is not known"):
        aux.logits()
    known = bg.attach(model, model.encoders, split=model.head, widths={"video": 7})
    model(batch()[0])
    assert list(known.logits()) == ["audio"]
    wrong = bg.attach(model, {"audio": model.audio, "hidden": model.video[0]}, split=nn.Linear(9, 3))
    model(*batch())
    with pytest.raises(ValueError, match=r"together 12, but split= takes 9"):
        wrong.logits()


def test_ogm_from_the_split_head():
    model = Late()
    aux = bg.attach(model, model.encoders, split=model.head, stop_gradient=True)
    balancer = bg.OGM(model.encoders)
    joint = cross_entropy(model(*batch()), LABELS)
    balancer({"joint": joint}, scores=aux.scores(LABELS)).backward()
    assert list(balancer.last.scores) == ["audio", "video"]


# Refusals


def test_bad_input():
    model = Late()
    with pytest.raises(ValueError, match=r"give one of num_outputs= .* not none"):
        bg.attach(model, model.encoders)
    with pytest.raises(ValueError, match="not num_outputs and split"):
        bg.attach(model, model.encoders, 3, split=model.head)
    with pytest.raises(ValueError, match="task='ranking'"):
        bg.attach(model, model.encoders, 3, task="ranking")
    with pytest.raises(TypeError, match=r"modalities is a list; give a mapping"):
        bg.attach(model, ["audio"], 3)
    with pytest.raises(TypeError, match=r"modalities\['audio'\] is a str"):
        bg.attach(model, {"audio": "audio"}, 3)
    with pytest.raises(ValueError, match=r"modalities\['audio'\] is no module of the model"):
        bg.attach(model, {"audio": nn.Linear(1, 1)}, 3)
    with pytest.raises(ValueError, match="'audio' and 'speech' are the same module"):
        bg.attach(model, {"audio": model.audio, "speech": model.audio}, 3)
    with pytest.raises(ValueError, match="'joint' is the name"):
        bg.attach(model, {"joint": model.audio}, 3)
    with pytest.raises(ValueError, match=r"widths\['vidoe'\]: there is no such modality"):
        bg.attach(model, model.encoders, 3, widths={"vidoe": 7})
    with pytest.raises(ValueError, match="logits= has no meaning"):
        bg.attach(model, model.encoders, 3, logits=lambda output: output)
    with pytest.raises(ValueError, match="there are no heads to train"):
        bg.attach(model, model.encoders, split=model.head).add_to(torch.optim.SGD(model.parameters()))
    assert len(hooks(model)) == 3  # only of the last one, which was made


def test_a_width_that_does_not_fit_is_named():
    model = Late()
    aux = bg.attach(model, model.encoders, num_outputs=3, widths={"audio": 4})
    model(*batch())
    with pytest.raises(ValueError, match=r"made for features of width 4, by widths= or a checkpoint.* have 5"):
        aux.logits()


# What encoders return


@given(st.sampled_from(["(B, D)", "(B, T, D)", "(B, D, H, W)", "(B, D, T, H, W)"]), st.integers(1, 4))
def test_the_mean_over_time_or_space(kind, size):
    shape = {"(B, D)": (2, 3), "(B, T, D)": (2, size, 3), "(B, D, H, W)": (2, 3, size, 5)}.get(kind, (2, 3, 2, size, 4))
    x = torch.randn(shape)
    model = nn.Sequential(nn.Identity())
    aux = bg.attach(model, {"x": model[0]}, num_outputs=2)
    model(x)
    axes = {2: (), 3: (1,)}.get(x.dim(), tuple(range(2, x.dim())))
    torch.testing.assert_close(aux.logits()["x"], aux.heads["x"](x.mean(axes) if axes else x))


class Returning(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output
        self.inner = nn.Identity()
        self.inner.register_forward_hook(lambda *_: self.output)

    def forward(self):
        return self.inner(None)


def test_tuples_mappings_and_objects():
    z = torch.randn(2, 3)
    others = torch.zeros(2, 4)
    model = Returning(None)
    aux = bg.attach(model, {"x": model.inner}, num_outputs=2, widths={"x": 3})
    for output in ((z, others), [z], {"pooler_output": z}, {"a": others, "last_hidden_state": z}, {"z": z}):
        model.output = output
        model()
        torch.testing.assert_close(aux.logits()["x"], aux.heads["x"](z))
    for output in (nn.utils.rnn.pack_sequence([z]), "text", {}):
        model.output = output
        with pytest.raises(TypeError, match=r"without a tensor to choose; give pool=\{'x': ...\}"):
            model()
    model.output = torch.zeros(3)
    with pytest.raises(ValueError, match=r"returned shape \(3,\)"):
        model()


def test_a_pool_of_ones_own():
    z = torch.randn(2, 5, 3)
    model = Returning({"states": z, "mask": torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])})
    aux = bg.attach(
        model,
        {"x": model.inner},
        2,
        pool=lambda o: (o["states"] * o["mask"][..., None]).sum(1) / o["mask"].sum(1, True),
    )
    model()
    wanted = torch.stack([z[0, :2].mean(0), z[1, :4].mean(0)])
    torch.testing.assert_close(aux.logits()["x"], aux.heads["x"](wanted))
    wrong = bg.attach(model, {"x": model.inner}, 2, pool={"x": lambda output: output})
    with pytest.raises(TypeError, match=r"pool of 'x' returned dict"):
        model()
    wrong.detach()
