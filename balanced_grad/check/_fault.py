from dataclasses import dataclass
from typing import Literal

Kind = Literal["consumes", "overwrites", "static", "hidden", "hooks", "fails"]

_LOSSES_ONLY = "use a losses-only method (MIMO, Uniform)"
_TWICE = (
    "methods that traverse it twice: per-loss gradients where several losses pass through it, and level='features' and "
    "BOGC where it lies between the features or the block and a loss"
)

# Per kind: what the operator does, whose gradients that spoils, and the cure.
_TEXTS: dict[Kind, tuple[str, str, str]] = {
    "consumes": (
        "gives another gradient when the graph is traversed a second time: it writes over what it saved",
        _TWICE,
        f"{_LOSSES_ONLY}, PyTorch's own operator, or an operator without its in-place mode; in an encoder, "
        "level='features' with features taken behind it",
    ),
    "overwrites": (
        "writes over the gradient that it is given, which others hold too",
        "methods that take per-loss gradients",
        f"{_LOSSES_ONLY}, or switch its in-place mode off",
    ),
    "static": (
        "hands out the same memory in every backward, so that the gradient of the last loss replaces the earlier ones",
        "level='features' and BOGC; per-loss gradients at the parameters are copied at once",
        "use the default level='parameters', or a losses-only method (MIMO, Uniform)",
    ),
    "hidden": (
        "runs a backward of its own, which writes .grad of parameters that the losses' graph does not show",
        "methods that take per-loss gradients: their weights do not reach these parameters",
        f"{_LOSSES_ONLY}, level='features' with features taken behind it, or torch.utils.checkpoint.checkpoint(..., "
        "use_reentrant=False) in its place",
    ),
    "hooks": (
        "has hooks, which per-loss gradients pass by",
        "what relies on them, such as a reducer or an offloader, with methods that take per-loss gradients",
        f"{_LOSSES_ONLY}, or level='features', which run one ordinary backward",
    ),
    "fails": (
        "fails when gradients are asked for a second time, or by torch.autograd.grad",
        _TWICE,
        f"{_LOSSES_ONLY}, or an operator that keeps what it saved; for activation checkpointing, use_reentrant=False",
    ),
}


@dataclass(frozen=True)
class Fault:
    """An operator under which one backward per loss is not what separate backwards are.

    Attributes:
        kind: ``"consumes"`` what it saved, ``"overwrites"`` the gradient given to it, hands out ``"static"`` buffers,
            writes ``"hidden"`` parameters, has ``"hooks"`` that do not fire, or ``"fails"``.
        operator: the class of a custom Function, or autograd's name of the node.
        module: name of the module in whose forward it was called; empty where that cannot be told.
        parameters: names of those whose gradients it was seen to spoil.
        detail: what else there is to say.
    """

    kind: Kind
    operator: str
    module: str = ""
    parameters: tuple[str, ...] = ()
    detail: str = ""

    @property
    def what(self) -> str:
        """What it does, a sentence."""
        where = f", called in {self.module}," if self.module else ""
        return f"{self.operator}{where} {_TEXTS[self.kind][0]}" + (f" ({self.detail})" if self.detail else "")

    @property
    def affects(self) -> str:
        """Which methods that spoils."""
        return _TEXTS[self.kind][1]

    @property
    def cure(self) -> str:
        """What to do."""
        if "donated" in self.detail:
            return f"set torch._functorch.config.donated_buffer = False before compiling, or {_LOSSES_ONLY}"
        return _TEXTS[self.kind][2]
