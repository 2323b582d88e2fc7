from collections.abc import Mapping

import torch
from torch import Tensor

from balanced_grad.capture import JOINT
from balanced_grad.labels import Labels
from balanced_grad.modulation._base import Modulation, Target
from balanced_grad.modulation._comparison import Scores
from balanced_grad.modulation._modalities import Modalities
from balanced_grad.presence import Present, checked_mask, nobody
from balanced_grad.records import Problem, Weighting


class ARL(Modulation):
    """Asymmetric learning: speed up the encoders that weigh less in the prediction than they are sure.

        q_m ∝ 1 / max(h_m, entropy_floor),   h_m ∝ H(softmax f_m)    the share a modality should have
        c_m ∝ Σ_c |f_mc|                                     the share it has
        w   = softmax(T/2 (q - c))
        g_m ← (1 + M/2 w_m) g_m,   L = L_joint + γ Σ_m L_m

    with uni-modal logits ``f_m``, means over the items, and shares ``h``, ``q``, ``c`` that sum to one. For two
    modalities these are the source's numbers, whose exponents ``T q_a c_v`` and ``T q_v c_a`` differ by
    ``T (q_a - c_a)``; for more, ``M/2`` and a floor of ``2/M`` times as much are our extension. One ordinary backward.

    The score of a modality is ``exp(c_m - q_m)``, how far it is ahead:
    ``balancer(losses, scores=balancer.scores(logits))``.

    Args:
        modalities: ``ModalityGroups``, or a mapping of name -> encoder (modules or parameters).
        temperature: ``T ≥ 0``. Default 8, as published. 0 multiplies every encoder's gradient by 1.5: what the
            released code does.
        gamma: ``γ ≥ 0``. Default 4, as in the published scripts.
        entropy_floor: least normalised entropy of two modalities, in [0, 0.5]. Default 0.3, as published.
        target, stop_after: see ``Modulation``. Published: begins after five epochs; here at once.

    Raises:
        ValueError: for a negative ``temperature`` or ``gamma``, an ``entropy_floor`` outside [0, 0.5], a call without
            scores.

    Source: Wei et al., "Improving Multimodal Learning via Imbalanced Learning" (ICCV 2025). Its released code computes
    ``w``, prints it, and writes it to where nothing reads it: the constants 0.5 stay in force, so that what was
    released is uni-modal losses of weight γ and encoders at 1.5 times their learning rate.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> ears, eyes = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        >>> balancer = bg.ARL({"audio": ears, "video": eyes})
        >>> logits = {"audio": torch.tensor([[2.0, -2.0]]), "video": torch.tensor([[2.0, 1.0]])}
        >>> balancer({"joint": (ears + eyes).sum()}, scores=balancer.scores(logits)).backward()
        >>> ears.grad, eyes.grad  # audio is surer than its part in the prediction is large
        (tensor([1.7974]), tensor([1.2026]))
    """

    _call = "write balancer(losses, scores=balancer.scores({'audio': audio_logits, ...}))"

    def __init__(
        self,
        modalities: Modalities,
        temperature: float = 8.0,
        *,
        gamma: float = 4.0,
        entropy_floor: float = 0.3,
        target: Target | None = None,
        stop_after: int | None = None,
    ) -> None:
        super().__init__(modalities, target=target, stop_after=stop_after)
        if not temperature >= 0 or not gamma >= 0 or not 0 <= entropy_floor <= 0.5:
            raise ValueError(
                f"temperature={temperature!r}, gamma={gamma!r}, entropy_floor={entropy_floor!r}: give temperature and "
                "gamma >= 0, and entropy_floor in [0, 0.5]"
            )
        self.temperature = temperature
        self.gamma = gamma
        self.entropy_floor = entropy_floor

    @torch.no_grad()
    def scores(self, logits: Mapping[str, Tensor | None], present: Present | None = None) -> dict[str, Tensor | None]:
        """How far each modality is ahead: the share it has over the one it should have, ``exp(c_m - q_m)``.

        Args:
            logits: modality -> uni-modal class logits ``(..., C)``, None for a missing one.
            present: modality -> ``(B,)`` boolean, for modalities that some items lack.
        """
        masks = {} if present is None else present
        given = {name: x for name, x in logits.items() if x is not None}
        found = {name: _of_items(name, x, masks.get(name)) for name, x in given.items()}
        there = {name: pair for name, pair in found.items() if pair is not None}
        if not there:
            return dict.fromkeys(logits)
        entropy, size = (_shares(torch.stack(column)) for column in zip(*there.values(), strict=True))
        least = max(2 * self.entropy_floor / len(there), torch.finfo(entropy.dtype).tiny)
        wanted = _shares(1 / entropy.clamp_min(least))
        ahead = dict(zip(there, (size - wanted).exp().unbind(), strict=True))
        return {name: ahead.get(name) for name in logits}

    def modulate(self, scores: Tensor) -> Tensor:
        """``1 + M/2 softmax(T/2 (q - c))`` over the modalities present."""
        here = ~scores.isnan()
        exponents = torch.where(here, -self.temperature / 2 * scores.log(), -torch.inf)
        return torch.where(here, 1 + here.sum() / 2 * exponents.softmax(0), torch.nan)

    def weigh(self, problem: Problem) -> Weighting:
        """1 for the joint loss, ``γ`` for the uni-modal ones."""
        weights = [problem.losses.new_full((), 1.0 if name == JOINT else self.gamma) for name in problem.names]
        return Weighting(torch.stack(weights))

    def _default(self, problem: Problem) -> Scores:
        raise ValueError(f"ARL compares what the uni-modal heads predict: {self._call}")

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        mine = {"temperature": self.temperature, "gamma": self.gamma, "entropy_floor": self.entropy_floor}
        return mine | super().settings()


def _of_items(name: str, logits: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Mean entropy in nats and mean size of the logits, ``()`` each; None where it is known that no item has any."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = wide.log_softmax(-1)
    entropy, size = -(log_p.exp() * log_p).sum(-1), wide.abs().sum(-1)
    labels = Labels(torch.empty_like(entropy), None)
    if mask is not None:
        here = checked_mask(name, mask, len(logits), logits.device)
        if nobody(here):
            return None
        labels = labels.among(here)
    return labels.mean(entropy), labels.mean(size)


def _shares(values: Tensor) -> Tensor:
    """``(M,)`` values that sum to one; equal ones of nothing."""
    total = values.sum()
    return torch.where(total > 0, values / total, 1 / len(values))
