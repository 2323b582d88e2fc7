import pytest
import torch

from balanced_grad.demo._compare import compare, spread, threads
from balanced_grad.demo._data import Dataset, Split
from balanced_grad.demo._timing import time_methods
from balanced_grad.demo._train import ALONE, BALANCED, BASELINE, BATCH, Method, Trainer, train

SHAPES = {"a.b": (6,), "train": (1, 9, 7)}  # names that a ModuleDict would refuse


def toy(seed=0):
    """Items whose label is readable from either modality."""
    draw = torch.Generator().manual_seed(seed)

    def split(n):
        labels = torch.randint(3, (n,), generator=draw)
        inputs = {}
        for name, shape in SHAPES.items():
            x = torch.randn((n, *shape), generator=draw)
            inputs[name] = x + labels.view(-1, *(1 for _ in shape))
        return Split(inputs, labels)

    return Dataset("toy", "toy", 3, split(2 * BATCH), split(30), split(30))


@pytest.fixture(autouse=True)
def _one_thread():
    with threads(1):  # tiny networks: more threads wait for each other
        yield


def weights(trainer, part):
    return torch.cat([p.detach().flatten() for p in getattr(trainer.model, part).parameters()])


@pytest.mark.parametrize("method", [ALONE, BASELINE, *BALANCED], ids=lambda method: method.name)
def test_same_seed_gives_the_same_numbers(method):
    data = toy()
    first, second, other = (train(data, method, seed, 2, lambda: None) for seed in (0, 0, 1))
    assert first == second
    assert first.val != other.val


def test_all_methods_start_from_the_same_weights_and_leave_the_random_state():
    before = torch.random.get_rng_state()
    trainers = [Trainer(toy(), method, 3) for method in (ALONE, BASELINE, *BALANCED)]
    assert torch.equal(before, torch.random.get_rng_state())
    for trainer in trainers[1:]:
        for part in ("encoders", "heads", "fused"):
            assert torch.equal(weights(trainers[0], part), weights(trainer, part))


def test_watching_heads_learn_and_leave_the_encoders_alone():
    data = toy()
    watched, plain = Trainer(data, BASELINE, 0), Trainer(data, BASELINE, 0)
    plain.watch = lambda features, labels: None
    for trainer in (watched, plain):
        for _ in range(3):
            trainer.step(data.train)
    for part in ("encoders", "fused"):
        assert torch.equal(weights(watched, part), weights(plain, part))
    assert not torch.equal(weights(watched, "heads"), weights(plain, "heads"))


def test_alone_means_alone():
    """Uni-modal training of one encoder does not depend on what the other modality holds."""
    data, changed = toy(), toy()
    changed.train.inputs["train"].zero_()
    trainers = Trainer(data, ALONE, 0), Trainer(changed, ALONE, 0)
    for trainer, items in zip(trainers, (data.train, changed.train), strict=True):
        for _ in range(3):
            trainer.step(items)
    first, second = (list(trainer.model.encoders[0].parameters()) for trainer in trainers)
    assert all(torch.equal(p, q) for p, q in zip(first, second, strict=True))


def test_uniform_trains_as_the_plain_sum_of_all_losses():
    data = toy()
    trainers = Trainer(data, BALANCED[0], 0), Trainer(data, Method("sum"), 0)
    for trainer in trainers:
        for _ in range(3):
            trainer.step(data.train)
    for part in ("encoders", "heads", "fused"):
        torch.testing.assert_close(weights(trainers[0], part), weights(trainers[1], part))


def test_a_run_records_every_epoch():
    ticks = []
    run = train(toy(), BALANCED[0], 0, 3, lambda: ticks.append(0))
    names = ["joint", *SHAPES]
    assert len(ticks) == 3
    assert {name: len(series) for name, series in run.val.items()} == dict.fromkeys(names, 3)
    assert run.weights == {name: [1.0] * 3 for name in names}
    assert list(run.heads) == list(run.probe) == list(run.probe_val) == list(SHAPES)


def test_gap_is_measured_against_the_encoder_of_the_same_seed(monkeypatch):
    monkeypatch.setattr("balanced_grad.demo._compare.time_methods", lambda data, methods: {})
    results = compare(toy(), BALANCED[:1], seeds=2, epochs=1, tick=lambda what: None)
    assert list(results.runs) == ["uni-modal", "joint", "Uniform"]
    alone, joint = (results.runs[name] for name in ("uni-modal", "joint"))
    assert [run.seed for run in joint] == [0, 1]
    expected = [b.probe["a.b"] - a.probe["a.b"] for a, b in zip(alone, joint, strict=True)]
    assert results.gaps("joint")["a.b"] == expected
    assert set(results.gaps("uni-modal")["a.b"]) == {0.0}


def test_timing_covers_every_method_and_none_for_the_baseline(monkeypatch):
    monkeypatch.setattr("balanced_grad.demo._timing.WARM_UP", 1)
    monkeypatch.setattr("balanced_grad.demo._timing.MEASURED", 4)
    timing = time_methods(toy(), BALANCED)
    assert list(timing) == ["joint", *(method.name for method in BALANCED)]
    assert timing["joint"].subroutine == 0
    assert all(t.step > 0 for t in timing.values())


def test_spread_is_mean_and_sample_deviation():
    assert spread([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))
    assert spread([5.0]) == (5.0, 0.0)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), threads(before + 1):  # noqa: PT012  the point is the way out
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
