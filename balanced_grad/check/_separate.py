from dataclasses import dataclass

import torch
from torch import Tensor

from balanced_grad.check._compare import errors, in_double, kept, sizes, weighted
from balanced_grad.check._replay import Call, Replay


@dataclass(frozen=True)
class Separate:
    """Gradients of separate backwards, each on a fresh graph, per loss: at leaves, and at the features given."""

    names: tuple[str, ...]
    grads: list[dict[str, Tensor]]
    features: list[dict[str, Tensor]]
    tokens: bool = False  # whether groups of tokens are given

    @classmethod
    def of(cls, replay: Replay) -> "Separate":
        """A call and a backward per loss; where features are given, one more of each."""
        with replay.step() as step:
            names, has_features = step.losses.names, bool(step.batch.features)
            tokens = step.batch.tokens is not None
        grads, features = [], []
        for index in range(len(names)):
            with replay.step() as step:
                step.require(names)
                step.losses.tensors[index].backward()  # type: ignore[no-untyped-call]
                grads.append(kept(step.tensors))
            if has_features:
                with replay.step() as step:
                    step.require(names)
                    features.append(_at_features(step, index))
        return cls(names, grads, features, tokens)

    @property
    def weights(self) -> dict[str, float]:
        """Another weight for each loss."""
        return {name: 0.5 ** (1 + index) for index, name in enumerate(self.names)}

    @property
    def sizes(self) -> dict[str, float]:
        """Per leaf, what errors of the weighted sum are relative to."""
        return sizes(self.grads, list(self.weights.values()))

    @property
    def balanced(self) -> dict[str, Tensor]:
        """Per leaf the weighted sum."""
        return weighted(self.grads, list(self.weights.values()))

    def noise(self, again: "Separate") -> dict[str, float]:
        """Per leaf the largest relative difference of a loss's gradient."""
        out: dict[str, float] = {}
        relative_to = sizes(self.grads, [1.0] * len(self.names))
        for first, second in zip(self.grads, again.grads, strict=True):
            for name, error in errors(second, first, relative_to).items():
                out[name] = max(out.get(name, 0.0), error)
        return out


def _at_features(step: Call, index: int) -> dict[str, Tensor]:
    features = step.batch.features
    grads = torch.autograd.grad(step.losses.tensors[index], list(features.values()), allow_unused=True)
    return {name: in_double(grad) for name, grad in zip(features, grads, strict=True) if grad is not None}
