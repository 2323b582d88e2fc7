from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from balanced_grad.capture import JOINT
from balanced_grad.labels import Task
from balanced_grad.models._experts import ProductOfExperts
from balanced_grad.models._experts_fit import WeightFit, fit_weights
from balanced_grad.presence import Present


class ProductOfHeads(nn.Module):
    """The predictions of one network multiplied: of its fused head, ``"joint"``, and of its uni-modal heads.

        log p = log softmax( w_joint log p_joint + Σ_m w_m log p_m )

    A network trained with uni-modal losses has these heads anyhow. ``fit`` chooses the weights on validation items; a
    head that has memorised its training items comes out near zero. Where a modality is missing, leave out its head and
    the joint one: the others then predict with weights that were fitted without the joint head, which may know all that
    they know, so that beside it they count for nothing.

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
        >>> def right_but(every):  # wrong on one item in so many
        ...     said = torch.where(torch.arange(60) % every == 0, 1 - label, label)
        ...     return torch.nn.functional.one_hot(said, 2).float()
        >>> heads = {"joint": right_but(9), "audio": right_but(7), "video": 8 * right_but(2)}  # video guesses
        >>> product = ProductOfHeads(["audio", "video"])
        >>> found = product.fit(heads, label)
        >>> product.weights["video"] < 0.01 < product.weights["audio"] < product.weights["joint"]
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
        self.without_joint = ProductOfExperts({name: nn.Identity() for name in names}, task=task)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each head where all are there; ones before ``fit``."""
        return dict(zip(self._names, self.pool.weights.tolist(), strict=True))

    def forward(self, outputs: Mapping[str, Tensor | None], present: Present | None = None) -> Tensor:
        """Log-probabilities (of a classification) from the heads' outputs by name; one left out, or None, is absent.

        ``present``, modality -> ``(B,)`` boolean, says what some items lack: there the joint head counts where an item
        has every modality, and the others do with their own weights.
        """
        given = self._renamed(outputs)
        joint = self._names[JOINT]
        alone = {name: output for name, output in given.items() if name != joint}
        if given.get(joint) is None:
            return self.without_joint.combine(alone, present)
        if not present:
            return self.pool.combine(given)
        together, apart = self.pool.combine(given, present), self.without_joint.combine(alone, present)
        full = self._complete(present).to(together.device)
        return torch.where(full.reshape(-1, *[1] * (together.dim() - 1)), together, apart)

    def fit(
        self,
        outputs: Mapping[str, Tensor | None],
        targets: Tensor,
        present: Present | None = None,
        *,
        shrinkage: float | None = None,
    ) -> WeightFit:
        """Fit the weights on validation items and keep them; see ``fit_weights``, which describes the result.

        They shrink towards the joint head alone, by as much as is best in cross-validation: on none of nine sets is the
        product then worse than that head beyond noise (ours, ``python -m bench.product_rules``). A second fit leaves
        out the joint head. There no weight is under a hundredth of the largest, so that a head that is alone still says
        which class it prefers.

        Args:
            outputs: of all heads, ``(N, C)`` logits of ``N`` validation items each.
            targets: ``(N,)`` of these items.
            present: as for a call. The weights beside the joint head are fitted on the items that have every modality.
            shrinkage: see ``fit_weights``.
        """
        given = {name: output for name, output in self._renamed(outputs).items() if output is not None}
        if present:
            full = self._complete(present)
            if not full.any():
                raise ValueError("no validation item has every modality, so nothing says what the joint head is worth")
            complete = {name: output[full.to(output.device)] for name, output in given.items()}
            told = targets[full.to(targets.device)]
        else:
            complete, told = given, targets
        joint = self._names[JOINT]
        fitted = fit_weights(self.pool, complete, told, shrinkage=shrinkage, center=joint)
        alone = {name: output for name, output in given.items() if name != joint}
        fit_weights(self.without_joint, alone, targets, present, shrinkage=shrinkage)
        weights = self.without_joint.weights
        largest = max(float(output.abs().amax()) for output in alone.values())
        weights.clamp_min_(0.01 * (float(weights.max()) or 0.1 / (largest or 1.0)))
        return replace(fitted, exponents=dict(zip(self._names, fitted.exponents.values(), strict=True)))

    def _complete(self, present: Present) -> Tensor:
        """``(B,)``: which items have every modality; names are checked where the masks are used."""
        return torch.stack(list(present.values())).all(0)

    def _renamed(self, outputs: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
        unknown = [name for name in outputs if name not in self._names]
        if unknown:
            raise ValueError(f"no head is called {unknown[0]!r}; the heads are {list(self._names)}")
        return {self._names[name]: output for name, output in outputs.items()}
