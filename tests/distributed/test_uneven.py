"""Batches that differ between processes: in modalities, in the way through the model, or in that one of them fails."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import balanced_grad as bg
from balanced_grad.capture import Processes, _processes
from tests.conftest import make_batch
from tests.distributed.test_data_parallel import METHODS, TOLERANCE, Model, half

# Nothing missing; no audio on the second process; no video on the first and no audio on the second.
MISSING = [((), ()), ((), ("audio",)), (("video",), ("audio",))]


def losses_of(model, step, rank):
    inputs, label = half(make_batch(seed=step), rank)
    return model.losses({m: x for m, x in inputs.items() if m not in MISSING[step][rank]}, label)


def uneven(rank, kind):
    torch.manual_seed(0)
    model = Model()
    balancer = METHODS[kind](model)
    seen = []
    for step in range(len(MISSING)):
        model.zero_grad()
        balancer(losses_of(model, step, rank)).backward()
        seen.append((dict(zip(balancer.last.names, balancer.last.weights.unbind(-1), strict=True)), gradients(model)))
    return seen


def gradients(model):
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize("kind", ["min-norm", "min-norm-encoders", "mmpareto", "gramian", "uniform-rows", "bogc-steps"])
def test_a_loss_missing_on_one_process_counts_as_zero_there(pair, kind):
    """As one process whose losses are the sums over both halves of the batch, divided by two."""
    first, second = pair(uneven, kind)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.manual_seed(0)
    model = Model()
    balancer = METHODS[kind](model)
    for step, (weights, grads) in enumerate(first):
        parts = [losses_of(model, step, rank) for rank in range(2)]
        names = dict.fromkeys(name for part in parts for name in part)
        model.zero_grad()
        balancer({name: sum(part[name] / 2 for part in parts if name in part) for name in names}).backward()
        if balancer.last.weights.dim() == 1:
            wanted = dict(zip(balancer.last.names, balancer.last.weights, strict=True))
            torch.testing.assert_close(weights, wanted, **TOLERANCE)
        torch.testing.assert_close(grads, gradients(model), **TOLERANCE)


def test_weights_from_losses_are_those_of_the_processes_that_have_them(pair):
    first, second = pair(uneven, "mimo")
    torch.manual_seed(0)
    model = Model()
    balancer = METHODS["mimo"](model)
    for step, ((weights, _), (others, _)) in enumerate(zip(first, second, strict=True)):
        parts = [losses_of(model, step, rank) for rank in range(2)]
        names = dict.fromkeys(name for part in parts for name in part)
        means = {name: [part[name] for part in parts if name in part] for name in names}
        balancer({name: torch.stack(found).mean() for name, found in means.items()})
        torch.testing.assert_close(weights, others, rtol=0, atol=0)
        wanted = dict(zip(balancer.last.names, balancer.last.weights, strict=True))
        torch.testing.assert_close(weights, wanted, **TOLERANCE)


def uneven_window(rank):
    """Micro-batches of one step that miss different things on different processes."""
    torch.manual_seed(0)
    model = Model()
    optimizer = bg.BalancedOptimizer(torch.optim.SGD(model.parameters()), bg.MinNorm(), accumulate="rows")
    for step in range(len(MISSING)):
        optimizer.balancer(losses_of(model, step, rank)).backward()
    return optimizer.balancer.last.gramian, gradients(model)


def test_rows_accumulated_over_uneven_batches(pair):
    first, second = pair(uneven_window)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.manual_seed(0)
    model, balancer = Model(), bg.MinNorm()
    parts = [losses_of(model, step, rank) for step in range(len(MISSING)) for rank in range(2)]
    names = dict.fromkeys(name for part in parts for name in part)
    balancer({name: sum(part[name] / 2 for part in parts if name in part) for name in names}).backward()
    torch.testing.assert_close(first[1], gradients(model), **TOLERANCE)
    torch.testing.assert_close(first[0] * len(MISSING) ** 2, balancer.last.gramian, **TOLERANCE)


def wrapped(rank, kind):
    """What DDP is given when parameters go unused."""
    torch.manual_seed(0)
    model = Model()
    balancer = METHODS[kind](model)
    outer = DistributedDataParallel(model, find_unused_parameters=True)
    seen = []
    for step in range(len(MISSING)):
        inputs, label = half(make_batch(seed=step), rank)
        losses = outer({m: x for m, x in inputs.items() if m not in MISSING[step][rank]}, label)
        model.zero_grad()
        balancer(losses, features=model.features if balancer.level == "features" else None).backward()
        seen.append((dict(zip(balancer.last.names, balancer.last.weights.unbind(-1), strict=True)), gradients(model)))
    return seen


@pytest.mark.parametrize("kind", ["mimo", "min-norm", "uniform-rows"])
def test_gradients_are_the_weighted_sum_that_ddp_would_average(pair, kind):
    first, second = pair(wrapped, kind)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.manual_seed(0)
    model = Model()
    for step, (weights, grads) in enumerate(first):
        model.zero_grad()
        for rank in range(2):
            sum(weights[name] * loss / 2 for name, loss in losses_of(model, step, rank).items()).backward()
        wanted = [
            None if g is None else torch.zeros_like(g) if p.grad is None else p.grad
            for p, g in zip(model.parameters(), grads, strict=True)
        ]
        torch.testing.assert_close(grads, wanted, **TOLERANCE)


def features(rank):
    torch.manual_seed(0)
    model, balancer = Model(), bg.MinNorm(level="features", params=None)
    balancer(losses_of(model, 1, rank), features=model.features).backward()
    return balancer.last.gramian, gradients(model)


def test_features_of_a_modality_missing_on_one_process(pair):
    """One process: the audio features of the first half, the video features of both, each item in its own losses."""
    first, second = pair(features)
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    torch.manual_seed(0)
    model, balancer = Model(), bg.MinNorm(level="features")
    inputs, label = make_batch(seed=1)
    z = {"audio": model.encoders["audio"](inputs["audio"][:4]), "video": model.encoders["video"](inputs["video"])}
    deep = {m: model.trunk(x).tanh() for m, x in z.items()}
    joint = torch.cat([deep["audio"], deep["video"][:4]], 1)
    balancer(
        {
            "joint": cross_entropy(model.fused(joint), label[:4]) / 2,
            "audio": cross_entropy(model.heads["audio"](deep["audio"]), label[:4]) / 2,
            "video": cross_entropy(model.heads["video"](deep["video"]), label),
        },
        features=z,
    ).backward()
    torch.testing.assert_close(first[0], balancer.last.gramian, **TOLERANCE)
    ours = [
        torch.stack([g for g in pairs if g is not None]).sum(0) / 2 for pairs in zip(first[1], second[1], strict=True)
    ]
    torch.testing.assert_close(ours, gradients(model), **TOLERANCE)  # as DDP averages them


class Experts(nn.Module):
    """Two experts of one shape; a batch goes through one of them."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(5, 3) for _ in range(2))

    def losses(self, expert, scale=1.0):
        z = self.experts[expert](torch.ones(1, 5))
        return {"joint": scale * z.sum(), "audio": scale * z.square().sum()}


