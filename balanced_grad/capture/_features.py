from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from balanced_grad.capture._delivery import Delivery
from balanced_grad.capture._gradients import seeds
from balanced_grad.capture._graph import behind_sinks
from balanced_grad.capture._inner import add_block, real_row, select
from balanced_grad.capture._losses import Losses
from balanced_grad.capture._params import ParameterFilter
from balanced_grad.capture._processes import Processes, merged
from balanced_grad.capture._walk import Walk
from balanced_grad.kernels import gramian


class FeatureCapture:
    """Per-loss gradients at named encoder outputs, then one ordinary backward of the weighted losses.

    The encoders are traversed once, so a step costs about what the plain sum costs, and every hook on a
    parameter fires as usual. The last backward is the very one that the scalar is part of, which leads ``through`` it
    to the losses, but with ``params=`` one of its own.

    Of several processes, each has the features of its own items, so the inner products over all items are the sum of
    those of the processes. The last backward is averaged as any other: by DistributedDataParallel, or not at all.
    """

    batches = 1

    def __init__(
        self, losses: Losses, features: Mapping[str, Tensor], params: ParameterFilter, processes: Processes
    ) -> None:
        self.problems = ("all",)
        self.left_out: str | None = None
        self._names = losses.names
        self._losses = losses
        self._features = _checked(features)
        self._edges = [behind_sinks(feature) for feature in self._features.values()]
        self._processes = processes
        self._values = losses.values()
        self._meets: dict[str, set[str]] = {}  # per feature, the losses with a gradient there on any process
        self._grads: list[list[Tensor | None]] = []
        self._scale: Tensor | None = None
        self._walk = Walk.of(losses, stop={edge.node for edge in self._edges})  # what is traversed once per loss
        self._walk.refuse_hidden()
        self._delivery = self._restricted(params)
        self.through = losses.tensors if self._delivery is None else self._delivery.through

    def _restricted(self, params: ParameterFilter) -> Delivery | None:
        """How the last backward is restricted to ``params=``; None: it is not."""
        if not params.restricts and self._processes.size == 1:
            return None
        walk = Walk.of(self._losses)
        for leaf, indices in walk.reach.items():
            params.refuse_flat(leaf, walk.names, indices)
        if not params.restricts:
            return None
        self.left_out = params.left_out(walk.reach, walk.names)
        return Delivery(walk, params.restrict(walk.names, walk.reach))

    def run(self, scale: Tensor) -> None:
        """One backward per loss, down to the features only."""
        self._scale = scale
        count = self._processes.size
        with self._processes.together():
            self._take(scale / count if count > 1 else scale)
        reach = tuple((name, tuple(self._names[loss] for loss in losses)) for name, losses in self._reach())
        said = self._processes.agree((self._names, reach)) if count > 1 else [(self._names, reach)]
        if count > 1:
            names = [names for names, _ in said]
            self._names, self._values = merged(names), self._processes.mean(names, self._names, self._values)
        for name, losses in (entry for _, entries in said for entry in entries):
            self._meets.setdefault(name, set()).update(losses)

    def _take(self, scale: Tensor) -> None:
        before = {name: feature.grad for name, feature in self._features.items() if feature.retains_grad}
        for loss in range(len(self._losses.names)):
            grads = self._walk.gradients(loss, (), scale, retain=True, beside=self._edges)
            # Copies: static buffers, as of graphed callables, are the same for every loss.
            self._grads.append([None if grad is None else grad.clone() for grad in grads])
        for name, grad in before.items():
            self._features[name].grad = grad  # which the last backward will add to, as any backward does
        for name, losses in self._reach():
            if not losses:
                raise RuntimeError(
                    f"feature {name!r} is reached by none of the losses {list(self._losses.names)}; "
                    "give the very tensor that the losses were computed from"
                )

    def losses(self) -> tuple[tuple[str, ...], Tensor]:
        """The losses of this batch, as means over the processes that have them."""
        return self._names, self._values

    def reach(self) -> tuple[tuple[int, ...], ...]:
        """The losses that meet another one in some feature."""
        meeting = {name for losses in self._meets.values() if len(losses) > 1 for name in losses}
        return (tuple(position for position, name in enumerate(self._names) if name in meeting),)

    def gramian(self, *, exclusive: bool = False) -> Tensor:
        """``(K, K)`` float64 inner products over the features where losses meet, or over all of them."""
        count = len(self._names)
        total = torch.zeros(count, count, dtype=torch.float64, device=self._losses.tensors[0].device)
        place = [self._names.index(name) for name in self._losses.names]
        for position, (name, losses) in enumerate(self._reach()):
            if len(self._meets[name]) > 1 or exclusive:
                grads = [self._grads[loss][position] for loss in losses]
                rows = torch.stack([real_row(grad) for grad in grads if grad is not None])
                add_block(total, gramian(rows), tuple(place[loss] for loss in losses))
        if self._processes.size > 1:
            self._processes.sum(total)
        return total

    def write(self, weights: Tensor) -> Sequence[Tensor] | None:
        """One ordinary backward of the weighted losses, down to the parameters: the gradients to go on with."""
        assert self._scale is not None
        self._grads = []
        weights = select(weights, tuple(map(self._names.index, self._losses.names)))
        if self._delivery is None:
            return seeds([loss.dtype for loss in self._losses.tensors], weights, self._scale)
        self._delivery(weights, self._scale)
        return None

    def _reach(self) -> list[tuple[str, tuple[int, ...]]]:
        """Per feature, the losses with a gradient there."""
        by_feature = zip(self._features, zip(*self._grads, strict=True), strict=True)
        return [(name, tuple(loss for loss, grad in enumerate(g) if grad is not None)) for name, g in by_feature]


def _checked(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(features, Mapping) or not features:
        raise TypeError(
            "features must be a non-empty mapping of name -> encoder output, e.g. {'audio': z_audio, 'video': z_video}"
        )
    for name, feature in features.items():
        if not isinstance(feature, Tensor):
            raise TypeError(f"feature {name!r} is a {type(feature).__name__}, not a tensor")
        if not feature.requires_grad:
            raise ValueError(
                f"feature {name!r} has no graph (requires_grad is False); give the encoder's output without detach()"
            )
    return dict(features)
