"""The state of a balancer: one tensor, exact, its own, and refused where it does not fit."""

import copy
import io

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

import balanced_grad as bg
from balanced_grad.evidence import MicroBatchVariance, SampleVariance, StepVariance
from balanced_grad.state import pack
from tests.conftest import MODALITIES, LateFusion, make_batch
from tests.state_cases import METHODS, WITHOUT, built, train

every = pytest.mark.parametrize("kind", METHODS)
quietly = pytest.mark.filterwarnings("ignore")


def through_file(state, tmp_path):
    torch.save(state, tmp_path / "state.pt")
    return torch.load(tmp_path / "state.pt", weights_only=True)


def through_safetensors(state, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state, tmp_path / "state.safetensors")
    return safetensors.load_file(tmp_path / "state.safetensors")


def through_half_precision(state, tmp_path):
    exported = {key: value.half() if "_extra_state" in key else value for key, value in state.items()}
    return through_safetensors(exported, tmp_path)


ROADS = {
    "as it is": lambda state, _: state,
    "copy": lambda state, _: copy.deepcopy(state),
    "file": through_file,
    "safetensors": through_safetensors,
    "half precision": through_half_precision,
}


def states(module):
    return {key: value for key, value in module.state_dict().items() if key.endswith("_extra_state")}


def assert_same(first, second):
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


@every
@pytest.mark.parametrize("road", ROADS)
def test_resume_is_bitwise_by_every_road(kind, road, tmp_path):
    through, resumed = train(built(kind), range(4)), built(kind, seed=1)
    resumed.load_state_dict(ROADS[road](through.state_dict(), tmp_path))
    assert_same(resumed, through)
    assert_same(train(resumed, range(4, 9)), train(through, range(4, 9)))


@every
def test_resume_is_bitwise_from_every_step(kind):
    through = built(kind)
    for stop in range(8):
        resumed = built(kind, seed=1)
        resumed.load_state_dict(through.state_dict())
        rest = range(stop, 9)
        assert_same(train(resumed, rest), train(copy.deepcopy(through), rest))
        train(through, [stop])


@every
def test_the_state_is_one_tensor_of_bytes_and_equal_states_are_equal_bytes(kind):
    fresh = {key: len(value) for key, value in states(built(kind)).items()}
    first, second = (states(train(built(kind), range(5))) for _ in range(2))
    assert first
    for key, value in first.items():
        assert value.dtype == torch.uint8
        assert value.dim() == 1
        assert value.is_contiguous()
        assert value.device.type == "cpu"
        assert len(value) == fresh[key]
        assert len(value) % 4096 == 0
        assert torch.equal(value, second[key])


@every
def test_a_loaded_state_gives_the_same_bytes(kind):
    module, resumed = train(built(kind), range(5)), built(kind)
    resumed.load_state_dict(module.state_dict())
    torch.testing.assert_close(states(resumed), states(module), rtol=0, atol=0)


@pytest.mark.parametrize("kind", WITHOUT)
def test_what_has_no_state_has_no_entry(kind):
    assert not built(kind).balancer.state_dict()


@every
def test_the_dictionaries_of_before_are_read(kind):
    module, resumed = train(built(kind), range(5)), built(kind)
    resumed.load_state_dict(module.state_dict())
    for mine, theirs in zip(resumed.modules(), module.modules(), strict=True):
        if isinstance(mine, bg.Stateful):
            mine.set_extra_state(theirs.state())
    assert_same(train(resumed, range(5, 9)), train(module, range(5, 9)))


@every
def test_saved_and_loaded_tensors_are_not_the_live_ones(kind):
    module = train(built(kind), range(4))
    saved, structured = module.state_dict(), copy.deepcopy(module.balancer.state())
    given = module.balancer.state()
    before = copy.deepcopy({**states(module)})
    resumed = built(kind)
    resumed.load_state_dict(saved)
    resumed.balancer.set_extra_state(given)
    train(resumed, range(4, 9))
    train(module, range(4, 9))
    for key, value in before.items():
        assert torch.equal(saved[key], value)
    assert torch.equal(pack(given), pack(structured))