def experts(rank, named):
    torch.manual_seed(0)
    model = Experts()
    balancer = bg.Uniform(record_gramian=True, params=model.named_parameters() if named else None)
    if not named:
        with pytest.raises(RuntimeError, match=r"not the same parameter.*params=model.named_parameters\(\)"):
            balancer(model.losses(rank)).backward()
        assert all(g is None for g in gradients(model))
        balancer(model.losses(0)).backward()  # met together
        balancer(model.losses(1)).backward()
        model.zero_grad()
    balancer(model.losses(rank, scale=2.0)).backward()
    return gradients(model)


@pytest.mark.parametrize("named", [True, False])
def test_processes_that_take_different_ways_through_the_model(pair, named):
    """Each expert gets half of its own process's gradient, once it is known which parameters correspond."""
    first, second = pair(experts, named)
    torch.manual_seed(0)
    model = Experts()
    sum((sum(model.losses(expert).values()) for expert in range(2)), torch.zeros(())).backward()
    torch.testing.assert_close(first, gradients(model))
    torch.testing.assert_close(second, gradients(model))


def unknown_on_one(rank):
    torch.manual_seed(0)
    model = Model()
    balancer = bg.MinNorm()
    with pytest.raises(RuntimeError, match=r"reach different parameters.*params=model.named_parameters\(\)"):
        balancer(losses_of(model, 1, rank)).backward()
    assert all(g is None for g in gradients(model))
    balancer(losses_of(model, 0, rank)).backward()
    balancer(losses_of(model, 1, rank)).backward()


