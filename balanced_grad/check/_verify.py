from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from balanced_grad.check._compare import tolerance
from balanced_grad.check._judge import judge
from balanced_grad.check._locate import locate
from balanced_grad.check._replay import Replay
from balanced_grad.check._separate import Separate
from balanced_grad.check._text import listed
from balanced_grad.check._verification import Verification

_WORTH_SAYING = 0.01  # of what rounding explains: by how much two plain backwards may differ without a word

_UNEXPLAINED = (
    "no operator was seen to do that: look for what changes from backward to backward, such as a hook on a tensor that "
    "counts, or a parameter that is moved between forward and backward"
)


def verify(function: Callable[[], object]) -> Verification:
    """Whether methods get the gradients of your model's losses right, and which operator is to blame where not.

    One step of each kind of method, with fixed weights ``w``, is compared with ``Σ_k w_k ∂L_k/∂θ`` from a backward per
    loss on graphs of their own. Some operators only survive one traversal of their graph: every operator is watched
    while its graph is traversed again.

    The function is called about ``2 K + 8`` times for ``K`` losses, from the same random numbers and buffers. Those,
    ``.grad`` and the parameters are left as they were.

    Args:
        function: without arguments; runs one batch and returns ``(model, losses)``, or the losses alone. An optimizer
            and a mapping of features may follow; ``level="features"`` is verified where features are given, and so is
            a ``bg.Tokens(model)``.

    Raises:
        TypeError, ValueError: for what the function returns; and whatever the function raises.

    Examples:
        >>> import torch
        >>> from balanced_grad.check import verify
        >>> def batch():
        ...     model = torch.nn.ModuleDict({"audio": torch.nn.Linear(4, 2), "head": torch.nn.Linear(2, 1)})
        ...     z = model["audio"](torch.ones(8, 4))
        ...     return model, {"joint": model["head"](z).mean(), "audio": z.square().mean()}
        >>> verification = verify(batch)
        >>> verification.ok
        True
        >>> [verdict.says for verdict in verification.verdicts]  # losses only, per-loss gradients
        ['right', 'right']
    """
    with Replay(function) as replay:
        separate = Separate.of(replay)
        noise = separate.noise(Separate.of(replay))
        with replay.step() as step:
            rounding = tolerance(step.nodes)
            faults, writers = locate(step, rounding)
        tolerances = {name: rounding + 4 * size for name, size in noise.items()}
        verdicts = judge(replay, separate, tolerances, rounding)
        largest = max(noise.values(), default=0.0)
        notes = list(_noise(noise)) if largest > _WORTH_SAYING * rounding else []
        notes += _side_effects(replay, separate) if largest <= rounding else []
    wrong = any(verdict.errors or verdict.gramian for verdict in verdicts)
    blamed = [each for each in writers if wrong and (each.parameters or not faults)]
    notes += [f"{each.what}; nothing was seen to suffer from it" for each in writers if each not in blamed]
    if wrong and not (faults or blamed):
        notes.append(_UNEXPLAINED)
    return Verification(tuple(verdicts), (*faults, *blamed), tuple(notes), largest, rounding)


def _noise(noise: Mapping[str, float]) -> Iterator[str]:
    name = max(noise, key=lambda each: noise[each])
    yield (
        f"not deterministic: two plain backwards differ by {noise[name]:.2g} at {name}, and errors below four times "
        "that are not seen; seed generators of your own and return the same batch each time, or call eval()"
    )


def _side_effects(replay: Replay, separate: Separate) -> Iterator[str]:
    """Buffers that one backward per loss leaves in another state than one of the plain sum."""
    with replay.step() as step:
        torch.autograd.backward(step.losses.tensors)
        plain = {name: buffer.clone() for name, buffer in step.buffers.items()}
    with replay.step() as step:
        step.require(separate.names)
        try:
            for loss in step.losses.tensors:
                torch.autograd.backward(loss, retain_graph=True)
        except Exception:
            return  # of which the verdicts and faults speak
        moved = [name for name, buffer in step.buffers.items() if not _equal(buffer, plain.get(name))]
    if moved:
        yield (
            f"buffers {listed(moved)} are updated once per loss instead of once: their module is computed anew in each "
            "backward (checkpointing); keep it out of the checkpoint, or use a losses-only method, if their averages "
            "matter"
        )


def _equal(first: Tensor, second: Tensor | None) -> bool:
    if second is None or torch.equal(first, second):
        return second is not None
    return first.is_floating_point() and torch.allclose(first, second, equal_nan=True)
