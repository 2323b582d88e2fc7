"""One training run: phases, checkpoint chosen on validation, what the balancer did."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import balanced_grad as bg
from balanced_grad.demo._data import Dataset, Split
from bench.accuracy._evaluate import WHOLE, evaluate_own, quality
from bench.accuracy._methods import ALONE, Method, Phase, Settings, encoders, rates
from bench.accuracy._model import SumOfLogits, build
from bench.accuracy._objectives import JOINT, Forward
from bench.accuracy._recipes import SMALL, Recipe
from bench.accuracy._watch import Watch

Score = tuple[float, float]  # validation accuracy, then minus the negative log-likelihood


class DivergedError(RuntimeError):
    """No epoch of a run has a finite validation loss."""


class Trainer:
    """A network, its balancer and its optimizer; one seed gives every method the same initial weights."""

    clock: Callable[[], float] = staticmethod(perf_counter)  # what a step is timed by

    def __init__(
        self, data: Dataset, method: Method, settings: Settings, optimizer: str, seed: int, recipe: Recipe = SMALL
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = build(method.network, data, recipe)
        self.recipe = recipe
        self.balancer = method.balancer(self.model, settings)
        self.items = data.train
        self.settings, self.kind = settings, optimizer
        self.dropping = torch.Generator().manual_seed(seed)
        if method.guard:
            self._guard(method, seed)
        self.begin(method.phases(settings)[-1])

    def _guard(self, method: Method, seed: int) -> None:
        """Put a guard around the balancer, and aside the items it looks at."""
        kept, held = (torch.tensor(part.indices) for part in bg.hold_out(range(len(self.items)), seed=seed))
        self.items, items = self.items[kept], self.items[held]
        order = torch.Generator().manual_seed(seed)

        def held_out() -> dict[str, Tensor]:
            return self.forward(items[torch.randint(len(items), (self.recipe.batch,), generator=order)]).losses()

        if method.guard == "blend":
            self.balancer = bg.GradientBlending(held_out)
        else:
            self.balancer = bg.HeldOut(self.balancer, held_out, target=method.guard)

    def begin(self, phase: Phase) -> None:
        """Start a phase, with a fresh optimizer."""
        self.phase = phase
        common = {"lr": self.settings["lr"] * phase.rate, "weight_decay": self.settings["weight_decay"]}
        # torch's fused SGD fails where a parameter's first gradient comes later than another's.
        common["fused"] = not isinstance(self.balancer, bg.Alternate)
        if self.kind == "sgd":
            base = torch.optim.SGD(self.model.parameters(), momentum=self.recipe.momentum, **common)
        else:
            base = torch.optim.AdamW(self.model.parameters(), **common)
        own = rates(self.model.names, self.settings["rates"]) if "rates" in self.settings else None
        self.optimizer = base
        if self.balancer is not None:
            self.optimizer = bg.BalancedOptimizer(base, self.balancer, modalities=encoders(self.model), rates=own)

    def slow_down(self, factor: float) -> None:
        """Take a part of the phase's learning rate from here on."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["lr"] * self.phase.rate * factor

    def forward(self, batch: Split, present: Mapping[str, Tensor] | None = None) -> Forward:
        """The predictions that this phase trains."""
        features = self.model.features(batch.inputs)
        logits = {JOINT: self.model.fuse(features)} if self.phase.joint else {}
        if self.phase.unimodal:
            logits |= self.model.unimodal(features)
        return Forward(self.model, batch, features, logits, present)

    def dropped(self, batch: Split) -> tuple[Split, Mapping[str, Tensor] | None]:
        """The batch as it is trained on: with modalities dropped, where the method does so."""
        if "drop" not in self.settings:
            return batch, None
        inputs, present = bg.drop_modalities(batch.inputs, self.settings["drop"], generator=self.dropping)
        return Split(inputs, batch.labels), present

    def step(self, batch: Split) -> tuple[float, float]:
        """One step; seconds of all of it but the watched heads, and of its part from the logits to ``.grad``."""
        start = self.clock()
        forward = self.forward(*self.dropped(batch))
        ready = self.clock()
        self.phase.objective(self.balancer, forward).backward()
        done = self.clock()
        if not self.phase.unimodal and not isinstance(self.model.fused, SumOfLogits):
            self._train_watched_heads(forward)
        again = self.clock()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.clock() - again + done - start, done - ready

    def _train_watched_heads(self, forward: Forward) -> None:
        """Uni-modal heads that the method has no use for learn from detached features, which no encoder can feel."""
        logits = self.model.unimodal([z.detach() for z in forward.features])
        torch.stack([cross_entropy(x, forward.batch.labels) for x in logits.values()]).sum().backward()


