"""State that outlives the process, as one tensor: what every checkpoint format can hold."""

import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# torch.distributed.checkpoint reads into a tensor of a fresh model, so a small state has the same size before the
# first step as after it.
_BLOCK = 16384
_LENGTH = 8  # bytes in front of the archive, which say how long it is


class Stateful(ABC):
    """Mixin for a balancer with state beside its buffers: it travels in the ``state_dict`` as one tensor of bytes.

    A dictionary there, the usual ``get_extra_state``, is refused by safetensors, and with it by the trainers of
    Hugging Face. Write ``class Mine(bg.Stateful, bg.Balancer)`` and implement ``state`` and ``load_state``.

    The tensor is uint8, on the CPU, of a multiple of 16384 bytes: the archive of ``torch.save`` behind its length.
    Equal states give equal bytes.

    Raises:
        TypeError: in ``state_dict()``, for a state of something else than numbers, strings, tensors, lists, tuples
            and dictionaries.
        ValueError: in ``load_state_dict()``, with everything as before, if another class wrote the state, or
            ``load_state`` refuses it.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> class Alternating(bg.Stateful, bg.Balancer):
        ...     steps = 0
        ...     def weigh(self, problem):
        ...         self.steps += torch.is_grad_enabled()
        ...         return bg.Weighting(torch.ones_like(problem.losses) * (self.steps % 2))
        ...     def state(self):
        ...         return {"steps": self.steps}
        ...     def load_state(self, state):
        ...         self.steps = state["steps"]
        >>> balancer, resumed = Alternating(), Alternating()
        >>> balancer({"joint": torch.ones(1, requires_grad=True).sum()}).backward()
        >>> resumed.load_state_dict(balancer.state_dict())
        <All keys matched successfully>
        >>> resumed.steps, resumed.state_dict()["_extra_state"].dtype
        (1, torch.uint8)
    """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a fresh object needs to go on as this one would: numbers, strings, tensors, and containers of them."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what ``state`` gave; tensors are this object's own, on the CPU.

        Refuse what does not fit by a ``ValueError`` before anything is changed.
        """

    def get_extra_state(self) -> Tensor:
        """The state as one tensor of bytes, for ``state_dict``."""
        return pack({"class": type(self).__name__, "state": self.state()})

    def set_extra_state(self, state: Tensor | Mapping[str, Any]) -> None:
        """Restore what ``get_extra_state`` gave, also what it gave before it was a tensor: the dictionary itself."""
        mine = type(self).__name__
        with torch.inference_mode(False):  # tensors that are kept must serve in training
            if not isinstance(state, Tensor):
                self.load_state(_plain(state, "state"))
                return
            saved = unpack(state, mine)
            if saved["class"] != mine:
                raise ValueError(f"the state is of a {saved['class']}, this is a {mine}; build a {saved['class']}")
            self.load_state(saved["state"])


def pack(value: Mapping[str, Any]) -> Tensor:
    """Plain values as uint8 ``(16384 n,)`` on the CPU."""
    buffer = io.BytesIO()
    torch.save(_plain(value, "state"), buffer)
    archive = buffer.getvalue()
    size = -(-(_LENGTH + len(archive)) // _BLOCK) * _BLOCK
    packed = (len(archive).to_bytes(_LENGTH, "little") + archive).ljust(size, b"\0")
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def unpack(packed: Tensor, what: str) -> dict[str, Any]:
    """What ``pack`` was given, from a tensor on any device; a number per byte in another dtype will do."""
    content = packed.detach().to("cpu", torch.uint8).contiguous().numpy().tobytes()
    length = int.from_bytes(content[:_LENGTH], "little")
    try:
        archive = io.BytesIO(content[_LENGTH : _LENGTH + length])
        loaded: dict[str, Any] = torch.load(archive, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"the state of the {what} is {tuple(packed.shape)} {packed.dtype} that cannot be read "
            f"({type(error).__name__}); load the tensor that get_extra_state() gave, bytes unchanged"
        ) from error
    return loaded


def _plain(value: Any, name: str) -> Any:
    """A copy that shares nothing with the original, of which equal ones are saved as equal bytes."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(value, str):
        return sys.intern(value)  # a string that occurs again is saved as a reference, if it is the same object
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_plain(key, name): _plain(entry, f"{name}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        kind = list if isinstance(value, list) else tuple
        return kind(_plain(entry, f"{name}[{place}]") for place, entry in enumerate(value))
    raise TypeError(
        f"{name} is a {type(value).__name__}; a state holds numbers, strings, tensors and containers of them"
    )
