from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import cast

from torch import Tensor, nn
from torch.nn import Parameter

from balanced_grad.capture import JOINT

Member = nn.Module | Tensor
Members = Member | Iterable[Member]


class ModalityGroups:
    """Which parameters belong to which modality: name -> modules or parameters.

    Modules are asked for their parameters each time, so a module that is sharded or whose layers are replaced
    later stays right; parameters given one by one are kept as they are.

    Args:
        modalities: name -> module, parameter, or an iterable of them, or a ``ModuleDict`` of encoders; the names
            are those of the uni-modal losses.
        shared: what several modalities use, such as a trunk or a fused head: in no modality's group.
        ignore: what takes no part; only needed for the check against ``model``.
        model: if given, each of its trainable parameters must be in one modality, in ``shared`` or in ``ignore``,
            and each parameter of a modality must be one of the model's.

    Raises:
        TypeError: for what is no mapping of names, or members that are neither modules nor parameters.
        ValueError: for no modality, one named ``"joint"``, one without parameters, a parameter in two places, and
            a parameter of ``model`` that is nowhere.

    Examples:
        >>> from torch import nn
        >>> import balanced_grad as bg
        >>> model = nn.ModuleDict({"ears": nn.Linear(2, 3), "eyes": nn.Linear(4, 3), "head": nn.Linear(6, 2)})
        >>> bg.ModalityGroups({"audio": model["ears"], "video": model["eyes"]}, shared=model["head"], model=model)
        ModalityGroups(audio: 2 parameters, video: 2 parameters, shared: 2 parameters)
        >>> bg.ModalityGroups({"audio": model["ears"], "video": model["eyes"]}, model=model)
        Traceback (most recent call last):
        ValueError: head.weight, head.bias of the model are in no group; add them to a modality, shared= or ignore=
    """

    def __init__(
        self,
        modalities: Mapping[str, Members] | nn.ModuleDict,
        *,
        shared: Members = (),
        ignore: Members = (),
        model: nn.Module | None = None,
    ) -> None:
        if isinstance(modalities, nn.ModuleDict):
            modalities = dict(modalities.items())
        if not isinstance(modalities, Mapping):
            raise TypeError(
                f"modalities is a {type(modalities).__name__}; "
                "give a mapping of name -> module or parameters, e.g. {'audio': model.audio_encoder}"
            )
        if not modalities:
            raise ValueError("modalities is empty; name at least one, e.g. {'audio': model.audio_encoder}")
        self._members = {_name(name): _listed(f"modality {name!r}", given) for name, given in modalities.items()}
        self._shared = _listed("shared", shared)
        for name in self.names:
            if not self.parameters(name):
                raise ValueError(f"modality {name!r} has no parameter; give its encoder, or leave it out")
        ignored = _listed("ignore", ignore)
        labels = self._labels(ignored)
        if model is not None:
            self._check_against(model, labels)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities, in the order given."""
        return tuple(self._members)

    @property
    def shared(self) -> list[Parameter]:
        """The parameters that several modalities use."""
        return list(_parameters(self._shared))

    def parameters(self, name: str) -> list[Parameter]:
        """The parameters of one modality, as they are now; ``KeyError`` for a name that is not among ``names``."""
        return list(_parameters(self._members[name]))

    def of(self, parameter: Tensor) -> str | None:
        """The modality this parameter belongs to; None for a shared or unknown one."""
        return next((name for name in self.names if any(p is parameter for p in self._iterate(name))), None)

    def reached(self, name: str) -> bool:
        """Whether any of this modality's parameters has a gradient, ``.grad`` being there; frozen ones all: True."""
        trainable = False
        for parameter in self._iterate(name):
            if parameter.grad is not None:
                return True
            trainable = trainable or parameter.requires_grad
        return not trainable

    def representatives(self) -> list[Parameter]:
        """The first parameter of each modality."""
        return [parameter for name in self.names for parameter in islice(self._iterate(name), 1)]

    def _iterate(self, name: str) -> Iterator[Parameter]:
        return _parameters(self._members[name])

    def _labels(self, ignored: list[Member]) -> dict[Tensor, str]:
        """Where each parameter is; one that is in two places is an error."""
        places = {f"modality {name!r}": members for name, members in self._members.items()}
        labels: dict[Tensor, str] = {}
        for place, members in (places | {"shared": self._shared, "ignore": ignored}).items():
            for parameter in _parameters(members):
                if labels.setdefault(parameter, place) != place:
                    raise ValueError(
                        f"a parameter of shape {tuple(parameter.shape)} is in {labels[parameter]} and in {place}; "
                        "name it once: what several modalities use belongs in shared="
                    )
        return labels

    def _check_against(self, model: nn.Module, labels: Mapping[Tensor, str]) -> None:
        known = dict(model.named_parameters())
        nowhere = [name for name, parameter in known.items() if parameter.requires_grad and parameter not in labels]
        if nowhere:
            listed = ", ".join(nowhere[:5]) + (f" and {len(nowhere) - 5} more" if len(nowhere) > 5 else "")
            verb, them = ("is", "it") if len(nowhere) == 1 else ("are", "them")
            raise ValueError(f"{listed} of the model {verb} in no group; add {them} to a modality, shared= or ignore=")
        for parameter in set(labels) - set(known.values()):
            raise ValueError(
                f"{labels[parameter]} has a parameter of shape {tuple(parameter.shape)} that is not in the model; "
                "take the modules from the very model that is trained, not from a copy"
            )

    def __repr__(self) -> str:
        sizes = {name: len(self.parameters(name)) for name in self.names}
        if self._shared:
            sizes["shared"] = len(self.shared)
        return f"ModalityGroups({', '.join(f'{name}: {size} parameters' for name, size in sizes.items())})"


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"modality names are strings, got {name!r}")
    if name == JOINT:
        raise ValueError(f"{JOINT!r} is the name of the fused prediction's loss; what it alone uses belongs in shared=")
    return name


