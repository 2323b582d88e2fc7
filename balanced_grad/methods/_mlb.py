import torch
from torch import Tensor

from balanced_grad.methods._comparison import relative_to_others
from balanced_grad.methods._encoders import Modalities
from balanced_grad.methods._modulation import Modulation, Target


class MLB(Modulation):
    """Multi-loss balanced: joint plus uni-modal losses, lagging encoders sped up, leading ones slowed.

        L   = L_joint + Σ_m L_m
        ρ_m = mean_{n ≠ m} s_n / s_m
        k_m = 1 + (cap - 1) tanh(α (ρ_m - 1))  if ρ_m > 1,   1 + tanh(α (ρ_m - 1))  otherwise
        g_m ← k_m g_m,  the encoder's gradient of L

    Continuous at ``ρ = 1``, for any number of modalities, and for regression with reciprocal errors as scores
    (``bg.scores``). One ordinary backward.

    Give the uni-modal losses: the method is defined with them, and they hold most of its gain. Without
    ``scores=``, ``exp(-L_m)`` of them serve.

    Args:
        modalities: ``ModalityGroups``, or a mapping of name -> encoder (modules or parameters).
        alpha: ``α ≥ 0``. Default 0.8, as in a released configuration (CREMA-D).
        cap: largest coefficient, more than 1. Default 2, the plain ``1 + tanh``.
        target: ``"gradient"``, ``"update"`` or None (default): the update where a ``BalancedOptimizer`` finds that
            its base optimizer, as Adam, cancels a factor on the gradient, else the gradient.
        stop_after: modulate in the first so many training steps only (default: in all).

    Raises:
        ValueError: for a negative ``alpha``, a ``cap`` below 1, an unknown target.

    Source: Kontras et al., "Improving Multimodal Learning with Multi-Loss Gradient Modulation" (2024), and its
    released code, which compares two modalities; the mean of the others for more, and reciprocal errors for
    regression, are our reading.

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
        target: Target | None = None,
        stop_after: int | None = None,
    ) -> None:
        super().__init__(modalities, target=target, stop_after=stop_after)
        if not alpha >= 0:
            raise ValueError(f"alpha={alpha!r}: give a number >= 0")
        if not cap >= 1:
            raise ValueError(f"cap={cap!r}: give a number >= 1, the largest factor on a gradient")
        self.alpha = alpha
        self.cap = cap

    def modulate(self, scores: Tensor) -> Tensor:
        """Above 1 for the modalities behind, below 1 for those ahead."""
        shift = torch.tanh(self.alpha * (1 / relative_to_others(scores) - 1))
        return 1 + torch.where(shift > 0, (self.cap - 1) * shift, shift)

    def extra_repr(self) -> str:
        """Settings."""
        return f"alpha={self.alpha}, cap={self.cap}, " + super().extra_repr()
