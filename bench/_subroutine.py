"""From per-loss gradients to ``.grad``: the ways that are compared."""

import importlib

import torch

from balanced_grad.capture._plan import Group
from balanced_grad.capture._rows import Arena
from balanced_grad.capture._write import accumulate
from balanced_grad.kernels import combine, gramian
from balanced_grad.solvers import min_norm


def parameters_of(size, device):
    """64 parameters with ``size`` entries in all: 32 weights and 32 biases."""
    bias = 64
    weight = (size - 32 * bias) // 32
    return [torch.zeros(n, device=device, requires_grad=True) for _ in range(32) for n in (weight, bias)]


class Case:
    def __init__(self, count, size, device="cpu"):
        torch.manual_seed(0)
        self.parameters = parameters_of(size, device)
        self.rows = Arena().rows([Group(tuple(range(count)), tuple(self.parameters))])[0]
        self.grads = [[torch.randn_like(p) for p in self.parameters] for _ in range(count)]
        for row, grads in enumerate(self.grads):
            self.rows.write(row, grads)

    def clear(self):
        for p in self.parameters:
            p.grad = None

    def ours(self, method="auto"):
        """Rows as the capture leaves them: Gramian, exact solve, one combined row, views as ``.grad``."""
        weights = min_norm(gramian(self.rows.flat), method=method).weights
        accumulate(self.parameters, self.rows.views(combine(self.rows.flat, weights, self.rows.output())))

    def ours_with_copy(self):
        """The same from the tensors autograd returned, the copy into the arena included."""
        for row, grads in enumerate(self.grads):
            self.rows.write(row, grads)
        self.ours()

    def plain_sum(self):
        for grads in self.grads:
            accumulate(self.parameters, [g.clone() for g in grads] if self.parameters[0].grad is None else grads)

    def torchjd_setup(self):
        self.clear()
        for position, p in enumerate(self.parameters):
            p.jac = torch.stack([grads[position] for grads in self.grads])

    def torchjd(self, name, **options):
        """The released peer, which need not be installed for the other ways."""
        aggregation, autojac = (importlib.import_module(f"torchjd.{part}") for part in ("aggregation", "autojac"))
        autojac.jac_to_grad(self.parameters, getattr(aggregation, name)(), **options)

    def floor(self, out):
        """Read all rows once and write one."""
        self.rows.flat.sum()
        out.fill_(1.0)


WAYS = {
    "ours": (Case.clear, Case.ours),
    "ours, copy into the arena included": (Case.clear, Case.ours_with_copy),
    "plain sum of the gradients": (Case.clear, Case.plain_sum),
    "torchjd MGDA": (Case.torchjd_setup, lambda case: case.torchjd("MGDA")),
    "torchjd MGDA, Gramian option": (
        Case.torchjd_setup,
        lambda case: case.torchjd("MGDA", optimize_gramian_computation=True),
    ),
    "torchjd UPGrad": (Case.torchjd_setup, lambda case: case.torchjd("UPGrad")),
}
