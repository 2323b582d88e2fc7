"""Which parameters belong to which name: modules and parameters as a user gives them, one type for every argument."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeGuard, Union, cast

from torch import Tensor, nn
from torch.nn import Parameter

Member = nn.Module | Tensor
Members = Member | Iterable[Member]
Named = Union[Mapping[str, Members], nn.ModuleDict, "NamedMembers"]


class NamedMembers:
    """Name -> modules or parameters, where no parameter has two names.

    Modules are asked for their parameters each time, so a module that is sharded or whose layers are replaced
    later stays right; parameters given one by one are kept as they are.
    """

    def __init__(self, members: Named, setting: str) -> None:
        """``setting`` is the argument that the members were given as; errors name it."""
        self._members = {name: listed(self._place(name), given) for name, given in entries(members, setting).items()}
        for name in self.names:
            if next(self._iterate(name), None) is None:
                raise ValueError(f"{self._place(name)} has no parameter; give its module, or leave it out")

    def _place(self, name: str) -> str:
        """How errors call what has this name."""
        return f"groups[{name!r}]"

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order given."""
        return tuple(self._members)

    def parameters(self, name: str) -> list[Parameter]:
        """Those of one name, as they are now; ``KeyError`` for one that is not among ``names``."""
        return list(self._iterate(name))

    def owners(self) -> dict[Tensor, str]:
        """Under which name each parameter is, as they are now; refuses one that is under two."""
        return owners(
            self._members,
            lambda first, second: (
                f"in groups {first!r} and {second!r}; a parameter has one gradient, so it can be in one group only"
            ),
        )

    def entries(self) -> dict[str, Members]:
        """Name -> module, parameter, or a list of several."""
        return {name: members[0] if len(members) == 1 else members for name, members in self._members.items()}

    def _iterate(self, name: str) -> Iterator[Parameter]:
        return parameters_of(self._members[name])


def is_named(value: object) -> TypeGuard[Named]:
    """Whether this tells members by name."""
    return isinstance(value, Mapping | nn.ModuleDict | NamedMembers)


def entries(members: object, setting: str, what: str = "module or parameters") -> dict[str, Any]:
    """Name -> what was given there; refuses what has no names."""
    if isinstance(members, NamedMembers):
        return members.entries()
    if not isinstance(members, Mapping | nn.ModuleDict):
        raise TypeError(
            f"{setting} is a {type(members).__name__}; give a mapping of name -> {what}, "
            "e.g. {'audio': model.audio_encoder}"
        )
    return dict(members.items())


def listed(place: str, members: Members) -> list[Member]:
    """One member or several as a list; refuses what is neither module nor parameter."""
    if isinstance(members, nn.Module | Tensor):
        members = [members]
    elif isinstance(members, str | Mapping) or not isinstance(members, Iterable):
        raise TypeError(f"{place} is a {type(members).__name__}; give a module, a parameter, or a list of them")
    each = list(members)
    for member in each:
        if not isinstance(member, nn.Module | Tensor):
            raise TypeError(f"{place} holds a {type(member).__name__}; give modules or parameters")
        if isinstance(member, Tensor) and not member.is_leaf:
            raise ValueError(f"{place} holds a computed tensor of shape {tuple(member.shape)}; give the parameters")
    return each


def parameters_of(members: Iterable[Member]) -> Iterator[Parameter]:
    """Each parameter once, lazily: most callers need only the first."""
    seen: set[int] = set()
    for member in members:
        for parameter in member.parameters() if isinstance(member, nn.Module) else (member,):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield cast(Parameter, parameter)  # a leaf tensor serves as well


def owners(places: Mapping[str, Iterable[Member]], twice: Callable[[str, str], str]) -> dict[Tensor, str]:
    """In which place each parameter is; ``twice`` says of one in two places what is wrong with that."""
    place_of: dict[Tensor, str] = {}
    for place, members in places.items():
        for parameter in parameters_of(members):
            first = place_of.setdefault(parameter, place)
            if first != place:
                raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is {twice(first, place)}")
    return place_of
