from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from balanced_grad.tokens import Tokens

RETURNS = (
    "it must return (model, losses), or the losses: a mapping such as {'joint': loss, 'audio': audio_loss}; "
    "an optimizer, a mapping of features and a bg.Tokens may follow: (model, losses, optimizer, features)"
)


@dataclass(frozen=True)
class Batch:
    """What a user's function returns for one batch."""

    losses: Mapping[str, Tensor | None]
    model: nn.Module | None = None
    optimizer: Optimizer | None = None
    features: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Tokens | None = None

    @classmethod
    def of(cls, result: object, target: str) -> "Batch":
        """Sort out what ``target`` returned.

        Raises:
            TypeError: for anything else than ``RETURNS`` says.
        """
        if not (isinstance(result, tuple) and 2 <= len(result) <= 5):
            return cls(_mapping(result, f"{target} returns an object"))
        model, losses, *rest = result
        if not isinstance(model, nn.Module):
            raise TypeError(f"the first thing that {target} returns is of type {type(model).__name__}; {RETURNS}")
        more: dict[str, Any] = {}
        for position, thing in enumerate(rest, 3):
            if isinstance(thing, Mapping):
                more["features"] = {name: feature for name, feature in thing.items() if feature is not None}
            elif isinstance(thing, Tokens):
                more["tokens"] = thing
            elif hasattr(thing, "param_groups"):
                more["optimizer"] = thing
            elif thing is not None:
                kind = type(thing).__name__
                raise TypeError(f"thing {position} that {target} returns is of type {kind}; {RETURNS}")
        return cls(_mapping(losses, f"the second thing that {target} returns is"), model, **more)


def _mapping(losses: object, what: str) -> Mapping[str, Tensor | None]:
    if not isinstance(losses, Mapping):
        raise TypeError(f"{what} of type {type(losses).__name__}; {RETURNS}")
    return losses


def name_of(function: Callable[..., object]) -> str:
    """What to call it in an error."""
    return getattr(function, "__qualname__", type(function).__name__)
