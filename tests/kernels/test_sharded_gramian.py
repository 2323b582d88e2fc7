"""Gramian of DTensor rows on two processes: local products and one small all-reduce."""

import os
import socket

import pytest
import torch
from torch import distributed

from balanced_grad.kernels import gramian

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")


def on_each_process(rank, port):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        rows = torch.randn(3, 10_001, generator=torch.Generator().manual_seed(0))
        want = gramian(rows)
        for placement in (Shard(1), Replicate()):
            got = gramian(distribute_tensor(rows, mesh, [placement]))
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-3)
        with pytest.raises(ValueError, match=r"shard their columns, Shard\(1\)"):
            gramian(distribute_tensor(rows, mesh, [Shard(0)]))
    finally:
        distributed.destroy_process_group()


def test_rows_sharded_over_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(on_each_process, (port,), nprocs=2)  # raises what a process raised
