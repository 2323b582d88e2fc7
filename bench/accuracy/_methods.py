"""The baselines and the methods: what each trains on, and the space its hyper-parameters are drawn from."""

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import balanced_grad as bg
from balanced_grad.demo._model import LateFusion
from bench.accuracy import _objectives as objectives
from bench.accuracy._makers import bogc, encoders, torchjd, uniform
from bench.accuracy._model import InterIntra
from bench.accuracy._recipes import DEFAULTS

Settings = dict[str, Any]
Own = Literal["fused", "average", "product"]


class Phase(NamedTuple):
    """A part of training: its share of the epochs, what is trained, and the factor on the learning rate."""

    share: float = 1.0
    joint: bool = True
    unimodal: bool = True
    objective: objectives.Objective = objectives.of_losses
    rate: float = 1.0


@dataclass(frozen=True)
class Method:
    """One row of the tables.

    Attributes:
        make: builds the balancer from the model and the method's own settings; None: the plain sum.
        space: own hyper-parameter -> values to draw from, the first being the default.
        phases: the parts of training, from the settings.
        own: the prediction that is the method's own: the fused head, the average or the product of its heads.
        network: the model's class.
        guard: what a held-out guard around the balancer damps, or ``"blend"``, where it is the balancer; None: there is
            no guard. It takes its items from the training part, so these methods train on fewer.

    Two settings are the trainer's: ``drop``, the rate at which modalities are dropped, and ``rates``, a draw of one
    learning rate per modality.
    """

    name: str
    make: Callable[..., bg.Balancer] | None = None
    space: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    phases: Callable[[Settings], tuple[Phase, ...]] = lambda _: (Phase(),)
    own: Own = "fused"
    network: type[LateFusion] = LateFusion
    guard: Literal["auxiliary", "encoder", "blend"] | None = None

    def settings(self, optimizer: str, trial: int, defaults: Mapping[str, Settings] = DEFAULTS) -> Settings:
        """Settings of a trial: 0 the defaults, later ones drawn; learning rates are the same for every method."""
        base = defaults[optimizer]
        if trial == 0:
            return base | {name: values[0] for name, values in self.space.items()}
        common, own = random.Random(trial), random.Random(f"{self.name} {trial}")
        drawn = {
            "lr": base["lr"] * 10 ** common.uniform(-0.75, 0.75),
            "weight_decay": base["weight_decay"] * 10 ** common.uniform(-1, 1),
        }
        return drawn | {name: own.choice(values) for name, values in self.space.items()}

    def balancer(self, model: LateFusion, settings: Settings) -> bg.Balancer | None:
        """A fresh balancer for a model."""
        return None if self.make is None else self.make(model, **{name: settings[name] for name in self.space})


def joint_only(objective: objectives.Objective = objectives.of_losses) -> Callable[[Settings], tuple[Phase, ...]]:
    return lambda _: (Phase(unimodal=False, objective=objective),)


def both(objective: objectives.Objective) -> Callable[[Settings], tuple[Phase, ...]]:
    return lambda _: (Phase(objective=objective),)


def fine_tuned(settings: Settings) -> tuple[Phase, ...]:
    """Every encoder with its head alone, then the joint loss only."""
    before = settings["pretraining"]
    return Phase(before, joint=False), Phase(1 - before, unimodal=False, rate=settings["rate"])


def experts(settings: Settings) -> tuple[Phase, ...]:
    """Experts that share no parameter on the sum of their losses, so each alone; then the loss of the product."""
    before = settings["pretraining"]
    together = Phase(1 - before, objective=objectives.of_product, rate=settings["rate"] if before else 1.0)
    return (Phase(before), together) if before else (together,)


def rates(names: Iterable[str], draw: int) -> dict[str, float]:
    """A learning rate per modality, relative to the common one: from a quarter to four times; 1 for draw 0."""
    random_ = random.Random(draw)
    return {name: 4 ** random_.uniform(-1, 1) if draw else 1.0 for name in names}


