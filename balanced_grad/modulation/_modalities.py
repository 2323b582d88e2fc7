from collections.abc import Iterable, Mapping
from itertools import islice

from torch import Tensor, nn
from torch.nn import Parameter

from balanced_grad.capture import JOINT
from balanced_grad.members import Member, Members, Named, NamedMembers, entries, listed, owners, parameters_of

Modalities = Named  # of which ``ModalityGroups`` are the checked form


class ModalityGroups(NamedMembers):
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
        modalities: Modalities,
        *,
        shared: Members = (),
        ignore: Members = (),
        model: nn.Module | None = None,
    ) -> None:
        for name in (named := entries(modalities, "modalities")):
            _check_name(name)
        if not named:
            raise ValueError("modalities is empty; name at least one, e.g. {'audio': model.audio_encoder}")
        self._shared = listed("shared", shared)
        super().__init__(named, "modalities")
        labels = self._labels(listed("ignore", ignore))
        if model is not None:
            self._check_against(model, labels)

    def _place(self, name: str) -> str:
        return f"modality {name!r}"

    @property
    def shared(self) -> list[Parameter]:
        """The parameters that several modalities use."""
        return list(parameters_of(self._shared))

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

    def _labels(self, ignored: Iterable[Member]) -> dict[Tensor, str]:
        """Where each parameter is; one that is in two places is an error."""
        places: dict[str, Iterable[Member]] = {self._place(name): members for name, members in self._members.items()}
        return owners(
            places | {"shared": self._shared, "ignore": ignored},
            lambda first, second: (
                f"in {first} and in {second}; name it once: what several modalities use belongs in shared="
            ),
        )

    def _check_against(self, model: nn.Module, labels: Mapping[Tensor, str]) -> None:
        of_model = dict(model.named_parameters())
        nowhere = [name for name, parameter in of_model.items() if parameter.requires_grad and parameter not in labels]
        if nowhere:
            listed = ", ".join(nowhere[:5]) + (f" and {len(nowhere) - 5} more" if len(nowhere) > 5 else "")
            verb, them = ("is", "it") if len(nowhere) == 1 else ("are", "them")
            raise ValueError(f"{listed} of the model {verb} in no group; add {them} to a modality, shared= or ignore=")
        for parameter in set(labels) - set(of_model.values()):
            raise ValueError(
                f"{labels[parameter]} has a parameter of shape {tuple(parameter.shape)} that is not in the model; "
                "take the modules from the very model that is trained, not from a copy"
            )

    def __repr__(self) -> str:
        sizes = {name: len(self.parameters(name)) for name in self.names}
        if self._shared:
            sizes["shared"] = len(self.shared)
        return f"ModalityGroups({', '.join(f'{name}: {size} parameters' for name, size in sizes.items())})"


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"modality names are strings, got {name!r}")
    if name == JOINT:
        raise ValueError(f"{JOINT!r} is the name of the fused prediction's loss; what it alone uses belongs in shared=")


def grouped(modalities: Modalities) -> ModalityGroups:
    """The groups themselves, or those of a mapping."""
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