def _listed(place: str, members: Members) -> list[Member]:
    if isinstance(members, nn.Module | Tensor):
        members = [members]
    elif isinstance(members, str | Mapping) or not isinstance(members, Iterable):
        raise TypeError(f"{place} is a {type(members).__name__}; give a module, a parameter, or a list of them")
    listed = list(members)
    for member in listed:
        if not isinstance(member, nn.Module | Tensor):
            raise TypeError(f"{place} holds a {type(member).__name__}; give modules or parameters")
        if isinstance(member, Tensor) and not member.is_leaf:
            raise ValueError(f"{place} holds a computed tensor of shape {tuple(member.shape)}; give the parameters")
    return listed


def _parameters(members: Iterable[Member]) -> Iterator[Parameter]:
    """Each parameter once, lazily: most callers need only the first."""
    seen: set[int] = set()
    for member in members:
        found = member.parameters() if isinstance(member, nn.Module) else (member,)
        for parameter in found:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield cast(Parameter, parameter)  # a leaf tensor serves as well


Modalities = ModalityGroups | Mapping[str, Members] | nn.ModuleDict


def grouped(modalities: Modalities) -> ModalityGroups:
    """The groups themselves, or those of a mapping; a ``ModuleDict`` is one in all but its type."""
    if isinstance(modalities, nn.ModuleDict):
        modalities = dict(modalities.items())
    return modalities if isinstance(modalities, ModalityGroups) else ModalityGroups(modalities)


def trainable(modalities: ModalityGroups, name: str, method: str) -> list[Parameter]:
    """The parameters of one encoder that receive a gradient through autograd's leaves."""
    parameters = [p for p in modalities.parameters(name) if p.requires_grad]
    if any(type(p).__name__ == "DTensor" for p in parameters):
        raise RuntimeError(
            f"the encoder of {name!r} has sharded DTensor parameters, whose gradients pass by {method}; "
            "with FSDP2 use a losses-only balancer such as Uniform or MIMO, or target='update' where a method has it"
        )
    return parameters
