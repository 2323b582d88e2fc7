"""``objective(kind="entries")``: random entries of all modalities are hidden and predicted from the others."""

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from balanced_grad.models import Bernoulli, Categorical, CrossModalVI
from tests.models.test_cross_modal import SIZES, batch, network, without
from tests.models.test_cross_modal_objective import correlated

ALMOST_NOTHING = 1e-9  # the least share that may be hidden: nothing, in so few entries


def entries(vi, inputs, present=None, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return vi.objective(inputs, present, kind="entries", reduction="sum", generator=generator, **options)


@pytest.mark.parametrize("hide", [None, 0.3])
@pytest.mark.parametrize("start", ["scaled", "zero"])
def test_shown_entries_are_clamped_and_hidden_ones_counted(hide, start):
    """By hand with the same masks: the loss of what is hidden, at the state that the rest leads to."""
    vi, inputs = network(steps=2, start=start), batch()
    got = entries(vi, inputs, seed=3, hide=hide)
    again = torch.Generator().manual_seed(3)
    shown = {name: torch.rand(x.shape, generator=again) >= (hide or 0.5) for name, x in inputs.items()}
    gain = 2 / sum(mask.double().mean(1, keepdim=True) for mask in shown.values()).clamp_min(1e-9)
    branches = dict(zip(vi.names, vi.branches, strict=True))
    drive = sum(branches[name].drive(shown[name] * x) for name, x in inputs.items())
    h = torch.sigmoid(drive * (gain if start == "scaled" else 1) + vi.bias)
    for _ in range(2):
        mixed = {name: torch.where(shown[name], x, branches[name].predict(h).sigmoid()) for name, x in inputs.items()}
        h = torch.sigmoid(sum(branches[name].drive(x) for name, x in mixed.items()) + vi.bias)
    torch.testing.assert_close(got.fills["entries"].hidden, h)
    for name, x in inputs.items():
        want = (bce(branches[name].predict(h), x, reduction="none") * ~shown[name]).sum(1).mean()
        torch.testing.assert_close(got.losses[name], want)
        assert torch.equal(got.fills["entries"].filled[name][shown[name]], x[shown[name]])


@pytest.mark.parametrize("names", [("audio", "video"), tuple(SIZES)])
def test_where_whole_modalities_are_hidden_it_is_the_ordinary_fill_in(names):
    vi, inputs = network(names, steps=3), batch(names)
    rest = without(inputs, "video")
    got = entries(vi, rest, hide=ALMOST_NOTHING)
    torch.testing.assert_close(got.fills["entries"].hidden, vi(rest).hidden)
    assert set(got.losses) == set(rest)
    assert all(loss.item() == 0 for loss in got.losses.values())  # nothing was hidden of what is there


def test_each_entry_is_hidden_with_the_same_chance():
    vi = CrossModalVI({"a": Bernoulli(300), "b": Categorical(2, variables=300)}, 2, steps=0)
    inputs = {"a": torch.full((200, 300), 0.25), "b": torch.zeros(200, 300, dtype=torch.long)}
    fill = entries(vi, inputs, hide=0.7).fills["entries"]
    for hidden in (fill.filled["a"] != 0.25, fill.filled["b"][..., 0] != 1):
        share = hidden.double().mean(1)
        assert share.mean().item() == pytest.approx(0.7, abs=0.01)
        assert share.std().item() == pytest.approx((0.7 * 0.3 / 300) ** 0.5, abs=0.01)


def test_what_an_item_lacks_is_predicted_but_not_counted():
    vi, inputs = network(steps=2), batch()
    present = {"video": torch.arange(7) < 3}
    holes = inputs | {"video": inputs["video"].where(present["video"][:, None], torch.nan)}
    got = entries(vi, holes, present)
    fill = got.fills["entries"]
    assert fill.filled["video"].isfinite().all()
    hidden = (fill.filled["video"] != inputs["video"])[:3]
    want = bce(fill.predictions["video"][:3], inputs["video"][:3], reduction="none") * hidden
    torch.testing.assert_close(got.losses["video"], want.sum(1).mean())


def test_a_generator_repeats_it():
    vi, inputs = network(), batch()
    one, two, other = (entries(vi, inputs, seed=seed).losses["audio"].item() for seed in (0, 0, 1))
    assert one == two != other


def test_it_learns_to_predict_hidden_entries():
    inputs, _ = correlated()
    torch.manual_seed(0)
    vi = CrossModalVI({name: Bernoulli(10) for name in inputs}, 16, steps=3)
    vi.fit_biases(inputs)
    optimizer = torch.optim.Adam(vi.parameters(), lr=0.02)
    before = sum(entries(vi, inputs).losses.values()).item()
    for seed in range(150):
        sum(entries(vi, inputs, seed=seed).losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(entries(vi, inputs).losses.values()).item() < 0.8 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "entries", "reveal": 0.2}, "say with hide="),
        ({"kind": "entries", "hide": 1.0}, r"share in \(0, 1\)"),
        ({"kind": "vi", "hide": 0.5}, "hide has no meaning for kind='vi'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network().objective(batch(), **options)


def test_entries_go_in_through_the_encoder():
    with pytest.raises(ValueError, match="kind='entries' needs loop='input'"):
        network(loop="latent").objective(batch(), kind="entries")
