import torch
from torch import Tensor

from balanced_grad.records import Step


def log_values(step: Step | None, prefix: str = "balance/") -> dict[str, Tensor]:
    """What a logger shows of a step: 0-dimensional tensors on the device, which nothing has waited for.

        loss/NAME        value of each loss
        weight/NAME      its weight; over several problems, the mean over those it is in
        cosine           mean cosine of the gradients of two losses that meet
        conflict         share of these pairs whose inner product is negative
        score/NAME, coefficient/NAME   of a method that modulates encoders
        factor/NAME      of a guard
        rate/NAME        learning rate of a modality, relative to the optimizer's

    The cosine and the conflict are there where per-loss gradients were taken: by a method that needs them, or with
    ``record_gramian=True``. A pair in which a gradient is zero does not count; of no pair, both are 0.

    Args:
        step: ``balancer.last``; None, before the first step, gives an empty mapping.
        prefix: of every name.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> from balanced_grad.integrations import log_values
        >>> w = torch.ones(2, requires_grad=True)
        >>> balancer = bg.MinNorm()
        >>> balancer({"joint": 2 * w[0] + w[1], "audio": -w[0]}).backward()
        >>> for name, value in log_values(balancer.last, prefix="").items():
        ...     print(name, round(value.item(), 3))
        loss/joint 3.0
        loss/audio -1.0
        weight/joint 1.0
        weight/audio 1.382
        cosine -0.894
        conflict 1.0
    """
    if step is None:
        return {}
    out = {f"loss/{name}": loss for name, loss in zip(step.names, step.losses.unbind(), strict=True)}
    weights = step.mean_weights()
    if weights is not None:
        out |= {f"weight/{name}": weight for name, weight in zip(step.names, weights.unbind(), strict=True)}
    if step.gramian is not None:
        out["cosine"], out["conflict"] = _conflict(step.gramian)
    out |= {f"score/{name}": score for name, score in step.scores.items()}
    out |= {f"coefficient/{name}": factor for name, factor in step.coefficients.items()}
    out |= {f"factor/{name}": factor for name, factor in step.factors.items()}
    out |= {f"rate/{name}": step.losses.new_full((), rate) for name, rate in step.rates.items()}
    return {f"{prefix}{name}": value for name, value in out.items()}


def _conflict(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine, and the share of pairs in conflict."""
    norms = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
    products = norms.unsqueeze(-1) * norms.unsqueeze(-2)
    pairs = torch.ones_like(gramian, dtype=torch.bool).triu(1) & (products != 0)  # NaN counts: it was applied
    count = pairs.sum().clamp_min(1)
    cosine = torch.where(pairs, gramian / products, 0).sum() / count
    return cosine, (pairs & (gramian < 0)).sum() / count
