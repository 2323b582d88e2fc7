"""The rows of the table, each a method of the accuracy study's kind."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor, nn

import balanced_grad as bg
from bench.accuracy._methods import BASELINE, BY_NAME, Method, Phase, both
from bench.accuracy._objectives import Forward
from bench.published import _loops as loops
from bench.published._agm import AGM
from bench.published._models import Case
from bench.published._solvers import by_cvxpy, by_slsqp, frank_wolfe

Kind = Literal["baseline", "ours", "package", "loop"]
JOINT = BASELINE.name
MIMO = "MIMO"


class Row(NamedTuple):
    """A method, and whose code it is: ours, a released package's, or our re-implementation of a published loop."""

    method: Method
    kind: Kind
    convolutions: bool = False  # touches nothing else

    @property
    def name(self) -> str:
        return self.method.name

    def suits(self, case: Case) -> bool:
        """Whether the method does anything in the model."""
        return not self.convolutions or any(
            isinstance(module, nn.Conv2d) for module in case.network(case.shapes, 2).modules()
        )


@dataclass(frozen=True)
class Run:
    """What a ``Trainer`` takes for the scalar of an objective: its ``backward()`` is a whole loop."""

    backward: Callable[[], None]


def loop(name: str, make: Callable[[], loops.Loop], unimodal: bool = True) -> Method:
    """A training loop as a method; ``make`` gives every trainer a loop with a state of its own."""

    def phases(_: object) -> tuple[Phase, ...]:
        run = make()
        return (Phase(unimodal=unimodal, objective=lambda _, forward: Run(partial(run, forward))),)

    return Method(name, phases=phases)


def with_features(balancer: bg.Balancer, forward: Forward) -> Tensor:
    """Hand the encoders' outputs over too."""
    return balancer(forward.losses(), dict(zip(forward.model.names, forward.features, strict=True)))


OURS = {
    "Uniform": BY_NAME["uniform"],
    MIMO: BY_NAME["MIMO"],
    "MinNorm, parameters": BY_NAME["MinNorm"],
    "MinNorm, features": Method("", lambda _: bg.MinNorm(level="features"), phases=both(with_features)),
    "MMPareto": BY_NAME["MMPareto"],
    "BOGC, last layers": BY_NAME["BOGC"],
    "DGL": BY_NAME["DGL"],
    "OGM-GE": BY_NAME["OGM-GE"],
    "MLB": BY_NAME["MLB"],
    "AGM": BY_NAME["AGM"],
    "Gramian, UPGrad": BY_NAME["UPGrad"],
}
ROWS = (
    Row(BASELINE, "baseline"),
    *(Row(replace(method, name=name), "ours") for name, method in OURS.items()),
    *(
        Row(loop(f"torchjd {name}", partial(loops.torchjd, name)), "package")
        for name in ("MGDA", "UPGrad", "AlignedMTL")
    ),
    Row(loop("MMPareto loop", lambda: loops.mmpareto), "loop"),
    Row(loop("OGM-GE loop", lambda: loops.ogm_ge, unimodal=False), "loop", convolutions=True),
    Row(loop("AGM loop", AGM, unimodal=False), "loop"),
    Row(loop("MGDA loop, Frank-Wolfe", lambda: loops.mgda(frank_wolfe)), "loop"),
    Row(loop("MGDA loop, cvxpy", lambda: loops.mgda(by_cvxpy)), "loop"),
    Row(loop("MGDA loop, SLSQP", lambda: loops.mgda(by_slsqp)), "loop"),
)
