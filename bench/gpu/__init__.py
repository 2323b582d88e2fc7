"""Everything that only a GPU can tell, by one command and in under nine minutes.

    python -m bench.gpu                        # writes gpu-out/gpu.json and gpu-out/gpu.md
    python -m bench.gpu --parts kernels        # some parts only
    python -m bench.gpu --device cpu           # a rehearsal: the same code at small sizes, whose numbers mean nothing

It needs torch, triton and pytest, and says by name what it left out where something else is missing. Parts:

* ``tests``: the tests marked ``gpu``, file by file;
* ``no_sync``: a step of every method, and whether it waits for the device;
* ``processes``: DDP and fully_shard in a group of one process on this device (NCCL) beside the step without a group;
* ``kernels``: error against float64, time, and the share of the bandwidth of a copy on this device;
* ``subroutine``: from gradients in rows to ``.grad``, beside torchjd and cvxpy;
* ``capture``: forward and backward as a ratio to those of the plain sum, beside torchjd;
* ``memory``: peak memory beyond that of the plain sum.

Each part runs in a process of its own, so that what breaks one does not stop the others. The exit status is 1 if
something failed; what was left out is no failure.
"""
