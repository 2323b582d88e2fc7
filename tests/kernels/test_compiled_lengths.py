"""A compiled pass is compiled once, for rows of any length."""

import pytest
import torch

from balanced_grad.kernels._compiled import compiled
from tests.kernels.test_implementations import ignores_torch, needs_compiler


def doubled(x):
    return x * 2


@needs_compiler
@ignores_torch
def test_another_length_compiles_nothing():
    function = compiled(doubled, "lengths")
    function(torch.ones(7))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (8, 100, 4097):
            assert torch.equal(function(torch.ones(length)), torch.full((length,), 2.0))
    with torch._dynamo.config.patch(error_on_recompile=True), pytest.raises(Exception, match=r"[Rr]ecompil"):
        function(torch.ones(7, dtype=torch.float64))
