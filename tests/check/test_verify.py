"""verify() finds the operators that one backward per loss does not survive, names them, and leaves no trace."""

import random
import textwrap

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from balanced_grad.__main__ import main
from balanced_grad.check import verify
from tests.check import operators
from tests.check.operators import Wrapped


class Net(nn.Module):
    """Two losses on one encoder, with room for an operator at each place of interest."""

    def __init__(self, middle=None, loss=cross_entropy):
        super().__init__()
        self.encoder, self.middle = nn.Linear(6, 8), middle or nn.Tanh()
        self.audio, self.joint = nn.Linear(8, 3), nn.Linear(8, 3)
        self.loss = loss

    def losses(self, x, y):
        self.z = self.encoder(x)
        h = self.middle(self.z)
        return {"joint": self.loss(self.joint(h), y), "audio": self.loss(self.audio(h), y)}


def batch():
    return torch.randn(16, 6), torch.randint(3, (16,))


def step_of(make, *, features=False):
    def function():
        model = make()
        losses = model.losses(*batch())
        return (model, losses, None, {"audio": model.z}) if features else (model, losses)

    return function


def verdicts(verification):
    """Whether losses only, per-loss gradients (and level='features') are right."""
    return [verdict.ok for verdict in verification.verdicts]


def blamed(verification):
    return {(fault.kind, fault.operator.split(" ")[0]) for fault in verification.faults}


class Positions(nn.Module):
    """A leaf of full shape behind an in-place kernel, which holds the gradient that the kernel is given."""

    def __init__(self, kernel):
        super().__init__()
        self.kernel, self.table = kernel, nn.Parameter(torch.randn(16, 8))

    def forward(self, z):
        return self.kernel(z) + self.table


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, z):
        return operators.Recompute.apply(self.inner, z)


