from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from balanced_grad.choices import check_choice
from balanced_grad.evidence._taps import watch
from balanced_grad.members import NamedMembers, entries, is_named

Layers = Literal["last", "all"]
Modules = nn.Module | Mapping[str, nn.Module] | NamedMembers | Iterable[nn.Module]


@dataclass(frozen=True, eq=False)
class Site:
    """Parameters whose gradients are fused together: those of a linear layer, or one other parameter.

    Attributes:
        name: the user's name of the layer or parameter.
        linear: whether this is a linear layer, through which what went can be noted.
        layers: one layer, named "", in which several losses meet; or heads of equal shape, each under the name of its
            loss.
        attributes: the names of the parameters in a layer, in the order in which their gradients make up a row.
    """

    name: str
    linear: bool
    layers: Mapping[str, nn.Module]
    attributes: tuple[str, ...]

    @property
    def heads(self) -> dict[str, tuple[Tensor, ...]]:
        """Per layer its parameters, as they are now."""
        return {key: tuple(getattr(layer, a) for a in self.attributes) for key, layer in self.layers.items()}

    @property
    def by_index(self) -> bool:
        """Whether each loss brings the gradient of its own head."""
        return "" not in self.layers

    @property
    def size(self) -> int:
        """Number of entries of a row."""
        return sum(parameter.numel() for parameter in next(iter(self.heads.values())))


class Block:
    """The parameters that a per-dimension method balances: last (or all) layers of the modules given.

    Args:
        modules: a module, or several: mapping, ``ModuleDict``, ``ModuleList``, list.
        layers: of each module take the ``"last"`` layer that holds parameters, in the order of registration, or
            ``"all"`` of them. A layer is its own last one.
        linear: refuse layers other than ``nn.Linear``, and note what goes through these.
        by_index: ``modules`` maps losses to heads of equal shape, whose gradients are fused entry by entry.
    """

    def __init__(self, modules: Modules, layers: Layers, *, linear: bool, by_index: bool = False) -> None:
        check_choice("layers", layers, Layers)
        named = _named(modules)
        held = {name: _holding_parameters(name, module) for name, module in named.items()}
        chosen = {name: found if layers == "all" else found[-1:] for name, found in held.items()}
        for name, found in chosen.items():
            for path, layer in found if linear else ():
                _check_linear(path, layer, held[name])
                watch(layer)
        self.linear = linear
        self.by_index = by_index
        self._places = [(name, named[name], path, layer) for name, found in chosen.items() for path, layer in found]
        self.sites = (
            _sites_by_index(chosen)
            if by_index
            else [site for found in chosen.values() for entry in found for site in _sites(*entry)]
        )
        if len(set(self.parameters)) < len(self.parameters):
            raise ValueError("a parameter is in the block twice; name every layer once")

    @property
    def parameters(self) -> list[Tensor]:
        """All of them, as they are now."""
        return [p for site in self.sites for head in site.heads.values() for p in head]

    def refuse_replaced(self) -> None:
        """Refuse a layer that is no longer in the module that the user named: what goes through it is not seen."""
        for name, module, path, layer in self._places:
            inner = path.removeprefix(name).removeprefix(".")
            if dict(module.named_modules(remove_duplicate=False)).get(inner) is not layer:
                raise ValueError(
                    f"block: the layer {path or 'itself'!r} was replaced after the balancer was made, which holds the "
                    "old one; change the model first and make the balancer (and load its state) afterwards"
                )

    def __repr__(self) -> str:
        return repr([site.name for site in self.sites])


def _named(modules: Modules) -> dict[str, nn.Module]:
    given: dict[str, Any]
    if is_named(modules):
        given = entries(modules, "block")
    elif isinstance(modules, nn.Module) and not isinstance(modules, nn.ModuleList):
        given = {"": modules}
    elif isinstance(modules, Iterable) and not isinstance(modules, Tensor | str):
        given = {str(position): module for position, module in enumerate(modules)}
    else:
        raise TypeError(f"block={modules!r}: give a module, or a mapping or list of modules")
    named: dict[str, nn.Module] = {}
    for name, module in given.items():
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"block[{name!r}] is a {type(module).__name__}; give a module, such as an encoder or a head"
            )
        named[name] = module
    if not named:
        raise ValueError("the block is empty; name an encoder or a head")
    return named


def _holding_parameters(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    found = [
        (".".join(filter(None, (name, path))), layer)
        for path, layer in module.named_modules()
        if any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
    ]
    if not found:
        raise ValueError(
            f"block: {name or type(module).__name__!r} has no trainable parameter; leave a frozen module out of "
            "the block, or freeze it after the balancer has been made: it then counts as absent while it is frozen"
        )
    return found


def _check_linear(path: str, layer: nn.Module, held: Sequence[tuple[str, nn.Module]]) -> None:
    if not isinstance(layer, nn.Linear):
        last = next((name for name, other in reversed(held) if isinstance(other, nn.Linear)), None)
        name = "a linear layer" if last is None else f"its last linear layer, {last!r},"
        raise ValueError(
            f"block: {path or 'the layer'!r} is a {type(layer).__name__}, and this variance needs nn.Linear layers; "
            f"name {name} as the block, such as {{'audio': model.get_submodule('...')}}, or use "
            "variance=balanced_grad.evidence.StepVariance(), which takes any parameter"
        )
    if not layer.weight.is_leaf:
        raise ValueError(
            f"block: the weight of {path or 'the layer'!r} is computed from other parameters (parametrization); "
            "use variance=StepVariance() and layers='all' on the parametrized layer"
        )


def _sites(path: str, layer: nn.Module) -> list[Site]:
    names = tuple(_own(layer))
    if isinstance(layer, nn.Linear):
        return [Site(path or "linear", True, {"": layer}, names)]
    return [Site(".".join(filter(None, (path, name))), False, {"": layer}, (name,)) for name in names]


def _sites_by_index(chosen: Mapping[str, list[tuple[str, nn.Module]]]) -> list[Site]:
    """One site per layer of the heads; they must be alike."""
    sites: list[Site] = []
    for layers in zip(*chosen.values(), strict=False):
        heads = {name: tuple(_own(layer).values()) for name, (_, layer) in zip(chosen, layers, strict=True)}
        shapes = {name: [tuple(p.shape) for p in head] for name, head in heads.items()}
        if (
            len(heads) < 2
            or len({len(own) for own in chosen.values()}) > 1
            or any(shape != next(iter(shapes.values())) for shape in shapes.values())
        ):
            raise ValueError(
                f"by_index=True takes two or more heads of equal shape, named as their losses; got {shapes}"
            )
        linear = all(isinstance(layer, nn.Linear) for _, layer in layers)
        modules = dict(zip(chosen, (module for _, module in layers), strict=True))
        sites.append(Site(f"heads[{len(sites)}]", linear, modules, tuple(_own(layers[0][1]))))
    return sites


def _own(layer: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in layer.named_parameters(recurse=False) if p.requires_grad}
