from collections.abc import Mapping

import torch
from torch import Tensor

from balanced_grad.capture._gradients import backward, gradients
from balanced_grad.capture._inner import add_block, flat
from balanced_grad.capture._losses import Losses
from balanced_grad.capture._plan import ParameterFilter
from balanced_grad.kernels import gramian


class FeatureCapture:
    """Per-loss gradients at named encoder outputs, then one ordinary backward of the weighted losses.

    The encoders are traversed once, so a step costs about what the plain sum costs, and every hook on a
    parameter fires as usual.
    """

    def __init__(self, losses: Losses, features: Mapping[str, Tensor], params: ParameterFilter) -> None:
        self.problems = ("all",)
        self._losses = losses
        self._features = _checked(features)
        self._params = params
        self._grads: list[list[Tensor | None]] = []
        self._scale: Tensor | None = None

    def run(self, scale: Tensor) -> None:
        """One backward per loss, down to the features only."""
        self._scale = scale
        wanted = list(self._features.values())
        self._grads = [gradients(loss, wanted, scale, retain=True) for loss in self._losses.tensors]
        for name, found in zip(self._features, zip(*self._grads, strict=True), strict=True):
            if all(grad is None for grad in found):
                raise RuntimeError(
                    f"feature {name!r} is reached by none of the losses {list(self._losses.names)}; "
                    "give the very tensor that the losses were computed from"
                )

    def reach(self) -> tuple[tuple[int, ...], ...]:
        """The losses that meet another one in some feature."""
        return (tuple(sorted({loss for losses in self._reach() if len(losses) > 1 for loss in losses})),)

    def gramian(self, *, exclusive: bool = False) -> Tensor:
        """``(K, K)`` float64 inner products over the features where losses meet, or over all of them."""
        count = len(self._losses.names)
        total = torch.zeros(count, count, dtype=torch.float64, device=self._losses.tensors[0].device)
        for position, losses in enumerate(self._reach()):
            if len(losses) > 1 or exclusive:
                grads = [self._grads[loss][position] for loss in losses]
                add_block(total, gramian(torch.stack([flat(g) for g in grads if g is not None])), losses)
        return total

    def write(self, weights: Tensor) -> None:
        """One ordinary backward of the weighted losses, down to the parameters."""
        assert self._scale is not None
        self._grads = []
        backward(self._losses.tensors, weights, self._scale, self._params.given)

    def _reach(self) -> list[tuple[int, ...]]:
        """Per feature, the losses with a gradient there."""
        return [
            tuple(loss for loss, grad in enumerate(found) if grad is not None)
            for found in zip(*self._grads, strict=True)
        ]


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
