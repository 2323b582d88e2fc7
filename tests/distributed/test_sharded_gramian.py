"""Gramian of DTensor rows on two processes: local products and one small all-reduce."""

import pytest
import torch
from torch import distributed
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

from balanced_grad.kernels import gramian


def on_each_process(rank):
    mesh = init_device_mesh("cpu", (2,))
    rows = torch.randn(3, 10_001, generator=torch.Generator().manual_seed(0))
    want = gramian(rows)
    for placement in (Shard(1), Replicate()):
        got = gramian(distribute_tensor(rows, mesh, [placement]))
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-3)
    with pytest.raises(ValueError, match=r"shard their columns, Shard\(1\)"):
        gramian(distribute_tensor(rows, mesh, [Shard(0)]))
    distributed.barrier()  # neither leaves while the other still connects


def test_rows_sharded_over_two_processes(pair):
    pair(on_each_process)
