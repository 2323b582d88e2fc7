"""ARL: the source's numbers for two modalities, and what its released code does."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import balanced_grad as bg
from tests.conftest import MODALITIES, LateFusion, NoHostReads, make_batch

NAMES = MODALITIES[:2]


def logits(seed=0, sizes=(1.0, 3.0), names=NAMES):
    generator = torch.Generator().manual_seed(seed)
    return {name: s * torch.randn(8, 4, generator=generator) for name, s in zip(names, sizes, strict=True)}


def by_hand(outputs, temperature=8.0, floor=0.3):
    """The source's procedure for two modalities, in its own words: cross-multiplied exponents."""
    size, entropy = [], []
    for out in outputs.values():
        p = out.softmax(1)
        size.append(out.abs().mean(0).sum().item())
        entropy.append(-(p * p.log()).sum(1).mean().item())
    size = [x / sum(size) for x in size]
    inverse = [1 / max(h / sum(entropy), floor) for h in entropy]
    inverse = [x / sum(inverse) for x in inverse]
    exponents = torch.tensor([size[1] * inverse[0] * temperature, size[0] * inverse[1] * temperature])
    return 1 + exponents.softmax(0)


def coefficients(outputs, **options):
    model = LateFusion()
    balancer = bg.ARL(model.encoders, **options)
    balancer(model.losses(*make_batch()), scores=balancer.scores(outputs)).backward()
    return torch.stack(list(balancer.last.coefficients.values()))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 99),
    sizes=st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)),
    temperature=st.floats(0, 20),
    floor=st.floats(0, 0.5),
)
def test_two_modalities_are_those_of_the_source(seed, sizes, temperature, floor):
    outputs = logits(seed, sizes)
    found = coefficients(outputs, temperature=temperature, entropy_floor=floor)
    torch.testing.assert_close(found, by_hand(outputs, temperature, floor), rtol=1e-4, atol=1e-5)


def test_a_temperature_of_zero_is_the_released_code():
    """Uni-modal losses of weight gamma, and encoders at one and a half times their learning rate."""
    model, plain = LateFusion(trunk=False), LateFusion(trunk=False)
    plain.load_state_dict(model.state_dict())
    balancer = bg.ARL(model.encoders, temperature=0.0)
    balancer(model.losses(*make_batch()), scores=balancer.scores(logits())).backward()
    bg.Uniform(dict.fromkeys(NAMES, 4.0))(plain.losses(*make_batch())).backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad * (1.5 if name.startswith("encoders") else 1.0))


@pytest.mark.parametrize("count", [2, 3])
def test_equal_modalities_are_equally_fast(count):
    outputs = dict.fromkeys(MODALITIES[:count], logits()["audio"])
    model = LateFusion(MODALITIES[:count])
    balancer = bg.ARL(model.encoders)
    balancer(model.losses(*make_batch(MODALITIES[:count])), scores=balancer.scores(outputs)).backward()
    torch.testing.assert_close(torch.stack(list(balancer.last.coefficients.values())), torch.full((count,), 1.5))


def test_the_mean_factor_is_the_same_for_any_number():
    balancer = bg.ARL(LateFusion(MODALITIES).encoders)
    scores = balancer.scores(logits(1, (1.0, 2.0, 5.0), MODALITIES))
    row = torch.stack(list(scores.values()))
    torch.testing.assert_close(balancer.modulate(row).mean(), torch.tensor(1.5))
    torch.testing.assert_close(balancer.modulate(7 * row), balancer.modulate(row))


def test_a_missing_modality():
    balancer = bg.ARL(LateFusion(MODALITIES).encoders)
    outputs = logits(1, (1.0, 2.0, 5.0), MODALITIES)
    two = {"audio": outputs["audio"], "video": None, "text": outputs["text"]}
    scores = balancer.scores(two)
    assert scores["video"] is None
    row = torch.stack([torch.tensor(math.nan) if x is None else x for x in scores.values()])
    found = balancer.modulate(row)
    assert found[1].isnan()
    torch.testing.assert_close(found[[0, 2]], by_hand({m: two[m] for m in ("audio", "text")}), rtol=1e-4, atol=1e-5)
    assert balancer.modulate(torch.full((3,), math.nan)).isnan().all()
    assert balancer.scores(dict.fromkeys(MODALITIES)) == dict.fromkeys(MODALITIES)


def test_masks_leave_items_out():
    balancer = bg.ARL(LateFusion().encoders)
    outputs = logits()
    mask = torch.arange(8) % 3 > 0
    masked = balancer.scores(outputs, {"audio": mask})
    torch.testing.assert_close(masked, balancer.scores(outputs | {"audio": outputs["audio"][mask]}))
    assert balancer.scores(outputs, {"audio": mask & ~mask})["audio"] is None


def test_logits_of_zero_and_of_certainty_are_finite():
    outputs = {"audio": torch.zeros(4, 3), "video": torch.zeros(4, 3)}
    torch.testing.assert_close(coefficients(outputs), torch.full((2,), 1.5))
    certain = {"audio": torch.tensor([[1e4, 0.0]]), "video": torch.tensor([[1e4, 0.0]])}
    torch.testing.assert_close(coefficients(certain, entropy_floor=0.0), torch.full((2,), 1.5))


def test_no_host_read():
    balancer = bg.ARL(LateFusion().encoders)
    with NoHostReads():
        balancer.scores(logits())


def test_what_is_refused():
    model = LateFusion()
    for wrong in ({"temperature": -1}, {"gamma": -1}, {"entropy_floor": 0.6}):
        with pytest.raises(ValueError, match="give temperature and gamma >= 0, and entropy_floor in"):
            bg.ARL(model.encoders, **wrong)
    with pytest.raises(ValueError, match=r"write balancer\(losses, scores=balancer.scores"):
        bg.ARL(model.encoders)(model.losses(*make_batch()))
