"""Which parameters are a modality's encoder, for methods that treat encoders apart."""

from collections.abc import Mapping

from torch import nn
from torch.nn import Parameter

from balanced_grad.optim import ModalityGroups
from balanced_grad.optim._groups import Members

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
