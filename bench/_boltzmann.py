"""A tied ``CrossModalVI`` of two binary modalities as the restricted Boltzmann machine that it is, and how that learns.

    E(v, h) = -v·c - h·(W v + b),   F(v) = -log Σ_h exp(-E(v, h)) = -v·c - Σ_j softplus(W v + b)_j

with ``v`` both modalities side by side. Maximum likelihood by persistent contrastive divergence (PCD); contrastive
divergence with the perception loss (CD-PercLoss), whose negative items are wrong only in one modality; and a hybrid of
multi-prediction and PCD: the algorithms of Sohn et al. (2014), from a description of their released code.
"""

import torch
from torch.nn.functional import softplus


class Boltzmann:
    """The machine of a network; ``order`` draws its samples."""

    def __init__(self, vi, order):
        self.vi, self.order = vi, order
        self.chains = None  # (chains, D), of PCD

    def weight(self):
        """``W (H, D)``."""
        return torch.cat([branch.up.weight for branch in self.vi.branches], 1)

    def visible_bias(self):
        """``c (D,)``."""
        return torch.cat([branch.bias for branch in self.vi.branches])

    def free_energy(self, v):
        """``F`` of each item, in nats."""
        return -(v @ self.visible_bias()) - softplus(v @ self.weight().T + self.vi.bias).sum(1)

    @torch.no_grad()
    def gibbs(self, v, clamped=None):
        """Hidden units given the visible ones, and back; entries that are clamped stay."""
        weight = self.weight()
        hidden = torch.bernoulli((v @ weight.T + self.vi.bias).sigmoid(), generator=self.order)
        new = torch.bernoulli((hidden @ weight + self.visible_bias()).sigmoid(), generator=self.order)
        return new if clamped is None else torch.where(clamped, v, new)

    def likelihood_loss(self, v, chains=100):
        """A loss with the gradient of ``-log p(v)``, the model's part from one step of persistent chains."""
        if self.chains is None:
            self.chains = torch.bernoulli(v[:chains], generator=self.order)
        self.chains = self.gibbs(self.chains)
        return self.free_energy(v).mean() - self.free_energy(self.chains).mean()

    def perception_loss(self, v, steps=10):
        """A loss with the gradient of CD-PercLoss: data, minus half of the negatives given each of the modalities."""
        widths = [branch.up.in_features for branch in self.vi.branches]
        first = torch.arange(sum(widths)) < widths[0]
        clamped = torch.cat([first.expand_as(v), (~first).expand_as(v)])
        negative = self.lowest(torch.cat([v, v]), clamped, steps)
        return self.free_energy(v).mean() - self.free_energy(negative).mean()

    @torch.no_grad()
    def lowest(self, v, clamped, steps):
        """Of each item's chain from ``v``, the sample of lowest free energy."""
        best = v = self.gibbs(v, clamped)
        least = self.free_energy(best)
        for _ in range(steps - 1):
            v = self.gibbs(v, clamped)
            energy = self.free_energy(v)
            best, least = torch.where((energy < least)[:, None], v, best), torch.minimum(energy, least)
        return best
