"""What older releases of torch lack or have wrong, found by trying: a test that needs it is skipped there, by name."""

import inspect

import pytest
import torch
from torch.distributed.checkpoint import save

VERSION = tuple(map(int, torch.__version__.split("+")[0].split(".")[:2]))

# A checkpoint of one process, which newer releases find out by themselves.
ONE_PROCESS = {"no_dist": True} if "no_dist" in inspect.signature(save).parameters else {}

fully_shard_on_cpu = pytest.mark.skipif(VERSION < (2, 8), reason="fully_shard needs torch 2.8 on a CPU")
compiled_alike = pytest.mark.skipif(VERSION < (2, 8), reason="which losses a compiled graph answers differs before 2.8")
hooks_shown = pytest.mark.skipif(
    not hasattr(torch._C._autograd.SavedTensor, "unpack_hook"),
    reason="this torch does not show what activation checkpointing has dropped: one backward per loss",
)
adagrad_state = pytest.mark.skipif(VERSION < (2, 8), reason="torch's Adagrad makes its state in the constructor only")
