from typing import Literal

import torch
from torch import Tensor

from balanced_grad.choices import check_choice
from balanced_grad.modulation._base import Modulation, Target
from balanced_grad.modulation._comparison import relative_to_others, tanh_of
from balanced_grad.modulation._modalities import Modalities

ScoredTask = Literal["classification", "regression"]


class MLB(Modulation):
    """Multi-loss balanced: joint plus uni-modal losses, lagging encoders sped up, leading ones slowed.

        L   = L_joint + Σ_m L_m
        ρ_m = mean_{n ≠ m} s_n / s_m
        k_m = 1 + (cap - 1) tanh(α (ρ_m - 1))  if ρ_m > 1,   1 + tanh(α (ρ_m - 1))  otherwise
        g_m ← k_m g_m,  the encoder's gradient of L
        task="regression":  ρ_m = e_m / mean_{n ≠ m} e_n,  of the errors e = 1 / s

    Continuous at ``ρ = 1``, and for any number of modalities. One ordinary backward.

    Give the uni-modal losses: the method is defined with them, and they hold most of its gain. Without
    ``scores=``, ``s_m = exp(-L_m)`` of them serve; for regression, they are the errors.

    Args:
        modalities: ``ModalityGroups``, or a mapping of name -> encoder (modules or parameters).
        alpha: ``α ≥ 0``. Default 0.8, as in every released configuration.
        cap: largest coefficient, at least 1. Default 2, the plain ``1 + tanh``.
        task: ``"classification"``, or ``"regression"``, where scores are reciprocal errors and are compared and
            averaged as errors. For two modalities the comparison is the same. None (default): the task that
            ``bg.scores`` or ``aux.scores`` made the scores for, ``"classification"`` for others.
        target: ``"gradient"``, ``"update"`` or None (default): the update where a ``BalancedOptimizer`` finds that
            its base optimizer, as Adam, cancels a factor on the gradient, else the gradient.
        stop_after: modulate in the first so many training steps only (default: in all).

    Raises:
        ValueError: for a negative ``alpha``, a ``cap`` below 1, an unknown target or task, a negative uni-modal loss
            as an error.

    Source: Kontras et al., "Improving Multimodal Learning with Multi-Loss Gradient Modulation" (2024), and its
    released code: the mean of the others for three modalities, and the rule for regression, are its own. It also scales
    the modality's columns of the fused head; here only the encoder.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> ears, eyes = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        >>> balancer = bg.MLB({"audio": ears, "video": eyes}, alpha=0.5)
        >>> losses = {"joint": (ears + eyes).sum(), "audio": ears.sum(), "video": eyes.sum()}
        >>> balancer(losses, scores={"audio": 0.8, "video": 0.4}).backward()
        >>> balancer.last.to_dict()["coefficients"]
        {'audio': 0.755..., 'video': 1.462...}
        >>> ears.grad, eyes.grad
        (tensor([1.5102]), tensor([2.9242]))
    """

    def __init__(
        self,
        modalities: Modalities,
        alpha: float = 0.8,
        *,
        cap: float = 2.0,
        task: ScoredTask | None = None,
        target: Target | None = None,
        stop_after: int | None = None,
    ) -> None:
        super().__init__(modalities, target=target, stop_after=stop_after)
        if not alpha >= 0:
            raise ValueError(f"alpha={alpha!r}: give a number >= 0")
        if not cap >= 1:
            raise ValueError(f"cap={cap!r}: give a number >= 1, the largest factor on a gradient")
        if task is not None:
            check_choice("task", task, ScoredTask)
        self.alpha = alpha
        self.cap = cap
        self.task = task
        self._compare_as(task)

    def _compare_as(self, task: str | None) -> None:
        self._errors = task == "regression"
        self._scores_as = "error" if self._errors else "score"
        self._losses_as = "error" if self._errors else "loss"

    def _learn_task(self, task: str | None) -> None:
        if self.task is None:
            self._compare_as(task)

    def modulate(self, scores: Tensor) -> Tensor:
        """Above 1 for the modalities behind, below 1 for those ahead."""
        lag = relative_to_others(1 / scores) if self._errors else 1 / relative_to_others(scores)
        shift = tanh_of(self.alpha, lag - 1)
        return 1 + torch.where(shift > 0, (self.cap - 1) * shift, shift)

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        return {"alpha": self.alpha, "cap": self.cap, "task": self.task} | super().settings()