def test_parameters_met_by_one_process_only_are_refused_by_all(pair):
    pair(unknown_on_one)


def different_models(rank):
    torch.manual_seed(rank)
    with pytest.raises(RuntimeError, match="has different values on different processes"):
        bg.MinNorm()(losses_of(Model(), 0, rank)).backward()


def test_models_that_were_never_synchronised_are_refused_by_all(pair):
    pair(different_models)


def failing(rank, kind, place):
    torch.manual_seed(0)
    model = Model()
    balancer = METHODS[kind](model)
    balancer(losses_of(model, 0, rank)).backward()
    before, state = [g.clone() for g in gradients(model)], balancer.state_dict()
    losses = losses_of(model, 0, rank)
    if rank == 0 and place == "forward":
        losses["audio"] = losses["audio"].detach()
    if rank == 0 and place == "backward":
        losses["audio"].register_hook(lambda grad: 1 / 0)
    expected = (ValueError, "no graph") if place == "forward" else (ZeroDivisionError, "division")
    error, message = expected if rank == 0 else (RuntimeError, "process 0 failed in this step")
    with pytest.raises(error, match=message):
        balancer(losses).backward()
    torch.testing.assert_close(gradients(model), before, rtol=0, atol=0)
    torch.testing.assert_close(balancer.state_dict(), state, rtol=0, atol=0)
    balancer(losses_of(model, 0, rank)).backward()


@pytest.mark.parametrize(
    ("kind", "place"), [("min-norm", "forward"), ("min-norm", "backward"), ("mimo-ema", "forward")]
)
def test_a_process_that_fails_stops_the_others_instead_of_keeping_them_waiting(pair, kind, place):
    pair(failing, kind, place)


def static_graph(rank, kind):
    torch.manual_seed(0)
    model = Model()
    balancer = METHODS[kind](model)
    wrapped = DistributedDataParallel(model, static_graph=True)
    losses = wrapped(*half(make_batch(), rank))
    features = model.features if kind == "features" else None
    with pytest.raises(RuntimeError, match=r"'joint'.*static_graph=True.*leave static_graph out"):
        balancer(losses, features=features).backward()


@pytest.mark.parametrize("kind", ["min-norm", "features"])
def test_static_graph_is_refused(pair, kind):
    pair(static_graph, kind)


def static_graph_losses_only(rank):
    torch.manual_seed(0)
    model = Model()
    balancer, wrapped = bg.MIMO(), DistributedDataParallel(model, static_graph=True)
    for step in range(3):
        model.zero_grad()
        balancer(wrapped(*half(make_batch(seed=step), rank))).backward()
    return gradients(model)


def test_static_graph_with_a_losses_only_method(pair):
    first, second = pair(static_graph_losses_only)
    torch.manual_seed(0)
    model = Model()
    bg.MIMO()(model(*make_batch(seed=2))).backward()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, gradients(model), **TOLERANCE)