class Weighted(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.weight, self.function = nn.Parameter(torch.randn(8, 8)), function

    def forward(self, z):
        return self.function(z, self.weight).tanh()


def test_an_operator_that_consumes_what_it_saved():
    verification = verify(step_of(lambda: Net(Wrapped(operators.Gate.apply)), features=True))
    assert verdicts(verification)[:2] == [True, False]
    assert blamed(verification) == {("consumes", "Gate")}
    assert verification.faults[0].module == "middle"
    assert set(verification.verdicts[1].errors) == {"encoder.weight", "encoder.bias"}
    assert max(verification.verdicts[1].errors.values()) > 0.05
    text = str(verification)
    assert "Gate (tests.check.operators), called in middle, gives another gradient" in text
    assert "losses only (MIMO, Uniform)             right" in text
    assert "use a losses-only method" in text
    assert not verification.ok


def test_a_loss_that_scales_itself_in_place():
    verification = verify(step_of(lambda: Net(loss=operators.FusedLoss.apply), features=True))
    assert verdicts(verification) == [True, True, False]
    assert blamed(verification) == {("consumes", "FusedLoss")}
    assert not verify(step_of(lambda: Net(loss=operators.FusedLoss.apply))).ok


def test_static_gradient_buffers():
    def make():
        operators.Graphed.buffers = None
        return Net(Weighted(operators.Graphed.apply))

    verification = verify(step_of(make, features=True))
    assert verdicts(verification)[:2] == [True, True]
    assert ("static", "Graphed") in blamed(verification)
    assert verification.verdicts[2].ok or verification.verdicts[2].gramian > 0.1
    assert not verify(step_of(make)).ok


def test_a_kernel_that_writes_over_its_gradient():
    verification = verify(step_of(lambda: Net(Positions(operators.InPlaceNorm.apply))))
    assert verdicts(verification)[0]
    if verification.verdicts[1].ok:  # what is handed out is copied
        assert "InPlaceNorm" in verification.notes[0]
    else:
        assert blamed(verification) == {("overwrites", "InPlaceNorm")}
        assert verification.faults[0].parameters == ("middle.table",)


def test_a_kernel_whose_gradient_nobody_else_holds_is_a_note():
    verification = verify(step_of(lambda: Net(Wrapped(operators.InPlaceNorm.apply))))
    assert verification.ok
    assert any("InPlaceNorm" in note and "nothing was seen to suffer" in note for note in verification.notes)


@pytest.mark.parametrize("model", [True, False])
def test_parameters_that_the_graph_does_not_show(model):
    function = step_of(lambda: Net(Hidden()))
    verification = verify(function if model else lambda: function()[1])
    assert [verdict.ok for verdict in verification.verdicts] == [True, False]
    assert ("hidden", "Recompute") in blamed(verification)
    refused = verification.verdicts[1].refused
    assert "Recompute" in refused if refused else len(verification.verdicts[1].errors) == 2
    if model:
        (fault,) = (fault for fault in verification.faults if fault.kind == "hidden")
        assert fault.parameters == ("middle.inner.bias", "middle.inner.weight")
        assert fault.module == "middle"


def test_a_parameter_that_only_a_function_holds():
    weight = nn.Parameter(torch.randn(8, 8))

    def function():
        model = Net(Wrapped(lambda z: operators.Product.apply({"w": weight}, z)))
        return model, model.losses(*batch())

    verification = verify(function)
    assert verdicts(verification) == [True, False]
    assert ("hidden", "Product") in blamed(verification)
    assert weight.grad is None


def scaled_in_place(loss):
    loss.register_hook(lambda grad: grad.mul_(0.5))
    return loss


@pytest.mark.parametrize("halve", [operators.Halve.apply, scaled_in_place])
def test_a_seed_that_is_scaled_in_place(halve):
    def function():
        model = Net()
        losses = model.losses(*batch())
        losses["joint"] = halve(losses["joint"] * 1)
        return model, losses

    verification = verify(function)
    assert verification.verdicts[0].ok
    if verification.verdicts[1].ok:  # each loss has a seed of its own
        assert verification.ok
        assert len(verification.notes) == 1
    else:
        assert {kind for kind, _ in blamed(verification)} == {"overwrites"}


def test_an_operator_that_deletes_what_it_saved():
    verification = verify(step_of(lambda: Net(Wrapped(operators.Frees.apply))))
    assert verdicts(verification) == [True, False]
    assert "state" in verification.verdicts[1].refused
    assert ("fails", "Frees") in blamed(verification)


def test_an_operator_in_a_head_that_deletes_what_it_saved():
    def function():
        model = Net(loss=lambda z, y: cross_entropy(operators.Frees.apply(z), y))
        return model, model.losses(*batch())

    verification = verify(function)
    assert verdicts(verification) == [True, True]  # each loss passes through its own
    assert blamed(verification) == {("fails", "Frees")}
    assert "BOGC" in verification.faults[0].affects


def test_reentrant_checkpointing():
    class Reentrant(Net):
        def losses(self, x, y):
            h = checkpoint(self.middle, self.encoder(x), use_reentrant=True)
            return {"joint": self.loss(self.joint(h), y), "audio": self.loss(self.audio(h), y)}

    verification = verify(step_of(lambda: Reentrant(nn.Linear(8, 8))))
    assert verdicts(verification) == [True, False]
    assert "use_reentrant=False" in verification.verdicts[1].refused
    assert ("fails", "CheckpointFunction") in blamed(verification)


def test_hooks_on_accumulators():
    def function():
        model = Net()
        for parameter in model.encoder.parameters():
            node = torch.autograd.graph.get_gradient_edge(parameter).node
            node.register_hook(lambda *_: None)
            kept.append(node)
        return model, model.losses(*batch())

    kept = []
    verification = verify(function)
    assert not verification.ok
    (fault,) = verification.faults
    assert (fault.kind, set(fault.parameters)) == ("hooks", {"encoder.weight", "encoder.bias"})


def test_a_post_accumulate_hook_is_refused_in_the_engines_words():
    def function():
        model = Net()
        model.audio.weight.register_post_accumulate_grad_hook(lambda _: None)
        return model, model.losses(*batch())

    verification = verify(function)
    assert not verification.ok
    assert "post-accumulate-grad hook" in verification.verdicts[1].refused
    assert "refused: " in str(verification)


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.2))
        self.audio, self.joint = nn.Linear(64, 3), nn.Linear(64, 3)

    def losses(self, x, y):
        self.z = self.encoder(x[:, :1, None, None].expand(-1, 1, 6, 6) * torch.randn(16, 1, 6, 6)).flatten(1)
        return {"joint": cross_entropy(self.joint(self.z), y), "audio": cross_entropy(self.audio(self.z), y)}


class Recurrent(Net):
    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(6, 8, batch_first=True, num_layers=2)

    def losses(self, x, y):
        self.z = self.encoder(x[:, None].expand(-1, 5, 6))[0].mean(1)
        return {"joint": cross_entropy(self.joint(self.z), y), "audio": cross_entropy(self.audio(self.z), y)}


