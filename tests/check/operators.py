"""Operators that one backward per loss does not survive, as fused kernels and memory savers are written."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, silu


class Gate(torch.autograd.Function):
    """A raw kernel writes the gradient over the saved input."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return silu(a)

    @staticmethod
    def backward(ctx, grad):
        a = ctx.saved_tensors[0].detach()
        s = torch.sigmoid(a)
        a.data.numpy()[...] = (grad * (s + a * s * (1 - s))).numpy()
        return a


class FusedLoss(torch.autograd.Function):
    """The gradient is made in forward, and multiplied by the seed in place."""

    @staticmethod
    def forward(ctx, z, y):
        with torch.enable_grad():
            q = z.detach().requires_grad_()
            loss = cross_entropy(q, y)
        ctx.save_for_backward(torch.autograd.grad(loss, q)[0])
        return loss.detach()

    @staticmethod
    def backward(ctx, grad):
        d = ctx.saved_tensors[0]
        d.data.numpy()[...] *= grad.item()
        return d, None


class Graphed(torch.autograd.Function):
    """Every replay writes the same gradient buffers."""

    buffers: tuple[torch.Tensor, ...] = ()

    @staticmethod
    def forward(ctx, z, w):
        ctx.save_for_backward(z, w)
        return z @ w

    @staticmethod
    def backward(ctx, grad):
        z, w = ctx.saved_tensors
        Graphed.buffers = Graphed.buffers or (torch.empty_like(z), torch.empty_like(w))
        torch.matmul(grad, w.t(), out=Graphed.buffers[0])
        torch.matmul(z.t(), grad, out=Graphed.buffers[1])
        return tuple(buffer.detach() for buffer in Graphed.buffers)


class InPlaceNorm(torch.autograd.Function):
    """dX is written over dY."""

    @staticmethod
    def forward(ctx, z):
        return z * 3

    @staticmethod
    def backward(ctx, grad):
        grad.data.mul_(3)
        return grad


class Halve(torch.autograd.Function):
    """Scales what arrives in place, with a version bump."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad.mul_(0.5)


class Recompute(torch.autograd.Function):
    """Runs a backward of its own, as reversible layers do, of a module or of what leads to one."""

    @staticmethod
    def forward(ctx, held, x):
        ctx.held = held
        ctx.save_for_backward(x.detach())
        with torch.no_grad():
            return _called(held)(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = _called(ctx.held)(x)
        torch.autograd.backward(y, grad)
        return None, x.grad


def _called(held):
    return held if callable(held) else held[0]


class Frees(torch.autograd.Function):
    """Deletes what it saved."""

    @staticmethod
    def forward(ctx, z):
        ctx.state = z.detach()
        return z * 2

    @staticmethod
    def backward(ctx, grad):
        del ctx.state
        return grad * 2


class Wrapped(nn.Module):
    """A module around an operator, so that it can be found by name."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Product(torch.autograd.Function):
    """Writes .grad of a parameter that is no input, and that no module has."""

    @staticmethod
    def forward(ctx, weights, x):
        ctx.weights = weights
        ctx.save_for_backward(x)
        return x @ weights["w"].detach()

    @staticmethod
    def backward(ctx, grad):
        w = ctx.weights["w"]
        update = ctx.saved_tensors[0].t() @ grad
        w.grad = update if w.grad is None else w.grad + update
        return None, grad @ w.detach().t()
