"""What a user's own code returns, checked where it arrives; options without effect or meaning, refused."""

from collections.abc import Mapping, Sequence
from types import TracebackType

import torch
from torch import Tensor

from balanced_grad.notices import Notices
from balanced_grad.records import Problem, Weighting

_CONSTANTS = (
    "that requires a gradient, but weights and coefficients are constants of the step: the parameters it was computed "
    "from get no gradient through it and learn nothing. Return it detached, and train a learnt parameter by a term of "
    "its own, added to the scalar: see 'Write a method' in the docs"
)


def refuse(who: str, since: str, **options: object) -> None:
    """Refuse the options that were set and have no effect ``since`` something is so."""
    idle = [f"{name}={_short(value)}" for name, value in _set(options).items()]
    if idle:
        has = "has" if len(idle) == 1 else "have"
        raise ValueError(f"{who}: {' and '.join(idle)} {has} no effect, since {since}")


def refuse_beside(other: str, **options: object) -> None:
    """Refuse an option that was set beside the ``other`` one, with which it has no meaning."""
    for name in _set(options):
        raise ValueError(f"{name}= has no meaning with {other}=; leave it out")


def _set(options: Mapping[str, object]) -> dict[str, object]:
    """All but None and False, which say that an option is not used."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def vector(
    value: object, shape: Sequence[int], like: Tensor, who: str, notices: Notices | None = None, hint: str = ""
) -> Tensor:
    """``value`` as a real tensor of this shape, in the dtype of ``like`` and without a graph.

    Nothing is moved between devices, which would wait for one: a tensor on another device is refused.
    """
    shape = tuple(shape)
    wanted = hint or f"; return a tensor of shape {shape}"
    if not isinstance(value, Tensor):
        raise TypeError(f"{who} returned {described(value)}, not a tensor of shape {shape}{hint}")
    if value.shape != shape:
        raise ValueError(f"{who} returned shape {tuple(value.shape)}, not {shape}{hint}")
    if value.is_complex() or value.dtype is torch.bool:
        raise TypeError(f"{who} returned dtype {value.dtype}, not real numbers{wanted}")
    if value.device != like.device:
        raise ValueError(
            f"{who} returned a tensor on {value.device}, but the losses are on {like.device}; "
            "make it there, for example with problem.losses.new_tensor(...) or torch.ones_like(...)"
        )
    if value.requires_grad and notices is not None:
        notices.say(("learnt", who), f"{who} returned a tensor {_CONSTANTS}")
    return value.detach().to(like.dtype)


def scalar(value: object, like: Tensor, who: str, notices: Notices) -> Tensor:
    """``value`` as a real ``()`` tensor; shape ``(1,)`` will do."""
    number = value.reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else value
    return vector(number, (), like, who, notices, "; reduce it, for example by mean()")


def weighting(returned: object, problem: Problem, who: str, notices: Notices) -> Weighting:
    """What ``weigh`` returned: one weight per loss, and per problem where there are several."""
    shape = problem.losses.shape if problem.gramian is None else problem.gramian.shape[:-1]
    hint = f"; return bg.Weighting(weights) with weights of shape {tuple(shape)} for the losses {list(problem.names)}"
    if not isinstance(returned, Weighting):
        raise TypeError(f"{who} returned {described(returned)}{hint}")
    like = problem.losses if problem.gramian is None else problem.gramian
    weights = vector(returned.weights, shape, like, who, notices, hint)
    if returned.value is None:
        return Weighting(weights)
    hint = "; the value of a Weighting is a 0-dimensional tensor, or None"
    return Weighting(weights, vector(returned.value, (), problem.losses, who, notices, hint))


def reads_gramian(trace: TracebackType | None) -> bool:
    """Whether code that failed below this frame has to do with an attribute ``gramian``."""
    trace = trace.tb_next if trace is not None else None
    while trace is not None:
        if "gramian" in trace.tb_frame.f_code.co_names:
            return True
        trace = trace.tb_next
    return False


def described(value: object) -> str:
    """A value in words, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def _short(value: object) -> str:
    return "{...}" if isinstance(value, Mapping) else repr(value)
