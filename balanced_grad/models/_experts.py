import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from balanced_grad.capture import JOINT
from balanced_grad.choices import check_choice
from balanced_grad.labels import Task
from balanced_grad.models._experts_null import NullTokenExpert
from balanced_grad.models._experts_subsets import Subset, named_subsets
from balanced_grad.models._product import mean_loss, normalised, pool, silenced
from balanced_grad.models._product_stack import Present, Stack, read_targets, refuse_excluded, stack


class ProductOfExperts(nn.Module):
    """Inter- and intra-modality experts multiplied (I2M2): any modules, one per modality and per set of modalities.

    With ``ℓ_e = log softmax(s_e)`` of expert ``e``'s logits and its presence ``m_e ∈ {0, 1}``:

        log p = log softmax( (1/τ) Σ_e m_e w_e ℓ_e + π log p(y) )

    * ``"classification"``: experts give ``(B, ..., C)`` logits, or one logit for two classes; the product gives
      log-probabilities. A class that one expert excludes (logit ``-inf``) is excluded.
    * ``"multilabel"``: a product of Bernoullis per label; logits ``(1/τ) Σ_e m_e w_e s_e`` from logits.
    * ``"regression"``: experts give ``(B, ..., 2 D)``, ``D`` means, then ``D`` log-variances; the product is the
      Gaussian of precision ``(1/τ) Σ_e m_e w_e σ_e^-2`` whose mean is weighted by precision, in the same form.

    With all ``w_e = τ = 1``, as published, the joint loss sends one and the same gradient ``p - onehot(y)`` to the
    logits of every expert: one that is right early leaves the others nothing to learn. ``losses`` therefore gives one
    loss per expert beside the joint one, for a balancer.

    Where an item lacks a modality, its expert and every joint expert that needs it drop out, and the product of the
    others is normalised. An item with no expert left gets the prior; without one the uniform distribution, or in
    regression the standard normal. Experts that repeat each other sharpen the product beyond what they know:
    ``fit_temperature`` and ``fit_weights`` answer that on validation items; ``weights`` of ``1/E`` make the product a
    geometric mean, which copies do not sharpen.

    Source: Madaan, Makino, Chopra and Cho, "Jointly Modeling Inter- & Intra-Modality Dependencies for Multi-modal
    Learning" (NeurIPS 2024), whose product has exponents of 1 and no prior. Exponents, temperature, masks, multi-label
    and regression are our reading.

    Args:
        experts: modality, or tuple of modalities for a joint expert, -> module, called with the inputs of its
            modalities in this order. A joint expert's name is ``"audio+video"``.
        task: ``"classification"`` (default), ``"multilabel"`` or ``"regression"``.
        prior: ``(C,)`` logits, or ``(2 D,)``, in the form of an expert's output.
        prior_weight: ``π ≥ 0``; 0 (default, as published): the prior counts only where no expert is left.
        class_weights: ``(C,)`` weights of the mean in the joint loss, not in the experts' own.

    Attributes:
        weights: ``(E,)`` buffer ``w``, ones.
        temperature: ``()`` buffer ``τ``, 1.

    Raises:
        TypeError, ValueError: for no expert, names that collide, an unknown task, outputs, targets or masks that do not
            fit, and on the CPU an item whose every class is excluded (elsewhere, where looking would wait for the
            device, its log-probabilities are NaN).

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from balanced_grad.models import ProductOfExperts
        >>> product = ProductOfExperts({"audio": nn.Identity(), "video": nn.Identity()})
        >>> sure, even = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> product({"audio": sure, "video": even}).exp()  # an expert without information changes nothing
        tensor([[0.9000, 0.1000]])
        >>> product({"audio": sure, "video": sure}).exp()
        tensor([[0.9878, 0.0122]])
        >>> product({"audio": sure}).exp()  # video is missing
        tensor([[0.9000, 0.1000]])
    """

    weights: Tensor
    temperature: Tensor
    prior: Tensor | None
    class_weights: Tensor | None

    def __init__(
        self,
        experts: Mapping[Subset, nn.Module],
        *,
        task: Task = "classification",
        prior: Tensor | None = None,
        prior_weight: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_choice("task", task, Task)
        if not (math.isfinite(prior_weight) and prior_weight >= 0):
            raise ValueError(f"prior_weight={prior_weight!r}: give a finite number >= 0")
        if prior_weight and prior is None:
            raise ValueError(f"prior_weight={prior_weight!r} but no prior: give prior=, or leave the weight out")
        if class_weights is not None and task != "classification":
            raise ValueError(f"class_weights are for task='classification', not {task!r}")
        self.subsets = named_subsets(experts)
        self.task: Task = task
        self.prior_weight = prior_weight
        self.experts = nn.ModuleList(experts.values())  # a list, not a ModuleDict: a modality may be called anything
        self.register_buffer("weights", torch.ones(len(experts)))
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("prior", None if prior is None else normalised(task, prior))
        self.register_buffer("class_weights", class_weights)

    def named_experts(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of each expert."""
        return zip(self.subsets, self.experts, strict=True)

    def forward(self, inputs: Mapping[str, Any], present: Present | None = None) -> Tensor:
        """The product's prediction: ``combine(outputs(inputs, present), present)``."""
        return self.combine(self.outputs(inputs, present), present)

    def outputs(
        self, inputs: Mapping[str, Any], present: Present | None = None, *, only: str | None = None
    ) -> dict[str, Tensor]:
        """The output of each expert that has its modalities, by name.

        Args:
            inputs: modality -> what its experts take. One missing in this batch is left out, or None.
            present: modality -> ``(B,)`` boolean, for modalities that some items lack. The slots of absent items in a
                tensor may hold anything, NaN too: experts see zeros there.
            only: the one expert to ask.
        """
        if only is not None and only not in self.subsets:
            raise ValueError(f"no expert is called {only!r}; the experts are {list(self.subsets)}")
        given = {m: _blanked(m, x, (present or {}).get(m)) for m, x in inputs.items() if x is not None}
        out = {}
        for name, expert in self.named_experts():
            subset = self.subsets[name]
            if only is not None and name != only:
                continue
            if isinstance(expert, NullTokenExpert) and any(m in given for m in subset):
                masks = [(present or {}).get(m) for m in subset]
                out[name] = expert(*(given.get(m) for m in subset), present=masks)
            elif all(m in given for m in subset):
                out[name] = expert(*(given[m] for m in subset))
        return out

    def combine(self, outputs: Mapping[str, Tensor | None], present: Present | None = None) -> Tensor:
        """The product of given outputs by expert name; an expert left out, or None, is absent from the batch."""
        return self._product(self.stacked(outputs, present))

    def losses(
        self, outputs: Mapping[str, Tensor | None], targets: Tensor, present: Present | None = None
    ) -> dict[str, Tensor]:
        """Mean negative log-likelihoods in nats: ``"joint"`` of the product, and of each expert where it is present.

        An expert that no labelled item of the batch has is left out; with masks or labels that are not on the CPU,
        where looking would wait for the device, its loss is 0 with zero gradient. So is the joint loss of a batch in
        which nothing is labelled.

        Args:
            outputs: as ``outputs`` gives them.
            targets: ``(B, ...)`` class indices (-100: not counted) or shares of the classes ``(B, ..., C)``,
                ``(B, ..., C)`` labels in [0, 1] (NaN or -100: not counted), or ``(B, ..., D)`` values (NaN: not
                counted).
            present: as for ``outputs``.
        """
        voices = self.stacked(outputs, present)
        labels = read_targets(self.task, voices.outputs[0], targets)
        self._check_class_weights(voices.outputs.shape[-1])
        losses = {JOINT: mean_loss(self.task, self._product(voices), labels, class_weights=self.class_weights)}
        for name, output, kept in zip(voices.names, voices.outputs, voices.present, strict=True):
            spoken = labels.among(kept) if present else labels
            if name not in voices.silent and not spoken.nothing:
                alone = silenced(self.task, output, kept) if present else output
                losses[name] = mean_loss(self.task, alone, spoken)
        return losses

    def _check_class_weights(self, classes: int) -> None:
        if self.class_weights is not None and self.class_weights.shape != (classes,):
            raise ValueError(
                f"class_weights have shape {tuple(self.class_weights.shape)}; give one for each of {classes} classes"
            )

    def stacked(self, outputs: Mapping[str, Tensor | None], present: Present | None = None) -> Stack:
        """Given outputs checked, normalised and in one tensor, with the presence of each expert."""
        flexible = [name for name, expert in self.named_experts() if isinstance(expert, NullTokenExpert)]
        return stack(self.task, self.subsets, flexible, outputs, present)

    def _product(self, voices: Stack) -> Tensor:
        """The prior is one more expert, with weight 1 where it is the only one."""
        order = list(self.subsets)
        weight_of = torch.stack([self.weights[order.index(name)] for name in voices.names])[:, None]
        kept = voices.present & (weight_of > 0)
        exponents = kept * weight_of / self.temperature
        spare = torch.where(kept.any(0), self.prior_weight, 1.0).to(exponents)
        weights = torch.cat([exponents, spare[None]])
        outputs = torch.cat([voices.outputs, self.prior_row(voices.outputs)])
        product = pool(self.task, silenced(self.task, outputs, weights > 0), weights.to(outputs))
        if self.task == "classification" and product.is_cpu and not product.isfinite().all():
            refuse_excluded(voices.outputs, kept)
        return product

    def prior_row(self, like: Tensor) -> Tensor:
        """The prior as an expert's row ``(1, B, ..., C)``; without one what is uniform, or standard normal."""
        row = like.new_zeros(like.shape[-1]) if self.prior is None else self.prior.to(like)
        if row.shape != like.shape[-1:]:
            raise ValueError(
                f"the prior has shape {tuple(row.shape)}, but experts give {like.shape[-1]} numbers per item"
            )
        return row.expand(1, *like.shape[1:])

    def extra_repr(self) -> str:
        """Settings."""
        return f"experts={list(self.subsets)}, task={self.task!r}, prior_weight={self.prior_weight}"


def _blanked(modality: str, x: Any, mask: Tensor | None) -> Any:
    """Zeros where items lack the modality; anything else is for the expert to handle."""
    if mask is None or not isinstance(x, Tensor):
        return x
    if mask.shape != x.shape[:1]:
        raise ValueError(f"present[{modality!r}] has shape {tuple(mask.shape)} for {len(x)} items")
    return torch.where(mask.to(x.device).reshape(-1, *[1] * (x.dim() - 1)), x, torch.zeros_like(x))
