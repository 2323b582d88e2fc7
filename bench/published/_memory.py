"""Peak memory of a few steps on the CPU, from the allocations that PyTorch's profiler records."""

import json
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object]) -> int:
    """Most bytes that were held at once of all that PyTorch's CPU allocator handed out during ``run()``.

    Exact to the byte, and the same in every run: activations, gradients, kept buffers and temporaries inside operators.
    Not seen: memory of numpy, of solvers and of libraries that allocate on their own; what was there before.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        record.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    memory = sorted((e for e in events if e["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate((event["args"]["Bytes"] for event in memory), initial=0))
