"""Two processes that stay alive between tests, since starting them takes longer than what is tested."""

import datetime
import multiprocessing
import tempfile
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from torch import distributed

SIZE = 2
TIMEOUT = 60  # seconds: a collective that hangs fails its test


class Pair:
    """Calls a function of a module, with its rank first, on two processes that form a gloo group."""

    def __init__(self, folder):
        self.folder = folder
        self.calls = 0
        self.workers = []

    def __call__(self, function, *args):
        if not self.workers:
            self.start()
        self.calls += 1
        for _, pipe in self.workers:
            pipe.send((function, args, str(self.folder / f"store{self.calls}")))
        answers = []
        for rank, (_, pipe) in enumerate(self.workers):
            if not pipe.poll(TIMEOUT):
                self.stop()
                pytest.fail(f"process {rank} did not come back: it waits for a collective that the other never calls")
            try:
                answers.append(pipe.recv())
            except EOFError:
                self.stop()
                pytest.fail(f"process {rank} died")
        for rank, (ok, answer) in enumerate(answers):
            assert ok, f"process {rank}:\n{answer}"
        return [answer for _, answer in answers]

    def start(self):
        context = multiprocessing.get_context("spawn")
        for rank in range(SIZE):
            here, there = context.Pipe()
            worker = context.Process(target=serve, args=(rank, there), daemon=True)
            worker.start()
            self.workers.append((worker, here))

    def stop(self):
        for worker, pipe in self.workers:
            pipe.close()
            worker.kill()
            worker.join()
        self.workers = []


def serve(rank, pipe):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    while True:
        try:
            function, args, store = pipe.recv()
        except EOFError:
            return
        try:
            distributed.init_process_group(
                "gloo",
                store=distributed.FileStore(store, SIZE),
                rank=rank,
                world_size=SIZE,
                timeout=datetime.timedelta(seconds=TIMEOUT / 3),
            )
            distributed.barrier()  # one that is done at once must not leave while the other still connects
            torch.manual_seed(0)
            answer = True, function(rank, *args)
        except Exception:
            answer = False, traceback.format_exc()
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
        pipe.send(answer)


@pytest.fixture(scope="session")
def pair():
    if not distributed.is_available():
        pytest.skip("this torch has no torch.distributed")
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(Path(folder))
        yield pair
        pair.stop()
