from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

_CURES = {  # what torch says -> what to do
    "donated": (
        "the compiled model donated its buffers to one backward, but one backward per loss is needed: set "
        "torch._functorch.config.donated_buffer = False before compiling, or use a losses-only balancer"
    ),
    "_will_engine_execute_node": (
        "a hook on several leaves at once (register_multi_grad_hook, as FlopCounterMode and other module trackers set) "
        "is called in a per-loss backward, which torch does not support; take it off, or use a losses-only balancer"
    ),
}
_NOTE = (
    "This was the backward of {} by itself: a balancer that takes per-loss gradients traverses a graph once per loss. "
    "Tools and kernels that expect a single backward do not survive that: use a losses-only balancer such as MIMO, or "
    "level='features', or ask balanced-grad check --verify which operator it is."
)


def gradients(
    loss: Tensor, wanted: Sequence[Tensor | GradientEdge], scale: Tensor, *, retain: bool, name: str | None = None
) -> list[Tensor | None]:
    """``scale * d loss / d wanted``, None where the loss does not reach; the engine goes nowhere else.

    Every loss gets a seed of its own, since a hook may scale what arrives in place.
    """
    if not wanted:
        return []
    seed = scale.to(loss.dtype, copy=True)
    try:
        return list(torch.autograd.grad(loss, wanted, seed, retain_graph=retain, allow_unused=True))  # type: ignore[arg-type]
    except Exception as error:
        for part, cure in _CURES.items():
            if part in str(error):
                raise RuntimeError(cure) from error
        error.add_note(_NOTE.format("a loss" if name is None else f"loss {name!r}"))
        raise


def backward(
    losses: Sequence[Tensor],
    weights: Tensor,
    scale: Tensor,
    inputs: Sequence[GradientEdge] | None,
    *,
    retain: bool | None = None,
) -> None:
    """One ordinary backward of ``scale * sum(weights * losses)``: autograd itself accumulates ``.grad``."""
    torch.autograd.backward(
        losses, seeds([loss.dtype for loss in losses], weights, scale), inputs=inputs, retain_graph=retain
    )


def seeds(dtypes: Iterable[torch.dtype], weights: Tensor, grad: Tensor) -> list[Tensor]:
    """``w_k`` times an incoming gradient, for each of what was summed with these weights, in its own dtype."""
    scaled = weights.view(-1, *[1] * grad.dim()) * grad
    return [seed.to(dtype) for seed, dtype in zip(scaled.unbind(), dtypes, strict=True)]
