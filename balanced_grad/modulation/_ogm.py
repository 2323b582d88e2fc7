from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from balanced_grad.choices import check_choice
from balanced_grad.draws import Draws
from balanced_grad.modulation._base import Hook, Modulation, Target
from balanced_grad.modulation._comparison import relative_to_others, tanh_of
from balanced_grad.modulation._modalities import Modalities

Variant = Literal["continuous", "original"]


class OGM(Modulation):
    """On-the-fly gradient modulation: slow the encoders that are ahead, and add noise to all (OGM-GE).

        ρ_m = s_m / mean_{n ≠ m} s_n
        original:    k_m = 1 - tanh(α ρ_m)        if ρ_m > 1, else 1
        continuous:  k_m = 1 - tanh(α (ρ_m - 1))  if ρ_m > 1, else 1
        g_m ← k_m g_m + ξ,   ξ ~ N(0, (noise · std(g_m))²)  per tensor, the spread of the unscaled gradient

    with ``s_m`` the mean probability of the right class from modality ``m`` alone (``bg.scores``) and ``g_m`` its
    encoder's gradient. The original jumps at ``ρ = 1`` from 1 to ``1 - tanh α``, so near balance it chatters
    between modalities; the continuous variant (ours, default) does not, and is never below the original. One
    ordinary backward of the joint loss; no uni-modal loss is needed.

    Sources agree for two modalities only, where the mean of the others is the other one; published extensions to
    more divide by the mean of the pairs, the weakest or the sum of the others. The mean of the others is our choice.

    Args:
        modalities: ``ModalityGroups``, or a mapping of name -> encoder (modules or parameters).
        alpha: ``α ≥ 0``. Default 0.3; published settings are 0.1 (VGGSound), 0.3 and 0.8 with the original variant.
        variant: ``"continuous"`` (default) or ``"original"``.
        noise: the noise's standard deviation over that of the gradient. Default 1, as published; 0 is OGM without
            generalisation enhancement. Tensors with one entry have no spread and get none.
        seed: of the noise, alike in all processes; the generator's state is in the ``state_dict``.
        target: ``"gradient"``, ``"update"`` or None; see below. With ``"update"`` the noise, which belongs to the
            gradient, stays there and ``k_m`` multiplies the update made of both.
        stop_after: modulate in the first so many training steps only (default: in all). Published: the first 50
            of 100 epochs, with SGD at 1e-3, momentum 0.9, weight decay 1e-4, batches of 64.

    Optimizers of the Adam type cancel a factor on the gradient. ``target=None`` (default) therefore acts on the
    update where a ``BalancedOptimizer`` finds such a base optimizer, else on the gradient.

    Raises:
        ValueError: for a negative ``alpha`` or ``noise``, an unknown variant or target.

    Source: Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation" (2022). Its released
    code modulates convolution weights only, so linear and attention encoders are silently left alone; here every
    parameter of an encoder is modulated.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> ears, eyes = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        >>> balancer = bg.OGM({"audio": ears, "video": eyes}, alpha=0.5, noise=0.0)
        >>> balancer({"joint": (ears + eyes).sum()}, scores={"audio": 0.8, "video": 0.4}).backward()
        >>> ears.grad, eyes.grad  # audio is twice as good: 1 - tanh(0.5)
        (tensor([0.5379]), tensor([1.]))
    """

    def __init__(
        self,
        modalities: Modalities,
        alpha: float = 0.3,
        *,
        variant: Variant = "continuous",
        noise: float = 1.0,
        seed: int = 0,
        target: Target | None = None,
        stop_after: int | None = None,
    ) -> None:
        super().__init__(modalities, target=target, stop_after=stop_after)
        if not alpha >= 0:
            raise ValueError(f"alpha={alpha!r}: give a number >= 0")
        check_choice("variant", variant, Variant)
        if not noise >= 0:
            raise ValueError(f"noise={noise!r}: give a number >= 0 (0: OGM without generalisation enhancement)")
        self.alpha = alpha
        self.variant = variant
        self.noise = noise
        self.seed = seed
        self._draws = Draws(seed)  # noise is drawn where the gradient is

    def modulate(self, scores: Tensor) -> Tensor:
        """``1 - tanh`` for the modalities ahead, 1 for the others."""
        ratio = relative_to_others(scores)
        excess = ratio if self.variant == "original" else ratio - 1
        return torch.where(ratio > 1, 1 - tanh_of(self.alpha, excess), 1)

    def hook(self, coefficient: Tensor | None) -> Hook | None:
        """Scale, then add noise with the spread of what came in."""
        scale = super().hook(coefficient)
        if self.noise == 0:
            return scale
        return lambda gradient: (gradient if scale is None else scale(gradient)) + self._noise_like(gradient)

    def _noise_like(self, gradient: Tensor) -> Tensor:
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            values = self._noise_like(gradient.values())
            indices, shape = gradient.indices(), gradient.shape
            return torch.sparse_coo_tensor(indices, values, shape, check_invariants=False, is_coalesced=True)
        if gradient.numel() < 2:
            return torch.zeros_like(gradient)
        drawn = torch.empty_like(gradient).normal_(generator=self._draws.on(gradient.device))
        return drawn * (self.noise * gradient.std())

    def state(self) -> dict[str, Any]:
        """Number of training steps and the state of the noise, for ``state_dict``."""
        return super().state() | {"noise": self._draws.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` gave, on whatever device noise is drawn next."""
        if state["noise"] and self.noise == 0:
            raise ValueError(
                "the state is of an OGM that draws noise, this one has noise=0; build it with the same noise"
            )
        super().load_state(state)
        self._draws.load(state["noise"])

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        return {"alpha": self.alpha, "variant": self.variant, "noise": self.noise} | super().settings()
