"""Rules that make one prediction of uni-modal heads: their mean, weights by energy, Dempster's rule on evidence."""

import torch
from torch import Tensor, nn
from torch.distributions import Dirichlet, kl_divergence
from torch.nn.functional import one_hot, softplus

from balanced_grad.evidence import reduced_dempster

STEPS, BATCH, RATE, ANNEALING = 300, 256, 0.01, 50


def mean_of_heads(logits: dict[str, Tensor]) -> Tensor:
    """The plain late fusion: the mean of the logits."""
    return torch.stack(list(logits.values())).mean(0)


def by_energy(logits: dict[str, Tensor]) -> Tensor:
    """Logits weighted, per item, by minus the energy: ``Σ_m s_m · logsumexp(s_m) / 10``.

    Source: the late fusion of Zhang et al., "Provable Dynamic Fusion for Low-Quality Multimodal Data" (QMF, ICML 2023),
    as in its released code; without its loss in training, which ranks the weights by how well items are learnt.
    """
    return torch.stack([s * s.logsumexp(1, keepdim=True) / 10 for s in logits.values()]).sum(0)


class EvidenceHeads(nn.Module):
    """A linear head per modality whose softplus is evidence for the classes, fused by the reduced Dempster rule.

    Loss: the expected cross-entropy under the Dirichlet of ``α = e + 1`` and, annealed, its divergence from the flat
    one without the evidence for the true class; summed over the modalities and the fusion.

    Source: Han et al., "Trusted Multi-View Classification" (TMC, ICLR 2021). Heads on encoders that are trained already
    and stay as they are are ours.
    """

    def __init__(self, features: dict[str, Tensor], classes: int) -> None:
        super().__init__()
        self.names = tuple(features)
        self.heads = nn.ModuleList(nn.Linear(z.shape[1], classes) for z in features.values())

    def evidence(self, features: dict[str, Tensor]) -> Tensor:
        """``(B, M, K)``."""
        pairs = zip(self.names, self.heads, strict=True)
        return torch.stack([softplus(head(features[name])) for name, head in pairs], 1)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Log of the fused Dirichlet's mean, ``(B, K)``."""
        return reduced_dempster(self.evidence(features)).weights.log()

    def fit(self, features: dict[str, Tensor], labels: Tensor) -> "EvidenceHeads":
        """Train on training items."""
        optimizer = torch.optim.Adam(self.parameters(), lr=RATE)
        for step in range(STEPS):
            rows = torch.randint(len(labels), (min(BATCH, len(labels)),))
            evidence = self.evidence({name: z[rows] for name, z in features.items()})
            opinion = reduced_dempster(evidence)
            fused = opinion.belief * (evidence.shape[-1] / opinion.uncertainty)[:, None]  # e_k = b_k S, S = K / u
            every = torch.cat([evidence, fused[:, None]], 1)
            loss = evidential_loss(every, labels[rows], min(1.0, step / ANNEALING)).mean(0).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self


def evidential_loss(evidence: Tensor, labels: Tensor, share: float) -> Tensor:
    """``Σ_k y_k (ψ(S) - ψ(α_k)) + share · KL(Dir(α̃) || Dir(1))`` per item and source ``(B, M)``.

    ``evidence`` is ``(B, M, K)``, and ``α̃ = y + (1 - y) α``.
    """
    alpha = evidence + 1
    truth = one_hot(labels, evidence.shape[-1])[:, None].to(alpha)
    fit = (truth * (alpha.sum(-1, keepdim=True).digamma() - alpha.digamma())).sum(-1)
    wrong = Dirichlet(truth + (1 - truth) * alpha)
    return fit + share * kl_divergence(wrong, Dirichlet(torch.ones_like(alpha)))