ALONE = Method("uni-modal", phases=lambda _: (Phase(joint=False),), own="average")
BASELINE = Method("joint", phases=joint_only())
UNIMODAL = {"unimodal": (1.0, 0.3, 0.5, 2.0)}
UNIFORM = Method("uniform", uniform, UNIMODAL)
UNGUARDED = (
    ALONE,
    BASELINE,
    UNIFORM,
    Method("uniform, dropped", lambda model, unimodal, drop: uniform(model, unimodal),
           {"drop": (0.2, 0.1, 0.4), **UNIMODAL}),
    Method("uniform, rates", lambda model, unimodal, rates: uniform(model, unimodal),
           {"rates": tuple(range(100)), **UNIMODAL}),
    Method("pretrained", space={"pretraining": (0.5, 0.25, 0.75), "rate": (1.0, 0.1, 0.3)}, phases=fine_tuned),
    Method(
        "MIMO",
        lambda _, **own: bg.MIMO(**own),
        {"smoothing": (0.3, 0.1, 1.0), "penalty": (None, 1.0, 4.0), "ema": (None, 0.9)},
    ),
    Method(
        "MinNorm",
        lambda _, **own: bg.MinNorm(joint_floor=1.0, **own),
        {"normalize": ("l2", "loss", "none", "loss+"), "rescale": ("cap", "sum"), "groups": ("all", "reach")},
    ),
    Method("MGDA", lambda _: bg.MinNorm(normalize="none", rescale="none")),
    Method(
        "MMPareto",
        lambda _, **own: bg.MMPareto(**own),
        {"gamma": (1.5, 1.0, 2.0), "rescale": ("tensor", "encoder")},
    ),
    Method("BOGC", bogc, {"kappa": (1.0, 0.1, 10.0), "unit": ("source", "site"), "layers": ("last", "all")}),
    Method(
        "OGM",
        lambda model, **own: bg.OGM(encoders(model), noise=0.0, **own),
        {"alpha": (0.3, 0.1, 0.8)},
        joint_only(objectives.with_split_scores),
    ),
    Method(
        "OGM-GE",
        lambda model, **own: bg.OGM(encoders(model), **own),
        {"alpha": (0.3, 0.1, 0.8), "noise": (1.0, 0.3)},
        joint_only(objectives.with_split_scores),
    ),
    Method(
        "MLB",
        lambda model, **own: bg.MLB(encoders(model), **own),
        {"alpha": (0.8, 0.3, 1.5), "cap": (2.0, 1.5, 3.0)},
        both(objectives.with_head_scores),
    ),
    Method(
        "AGM",
        lambda model, **own: bg.AGM(model.names, **own),
        {"alpha": (1.5, 0.5, 2.5, 4.0)},
        joint_only(objectives.with_muted_passes),
    ),
    Method(
        "ARL",
        lambda model, **own: bg.ARL(encoders(model), **own),
        {"temperature": (8.0, 0.0, 2.0), "gamma": (4.0, 1.0, 2.0)},
        both(objectives.with_warranted_shares),
    ),
    Method("Alternate", lambda model, **own: bg.Alternate(model.names, **own), {"period": (1, 4), "joint": (1, 4)}),
    Method("G-Blend", guard="blend"),
    Method("DGL", lambda model, **own: bg.DGL(encoders(model), **own), {"alpha": (4.0, 1.0, 2.0)}),
    Method("UPGrad", torchjd("UPGrad")),
    Method("AlignedMTL", torchjd("AlignedMTL"), {"scale_mode": ("min", "median", "rmse")}),
    Method("I2M2", space={"pretraining": (0.5, 0.0, 0.75), "rate": (0.1, 0.3, 1.0)}, phases=experts, own="product",
           network=InterIntra),
)  # fmt: skip
METHODS = (
    *UNGUARDED,
    *(
        replace(method, name=f"{method.name}, guarded", guard="auxiliary")
        for method in UNGUARDED
        if method.name in ("uniform", "MIMO", "MinNorm", "BOGC")
    ),
    replace(UNIFORM, name="uniform, guarded encoders", guard="encoder"),
)
BY_NAME = {method.name: method for method in METHODS}
