from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from balanced_grad.capture import JOINT, Losses, Rows
from balanced_grad.check import _advice
from balanced_grad.check._cost import measure
from balanced_grad.check._model import not_trained, without_a_loss
from balanced_grad.check._names import covering
from balanced_grad.check._reach import Reach
from balanced_grad.check._report import Bystander, Part, Report
from balanced_grad.check._text import listed
from balanced_grad.check._tokens import Split
from balanced_grad.tokens import Tokens


def check(
    losses: Mapping[str, Tensor | None],
    model: nn.Module | None = None,
    *,
    optimizer: Optimizer | None = None,
    tokens: Tokens | None = None,
) -> Report:
    """The plan for these losses: what each of them reaches, and what it costs to balance them.

    Runs a few backwards to time them. ``.grad`` stays as it is, and the losses can still be trained on.

    Args:
        losses: as for a balancer: name -> scalar with a graph, or None.
        model: whose names parameters get in the report; also shows which ones no loss reaches.
        optimizer: the one that will step; shows which parameters it does not hold.
        tokens: the ``bg.Tokens(model)`` that watched the forward pass; shows how the one loss splits, layer by layer.

    Raises:
        TypeError, ValueError, RuntimeError: for what a balancer would refuse.

    Examples:
        >>> import torch
        >>> from balanced_grad.check import check
        >>> model = torch.nn.ModuleDict({"audio": torch.nn.Linear(4, 2), "head": torch.nn.Linear(2, 1)})
        >>> z = model["audio"](torch.ones(8, 4))
        >>> report = check({"joint": model["head"](z).mean(), "audio": z.square().mean()}, model)
        >>> [(part.losses, part.where) for part in report.parts]
        [(('joint',), ('head.*',)), (('joint', 'audio'), ('audio.*',))]
        >>> report.rows  # two rows of the encoder's 8 + 2 numbers, each padded to 16 bytes
        96
    """
    present = Losses.check(losses)
    present.require_graph()
    names: dict[Tensor, str] = (
        {} if model is None else {parameter: name for name, parameter in model.named_parameters()}
    )
    reach = Reach.of(present)
    parts = _parts(present, reach, names)
    bystanders = (Bystander(_named(present, each), tuple(leaf.shape)) for leaf, each in reach.bystanders.items())
    reached = set(reach.parameters)
    missed = [name for parameter, name in names.items() if parameter.requires_grad and parameter not in reached]
    unreached = covering(missed, list(names.values()))
    values = dict(zip(present.names, present.values().tolist(), strict=True))
    missing, sets = [name for name in losses if name not in values], [part.losses for part in parts]
    notes = _advice.of_losses(values, missing, sets, split=tokens is not None)
    notes += _about_model(present, reach, model)
    notes += [f"no loss reaches {listed(unreached)}: they will not be trained by this batch"] if unreached else []
    if optimizer is not None:
        notes += not_trained(optimizer, {p: names.get(p, _shape(p)) for p in reach.parameters}, names, reach.bystanders)
    split = None if tokens is None else Split.of(present, tokens, names)
    cost = measure(present, reach.plan)
    return Report(values, parts, tuple(unreached), cost, tuple(bystanders), tuple(notes), split)


def _parts(losses: Losses, reach: Reach, names: Mapping[Tensor, str]) -> tuple[Part, ...]:
    return tuple(
        Part(
            _named(losses, group.losses),
            _where(group.parameters, names),
            sum(p.numel() for p in group.parameters),
            sum(p.numel() * p.element_size() for p in group.parameters),
            Rows.row_bytes(group),
        )
        for group in reach.plan.groups
    )


def _named(losses: Losses, indices: Sequence[int]) -> tuple[str, ...]:
    return tuple(losses.names[index] for index in indices)


def _about_model(losses: Losses, reach: Reach, model: nn.Module | None) -> Iterator[str]:
    if model is None or JOINT not in losses.names:
        return
    joint = losses.names.index(JOINT)
    alone = {p for group in reach.plan.groups if group.losses == (joint,) for p in group.parameters}
    shared = {p for group in reach.plan.groups if group.shared for p in group.parameters}
    lonely = without_a_loss(model, losses.tensors[joint], alone, shared) if shared else []
    if lonely:
        yield (
            f"only the joint loss reaches {listed(lonely)}: an encoder without a loss of its own? Its modality cannot "
            "be balanced; bg.attach makes a head and a loss for it"
        )


def _where(parameters: Sequence[Tensor], names: Mapping[Tensor, str]) -> tuple[str, ...]:
    named = [names[p] for p in parameters if p in names]
    nameless = [_shape(p) for p in parameters if p not in names]
    return (*covering(named, list(names.values())), *nameless)


def _shape(parameter: Tensor) -> str:
    return f"a parameter of shape {tuple(parameter.shape)}"
