from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

_TOLERANCE = 1e-3  # of the sum of a parameter's entries, relative to their norm


class Numbers:
    """A number for each parameter that means the same parameter on every process.

    Parameters are numbered as they are first met. All processes must meet them in the same step, and equal values
    show that they are each other's replicas.
    """

    def __init__(self) -> None:
        self._parameters: list[Tensor] = []
        self._number: dict[Tensor, int] = {}

    def __len__(self) -> int:
        return len(self._parameters)

    def new(self, leaves: Iterable[Tensor]) -> dict[Tensor, int]:
        """The leaves without a number, with the one that ``add`` will give them."""
        unknown = (leaf for leaf in dict.fromkeys(leaves) if leaf not in self._number)
        return {leaf: len(self) + position for position, leaf in enumerate(unknown)}

    def add(self, new: dict[Tensor, int], agree: Callable[[object], list[Any]]) -> None:
        """Number them for good, once it is seen that those of all processes are replicas."""
        if new:
            _check_replicas(list(new), agree)
            self._parameters += new
            self._number |= new

    def of(self, leaf: Tensor) -> int | None:
        """The parameter's number, if it has one."""
        return self._number.get(leaf)

    def parameter(self, number: int) -> Tensor:
        """The parameter of this process that has this number."""
        return self._parameters[number]


def _check_replicas(parameters: Sequence[Tensor], agree: Callable[[object], list[Any]]) -> None:
    """Once per parameter: reads it and waits for the device."""
    with torch.no_grad():
        sums = torch.stack([_sum(p).cpu() for p in parameters])
        norms = torch.stack([torch.linalg.vector_norm(p).double().cpu() for p in parameters])
    said = torch.tensor(agree((*sums.tolist(), *norms.tolist())), dtype=torch.float64, device="cpu")
    said = said.view(-1, 2, len(parameters))
    spread = said.amax(0) - said.amin(0)
    different = (spread > _TOLERANCE * said[:, 1].amax(0)).any(0)
    if different.any():
        which = parameters[int(different.nonzero()[0])]
        raise RuntimeError(
            f"a parameter of shape {tuple(which.shape)} has different values on different processes: it is not the "
            "same parameter, or the model was never synchronised. Wrap the model in DistributedDataParallel; give the "
            "balancer params=model.named_parameters() if processes take different ways through it; write "
            "balancer.process_group = None if each process trains a model of its own"
        )


def _sum(parameter: Tensor) -> Tensor:
    total = parameter.sum(dtype=torch.complex128 if parameter.is_complex() else torch.float64)
    return total.real + total.imag if total.is_complex() else total
