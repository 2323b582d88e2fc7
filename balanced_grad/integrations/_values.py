import torch
from torch import Tensor

from balanced_grad.records import Step


def log_values(step: Step | None, prefix: str = "balance/", *, pairs: bool = False) -> dict[str, Tensor]:
    """What a logger shows of a step: 0-dimensional tensors on the device, which nothing has waited for.

        loss/NAME        value of each loss
        weight/NAME      its weight; over several problems, the mean over those it is in
        norm/NAME        norm of its gradient where losses meet, over all problems
        cosine           mean cosine of the gradients of two losses that meet
        conflict         share of these pairs whose inner product is negative
        score/NAME, coefficient/NAME   of a method that modulates encoders
        factor/NAME      of a guard
        rate/NAME        learning rate of a modality, relative to the optimizer's
        belief/NAME, uncertainty       of a method that weighs evidence
        cosine/NAME,NAME               of each pair of losses, with ``pairs=True``; NaN where they do not meet

    Norms, the cosine and the conflict are there where per-loss gradients were taken: by a method that needs them, or
    with ``record_gramian=True``. A pair in which a gradient is zero does not count; of no pair, both are 0.

    Args:
        step: ``balancer.last``; None, before the first step, gives an empty mapping.
        prefix: of every name.
        pairs: whether to give the cosine of each pair of losses, too; default False.

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
        norm/joint 2.236
        norm/audio 1.0
        cosine -0.894
        conflict 1.0
    """
    if step is None:
        return {}
    out = _named("loss", step.names, step.losses)
    weights = step.mean_weights()
    if weights is not None:
        out |= _named("weight", step.names, weights)
    if step.gramian is not None:
        out |= _named("norm", step.names, _summed(step.gramian).diagonal().sqrt())
        out["cosine"], out["conflict"] = _conflict(step.gramian)
        out |= _pairs(step.names, step.gramian) if pairs else {}
    out |= {f"score/{name}": score for name, score in step.scores.items()}
    out |= {f"coefficient/{name}": factor for name, factor in step.coefficients.items()}
    out |= {f"factor/{name}": factor for name, factor in step.factors.items()}
    out |= {f"rate/{name}": step.losses.new_full((), rate) for name, rate in step.rates.items()}
    if step.trust is not None:
        out |= _named("belief", step.names, step.trust.belief) | {"uncertainty": step.trust.uncertainty}
    return {f"{prefix}{name}": value for name, value in out.items()}


def _conflict(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine, and the share of pairs in conflict."""
    norms = gramian.diagonal(dim1=-2, dim2=-1).sqrt()
    products = norms.unsqueeze(-1) * norms.unsqueeze(-2)
    pairs = torch.ones_like(gramian, dtype=torch.bool).triu(1) & (products != 0)  # NaN counts: it was applied
    count = pairs.sum().clamp_min(1)
    cosine = torch.where(pairs, gramian / products, 0).sum() / count
    return cosine, (pairs & (gramian < 0)).sum() / count


def _named(kind: str, names: tuple[str, ...], values: Tensor) -> dict[str, Tensor]:
    return {f"{kind}/{name}": value for name, value in zip(names, values.unbind(), strict=True)}


def _summed(gramian: Tensor) -> Tensor:
    """``(K, K)``: over all problems."""
    return gramian.sum(0) if gramian.dim() > 2 else gramian


def _pairs(names: tuple[str, ...], gramian: Tensor) -> dict[str, Tensor]:
    """The cosine of each pair, over all problems."""
    products = _summed(gramian)
    norms = products.diagonal().sqrt()
    cosines = (products / norms / norms.unsqueeze(-1)).clamp(-1, 1)
    places = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    return {f"cosine/{names[a]},{names[b]}": cosines[a, b] for a, b in places}
