"""Published training loops, from the end of the forward pass to ``.grad``.

None is the authors' code: each is our re-implementation from its description, with the same passes, copies, reads of
values on the host and loops over tensors, on the networks of this study. What a description leaves open is said.
"""

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from bench.accuracy._model import head_split
from bench.accuracy._objectives import JOINT, Forward
from bench.published._solvers import Array

Loop = Callable[[Forward], None]


def read_gradients(model: nn.Module, loss: Tensor, parameters: Iterable[Tensor]) -> list[Tensor]:
    """Copy ``.grad`` after one full backward pass over a graph that is kept; zeros where the loss does not reach."""
    loss.backward(retain_graph=True)
    copies = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    model.zero_grad()
    return copies


def concatenated(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def mgda(solve: Callable[[Array], Array]) -> Loop:
    """MGDA as in Sener & Koltun (2018), with a solver of the min-norm problem.

    The released loop runs one full backward pass per loss, copies and concatenates the gradients of the parameters
    where losses meet, takes the inner product of each pair to the host, solves there, and runs one more backward pass
    of the weighted losses. It also repeats the forward pass for each of them; our re-implementation keeps the graph
    instead, in the loop's favour.
    """

    def run(forward: Forward) -> None:
        losses = list(forward.losses().values())
        encoders = list(forward.model.encoders.parameters())
        rows = [concatenated(read_gradients(forward.model, loss, encoders)) for loss in losses]
        G = np.empty((len(rows), len(rows)))
        for i, j in itertools.combinations_with_replacement(range(len(rows)), 2):
            G[i, j] = G[j, i] = torch.dot(rows[i], rows[j]).item()
        weights = solve(G).tolist()
        sum(weight * loss for weight, loss in zip(weights, losses, strict=True)).backward()

    return run


def mmpareto(forward: Forward, gamma: float = 1.5) -> None:
    """MMPareto (Wei & Hu, 2024): M + 2 full backward passes.

    The released loop runs one pass per loss and copies the encoders' gradients after each; per encoder it concatenates
    the two that reach it, takes their cosine, and where that is not positive the min-norm point of the two. One more
    pass of the plain sum gives all other parameters their gradient and every encoder tensor the length below which its
    new gradient may not fall. Our re-implementation.
    """
    model, losses = forward.model, forward.losses()
    own = {name: list(encoder.parameters()) for name, encoder in zip(model.names, model.encoders, strict=True)}
    everything = list(model.encoders.parameters())
    copies = {}
    for name, loss in losses.items():
        found = iter(read_gradients(model, loss, everything))
        copies[name] = {encoder: [next(found) for _ in tensors] for encoder, tensors in own.items()}
    sum(losses.values()).backward()
    for name, tensors in own.items():
        joint, alone = copies[JOINT][name], copies[name][name]
        c = joint_weight(concatenated(joint), concatenated(alone))
        for parameter, g, u in zip(tensors, joint, alone, strict=True):
            new = 2 * c * g + 2 * (1 - c) * u
            plain, length = parameter.grad.norm(), new.norm()
            parameter.grad = new * (gamma * plain / length if plain > length else gamma)


def joint_weight(g: Tensor, u: Tensor) -> float:
    """Weight of the joint gradient ``g``: a half without a conflict, else that of the min-norm point with ``u``."""
    if cosine_similarity(g, u, dim=0) > 0:
        return 0.5
    difference = u - g
    return min(max((torch.dot(difference, u) / torch.dot(difference, difference)).item(), 0.0), 1.0)


def ogm_ge(forward: Forward, alpha: float = 0.3, noise: float = 1.0) -> None:
    """OGM-GE (Peng et al., 2022): one backward pass, then a loop over the convolutions' gradients.

    The released loop sums over the batch the probability that each modality's block of the fused head gives the right
    class, takes ``ρ`` as the ratio to the other's, scales the gradient of every four-dimensional tensor of an encoder
    by ``1 - tanh(α ρ)`` where ``ρ > 1``, and adds Gaussian noise of the unscaled gradient's deviation, which it reads
    on the host. Our re-implementation; for more than two modalities the others' mean is our reading.
    """
    model = forward.model
    with torch.no_grad():
        parts = head_split(model, forward.features)
        labels = forward.batch.labels.unsqueeze(1)
        scores = [logits.softmax(1).gather(1, labels).sum().item() for logits in parts.values()]
    forward.losses()[JOINT].backward()
    for score, encoder in zip(scores, model.encoders, strict=True):
        ratio = score * (len(scores) - 1) / (sum(scores) - score)
        scale = 1 - math.tanh(alpha * ratio) if ratio > 1 else 1.0
        for parameter in encoder.parameters():
            gradient = parameter.grad
            if gradient.ndim == 4:
                drawn = torch.zeros_like(gradient).normal_(0, noise * gradient.std().item() + 1e-8)
                parameter.grad = scale * gradient + drawn


def torchjd(aggregator: str) -> Loop:
    """The released package: Jacobians at the encoders by way of the features, each head by its own loss."""
    from torchjd import aggregation
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregate = getattr(aggregation, aggregator)()

    def run(forward: Forward) -> None:
        model = forward.model
        encoders = list(model.encoders.parameters())
        heads = [list(head.parameters()) for head in (model.fused, *model.heads)]
        losses = list(forward.losses().values())
        mtl_backward(losses, features=forward.features, tasks_params=heads, shared_params=encoders)
        jac_to_grad(encoders, aggregate)

    return run
