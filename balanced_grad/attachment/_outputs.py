from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from balanced_grad.attachment._mute import muting
from balanced_grad.attachment._pooling import Pooling
from balanced_grad.capture import eager


class Rule(Protocol):
    """From features to uni-modal logits."""

    def logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Modality -> ``(..., outputs)``, for those that have features."""


class EncoderOutputs:
    """The last batch's features of named encoders, caught by forward hooks; a new forward drops those of the last.

    What runs inside ``backward()``, the second pass of activation checkpointing, is not caught: it would keep its
    graph alive, and the losses have been computed already. Neither are passes with modalities muted.
    """

    def __init__(
        self,
        model: nn.Module,
        encoders: Mapping[str, nn.Module],
        rule: Rule,
        *,
        pooling: Pooling,
        stop_gradient: bool,
    ) -> None:
        self.features: dict[str, Tensor] = {}
        self.cut: set[str] = set()
        self._copied = False
        self._names = tuple(encoders)  # in the user's order, whatever that of the calls
        self._rule = rule
        self._pooling = pooling
        self._stop_gradient = stop_gradient
        self._handles = [model.register_forward_pre_hook(self._begin, with_kwargs=True)]
        self._handles += [
            encoder.register_forward_hook(partial(self._keep, name), with_kwargs=True)
            for name, encoder in encoders.items()
        ]

    def logits(self) -> dict[str, Tensor]:
        """Modality -> logits, for those whose encoder ran."""
        return self._rule.logits({name: self.features[name] for name in self._names if name in self.features})

    def release(self) -> None:
        """Forget the batch."""
        self.features, self.cut = {}, set()
        if not self._copied:
            self._pooling.masks.release()

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.release()

    @eager
    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._listening():
            self.release()
            self._pooling.masks.begin((args, kwargs))

    @eager
    def _keep(self, name: str, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._listening():
            return
        feature = self._pooling(name, encoder, (args, kwargs), output)
        self.features[name] = feature.detach() if self._stop_gradient else feature
        if not (feature.requires_grad or self._stop_gradient) and any(p.requires_grad for p in encoder.parameters()):
            self.cut.add(name)

    def _listening(self) -> bool:
        return not (self._copied or muting() or _in_backward())

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model, an average of its weights for instance, copies its hooks: they must hold nothing.
        return {"features": {}, "cut": set(), "_handles": [], "_names": (), "_rule": self._rule, "_copied": True}


def _in_backward() -> bool:
    task: int = torch._C._current_graph_task_id()  # as activation checkpointing asks
    return task != -1
