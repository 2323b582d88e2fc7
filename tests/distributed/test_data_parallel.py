"""Two processes, each with half of every batch, against one process with all of it."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import balanced_grad as bg
from balanced_grad.capture import Processes
from balanced_grad.evidence import Laplace, StepVariance
from tests.conftest import LateFusion, make_batch

STEPS = 3
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


class Model(LateFusion):
    """As DistributedDataParallel wants it: losses from forward()."""

    def forward(self, inputs, label):
        return self.losses(inputs, label)


def pcgrad_like(gramian):
    """A rule of a user: depends on everything in the Gramian."""
    return 1 + (gramian.sum(1) - gramian.diagonal()) / gramian.diagonal()


METHODS = {
    "uniform": lambda model: bg.Uniform(),
    "mimo": lambda model: bg.MIMO(smoothing=0.1),
    "mimo-ema": lambda model: bg.MIMO(smoothing=0.05, ema=0.5, ramp_steps=2),
    "mimo-params": lambda model: bg.MIMO(params=model.named_parameters()),
    "uniform-rows": lambda model: bg.Uniform({"audio": 0.5, "video": 2.0}, record_gramian=True),
    "mimo-rows": lambda model: bg.MIMO(record_gramian=True),
    "min-norm": lambda model: bg.MinNorm(),
    "min-norm-every": lambda model: bg.MinNorm(every=2),
    "features-every": lambda model: bg.MinNorm(level="features", every=2),
    "min-norm-loss": lambda model: bg.MinNorm(normalize="loss+", include_exclusive=True),
    "min-norm-encoders": lambda model: bg.MinNorm(groups="reach"),
    "min-norm-named": lambda model: bg.MinNorm(groups={"audio": model.encoders["audio"], "trunk": model.trunk}),
    "mmpareto": lambda model: bg.MMPareto(),
    "gramian": lambda model: bg.Gramian(pcgrad_like, params=model.named_parameters()),
    "features": lambda model: bg.MinNorm(level="features"),
    "bogc": lambda model: bg.BOGC(model.encoders),
    "bogc-laplace": lambda model: bg.BOGC(model.trunk, Laplace(num_data=100), unit="site"),
    "bogc-draws": lambda model: bg.BOGC(model.fused, Laplace("softmax", draws=4), joint="source"),
    "bogc-steps": lambda model: bg.BOGC(model, StepVariance(), layers="all", precision="relative"),
}


def half(batch, rank):
    inputs, label = batch
    count = len(label) // 2
    own = slice(count * rank, count * (rank + 1))
    return {name: x[own] for name, x in inputs.items()}, label[own]


def train(rank, kind, options=None, steps=STEPS):
    torch.manual_seed(0)
    model = Model()
    balancer = METHODS[kind](model)
    wrapped = model if rank is None else DistributedDataParallel(model, **(options or {}))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    seen = []
    for step in range(steps):
        batch = make_batch(seed=step)
        losses = wrapped(*(batch if rank is None else half(batch, rank)))
        optimizer.zero_grad()
        balancer(losses, features=model.features if balancer.level == "features" else None).backward()
        optimizer.step()
        seen.append(report(balancer))
    return seen, [p.detach() for p in model.parameters()], [p.grad for p in model.parameters()]


def report(balancer):
    last = balancer.last
    exchanged = not isinstance(balancer, bg.Uniform)  # whose weights depend on nothing
    losses = dict(zip(last.names, last.losses.unbind(), strict=True)) if exchanged else None
    return {"weights": last.weights, "gramian": last.gramian, "losses": losses}


@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}], ids=["plain", "unused"])
@pytest.mark.parametrize("kind", METHODS)
def test_trains_as_one_process_with_the_whole_batch(pair, kind, options):
    whole = train(None, kind)
    first, second = pair(train, kind, options)
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # the processes never drift apart
    torch.testing.assert_close(first, whole, **TOLERANCE)


def accumulate(rank, kind, together="gradients"):
    """Two micro-batches, a loss scale and clipping; the first micro-batch is not synchronised by DDP."""
    torch.manual_seed(0)
    model = Model()
    balancer = METHODS[kind](model)
    wrapped = model if rank is None else DistributedDataParallel(model)
    optimizer = bg.BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), balancer, accumulate=together)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(2):
            batch = make_batch(seed=2 * step + micro)
            quiet = rank is not None and micro == 0
            with wrapped.no_sync() if quiet else torch.enable_grad():
                losses = wrapped(*(batch if rank is None else half(batch, rank)))
                features = model.features if balancer.level == "features" else None
                scaler.scale(balancer(losses, features=features) / 2).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    ("kind", "together"),
    [
        ("min-norm", "gradients"),
        ("min-norm-every", "gradients"),
        ("mimo", "gradients"),
        ("mmpareto", "gradients"),
        ("features", "gradients"),
        ("bogc", "gradients"),
        ("min-norm", "rows"),
        ("min-norm-loss", "rows"),
        ("mmpareto", "rows"),
    ],
)
def test_accumulation_without_synchronisation_loss_scale_and_clipping(pair, kind, together):
    whole = accumulate(None, kind, together)
    first, second = pair(accumulate, kind, together)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, whole, **TOLERANCE)


def ordinary_steps_between(rank, options):
    """The reducer of DDP is as if nothing had happened."""
    torch.manual_seed(0)
    model = Model()
    wrapped = DistributedDataParallel(model, **options)
    reference = copy.deepcopy(model)
    balancer = bg.MinNorm()
    for step in range(4):
        batch = make_batch(seed=step)
        model.zero_grad()
        reference.zero_grad()
        losses = wrapped(*half(batch, rank))
        if step % 2 == 0:
            balancer(losses).backward()
            continue
        sum(losses.values()).backward()
        sum(reference.losses(*batch).values()).backward()
        torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in reference.parameters()])


@pytest.mark.parametrize(
    "options",
    [{}, {"find_unused_parameters": True}, {"gradient_as_bucket_view": True}],
    ids=["plain", "unused", "view"],
)
def test_an_ordinary_step_after_a_balanced_one(pair, options):
    pair(ordinary_steps_between, options)


def without_wrapper(rank):
    model = Model()
    bg.MinNorm()(model(*half(make_batch(), rank))).backward()
    return [p.grad for p in model.parameters()]


def test_a_capturing_method_averages_without_a_wrapper_too(pair):
    first, second = pair(without_wrapper)
    model = Model()
    torch.manual_seed(0)
    model = Model()
    bg.MinNorm()(model(*make_batch())).backward()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, [p.grad for p in model.parameters()], **TOLERANCE)


def alone(rank, kind):
    torch.manual_seed(rank)
    model = Model()
    twin = copy.deepcopy(model)
    balancer, reference = METHODS[kind](model), METHODS[kind](twin)
    balancer.process_group = reference.process_group = None
    if rank == 0:  # the other one makes no step at all
        balancer(model(*make_batch())).backward()
        return [p.grad for p in model.parameters()]
    return None


@pytest.mark.parametrize("kind", ["min-norm", "mimo"])
def test_processes_that_train_models_of_their_own(pair, kind):
    first, _ = pair(alone, kind)
    torch.manual_seed(0)
    model = Model()
    METHODS[kind](model)(model(*make_batch())).backward()
    torch.testing.assert_close(first, [p.grad for p in model.parameters()])


def evaluate_on_one(rank, kind):
    model = Model()
    balancer = METHODS[kind](model)
    if rank == 0:
        with torch.no_grad():
            balancer(model(*make_batch()))


@pytest.mark.parametrize("kind", ["min-norm", "mimo"])
def test_evaluation_exchanges_nothing(pair, kind):
    pair(evaluate_on_one, kind)


def subgroup(rank):
    """Each process alone in a group of its own, which is all that its balancer averages over."""
    groups = [distributed.new_group([member]) for member in range(2)]
    model = Model()
    balancer = bg.MinNorm()
    balancer.process_group = groups[rank]
    for _ in range(rank + 1):
        model.zero_grad()
        balancer(model(*half(make_batch(), rank))).backward()
    assert copy.deepcopy(balancer).process_group == "default"
    balancer.process_group = None
    assert copy.deepcopy(balancer).process_group is None
    return [p.grad for p in model.parameters()]


def test_another_process_group(pair):
    first, second = pair(subgroup)
    for rank, got in enumerate((first, second)):
        torch.manual_seed(0)
        model = Model()
        bg.MinNorm()(model(*half(make_batch(), rank))).backward()
        torch.testing.assert_close(got, [p.grad for p in model.parameters()])


def one_overflows(rank):
    torch.manual_seed(0)
    model, balancer = Model(), bg.MinNorm()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = model(*half(make_batch(), rank))
    scaler.scale(balancer({name: loss * (torch.inf if rank else 1) for name, loss in losses.items()})).backward()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale(), [p.detach() for p in model.parameters()]


def test_an_overflow_on_one_process_skips_the_step_of_all(pair):
    torch.manual_seed(0)
    before = [p.detach() for p in Model().parameters()]
    for scale, parameters in pair(one_overflows):
        assert scale == 512.0
        torch.testing.assert_close(parameters, before, rtol=0, atol=0)


def agree_without_a_cpu_backend(rank, monkeypatched):
    processes = Processes()
    config, distributed.get_backend_config = distributed.get_backend_config, lambda group: monkeypatched
    try:
        return processes.agree(("same",)), processes.agree(("rank", rank))
    finally:
        distributed.get_backend_config = config


@pytest.mark.parametrize("backend", ["cpu:gloo,cuda:nccl", "cuda:nccl"])
def test_agreement_goes_from_host_to_host_whatever_the_backend(pair, backend):
    for answer in pair(agree_without_a_cpu_backend, backend):
        assert answer == ([("same",)] * 2, [("rank", 0), ("rank", 1)])


def test_an_unknown_group_is_named():
    with pytest.raises(ValueError, match="process_group='all': give a process group"):
        bg.MinNorm().process_group = "all"
