from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from balanced_grad.capture import JOINT
from balanced_grad.methods import Task
from balanced_grad.models._experts import ProductOfExperts
from balanced_grad.models._experts_fit import WeightFit, fit_weights


class ProductOfHeads(nn.Module):
    """The predictions of one network multiplied: of its fused head, ``"joint"``, and of its uni-modal heads.

        log p = log softmax( w_joint log p_joint + Σ_m w_m log p_m )

    A network trained with uni-modal losses has these heads anyhow. ``fit`` chooses the weights on validation items; a
    head that has memorised its training items comes out near zero. Where a modality is missing, leave out its head and
    the joint one, and the others still predict.

    Source: ours; a ``ProductOfExperts`` whose experts are heads.

    Args:
        modalities: names of the uni-modal heads, two or more.
        task: as for ``ProductOfExperts``; default ``"classification"``.

    Raises:
        ValueError: for fewer than two modalities; in a call, for names or outputs that do not fit.

    Examples:
        >>> import torch
        >>> from balanced_grad.models import ProductOfHeads
        >>> label = torch.arange(60) % 2
        >>> right = torch.nn.functional.one_hot(label, 2).float()
        >>> heads = {"joint": right, "audio": 2 * right, "video": 8 * right.roll(7, 0)}  # video is sure, and wrong
        >>> product = ProductOfHeads(["audio", "video"])
        >>> found = product.fit(heads, label)
        >>> product.weights["video"] < 0.01 < product.weights["audio"]
        True
        >>> product(heads).shape, product({"audio": heads["audio"]}).shape  # without video there is no joint one either
        (torch.Size([60, 2]), torch.Size([60, 2]))
    """

    def __init__(self, modalities: Iterable[str], *, task: Task = "classification") -> None:
        super().__init__()
        names = tuple(modalities)
        if len(names) < 2:
            raise ValueError(f"modalities={names!r}: give the names of two or more")
        self._names = {JOINT: "+".join(names)} | {name: name for name in names}
        self.pool = ProductOfExperts({names: nn.Identity()} | {name: nn.Identity() for name in names}, task=task)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each head; ones before ``fit``."""
        return dict(zip(self._names, self.pool.weights.tolist(), strict=True))

    def forward(self, outputs: Mapping[str, Tensor | None]) -> Tensor:
        """Log-probabilities (of a classification) from the heads' outputs by name; one left out, or None, is absent."""
        return self.pool.combine(self._renamed(outputs))

    def fit(
        self, outputs: Mapping[str, Tensor | None], targets: Tensor, *, shrinkage: float | None = None
    ) -> WeightFit:
        """Fit the weights on validation items and keep them; see ``fit_weights``.

        Args:
            outputs: of all heads, ``(N, C)`` logits of ``N`` validation items each.
            targets: ``(N,)`` of these items.
            shrinkage: see ``fit_weights``.
        """
        given = {name: output for name, output in self._renamed(outputs).items() if output is not None}
        found = fit_weights(self.pool, given, targets, shrinkage=shrinkage)
        return replace(found, exponents=dict(zip(self._names, found.exponents.values(), strict=True)))

    def _renamed(self, outputs: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        unknown = [name for name in outputs if name not in self._names]
        if unknown:
            raise ValueError(f"no head is called {unknown[0]!r}; the heads are {list(self._names)}")
        return {self._names[name]: output for name, output in outputs.items()}
