from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from balanced_grad.capture._params import ParameterFilter
from balanced_grad.capture._plan import Group
from balanced_grad.choices import check_choice
from balanced_grad.members import Named, NamedMembers, is_named

GroupsName = Literal["all", "reach", "tensor"]
Groups = GroupsName | Named


@dataclass(frozen=True)
class Stretch:
    """Neighbouring columns of one group's rows that belong to one problem; None: balanced by none."""

    columns: slice
    problem: int | None


class Partition:
    """How the parameters where losses meet are divided into problems with weights of their own.

    ``"all"``: one problem. ``"reach"``: one per set of losses, so one per encoder where each encoder is reached
    by its own loss and the joint one. ``"tensor"``: one per parameter. A mapping of name -> module or parameters, or
    ``ModalityGroups``: one per name, and the plain sum for what it does not name.
    """

    def __init__(self, groups: Groups = "all") -> None:
        self.groups = groups if isinstance(groups, str) else None
        self._members: NamedMembers | None = None
        if isinstance(groups, str):
            check_choice("groups", groups, GroupsName, ", or give a mapping of name -> parameters")
            return
        if not is_named(groups) or not groups:
            raise TypeError(
                f"groups={groups!r}: give one of {get_args(GroupsName)}, or a mapping of name -> parameters"
            )
        self._members = NamedMembers(groups, "groups")
        self._owners()

    def _owners(self) -> dict[Tensor, str]:
        """Which named group a parameter is in, in this step."""
        return {} if self._members is None else self._members.owners()

    def unmet(self, reach: Collection[Tensor]) -> str | None:
        """What to say where the losses reach no parameter of any group."""
        if self._members is None or any(parameter in reach for parameter in self._owners()):
            return None
        return (
            f"the losses reach no parameter of groups={self}, so nothing is balanced and this step is the plain sum; "
            "name modules of the very model that is trained, not of a copy, rather than a list of their parameters"
        )

    @property
    def single(self) -> bool:
        """Whether all parameters share one problem."""
        return self.groups == "all"

    def split(
        self, groups: Iterable[Group], names: tuple[str, ...], params: ParameterFilter
    ) -> tuple[list[list[int | None]], tuple[str, ...]]:
        """Per group, the number of every parameter's problem; and the problems' labels."""
        numbers: dict[str, int] = {}
        owners = self._owners()

        def number(label: str | None) -> int | None:
            return None if label is None else numbers.setdefault(label, len(numbers))

        labels = [[self._label(group, p, names, params, owners) for p in group.parameters] for group in groups]
        return [[number(label) for label in of_group] for of_group in labels], tuple(numbers)

    def _label(
        self,
        group: Group,
        parameter: Tensor,
        names: tuple[str, ...],
        params: ParameterFilter,
        owners: Mapping[Tensor, str],
    ) -> str | None:
        if self.groups == "reach":
            return "+".join(names[loss] for loss in group.losses)
        if self.groups == "tensor":
            return params.label(parameter)
        return owners.get(parameter)

    def __repr__(self) -> str:
        return repr(self.groups if self._members is None else sorted(self._members.names))


def to_stretches(problems: list[int | None], bounds: list[int]) -> list[Stretch]:
    """Merge neighbouring parameters of one problem; ``bounds`` are their starts in a row, and its end."""
    out: list[Stretch] = []
    for problem, start, stop in zip(problems, bounds[:-1], bounds[1:], strict=True):
        if out and out[-1].problem == problem:
            out[-1] = Stretch(slice(out[-1].columns.start, stop), problem)
        else:
            out.append(Stretch(slice(start, stop), problem))
    return out