def through_pickle(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@every
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle])
def test_the_module_may_be_copied(kind, duplicate):
    module = train(built(kind), range(4))
    assert_same(train(duplicate(module), range(4, 8)), train(module, range(4, 8)))


@every
def test_the_module_may_be_cast(kind):
    module = train(built(kind), range(4))
    before = states(module)
    torch.testing.assert_close(states(module.double().bfloat16().to("meta")), before, rtol=0, atol=0)


def test_in_a_half_precision_model_nothing_is_rounded():
    module = train(built("AGM"), range(3))
    before = module.balancer.state()["total"]
    module.bfloat16()
    assert torch.equal(module.balancer.state()["total"], before)


def test_agm_reads_the_buffers_of_before():
    module, resumed = train(built("AGM"), range(3)), built("AGM")
    state = module.state_dict()
    del state["balancer._extra_state"]
    old = state | {"balancer.total": module.balancer.total, "balancer.count": module.balancer.count}
    resumed.load_state_dict(old)
    assert "balancer.total" in old
    assert_same(resumed, module)


def bogc(model, *args, **options):
    return bg.BOGC(model.trunk, *args, **options)


def grown():
    torch.manual_seed(0)
    return LateFusion(width=7)


REFUSED = {
    "another class": (lambda m: bg.MIMO(), lambda m: bg.MLB(m.encoders), "of a MLB, this is a MIMO"),
    "averages": (lambda m: bg.MIMO(), lambda m: bg.MIMO(ema=0.5), r"averages of \['audio', 'video'\].*ema=None"),
    "noise": (lambda m: bg.OGM(m.encoders, noise=0.0), lambda m: bg.OGM(m.encoders), "noise=0"),
    "modalities": (
        lambda m: bg.AGM(("audio", "text")),
        lambda m: bg.AGM(("audio", "video")),
        r"\('audio', 'video'\), this one is of \('audio', 'text'\)",
    ),
    "layers": (lambda m: bg.BOGC(m.encoders), bogc, r"\['linear'\], this one is \['audio.0', 'video.0'\]"),
    "shapes": (lambda m: bogc(grown()), bogc, "'linear': the state is of a layer of 42 parameters, this has 56"),
    "estimator": (lambda m: bogc(m, StepVariance()), bogc, "SampleVariance.*StepVariance"),
    "window": (
        lambda m: bogc(m, MicroBatchVariance(2)),
        lambda m: bogc(m, MicroBatchVariance(3)),
        "count=3.*count=2",
    ),
    "precision": (lambda m: bogc(m, SampleVariance(), precision="relative"), bogc, "'absolute'.*'relative'"),
    "guard": (lambda m: bg.HeldOut(bg.MIMO()), lambda m: bg.MIMO(), "of a MIMO, this is a HeldOut"),
    "guarded": (lambda m: bg.HeldOut(bg.MIMO()), lambda m: bg.HeldOut(bg.MLB(m.encoders)), "of a MLB, this is a MIMO"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_state_that_does_not_fit_is_refused_and_leaves_everything_as_it_was(case):
    this, that, message = REFUSED[case]
    model = LateFusion()
    mine, theirs = this(model), that(model)
    for balancer in {"modalities": (), "shapes": (theirs,)}.get(case, (theirs, mine)):
        balancer(model.losses(*make_batch())).backward()
    before, children = mine.state_dict(), list(theirs.state_dict().values())
    into, state = (mine.balancer, children[1]) if case == "guarded" else (mine, children[0])
    with pytest.raises(ValueError, match=message):
        into.set_extra_state(state)
    torch.testing.assert_close(mine.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [torch.zeros(4096, dtype=torch.uint8), torch.ones(16384), torch.zeros(0)])
def test_bytes_that_are_no_state_are_refused(wrong):
    with pytest.raises(ValueError, match=r"the state of the MIMO .* cannot be read"):
        bg.MIMO().set_extra_state(wrong)


def test_a_state_of_something_else_than_numbers_and_tensors_is_refused_when_it_is_saved():
    class Odd(bg.Stateful, bg.Uniform):
        def state(self):
            return {"rule": {"of": len}}

        def load_state(self, state):
            raise AssertionError

    with pytest.raises(TypeError, match=r"state\['state'\]\['rule'\]\['of'\] is a builtin_function_or_method"):
        Odd().state_dict()


def test_noise_goes_on_where_another_process_saved_it():
    model = LateFusion()
    first, second = bg.OGM(model.encoders), bg.OGM(model.encoders)
    first(model.losses(*make_batch())).backward()
    state = first.state()
    second.load_state(state | {"noise": {"cpu:0": state["noise"]["cpu"], "cuda:0": torch.zeros(16, dtype=torch.uint8)}})
    drawn = [balancer._noise_like(torch.arange(4.0)) for balancer in (first, second)]
    assert torch.equal(*drawn)
    assert set(second.state()["noise"]) == {"cpu", "cpu:0", "cuda:0"}


@quietly
@every
def test_distributed_checkpoint_reads_into_a_fresh_model(kind, tmp_path):
    module, resumed = train(built(kind), range(4)), built(kind, seed=1)
    dcp.save({"model": module.state_dict()}, checkpoint_id=tmp_path)
    template = {"model": resumed.state_dict()}
    dcp.load(template, checkpoint_id=tmp_path)
    resumed.load_state_dict(template["model"])
    assert_same(train(resumed, range(4, 9)), train(module, range(4, 9)))


def test_a_missing_modality_and_one_that_comes_later_survive():
    through = train(built("MIMO"), [])
    other = LateFusion(MODALITIES)
    for step in range(6):
        resumed = built("MIMO").balancer
        resumed.load_state_dict(through.balancer.state_dict())
        losses = other.losses(*make_batch(MODALITIES[step % 2 : 2 + step % 2], seed=step))
        values = [balancer(losses).detach() for balancer in (resumed, through.balancer)]
        assert torch.equal(*values)


def test_under_another_default_device_and_dtype():
    module = train(built("MIMO"), range(3))
    with torch.device("meta"):
        state = module.balancer.state_dict()
        resumed = bg.MIMO(ramp_steps=9, ema=0.8)
        resumed.load_state_dict(state)
    assert resumed.state() == module.balancer.state()


def test_the_archive_alone_says_what_it_is():
    packed = train(built("MIMO"), range(3)).balancer.get_extra_state().numpy().tobytes()
    length = int.from_bytes(packed[:8], "little")
    content = torch.load(io.BytesIO(packed[8 : 8 + length]), weights_only=True)
    assert content["class"] == "MIMO"
    assert content["state"]["steps"] == 3
    assert not any(packed[8 + length :])


def test_a_method_of_ones_own(tmp_path):
    class Averaging(bg.Stateful, bg.Balancer):
        def __init__(self):
            super().__init__()
            self.mean = None

        def weigh(self, problem):
            if torch.is_grad_enabled():
                before = problem.losses if self.mean is None else self.mean.to(problem.losses.device)
                self.mean = before.lerp(problem.losses, 0.1)
            return bg.Weighting(self.mean / self.mean.sum())

        def state(self):
            return {"mean": self.mean}

        def load_state(self, state):
            self.mean = state["mean"]

    w = nn.Parameter(torch.ones(2))
    first, second = Averaging(), Averaging()
    second.load_state_dict(through_safetensors(first.state_dict(), tmp_path))
    assert second.mean is None
    first({"joint": w.sum(), "audio": w[0]}).backward()
    second.load_state_dict(through_safetensors(first.state_dict(), tmp_path))
    assert torch.equal(second.mean, first.mean)
    assert second.mean is not first.mean
