import torch
from torch import Tensor

from balanced_grad.balancer import Balancer
from balanced_grad.guard._held_out import HeldOut, HeldOutLosses
from balanced_grad.guard._transfer import Track
from balanced_grad.host import Number
from balanced_grad.records import Problem, Weighting


class Sum(Balancer):
    """Joint loss plus the sum of the uni-modal losses."""

    needs = "nothing"

    def weigh(self, problem: Problem) -> Weighting:
        """1 for every loss."""
        return Weighting(torch.ones_like(problem.losses), problem.losses.sum())


class GradientBlending(HeldOut):
    """Losses weighed by how much they generalise for how little they over-fit, online and in one run.

        w_k ∝ G_k / (O_k² + s_k²),   Σ_k w_k = K,   G_k = max(L_k,0 - H_k, 0),   O_k = H_k - T_k

    for the joint loss and each modality's, with the moving averages ``T`` of the training loss and ``H`` of the
    held-out one, and their common start ``L_0``: what ``HeldOut`` measures. The weights minimise the expected
    over-fitting to generalisation ratio of a sum of uncorrelated gradients. ``s``, the standard error of ``O``, is our
    addition: it is what noise adds to a measured ``O²`` on average, and keeps the weight of a loss that does not
    over-fit from growing without bounds. Held-out batches come as for ``HeldOut``: ``held_out=``, or ``observe`` when
    ``due``. Until all losses have been looked at ``warm_up`` times, or where none generalises, all weights are 1.

    Args:
        held_out, every, decay, warm_up: see ``HeldOut``, with its defaults.

    Raises:
        TypeError, ValueError: as ``HeldOut``.

    Source: Wang et al., "What Makes Training Multi-modal Classification Networks Hard?" (2020), where ``G`` and ``O``
    come from training each loss apart between two checkpoints, ``M + 1`` trainings more in every super-epoch, and
    weights sum to 1. Online, from the start of one run, and weights that sum to ``K`` so that learning rates can be
    compared with ``Uniform``, are our reading.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> w = torch.nn.Parameter(torch.tensor([4.0, 4.0]))
        >>> blend = bg.GradientBlending(every=1, warm_up=3)
        >>> optimizer = bg.BalancedOptimizer(torch.optim.SGD([w], lr=0.2), blend)
        >>> for _ in range(8):
        ...     blend({"audio": w[0].square(), "video": w[1].square()}).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     blend.observe({"audio": w[0].square(), "video": 8 + w[1].square() / 2})  # video over-fits
        >>> weights = blend.last.to_dict()["weights"]
        >>> weights["audio"] > 10 * weights["video"], round(sum(weights.values()), 3)
        (True, 2.0)
    """

    def __init__(
        self, held_out: HeldOutLosses | None = None, *, every: int = 10, decay: float = 0.9, warm_up: int = 10
    ) -> None:
        super().__init__(Sum(), held_out, every=every, decay=decay, warm_up=warm_up)

    def _choose(self) -> None:
        """The factors on the weights of the sum: they change here only."""
        names, tracks = list(self.transfer.tracks), list(self.transfer.tracks.values())
        if not names:
            self.factors = {}
            return
        known = torch.stack([_tensor(t.is_known() & (t.checks > self.transfer.warm_up)) for t in tracks]).all()
        value = torch.stack([_value(t, self.transfer.decay) for t in tracks])
        total = value.sum()
        weights = torch.where(known & (total > 0), value * len(names) / torch.where(total > 0, total, 1), 1)
        self.factors = dict(zip(names, weights.unbind(), strict=True))

    def settings(self) -> dict[str, object]:
        """Its own."""
        return {"every": self.every, "decay": self.transfer.decay, "warm_up": self.transfer.warm_up}


def _value(track: Track, decay: float) -> Tensor:
    """``G / (O² + s²)``, 0 where nothing carries over or nothing is known."""
    gain, excess = _tensor(track.start - track.held_out), _tensor(track.held_out - track.train)
    cost = (excess.square() + _tensor(track.excess_variance(decay))).clamp_min(torch.finfo(gain.dtype).tiny)
    return torch.where(gain > 0, gain, 0) / cost


def _tensor(number: Number | bool) -> Tensor:
    return number if isinstance(number, Tensor) else torch.tensor(number, device="cpu")