class Checkpointed(Net):
    def losses(self, x, y):
        self.z = checkpoint(self.encoder, x, use_reentrant=False)
        h = checkpoint(self.middle, self.z, use_reentrant=False)
        return {"joint": cross_entropy(self.joint(h), y), "audio": cross_entropy(self.audio(h), y)}


def bert():
    pytest.importorskip("transformers")
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)

    class Text(Recurrent):
        def __init__(self):
            super().__init__()
            self.encoder = BertModel(config).train()

        def losses(self, x, y):
            self.z = self.encoder(input_ids=torch.randint(1, 50, (16, 5))).last_hidden_state.mean(1)
            return {"joint": cross_entropy(self.joint(self.z), y), "audio": cross_entropy(self.audio(self.z), y)}

    return Text()


def adapted():
    pytest.importorskip("peft")
    from peft import LoraConfig, inject_adapter_in_model

    model = bert()
    for parameter in model.encoder.parameters():
        parameter.requires_grad_(False)
    config = LoraConfig(target_modules=["query", "value"], r=2, init_lora_weights=False)
    inject_adapter_in_model(config, model.encoder)
    return model


def trains_half_precision_lstm():
    with torch.autocast("cpu", torch.bfloat16):
        try:
            nn.LSTM(4, 4)(torch.randn(3, 2, 4))
        except RuntimeError:
            return False
    return True


@pytest.mark.parametrize("make", [Net, Convolutional, Recurrent, Checkpointed, bert, adapted])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_right_is_said_to_be(make, dtype):
    if make is Recurrent and dtype == torch.bfloat16 and not trains_half_precision_lstm():
        pytest.skip("PyTorch has no LSTM of half precision for this processor")

    def function():
        model = make()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = model.losses(*batch())
        return model, losses, torch.optim.SGD(model.parameters(), lr=0.1), {"audio": model.z, "video": None}

    verification = verify(function)
    assert verification.ok, str(verification)
    assert verdicts(verification) == [True] * 3
    assert verification.noise <= verification.tolerance
    assert verification.notes == ()


