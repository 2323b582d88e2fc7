"""A batch equals its problems, and the device path never waits for the device."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from balanced_grad.solvers import Status, min_norm


class NoHostRead(TorchDispatchMode):
    """Raises where a CUDA tensor would make the host wait."""

    waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "_to_copy_host")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        boolean_index = name in ("index", "index_put_") and any(
            i is not None and i.dtype is torch.bool for i in args[1]
        )
        if name in self.waits or name.startswith("linalg_") or boolean_index:
            raise AssertionError(f"{name} synchronises")
        return func(*args, **(kwargs or {}))


def batch(family, M, size=6):
    return torch.stack([family.gramian(M, seed) for seed in range(size)])


@pytest.mark.parametrize(("method", "M"), [("closed", 1), ("closed", 2), ("closed", 3), ("faces", 2), ("faces", 5)])
def test_device_methods_read_nothing_on_the_host(method, M, families):
    G = batch(families["spread_norms"], M)
    active = torch.ones(6, M, dtype=torch.bool)
    active[0, 0] = False
    expected = min_norm(G, method="active_set", active=active)
    with NoHostRead():
        result = min_norm(G, method=method, active=active)
    torch.testing.assert_close(result.weights, expected.weights)
    torch.testing.assert_close(result.status, expected.status)


def test_the_check_for_host_reads_does_catch_one():
    with NoHostRead(), pytest.raises(AssertionError, match="synchronises"):
        torch.ones(2).sum().item()
    with NoHostRead(), pytest.raises(AssertionError, match="synchronises"):
        torch.ones(2)[torch.tensor([True, False])]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("M", [1, 2, 3, 8])
def test_cuda_does_not_synchronise(M, families):
    G = batch(families["spread_norms"], M)
    on_device = G.cuda()
    min_norm(on_device)  # loads the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = min_norm(on_device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.weights.cpu(), min_norm(G).weights)


@pytest.mark.parametrize(
    ("method", "M"),
    [("auto", 2), ("auto", 3), ("closed", 2), ("closed", 3), ("faces", 4), ("faces", 6), ("active_set", 5)],
)
def test_a_batch_has_the_bits_of_its_problems(method, M, family):
    G = batch(family, M)
    together = min_norm(G, method=method)
    for k in range(len(G)):
        alone = min_norm(G[k], method=method)
        assert torch.equal(together.weights[k], alone.weights)
        assert together.status[k] == alone.status


@pytest.mark.parametrize("M", [2, 3, 4, 8, 16, 18])
def test_automatic_batch_agrees_with_its_problems(M, family):
    if family.name == "near_parallel":
        pytest.skip("conditioned like 1 / (1 - cos): compared by gap in the other tests")
    G = batch(family, M)
    together = min_norm(G)
    assert (together.gap <= 1e-12).all()
    alone = torch.stack([min_norm(g).weights for g in G])
    torch.testing.assert_close(together.weights, alone, atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", ["auto", "faces", "active_set"])
def test_any_batch_shape(method, families):
    G = batch(families["normal"], 4, 6)
    flat = min_norm(G, method=method)
    result = min_norm(G.reshape(2, 1, 3, 4, 4), method=method)
    assert result.weights.shape == (2, 1, 3, 4)
    assert result.gap.shape == result.iterations.shape == result.status.shape == (2, 1, 3)
    assert torch.equal(result.weights.reshape(6, 4), flat.weights)
    empty = min_norm(G[:0], method=method)
    assert empty.weights.shape == (0, 4)
    assert empty.status.shape == (0,)


@pytest.mark.parametrize("method", ["auto", "faces", "active_set"])
def test_sick_problems_leave_their_neighbours_alone(method, families):
    G = batch(families["normal"], 4)
    expected = min_norm(G, method=method).weights
    G[1, 0, 2] = torch.nan
    G[3] = torch.inf
    active = torch.ones(6, 4, dtype=torch.bool)
    active[5] = False
    result = min_norm(G, method=method, active=active)
    names = [Status(code).name for code in result.status.tolist()]
    assert names == ["SOLVED", "NON_FINITE", "SOLVED", "NON_FINITE", "SOLVED", "NO_ACTIVE_ROW"]
    assert result.solved.tolist() == [True, False, True, False, True, False]
    assert result.weights[1].isnan().all()
    assert result.weights[3].isnan().all()
    assert (result.weights[5] == 0).all()
    assert torch.equal(result.weights[[0, 2, 4]], expected[[0, 2, 4]])


@pytest.mark.parametrize("method", ["auto", "faces", "active_set", "scipy"])
@pytest.mark.parametrize("M", [3, 5, 8])
def test_inactive_rows_are_not_in_the_problem(method, M, families):
    generator = torch.Generator().manual_seed(M)
    G = batch(families["spread_norms"], M)
    active = torch.rand(6, M, generator=generator) < 0.6
    active[:, 0] = True
    dirty = torch.where(active[:, :, None] & active[:, None, :], G, torch.nan)
    result = min_norm(dirty, method=method, active=active)
    assert (result.weights[~active] == 0).all()
    for k in range(6):
        on = active[k]
        alone = min_norm(G[k][on][:, on])
        torch.testing.assert_close(result.weights[k][on], alone.weights, atol=1e-9, rtol=0)
        single = min_norm(dirty[k], method=method, active=on)
        torch.testing.assert_close(single.weights, result.weights[k], atol=1e-9, rtol=0)
