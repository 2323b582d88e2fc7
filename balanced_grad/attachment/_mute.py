import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from balanced_grad.capture import eager
from balanced_grad.modulation import Muted
from balanced_grad.running import evaluating, logits_of

Inputs = Mapping[str, str | tuple[str, ...]]
_muting = ContextVar("_muting", default=False)


def muting() -> bool:
    """Whether a pass with muted modalities is running: no hook of ours may take it for a batch."""
    return _muting.get()


class Mute:
    """Logits of the model with other modalities' inputs zeroed: the last batch once more, in eval mode.

    Zeros are outside what the model was trained on; the passes cost one forward each. What the caller ran in
    training mode stays so, and batch statistics are not touched.
    """

    def __init__(
        self, model: nn.Module, names: tuple[str, ...], mute: Inputs | Muted, logits: Callable[[Any], Tensor] | None
    ) -> None:
        self._model = model.module if isinstance(model, DistributedDataParallel) else model
        self._names = names
        self._callback = None if isinstance(mute, Mapping) else mute
        self._inputs = {name: _tuple(mute[name]) for name in names} if isinstance(mute, Mapping) else {}
        self._logits = logits or logits_of
        self._last: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self.cut: set[str] = set()  # nothing is cut off: the model runs anew
        self._copied = False
        self._handle = self._model.register_forward_pre_hook(self._record, with_kwargs=True)

    def __call__(self, present: tuple[str, ...]) -> Tensor:
        """``(B, ...)`` logits with only these modalities heard."""
        with self._as_if_evaluating():
            if self._callback is not None:
                return self._callback(present)
            bound = self._arguments()
            silent = {key for name, keys in self._inputs.items() if name not in present for key in keys}
            bound.arguments = {key: _silenced(key, value, silent) for key, value in bound.arguments.items()}
            return self._logits(self._model(*bound.args, **bound.kwargs))

    def logits(self) -> dict[str, Tensor]:
        """``(B, ...)`` logits per modality of the last batch, one forward each."""
        return {} if self._last is None else {name: self((name,)) for name in self._present()}

    def _present(self) -> tuple[str, ...]:
        """The modalities with an input that is not None."""
        if self._callback is not None:
            return self._names
        inputs = {key for name, value in self._arguments().arguments.items() for key in _given(name, value)}
        present = tuple(name for name, keys in self._inputs.items() if any(key in inputs for key in keys))
        if not present:
            raise ValueError(f"mute={self._inputs} names no input that the model was called with: {sorted(inputs)}")
        return present

    def _arguments(self) -> inspect.BoundArguments:
        if self._last is None:
            raise RuntimeError("there is no batch to run again: call the model first, and losses() after this")
        return inspect.signature(self._model.forward).bind(*self._last[0], **self._last[1])

    def release(self) -> None:
        """Forget the batch."""
        self._last = None

    def remove(self) -> None:
        """Take the hook off."""
        if not self._copied:
            self._handle.remove()
        self.release()

    @eager
    def _record(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (self._copied or muting()):
            self._last = args, kwargs

    def __getstate__(self) -> dict[str, Any]:
        # As of EncoderOutputs: what a copy of the model copies with its hooks must hold nothing.
        return {"_last": None, "cut": set(), "_copied": True}

    @contextmanager
    def _as_if_evaluating(self) -> Iterator[None]:
        token = _muting.set(True)
        try:
            with evaluating(self._model):
                yield
        finally:
            _muting.reset(token)


def _tuple(keys: str | tuple[str, ...]) -> tuple[str, ...]:
    return (keys,) if isinstance(keys, str) else tuple(keys)


def _silenced(key: str, value: Any, silent: set[str]) -> Any:
    """The argument, zeroed if it is one of the silent ones; a batch given as one mapping is looked into."""
    if isinstance(value, Mapping):
        return {inner: _silenced(inner, part, silent) for inner, part in value.items()}
    if key not in silent or value is None:
        return value
    if not isinstance(value, Tensor):
        raise TypeError(f"mute= names {key!r}, which is a {type(value).__name__}; only tensors can be muted by zeros")
    return torch.zeros_like(value)


def _given(key: str, value: Any) -> set[str]:
    if isinstance(value, Mapping):
        return {name for inner, part in value.items() for name in _given(inner, part)}
    return set() if value is None else {key}
