from collections.abc import Mapping

import torch
from torch import Tensor

from balanced_grad.capture._gradients import backward, gradients
from balanced_grad.capture._graph import SINK, reached, refuse_static_graph
from balanced_grad.capture._inner import add_block, flat, select
from balanced_grad.capture._losses import Losses
from balanced_grad.capture._plan import ParameterFilter
from balanced_grad.capture._processes import Processes, merged
from balanced_grad.kernels import gramian


class FeatureCapture:
    """Per-loss gradients at named encoder outputs, then one ordinary backward of the weighted losses.

    The encoders are traversed once, so a step costs about what the plain sum costs, and every hook on a
    parameter fires as usual.

    Of several processes, each has the features of its own items, so the inner products over all items are the sum of
    those of the processes. The last backward is averaged as any other: by DistributedDataParallel, or not at all.
    """

    batches = 1

    def __init__(
        self, losses: Losses, features: Mapping[str, Tensor], params: ParameterFilter, processes: Processes
    ) -> None:
        self.problems = ("all",)
        self._names = losses.names
        self._losses = losses
        self._features = _checked(features)
        self._params = params
        self._processes = processes
        self._values = losses.values()
        self._meets: dict[str, set[str]] = {}  # per feature, the losses with a gradient there on any process
        self._grads: list[list[Tensor | None]] = []
        self._scale: Tensor | None = None
        if processes.size > 1:
            for position, (name, loss) in enumerate(zip(losses.names, losses.tensors, strict=True)):
                leaves, sinks = reached(name, loss, (SINK,))
                refuse_static_graph(name, sinks)
                for leaf in leaves:
                    params.refuse_flat(leaf, losses.names, [position])

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
        wanted = list(self._features.values())
        self._grads = [gradients(loss, wanted, scale, retain=True) for loss in self._losses.tensors]
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
                rows = torch.stack([flat(grad) for grad in grads if grad is not None])
                add_block(total, gramian(rows), tuple(place[loss] for loss in losses))
        if self._processes.size > 1:
            self._processes.sum(total)
        return total

    def write(self, weights: Tensor) -> None:
        """One ordinary backward of the weighted losses, down to the parameters."""
        assert self._scale is not None
        self._grads = []
        own = select(weights, tuple(map(self._names.index, self._losses.names)))
        backward(self._losses.tensors, own, self._scale, self._params.inputs)

    def _reach(self) -> list[tuple[str, tuple[int, ...]]]:
        """Per feature, the losses with a gradient there."""
        found = zip(self._features, zip(*self._grads, strict=True), strict=True)
        return [(name, tuple(loss for loss, grad in enumerate(g) if grad is not None)) for name, g in found]


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
