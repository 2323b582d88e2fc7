from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from balanced_grad.capture._taps import watch

Layers = Literal["last", "all"]
Modules = nn.Module | Mapping[str, nn.Module] | Iterable[nn.Module]


@dataclass(frozen=True, eq=False)
class Site:
    """Parameters whose gradients are fused together: those of a linear layer, or one other parameter.

    Attributes:
        name: the user's name of the layer or parameter.
        linear: whether this is a linear layer, through which what went can be noted.
        heads: per layer its parameters, in the order in which their gradients make up a row. One layer, named "",
            in which several losses meet; or heads of equal shape, each under the name of its loss.
        layers: the layers themselves, by the same names.
    """

    name: str
    linear: bool
    heads: Mapping[str, tuple[Tensor, ...]]
    layers: Mapping[str, nn.Module]

    @property
    def by_index(self) -> bool:
        """Whether each loss brings the gradient of its own head."""
        return "" not in self.heads

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
        if layers not in get_args(Layers):
            raise ValueError(f"layers={layers!r}: choose one of {get_args(Layers)}")
        found = {name: _holding_parameters(name, module) for name, module in _named(modules).items()}
        chosen = {name: own if layers == "all" else own[-1:] for name, own in found.items()}
        for path, layer in (entry for own in chosen.values() for entry in own):
            if linear:
                _check_linear(path, layer)
                watch(layer)
        self.linear = linear
        self.sites = (
            _sites_by_index(chosen)
            if by_index
            else [site for own in chosen.values() for e in own for site in _sites(*e)]
        )
        self.parameters = [p for site in self.sites for head in site.heads.values() for p in head]
        if len(set(self.parameters)) < len(self.parameters):
            raise ValueError("a parameter is in the block twice; name every layer once")

    def __repr__(self) -> str:
        return repr([site.name for site in self.sites])


def _named(modules: Modules) -> dict[str, nn.Module]:
    if isinstance(modules, nn.ModuleDict | Mapping):
        named = dict(modules.items())
    elif isinstance(modules, nn.Module) and not isinstance(modules, nn.ModuleList):
        named = {"": modules}
    elif isinstance(modules, Iterable) and not isinstance(modules, Tensor | str):
        named = {str(position): module for position, module in enumerate(modules)}
    else:
        raise TypeError(f"block={modules!r}: give a module, or a mapping or list of modules")
    for name, module in named.items():
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"block[{name!r}] is a {type(module).__name__}; give a module, such as an encoder or a head"
            )
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
        raise ValueError(f"block: {name or type(module).__name__!r} has no trainable parameter")
    return found


def _check_linear(path: str, layer: nn.Module) -> None:
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"block: {path or 'the layer'!r} is a {type(layer).__name__}, and this variance needs nn.Linear layers; "
            "name a linear layer, or use variance=StepVariance(), which takes any parameter"
        )
    if not layer.weight.is_leaf:
        raise ValueError(
            f"block: the weight of {path or 'the layer'!r} is computed from other parameters (parametrization); "
            "use variance=StepVariance() and layers='all' on the parametrized layer"
        )


def _sites(path: str, layer: nn.Module) -> list[Site]:
    own = _own(layer)
    if isinstance(layer, nn.Linear):
        return [Site(path or "linear", True, {"": tuple(own.values())}, {"": layer})]
    return [Site(".".join(filter(None, (path, name))), False, {"": (p,)}, {"": layer}) for name, p in own.items()]


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
        sites.append(
            Site(f"heads[{len(sites)}]", linear, heads, dict(zip(chosen, (m for _, m in layers), strict=True)))
        )
    return sites


def _own(layer: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in layer.named_parameters(recurse=False) if p.requires_grad}
