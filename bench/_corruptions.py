"""One modality's input spoiled at test time. Inputs are standardised: 0 is the training mean, 1 a deviation."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Corruption(NamedTuple):
    """``apply(x, severity, draws)``, and the severities of the study, mild to severe."""

    apply: Callable[[Tensor, float, torch.Generator], Tensor]
    severities: tuple[float, ...]


def noise(x: Tensor, severity: float, draws: torch.Generator) -> Tensor:
    """Gaussian noise of so many standard deviations."""
    return x + severity * torch.randn(x.shape, generator=draws)


def attenuation(x: Tensor, severity: float, draws: torch.Generator) -> Tensor:
    """That share of the signal is lost: a pull to the training mean."""
    return (1 - severity) * x


def dropout(x: Tensor, severity: float, draws: torch.Generator) -> Tensor:
    """That share of the entries, drawn for each item, is at the training mean."""
    return x * (torch.rand(x.shape, generator=draws) >= severity)


CORRUPTIONS = {
    "noise": Corruption(noise, (0.5, 1.0, 2.0, 4.0)),
    "attenuation": Corruption(attenuation, (0.25, 0.5, 0.75, 1.0)),
    "dropout": Corruption(dropout, (0.25, 0.5, 0.75, 1.0)),
}


def corrupted(inputs: Mapping[str, Tensor], modality: str, kind: str, severity: float, seed: int) -> dict[str, Tensor]:
    """The inputs with one modality spoiled, the same way for the same seed."""
    draws = torch.Generator().manual_seed(seed)
    return {**inputs, modality: CORRUPTIONS[kind].apply(inputs[modality], severity, draws)}