def compiled(dtype):
    def function():
        model = Net()
        model.encoder = torch.compile(nn.Sequential(nn.Linear(6, 8), nn.Tanh()), backend="aot_eager", fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = model.losses(*batch())
        return model, losses

    return function


def test_a_compiled_encoder():
    verification = verify(compiled(torch.float32))
    assert verification.ok, str(verification)


def test_a_compiled_encoder_that_donates_its_buffers():
    verification = verify(compiled(torch.bfloat16))
    assert verdicts(verification) == [True, False]
    assert "donated" in verification.verdicts[1].refused
    (fault,) = verification.faults
    assert fault.operator.startswith("CompiledFunction")
    assert fault.module == "encoder"
    assert "donated_buffer = False" in fault.cure


def test_parameters_of_low_precision_and_missing_modalities():
    def function():
        model = Net().bfloat16()
        x, y = batch()
        return model, {**model.losses(x.bfloat16(), y), "video": None}

    verification = verify(function)
    assert verification.ok, str(verification)
    assert verification.tolerance > 0.01


def test_one_loss_and_leaves_without_a_model():
    weight = torch.randn(3, requires_grad=True)
    assert verify(lambda: {"joint": weight.square().sum()}).ok
    assert weight.grad is None


@pytest.mark.parametrize("where", ["torch", "numpy", "random"])
def test_known_generators_are_replayed(where):
    draw = {"torch": lambda: torch.rand(()).item(), "numpy": np.random.rand, "random": random.random}[where]

    def function():
        model = nn.Linear(2, 1)
        z = model(torch.full((4, 2), draw()))
        return model, {"joint": z.square().mean(), "audio": z.exp().mean()}

    verification = verify(function)
    assert verification.ok
    assert verification.noise == 0


def test_what_is_random_is_said_to_be():
    generator = torch.Generator().manual_seed(0)

    def function():
        torch.manual_seed(0)
        model = Net()
        x = torch.randn(16, 6, generator=generator)
        return model, model.losses(x, torch.randint(3, (16,)))

    verification = verify(function)
    assert verification.noise > 0.1
    assert not verification.ok
    assert "not deterministic" in str(verification)


def test_what_is_a_little_random_is_compared_above_its_noise():
    generator = torch.Generator().manual_seed(0)

    def step(middle):
        model = Net(middle)
        x, y = batch()
        return model, model.losses(x * (1 + 1e-3 * torch.randn(x.shape, generator=generator)), y)

    right = verify(lambda: step(nn.Tanh()))
    assert right.ok, str(right)
    assert 1e-5 < right.noise < 1e-2
    assert "not deterministic" in right.notes[0]
    wrong = verify(lambda: step(Wrapped(operators.Gate.apply)))
    assert verdicts(wrong) == [True, False]
    assert blamed(wrong) == {("consumes", "Gate")}


def test_what_no_operator_explains_is_said():
    def function():
        model, calls = Net(), []
        losses = model.losses(*batch())

        def grow(grad):
            calls.append(0)
            return grad * len(calls)

        model.z.register_hook(grow)
        return model, losses

    verification = verify(function)
    assert verdicts(verification) == [True, False]
    assert verification.faults == ()
    assert "a hook on a tensor" in verification.notes[0]


def test_losses_that_come_and_go_are_refused():
    calls = []

    def function():
        calls.append(0)
        losses = Net().losses(*batch())
        return losses if len(calls) < 3 else {"joint": losses["joint"]}

    with pytest.raises(
        ValueError, match=r"the losses differ from call to call: \['joint', 'audio'\], then \['joint'\]"
    ):
        verify(function)


def test_buffers_that_are_updated_once_per_loss_are_a_note():
    class Normed(Checkpointed):
        def __init__(self):
            super().__init__(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)))

    verification = verify(step_of(Normed))
    assert verification.ok, str(verification)
    (note,) = verification.notes
    assert "middle.1.running_mean" in note
    assert "once per loss" in note


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_leaves_everything_as_it_was():
    model = Convolutional()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    frozen = model.audio.bias.requires_grad_(False)
    grads = [(parameter.grad, parameter.grad.clone()) for parameter in model.parameters()]
    before, seeds = state(model), (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    hooks = [torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks]

    def function():
        np.random.rand()
        random.random()
        return model, model.losses(*batch())

    assert verify(function).ok
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter, (grad, value) in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is grad
        assert torch.equal(grad, value)
    assert not frozen.requires_grad
    assert torch.equal(torch.get_rng_state(), seeds[0])
    assert np.array_equal(np.random.get_state()[1], seeds[1])
    assert random.getstate() == seeds[2]
    assert [len(each) for each in hooks] == [0, 0]


def test_leaves_everything_as_it_was_when_the_function_fails():
    model, calls = Convolutional(), []
    before, seed = state(model), torch.get_rng_state()

    def function():
        calls.append(0)
        losses = model.losses(*batch())
        if len(calls) == 3:
            raise KeyError("smell")
        return model, losses

    with pytest.raises(KeyError, match="smell"):
        verify(function)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), seed)
    assert all(parameter.grad is None for parameter in model.parameters())


SCRIPT = """
    import torch
    from tests.check import operators
    from tests.check.test_verify import Net, Wrapped, batch

    def right():
        model = Net()
        return model, model.losses(*batch())

    def wrong():
        model = Net(Wrapped(operators.Gate.apply))
        return model, model.losses(*batch())

    def broken():
        raise KeyError("smell")

    calls = []

    def fickle():
        calls.append(0)
        losses = Net().losses(*batch())
        return losses if len(calls) < 3 else {"joint": losses["joint"]}
"""


@pytest.fixture
def script(tmp_path):
    file = tmp_path / "train.py"
    file.write_text(textwrap.dedent(SCRIPT))
    return file


def test_the_command_ends_with_status_one_if_anything_is_wrong(script, capsys):
    assert main(["check", "--verify", f"{script}:right"]) == 0
    assert "per-loss gradients (MinNorm, MMPareto)  right" in capsys.readouterr().out
    assert main(["check", f"{script}:wrong"]) == 0
    assert main(["check", "--verify", f"{script}:wrong"]) == 1
    out, err = capsys.readouterr()
    assert "fault: Gate" in out
    assert err == ""
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize(
    ("name", "message"), [("broken", "KeyError: 'smell'"), ("fickle", "the losses differ from call to call")]
)
def test_errors_of_the_script_are_told_in_its_lines(script, capsys, name, message):
    assert main(["check", "--verify", f"{script}:{name}"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert "balanced_grad/check" not in err