def fsdp1(rank):
    torch.manual_seed(0)
    inner = Model()
    model = FullyShardedDataParallel(inner, device_id=torch.device("cpu"))
    losses = model(*half(make_batch(), rank))
    for balancer, features in ((bg.MinNorm(), None), (bg.MinNorm(level="features"), inner.features)):
        with pytest.raises(RuntimeError, match=r"FSDP1.*fully_shard"):
            balancer(losses, features=features)
    bg.MIMO()(losses).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    with FullyShardedDataParallel.summon_full_params(model):
        return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_fsdp1_is_refused_by_name_where_losses_only_methods_work(pair):
    first, second = pair(fsdp1)
    torch.manual_seed(0)
    model = Model()
    bg.MIMO()(model(*make_batch())).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, torch.cat([p.detach().flatten() for p in model.parameters()]), **TOLERANCE)


def sum_rows(rank):
    processes = Processes()
    own = {"a": torch.full((2, 2), 1.0 + rank)} | ({"b": torch.ones(3, dtype=torch.float64)} if rank else {})
    cpu = torch.device("cpu")
    return processes.sum_rows(own, cpu), processes.sum_rows({"c": torch.ones(1)} if rank else {}, cpu)


def test_rows_by_name_are_summed_whoever_has_them(pair):
    wanted = {"a": torch.full((2, 2), 3.0), "b": torch.ones(3, dtype=torch.float64)}, {"c": torch.ones(1)}
    for rows in pair(sum_rows):
        torch.testing.assert_close(rows, wanted)


def sums(rank, small):
    processes, before = Processes(), _processes._SMALL
    _processes._SMALL = small
    try:
        buffers = [torch.full((2, 3), 1.0 + rank), torch.ones(5), torch.ones(2, dtype=torch.float64), torch.ones(0)]
        processes.sum(*buffers)
        return buffers
    finally:
        _processes._SMALL = before


@pytest.mark.parametrize("small", [0, 21, 1 << 24], ids=["alone", "some", "together"])
def test_buffers_are_summed_in_place_alone_or_together(pair, small):
    wanted = [torch.full((2, 3), 3.0), 2 * torch.ones(5), 2 * torch.ones(2, dtype=torch.float64), torch.ones(0)]
    for buffers in pair(sums, small):
        torch.testing.assert_close(buffers, wanted)


def sparse(rank):
    table = nn.Embedding(4, 2, sparse=True)
    assert distributed.get_world_size() == 2
    with pytest.raises(RuntimeError, match=r"averaged here.*sparse=False"):
        bg.MinNorm()({"audio": table(torch.tensor([rank])).sum()}).backward()


def test_sparse_gradients_are_refused(pair):
    pair(sparse)


def heads_by_index(rank):
    model = Model()
    loss = bg.BOGC(model.heads, by_index=True)(losses_of(model, 0, rank))
    with pytest.raises(RuntimeError, match="one process"):
        loss.backward()


def test_heads_by_index_are_refused(pair):
    pair(heads_by_index)


def encoders_of_some(rank):
    """BOGC under DistributedDataParallel, audio missing on the second process only."""
    torch.manual_seed(0)
    model = Model()
    balancer = bg.BOGC(model.encoders)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    for step in range(2):
        model.zero_grad()
        inputs, label = half(make_batch(seed=step), rank)
        losses = wrapped({m: x for m, x in inputs.items() if not (rank and step and m == "audio")}, label)
        balancer(losses).backward()
    return balancer.last.names, balancer.last.weights, gradients(model)


def test_a_missing_modality_with_a_block_and_a_wrapper(pair):
    first, second = pair(encoders_of_some)
    torch.testing.assert_close(first[1:], second[1:], rtol=0, atol=0)
    assert first[0] == second[0] == ("joint", "audio", "video")
    assert all(grad is not None and grad.isfinite().all() for grad in first[2])
