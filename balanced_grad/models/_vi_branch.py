from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from balanced_grad.models._vi_likelihoods import Likelihood


@dataclass(frozen=True)
class Modality:
    """One modality of ``CrossModalVI`` with networks of its own: what it is, what encodes and what decodes it.

    Args:
        likelihood: what its entries are.
        encoder: ``(B, *likelihood.shape)`` -> ``(B, features)``.
        features: width of the encoder's output.
        decoder: ``(B, features)`` -> ``(B, likelihood.width)``; default: one linear layer.

    Examples:
        >>> from torch import nn
        >>> from balanced_grad.models import Bernoulli, Modality
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(28 * 14, 64), nn.ReLU())
        >>> half = Modality(Bernoulli((1, 28, 14)), encoder, features=64)
    """

    likelihood: Likelihood
    encoder: nn.Module
    features: int
    decoder: nn.Module | None = None


class Branch(nn.Module):
    """What joins one modality to the hidden layer, bottom-up and top-down."""

    def __init__(self, name: str, modality: Likelihood | Modality, hidden: int, tied: bool) -> None:
        super().__init__()
        self.name = name
        if isinstance(modality, Modality):
            self.likelihood = modality.likelihood
            self.encoder, features = modality.encoder, modality.features
            self.decoder = modality.decoder or nn.Linear(features, self.likelihood.width)
        else:
            self.likelihood = modality
            self.encoder, features = nn.Flatten(), torch.Size(modality.shape).numel()
            same = features == modality.width
            self.decoder = nn.Identity() if same else nn.Linear(features, modality.width)
        self.up = nn.Linear(features, hidden, bias=False)
        self.down = None if tied else nn.Linear(hidden, features, bias=False)
        self.bias = nn.Parameter(torch.zeros(features))
        if tied:
            nn.init.normal_(self.up.weight, std=0.01)  # of the restricted Boltzmann machine this then is

    def drive(self, x: Tensor) -> Tensor:
        """The modality's share ``(B, H)`` of what drives the hidden layer."""
        features = self.encoder(x)
        if features.shape != (len(x), self.up.in_features):
            raise ValueError(
                f"the encoder of {self.name!r} gave {tuple(features.shape)} for a batch of {len(x)}; "
                f"features={self.up.in_features} was declared, so it has to give (B, {self.up.in_features})"
            )
        drive: Tensor = self.up(features)
        return drive

    def features(self, hidden: Tensor) -> Tensor:
        """The encoder's output, as the hidden layer sees it from above."""
        weight = self.up.weight.T if self.down is None else self.down.weight
        return functional.linear(hidden, weight, self.bias)

    def predict(self, hidden: Tensor) -> Tensor:
        """Parameters ``(B, width)`` of ``p(x | h)``."""
        out: Tensor = self.decoder(self.features(hidden))
        if out.shape != (len(hidden), self.likelihood.width):
            raise ValueError(
                f"the decoder of {self.name!r} gave {tuple(out.shape)} for a batch of {len(hidden)}; "
                f"{self.likelihood} needs (B, {self.likelihood.width})"
            )
        return out
