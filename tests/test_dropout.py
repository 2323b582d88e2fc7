"""Modalities dropped at random: never all of an item's, at the rate that was asked for, and the same after a resume."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, one_hot

import balanced_grad as bg
from balanced_grad.models import CrossModalVI, Gaussian, ProductOfHeads
from tests.conftest import MODALITIES, LateFusion, NoHostReads, make_batch

rates = st.fixed_dictionaries(dict.fromkeys(MODALITIES, st.sampled_from([0.0, 0.3, 0.9, 1.0])))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(size=40, names=MODALITIES):
    return {name: torch.randn(size, 4, generator=generator(1)) for name in names}


def there(present):
    return torch.stack(list(present.values()), 1)


@settings(max_examples=60, deadline=None)
@given(
    rate=st.one_of(st.floats(0, 1), rates),
    keep=st.integers(1, 3),
    per=st.sampled_from(["item", "batch"]),
    lacking=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_every_item_keeps_as_many_as_asked_of_what_it_has(rate, keep, per, lacking, seed):
    masks = {"audio": torch.rand(40, generator=generator(seed)) >= lacking, "text": torch.arange(40) % 3 > 0}
    inputs, present = bg.drop_modalities(
        batch(), rate, keep_at_least=keep, per=per, present=masks, generator=generator(seed)
    )
    had = there({"video": torch.ones(40, dtype=torch.bool)} | masks).sum(1)
    assert (there(present).sum(1) >= had.clamp_max(keep)).all()
    for name, mask in masks.items():
        assert not (present[name] & ~mask).any()
    for name, x in inputs.items():
        torch.testing.assert_close(x, batch()[name] * present[name][:, None], rtol=0, atol=0)


@pytest.mark.parametrize("count", [2, 3])
def test_the_rate_is_the_one_that_is_documented(count):
    inputs = batch(20000, MODALITIES[:count])
    _, present = bg.drop_modalities(inputs, 0.6, generator=generator())
    dropped = 1 - there(present).double().mean(0)
    torch.testing.assert_close(dropped, torch.full_like(dropped, 0.6 - 0.6**count / count), rtol=0, atol=0.02)
    alone = there(present)[there(present).sum(1) == 1].double().mean(0)
    torch.testing.assert_close(alone, torch.full_like(alone, 1 / count), rtol=0, atol=0.02)


def test_rates_by_name_and_a_modality_that_is_never_dropped():
    _, present = bg.drop_modalities(batch(4000), {"audio": 1.0, "text": 0.25}, generator=generator())
    assert present["video"].all()
    assert not present["audio"].any()
    assert abs(present["text"].double().mean() - 0.75) < 0.03


def test_per_batch_drops_for_all_items_alike():
    seen = set()
    for seed in range(20):
        _, present = bg.drop_modalities(batch(), 0.5, per="batch", generator=generator(seed))
        rows = there(present).unique(dim=0)
        assert len(rows) == 1
        seen.add(tuple(rows[0].tolist()))
    assert len(seen) > 3


def test_what_is_absent_is_filled_and_its_gradient_is_zero():
    x = {"audio": torch.full((3, 2), torch.nan), "video": torch.ones(3, 2, requires_grad=True)}
    mask = {"audio": torch.zeros(3, dtype=torch.bool)}
    inputs, present = bg.drop_modalities(x, 0.9, present=mask, fill={"audio": torch.tensor([1.0, 2.0])})
    assert torch.equal(inputs["audio"], torch.tensor([1.0, 2.0]).expand(3, 2))
    assert present["video"].all()
    tokens = {"text": torch.ones(50, 3, dtype=torch.long), "video": torch.ones(50, 2, requires_grad=True)}
    inputs, present = bg.drop_modalities(tokens, 0.5, generator=generator())
    assert inputs["text"].dtype == torch.long
    inputs["video"].sum().backward()
    assert torch.equal(tokens["video"].grad[:, 0].bool(), present["video"])


def test_a_modality_missing_from_the_batch_stays_missing():
    inputs, present = bg.drop_modalities({"audio": None, "video": torch.ones(5, 2)}, 1.0)
    assert inputs["audio"] is None
    assert not present["audio"].any()
    assert present["video"].all()


def test_no_host_read():
    masks = {"audio": torch.arange(40) % 2 > 0}
    with NoHostReads():
        bg.drop_modalities(batch(), {"audio": 0.5, "text": 0.2}, present=masks, keep_at_least=2)
        bg.drop_modalities(batch(), 0.5, per="batch", generator=generator())


def test_the_module_drops_in_training_only_and_its_state_is_saved():
    dropout, other = bg.ModalityDropout(0.5, seed=3), bg.ModalityDropout(0.5)
    for _ in range(3):
        dropout(batch())
    state = copy.deepcopy(dropout.state_dict())
    other.load_state_dict(state)
    for _ in range(2):
        assert torch.equal(there(other(batch())[1]), there(dropout(batch())[1]))
    inputs, present = dropout.eval()(batch())
    assert there(present).all()
    assert all(torch.equal(inputs[name], x) for name, x in batch().items())
    assert torch.equal(dropout.state_dict()["_extra_state"], other.state_dict()["_extra_state"])


def test_the_module_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    bg.ModalityDropout(0.5)(batch())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        ({"audio": torch.ones(3, 1)}, {}, r"inputs has \['audio'\]: dropping takes two modalities"),
        ({"audio": None, "video": None}, {}, "are None, all of"),
        ({"audio": torch.ones(3, 1), "video": torch.ones(4, 1)}, {}, "differ in their number of items"),
        (batch(), {"rate": 1.5}, r"rate=1.5: give a probability"),
        (batch(), {"rate": {"smell": 0.5}}, "rate has 'smell', which is no modality"),
        (batch(), {"keep_at_least": 0}, "keep_at_least=0: give a whole number from 1 to 3"),
        (batch(), {"keep_at_least": 4}, "keep_at_least=4"),
        (batch(), {"per": "step"}, "per='step': choose one of"),
        (batch(), {"present": {"smell": torch.ones(40) > 0}}, r"present\['smell'\]: there is no such modality"),
        (batch(), {"present": {"audio": torch.ones(40)}}, r"present\['audio'\] is torch.float32"),
        (batch(), {"fill": {"audio": torch.ones(5)}}, r"fill\['audio'\] has shape \(5,\), items have \(4,\)"),
    ],
)
def test_what_is_refused(inputs, options, words):
    with pytest.raises(ValueError, match=words):
        bg.drop_modalities(inputs, **{"rate": 0.5} | options)


def test_what_is_no_input_is_refused():
    with pytest.raises(TypeError, match="inputs are a list; give a mapping"):
        bg.drop_modalities([1], 0.5)
    with pytest.raises(TypeError, match="input of 'audio' is a list; give a tensor"):
        bg.drop_modalities({"audio": [1], "video": torch.ones(1, 1)}, 0.5)
    with pytest.raises(ValueError, match="give a probability"):
        bg.ModalityDropout(-0.1)


# The masks in the hands of everything that knows what missing is.


def dropped(seed=0):
    inputs, label = make_batch(size=12)
    return *bg.drop_modalities(inputs, 0.6, generator=generator(seed)), label


def item_losses(model, inputs, label):
    z = {name: encoder(inputs[name]) for name, encoder in model.encoders.items()}
    joint = model.fused(torch.cat([model.trunk(x).tanh() for x in z.values()], 1))
    heads = {name: model.heads[name](model.trunk(x).tanh()) for name, x in z.items()}
    return {name: cross_entropy(x, label, reduction="none") for name, x in ({"joint": joint} | heads).items()}


def test_a_guard_takes_the_masks():
    model = LateFusion()
    inputs, present, label = dropped()
    guard = bg.HeldOut(bg.MIMO(), every=1)
    guard(item_losses(model, inputs, label), present=present).backward()
    with torch.no_grad():
        guard.observe(item_losses(model, inputs, label), present)
    plain = bg.HeldOut(bg.MIMO(), every=1)
    with torch.no_grad():
        losses = {
            name: loss[present[name]].mean() if name in present else loss.mean()
            for name, loss in item_losses(model, inputs, label).items()
        }
    plain({name: loss.clone().requires_grad_() for name, loss in losses.items()}).backward()
    plain.observe(losses)
    assert guard.transfer.state().keys() == plain.transfer.state().keys()
    for name, track in plain.transfer.state().items():
        assert guard.transfer.state()[name] == pytest.approx(track)


def test_an_attachment_counts_the_items_that_have_the_modality():
    model = LateFusion()
    aux = bg.attach(model.encoders, dict(model.encoders), num_outputs=3)
    inputs, present, label = dropped()

    def run():
        for name, encoder in model.encoders.items():
            encoder(inputs[name])

    model.encoders.forward = run
    model.encoders()
    logits, scores = aux.logits(), aux.scores(label, present)
    losses = aux.losses(None, label, present)
    for name, mask in present.items():
        torch.testing.assert_close(losses[name], cross_entropy(logits[name][mask], label[mask]))
        torch.testing.assert_close(scores[name], bg.scores({name: logits[name][mask]}, label[mask])[name])
        torch.testing.assert_close(scores[name], bg.scores(logits, label, present=present)[name])
    model.encoders()
    nobody = {"audio": torch.zeros(12, dtype=torch.bool)}
    assert list(aux.scores(label, nobody)) == ["video"]
    assert list(aux.losses(None, label, nobody)) == ["video"]
    assert bg.scores(logits, label, present=nobody)["audio"] is None


def test_the_product_of_heads_leaves_the_joint_head_out_where_something_is_missing():
    label = torch.arange(60) % 3
    noise = torch.randn(3, 60, 3, generator=generator())
    heads = {name: 2 * one_hot(label, 3) + x for name, x in zip(("joint", "audio", "video"), noise, strict=True)}
    present = {"audio": torch.arange(60) % 4 > 0, "video": torch.arange(60) % 5 > 0}
    product = ProductOfHeads(["audio", "video"])
    product.fit(heads, label, present)
    both = present["audio"] & present["video"]
    full = ProductOfHeads(["audio", "video"])
    full.fit({name: x[both] for name, x in heads.items()}, label[both])
    assert product.weights == pytest.approx(full.weights)
    found = product(heads, present)
    torch.testing.assert_close(found[both], product({name: x[both] for name, x in heads.items()}))
    only = ~present["audio"] & present["video"]
    torch.testing.assert_close(found[only], product({"video": heads["video"][only]}))
    torch.testing.assert_close(found[~present["audio"] & ~present["video"]].exp(), torch.full((3, 3), 1 / 3))
    with pytest.raises(ValueError, match="no validation item has every modality"):
        product.fit(heads, label, {"audio": label < 0})
    with pytest.raises(ValueError, match=r"present\['smell'\]"):
        product(heads, {"smell": label < 9})


def test_cross_modal_fill_in_takes_the_masks():
    inputs, label = make_batch(size=12)
    inputs, present = bg.drop_modalities(inputs, 0.6, generator=generator())
    vi = CrossModalVI({"audio": Gaussian(5), "video": Gaussian(5)}, hidden=4)
    out = vi({name: torch.where(present[name][:, None], x, torch.nan) for name, x in inputs.items()}, present)
    torch.testing.assert_close(out.hidden, vi(inputs, present).hidden)
    assert len(label) == len(out.hidden)
