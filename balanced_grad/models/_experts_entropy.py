import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import softplus

from balanced_grad.capture import JOINT
from balanced_grad.labels import Task
from balanced_grad.models._experts import ProductOfExperts
from balanced_grad.models._product_stack import Present


@torch.no_grad()
def expert_entropies(
    product: ProductOfExperts, outputs: Mapping[str, Tensor | None], present: Present | None = None
) -> dict[str, float]:
    """How sure each expert is: the mean entropy of its predictions, and that of the product's as ``"joint"``.

        H_e = -(1/N) Σ_n Σ_c p_e(c | x_n) log p_e(c | x_n)

    in nats, over the items that have the expert. Near ``log C`` an expert has gone flat and leaves the product to the
    others; near 0 it decides. Beside the entropy of the labels it says how much an expert claims to know, not whether
    it is right. Of ``"multilabel"`` it is the mean over the labels of the entropy of a Bernoulli, in ``[0, log 2]``; of
    ``"regression"`` the mean over the values of the differential entropy of a Gaussian, ``½ log(2πe σ²)``, which may
    be negative.

    Args:
        product: as trained; exponents and temperature count in ``"joint"`` only.
        outputs: of each expert by name, ``(N, ..., C)``, as ``predictions`` gives them.
        present: as ``predictions`` gives it.

    Returns:
        Name -> nats; without experts that no item has.

    Raises:
        ValueError: for names, outputs or masks that do not fit the product.

    Source: Madaan et al. (NeurIPS 2024), appendix C.7, where it shows which experts fall silent; there for
    classification.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from balanced_grad.models import ProductOfExperts, expert_entropies
        >>> product = ProductOfExperts({"audio": nn.Identity(), "video": nn.Identity()})
        >>> sure, even = torch.tensor([[9.0, 0.0]]), torch.tensor([[0.5, 0.5]])
        >>> {name: round(h, 3) for name, h in expert_entropies(product, {"audio": sure, "video": even}).items()}
        {'audio': 0.001, 'video': 0.693, 'joint': 0.001}
    """
    voices = product.stacked(outputs, present)
    found = {
        name: float(_entropies(product.task, output[kept]).mean())
        for name, output, kept in zip(voices.names, voices.outputs, voices.present, strict=True)
        if kept.any()
    }
    return found | {JOINT: float(_entropies(product.task, product.combine(outputs, present)).mean())}


def _entropies(task: Task, output: Tensor) -> Tensor:
    """Of each item of a classification, or of each entry, from what ``pool`` takes and gives."""
    if task == "classification":
        terms: Tensor = torch.special.entr(output.exp())
        return terms.sum(-1)
    if task == "multilabel":
        return softplus(output) - output * output.sigmoid()
    _, log_variance = output.chunk(2, -1)
    return 0.5 * (math.log(2 * math.pi * math.e) + log_variance)
