"""Names of torch that are not public, each with what must be true of it: a renaming fails here, with its name."""

import importlib
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from balanced_grad.evidence import StepVariance
from tests.conftest import make_batch

NAMES = (
    "torch._C._current_graph_task_id",
    "torch._C._functorch.is_functorch_wrapped_tensor",
    "torch._C._storage_Use_Count",
    "torch._dynamo.graph_break",
    "torch._foreach_add_",
    "torch._foreach_copy_",
    "torch._foreach_lerp_",
    "torch._foreach_mul",
    "torch._functorch.config.donated_buffer",
    "torch.Tensor._post_accumulate_grad_hooks",
    "torch.Tensor._version",
    "torch.UntypedStorage._cdata",
    "torch.distributed._composable_state._module_state_mapping",
    "torch.distributed.fsdp.FSDPModule",
    "torch.distributed.tensor.DTensor",
    "torch.nn.Module._load_from_state_dict",
    "torch.nn.Module._save_to_state_dict",
    "torch.nn.parallel.distributed._DDPSink._backward_cls",
    "torch.utils.checkpoint.CheckpointFunction._backward_cls",
)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_where_it_was(name):
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return


def test_attributes_of_modules_and_optimizers():
    assert nn.Linear(1, 1)._forward_hooks == {}
    assert nn.Linear(1, 1)._modules == {}
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    for kind in ("step", "state_dict", "load_state_dict"):
        for when in ("pre", "post"):
            assert getattr(optimizer, f"_optimizer_{kind}_{when}_hooks") == {}
    step: Any = type(optimizer).step
    assert step.hooked


def test_a_flat_parameter_says_so():
    source = importlib.import_module("torch.distributed.fsdp._flat_param")
    assert source.FlatParameter is not None
    assert issubclass(source.FlatParameter, nn.Parameter)
    shard = source.FlatParameter.__new__(source.FlatParameter, torch.ones(1))
    assert shard._is_flat_param


def test_nodes_of_a_graph_are_named_and_take_notes():
    x = torch.ones(2, 3, 4)
    output = nn.Linear(4, 5)(x)
    reshaped = output.grad_fn
    assert type(reshaped).__name__ == "ViewBackward0"
    assert type(nn.Linear(4, 5, bias=False)(x).grad_fn).__name__ == "UnsafeViewBackward0"
    reshaped.metadata["balanced_grad"] = 1
    assert output.grad_fn.metadata["balanced_grad"] == 1
    checkpointed = torch.utils.checkpoint.checkpoint(nn.Linear(4, 5), x.requires_grad_(), use_reentrant=True)
    assert type(checkpointed.grad_fn).__name__ == "CheckpointFunctionBackward"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("variance", [None, StepVariance()], ids=["items", "steps"])
def test_a_layer_over_time_before_an_activation_in_place(bias, variance):
    """``"ViewBackward0"`` and ``"UnsafeViewBackward0"``: what such a layer returns, and the activation takes away."""

    def gradient(inplace):
        torch.manual_seed(0)
        layer, heads = nn.Linear(5, 6, bias=bias), nn.ModuleDict({m: nn.Linear(6, 3) for m in ("joint", "audio")})
        balancer = bg.BOGC(layer, variance)
        for seed in range(3):
            inputs, labels = make_batch(seed=seed)
            x = torch.stack([inputs["audio"], inputs["video"]], 1)  # (B, T, F)
            z = nn.ReLU(inplace=inplace)(layer(x)).mean(1)
            layer.zero_grad()
            balancer({m: cross_entropy(head(z), labels) for m, head in heads.items()}).backward()
        return layer.weight.grad, balancer.last.trust.weights

    torch.testing.assert_close(gradient(inplace=True), gradient(inplace=False))


def test_a_compiled_model_that_donated_its_buffers():
    """The text "donated": what torch says when such a graph is walked twice."""
    aot = importlib.import_module("torch._dynamo.backends.common").aot_autograd
    boxed = importlib.import_module("functorch.compile").make_boxed_func

    def as_it_is(graph, _):
        return boxed(graph.forward)

    encoder = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
    heads = nn.ModuleDict({m: nn.Linear(6, 3) for m in ("joint", "audio")})
    with warnings.catch_warnings(), torch._functorch.config.patch(donated_buffer=True):
        warnings.simplefilter("ignore")  # what the compiler says of itself
        compiled = torch.compile(encoder, backend=aot(fw_compiler=as_it_is, bw_compiler=as_it_is))
        inputs, labels = make_batch()
        compiled(inputs["audio"]).sum().backward()  # compiles for one backward
        z = compiled(inputs["audio"])
        scalar = bg.MinNorm()({m: cross_entropy(head(z), labels) for m, head in heads.items()})
        with pytest.raises(RuntimeError, match=r"torch._functorch.config.donated_buffer = False before compiling"):
            scalar.backward()
    torch._dynamo.reset()
