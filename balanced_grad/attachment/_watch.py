from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor, nn

from balanced_grad.capture import eager
from balanced_grad.notices import Notices

CALLS = 100  # more than the micro-batches of any usual step
_Versions = tuple[int, ...]


class HeadsWatch:
    """Notices heads that never move, from versions of tensors alone: nothing waits for a device.

    A head counts as forgotten by the optimizer after ``CALLS`` calls, each with a new gradient on top of the last
    one's, during which its parameters stayed the same; and as forgotten by the balancer after as many in which its
    encoder moved and it had no gradient at all. A call without a backward since the last one, a validation for
    instance, counts for nothing.
    """

    def __init__(self, heads: nn.ModuleDict, encoders: Mapping[str, nn.Module], notices: Notices) -> None:
        self._heads = dict(heads)
        self._encoders = dict(encoders)  # empty where nothing is expected of the losses: stop_gradient
        self._notices = notices
        self._marks: dict[str, tuple[_Versions, _Versions, _Versions]] = {}
        self._unstepped: dict[str, int] = {}
        self._ungraded: dict[str, int] = {}

    @eager
    def look(self, names: Iterable[str]) -> None:
        """Call once per batch, with the modalities that it has."""
        for name in names:
            parameters = [p for p in self._heads[name].parameters() if p.requires_grad]
            if parameters:
                self._count(name, parameters)
        for counts, message in ((self._unstepped, _UNSTEPPED), (self._ungraded, _UNGRADED)):
            still = [name for name, count in counts.items() if count >= CALLS]
            if still:
                self._notices.say(message, message.format(names=still, calls=CALLS))

    def _count(self, name: str, parameters: Sequence[Tensor]) -> None:
        versions = tuple(p._version for p in parameters)
        grads = tuple(p.grad._version for p in parameters if p.grad is not None)
        encoder = self._encoders.get(name, nn.Identity())
        around = tuple(p._version for p in islice((p for p in encoder.parameters() if p.requires_grad), 1))
        before = self._marks.get(name, ((), (), ()))
        self._marks[name] = (versions, grads, around)
        if versions != before[0]:
            self._unstepped[name] = self._ungraded[name] = 0
        elif grads:
            self._ungraded[name] = 0
            self._unstepped[name] += bool(before[1]) and grads > before[1]  # one that was reset starts anew
        else:
            self._unstepped[name] = 0
            self._ungraded[name] += around != before[2]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_encoders": {}, "_marks": {}}  # a copy is attached to nothing


_UNSTEPPED = (
    "the heads of {names} have not moved in {calls} calls of losses(), although they receive gradients, which nobody "
    "resets: their losses pull the encoders towards random heads. Give them to the optimizer: aux.add_to(optimizer)"
)
_UNGRADED = (
    "the heads of {names} have not moved in {calls} calls of losses() in which their encoders did, and hold no "
    "gradient. Give their losses to the balancer, where it has params= the heads too: params=[*model.parameters(), "
    "*aux.parameters()], and the heads to the optimizer: aux.add_to(optimizer)"
)
