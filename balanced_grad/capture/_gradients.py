from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge


def gradients(
    loss: Tensor, wanted: Sequence[Tensor | GradientEdge], scale: Tensor, *, retain: bool
) -> list[Tensor | None]:
    """``scale * d loss / d wanted``, None where the loss does not reach; the engine goes nowhere else."""
    try:
        grads = torch.autograd.grad(loss, wanted, scale.to(loss.dtype), retain_graph=retain, allow_unused=True)  # type: ignore[arg-type]
    except RuntimeError as error:
        if "donated" not in str(error):
            raise
        raise RuntimeError(
            "the compiled model donated its buffers to one backward, but one backward per loss is needed: set "
            "torch._functorch.config.donated_buffer = False before compiling, or use a losses-only balancer"
        ) from error
    return list(grads)


def backward(losses: Sequence[Tensor], weights: Tensor, scale: Tensor, inputs: Sequence[Tensor] | None) -> None:
    """One ordinary backward of ``scale * sum(weights * losses)``: autograd itself accumulates ``.grad``."""
    seeds = [(scale * weight).to(loss.dtype) for loss, weight in zip(losses, weights.unbind(), strict=True)]
    torch.autograd.backward(losses, seeds, inputs=inputs)
