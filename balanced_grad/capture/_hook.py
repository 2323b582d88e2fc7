from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor

from balanced_grad.capture._gradients import seeds

if TYPE_CHECKING:
    from torch.autograd.graph import Node

Callback = Callable[[Tensor], Sequence[Tensor | None] | None]
_pending: "WeakSet[Any]" = WeakSet()  # nodes of scalars that have not been called back yet, of all threads
_lock = Lock()


class _OnBackward(torch.autograd.Function):
    """A scalar on a detached anchor: the real losses live in the callback, and in ``through`` what is to see them."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, callback: Callback, *through: Tensor) -> Tensor:
        ctx.callback = callback
        ctx.count = len(through)
        with _lock:
            _pending.add(ctx)
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "create_graph=True is not supported by a balancer that captures per-loss gradients; "
                "call backward() without it, or use a losses-only balancer such as Uniform or MIMO, without params="
            )
        callback, ctx.callback = ctx.callback, None
        with _lock:
            _pending.discard(ctx)
        if callback is None:
            raise RuntimeError(
                "backward() was called a second time on the scalar of a balancer, whose gradients the first call "
                "wrote; call the balancer again on fresh losses"
            )
        passed = callback(grads[0])
        return None, None, *([None] * ctx.count if passed is None else passed)


class _Weighted(torch.autograd.Function):
    """A value whose gradient is that of a weighted sum of tensors, whatever the value itself is."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, weights: Tensor, *summands: Tensor) -> Tensor:
        ctx.weights = weights
        ctx.dtypes = [summand.dtype for summand in summands]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *seeds(ctx.dtypes, ctx.weights, grads[0])


def on_backward(value: Tensor, callback: Callback, through: Sequence[Tensor] = ()) -> Tensor:
    """Scalar equal to ``value`` whose ``backward()`` calls ``callback(incoming gradient)``, once.

    Whoever looks through the scalar's graph sees the tensors ``through``. Autograd goes on to them with the gradients
    that the callback returns, or, if that is None, visits them without any.
    """
    out: Tensor = _OnBackward.apply(value.detach().requires_grad_(), callback, *through)  # type: ignore[no-untyped-call]
    return out


def weighted(value: Tensor, weights: Tensor, summands: Sequence[Tensor]) -> Tensor:
    """Tensor equal to ``value`` whose gradient is that of ``sum_k weights[k] * summands[k]``, of its shape each."""
    out: Tensor = _Weighted.apply(value, weights, *summands)  # type: ignore[no-untyped-call]
    return out


def scalar_type() -> type | None:
    """The node of a scalar of ``on_backward``."""
    return getattr(_OnBackward, "_backward_cls", None)


def needed_later(nodes: Iterable["Node"]) -> bool:
    """Whether the backward that is under way comes through these nodes after this callback, or is to keep its graph.

    It does where other terms were added to the scalar, or another balancer's scalar. Then the graph must outlive the
    backwards in the callback. Autograd runs the node made last first, so this callback is ahead of what it shares.
    """
    if torch._C._current_graph_task_id() == -1:
        return False
    with _lock:
        others = list(_pending)
    runs = torch._C._will_engine_execute_node
    return _keeps_graph() or any(map(runs, others)) or any(map(runs, nodes))


def _keeps_graph() -> bool:
    asked = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return bool(asked()) if asked is not None else False
