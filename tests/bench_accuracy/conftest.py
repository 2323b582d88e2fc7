"""A small study, made once: every method and baseline, two epochs on the digits."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # bench is no installed package

pytest.importorskip("torchjd", reason="the peer of the benchmarks; pip install 'balanced-grad[bench]'")

from bench.accuracy._methods import BY_NAME
from bench.accuracy._study import Study

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Folder with a line per method."""
    folder = tmp_path_factory.mktemp("results")
    complete(study(folder))
    return folder


def study(folder, dataset="digits-hard", optimizer="sgd", epochs=2, trials=1):
    return Study.of(dataset, optimizer, epochs, trials, folder)


def complete(study, methods=tuple(BY_NAME), seeds=1):
    """Do what is still to do; how much it was."""
    jobs = list(study.jobs(list(methods), seeds))
    for _, job in jobs:
        job(lambda: None)
    return len(jobs)