@dataclass
class Best:
    """The best epoch of each part of the model that is chosen on its own."""

    choose: bool
    score: dict[str, Score] = field(default_factory=dict)
    epoch: dict[str, int] = field(default_factory=dict)
    state: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict)

    def offer(self, name: str, modules: list[nn.Module], score: Score, epoch: int) -> None:
        """Keep the part as it is now if it is the best so far; with nothing to be chosen, the last."""
        if math.isfinite(score[1]) and (not self.choose or name not in self.score or score > self.score[name]):
            self.score[name], self.epoch[name] = score, epoch
            self.state[name] = [copy.deepcopy(module.state_dict()) for module in modules]


@dataclass
class Trained:
    """A model at its checkpoint, its weights after the last epoch, and what happened on the way."""

    model: nn.Module
    last: dict[str, Tensor]
    score: Score
    epochs: dict[str, int]
    watch: Watch


def parts(method: Method, model: nn.Module) -> dict[str, list[nn.Module]]:
    """What has a checkpoint of its own: each network where they are trained apart, else the model."""
    if method is not ALONE:
        return {WHOLE: [model]}
    return {name: [*pair] for name, *pair in zip(model.names, model.encoders, model.heads, strict=True)}


def train(
    data: Dataset,
    method: Method,
    settings: Settings,
    optimizer: str,
    seed: int,
    epochs: int,
    choose: bool,
    tick: Callable[[], object] = lambda: None,
    recipe: Recipe = SMALL,
) -> Trained:
    """Train for ``epochs``; raises ``DivergedError`` where there is nothing to keep."""
    trainer, order = Trainer(data, method, settings, optimizer, seed, recipe), torch.Generator().manual_seed(seed)
    best, watch = Best(choose), Watch()
    own_parts = parts(method, trainer.model)
    starts = phase_starts(method.phases(settings), epochs)
    for epoch in range(epochs):
        if epoch in starts:
            trainer.begin(starts[epoch])
        trainer.slow_down(recipe.rate(epoch, epochs))
        trainer.model.train()
        for rows in torch.split(torch.randperm(len(trainer.items), generator=order), recipe.batch):
            with watch.update_of(trainer.model):
                trainer.step(trainer.items[rows])
            watch.see(trainer.balancer)
        watch.end_epoch()
        scores = evaluate_own(trainer.model, method, data.val)
        for name, modules in own_parts.items():
            best.offer(name, modules, quality(scores[name], data.val.labels), epoch)
        tick()
    if set(best.state) != set(own_parts):
        raise DivergedError(f"no epoch with a finite validation loss, settings {settings}")
    last = copy.deepcopy(trainer.model.state_dict())
    for name, modules in own_parts.items():
        for module, state in zip(modules, best.state[name], strict=True):
            module.load_state_dict(state)
    mean = tuple(sum(column) / len(own_parts) for column in zip(*best.score.values(), strict=True))
    return Trained(trainer.model, last, mean, best.epoch, watch)


def phase_starts(phases: tuple[Phase, ...], epochs: int) -> dict[int, Phase]:
    """First epoch of each phase; every phase gets one epoch or more where there are enough."""
    starts, done = {}, 0.0
    for index, phase in enumerate(phases):
        first = min(max(round(done * epochs), index), epochs - 1)
        starts[first] = phase
        done += phase.share
    return starts
