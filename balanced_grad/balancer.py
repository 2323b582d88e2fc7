"""Losses in, one ordinary scalar out: the base of every method."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from balanced_grad.capture import (
    Balancing,
    Capture,
    Groups,
    Losses,
    Params,
    Processes,
    ProcessGroup,
    Route,
    Window,
    eager,
    on_backward,
    select,
    unit_of,
    weighted,
)
from balanced_grad.checks import reads_gramian, refuse, weighting
from balanced_grad.choices import check_choice
from balanced_grad.names import mention_suspicious
from balanced_grad.notices import Notices
from balanced_grad.presence import ItemWeights, Present
from balanced_grad.records import Problem, Step, Weighting
from balanced_grad.reuse import Reuse
from balanced_grad.source import Level, Source
from balanced_grad.tokens import Masks, Tokens

Need = Literal["nothing", "losses", "scores", "gramian", "rows"]

_CAPTURED = ("gramian", "rows")  # needs that per-loss gradients serve


class Balancer(nn.Module, ABC):
    """Base of every method: ``balancer(losses)`` is a scalar whose ``backward()`` writes balanced gradients.

    With weights ``w`` chosen by the method, ``backward()`` accumulates ``Σ_k w_k ∂L_k/∂θ`` into ``.grad`` of every
    parameter ``θ`` the losses reach. A subclass implements ``weigh``, a function of tensors that knows no autograd.

    ``needs`` says what a method looks at. ``"losses"`` (default), or ``"nothing"`` where its weights are fixed: it
    builds the scalar directly, one ordinary backward, nothing captured. ``"scores"``: see ``Modulation``. With
    ``"gramian"``, inner products of the per-loss gradients, or ``"rows"``, those gradients themselves (see
    ``RowFusion``), there is one backward per loss inside ``backward()``. What is decided there does not exist before,
    so the scalar has the value of the plain sum of the losses.

    Once ``torch.distributed`` is initialised, all processes of the default group train one model: they use the same
    weights, chosen from their losses' means and their gradients' means. ``balancer.process_group`` may be set to
    another group, or to None where each process trains a model of its own. Losses-only methods exchange a number per
    loss; a method that takes per-loss gradients at the parameters exchanges, for each parameter, the gradient of every
    loss that reaches it, where the plain sum exchanges one.

    ``balancer.factors``, a mapping of loss name -> ``()`` tensor, multiplies the weights that the method chooses; a
    loss that is not named keeps its own, and so does a parameter without weights (see ``groups``). ``HeldOut`` sets
    it, and so may you.

    A loss per item ``(B,)`` counts by its mean over the items that have the modality. ``balancer.item_weights`` may
    weigh them: a function from detached losses ``(B,)`` and presence masks ``(B,)``, by name, to weights ``(B,)`` of
    some of them, called in training without a graph; then ``L_m = Σ_i w_i p_i ℓ_i / Σ_i p_i``. Default None.

    Args:
        params: the parameters that may receive gradients: ``model.parameters()``, ``named_parameters()``, whose names
            then appear in errors, or the model itself, which is asked anew in every step. Default: every leaf that the
            losses reach. Of these the ``nn.Parameter`` are balanced, if there are any, and all get their gradient.
        level: where per-loss gradients are taken. ``"parameters"`` is exact. ``"features"`` takes them at
            the encoder outputs passed as ``balancer(losses, features={...})`` and then runs one ordinary
            backward of the weighted losses, at about the cost of the plain sum. A ``bg.Tokens(model)`` splits the
            gradient of one loss by groups of tokens, which then take the place of the losses. A
            ``bg.Parameters(batched=...)`` chooses how many backwards ``"parameters"`` takes.
        groups: which parameters share a problem and its weights: ``"all"`` (default) of those where losses meet;
            ``"reach"``, one problem per set of losses that meet, so one per encoder; ``"tensor"``, one per
            parameter; or a mapping of name -> module or parameters, the others being summed plainly. With more
            than one problem, parameters that one loss alone reaches keep its plain gradient.
        include_exclusive: take the Gramian over all captured parameters, those that one loss alone reaches
            (heads) too, which adds to its diagonal only; default: where losses meet, as MGDA does.
        record_gramian: capture per-loss gradients also for a losses-only method, so that ``last.gramian``
            shows norms and conflicts; costs what a Gramian method costs.
        every: of a Gramian method with one problem: solve in one call of ``every`` and use the weights again, by the
            names of the losses, in those between, each of which is one ordinary backward. Where a solving step costs
            ``c`` plain ones, the mean is ``1 + (c - 1) / every``. Default 1: every step is solved.

    Raises:
        TypeError, ValueError: for losses that are no mapping, empty, no scalars, without a graph, on different
            devices; for options and ``features`` that would have no effect; for what ``weigh`` may not return.
        RuntimeError: for ``create_graph=True``, a second ``backward()``, or parameters whose hooks a captured
            gradient would bypass; inside a model under ``nn.DataParallel``.
    """

    needs: ClassVar[Need] = "losses"

    _call: ClassVar[str] = "write balancer(losses)"  # where that is all there is to give

    def __init__(
        self,
        *,
        params: Params | None = None,
        level: Level | Tokens = "parameters",
        groups: Groups = "all",
        include_exclusive: bool = False,
        record_gramian: bool = False,
        every: int = 1,
    ) -> None:
        super().__init__()
        check_choice(f"{type(self).__name__}.needs", self.needs, Need)
        self._source = Source(params, level, groups, include_exclusive)
        self.include_exclusive = include_exclusive
        self.record_gramian = record_gramian
        if not (self.needs in _CAPTURED or (record_gramian and self._source.tokens is None)):
            refuse(
                type(self).__name__,
                "it takes no per-loss gradients; leave it out, or add record_gramian=True (in a method of your own "
                "that uses problem.gramian, needs = 'gramian')",
                level=None if level == "parameters" else level,
                groups=None if self._source.partition.single else groups,
                include_exclusive=include_exclusive,
            )
        self._reuse = self._reuse_of(every)
        self.last: Step | None = None
        self._factors: Mapping[str, Tensor] = {}
        self.item_weights: ItemWeights | None = None
        self.notices = Notices()  # what has been said of this balancer, so that each thing is said once

    def _reuse_of(self, every: int) -> Reuse | None:
        """What serves the steps without a solve; None where every step is solved."""
        if not (hasattr(every, "__index__") and every >= 1):
            raise ValueError(f"every={every!r}: give a whole number of steps, 1 or more")
        tokens = self._source.tokens is not None
        if every > 1 and not (self.needs == "gramian" and self._source.partition.single and not tokens):
            of_several = "weights of " + ("tokens, not of losses" if tokens else "several problems")
            what = of_several if self.needs == "gramian" else "no weights from a Gramian"
            raise ValueError(
                f"every={every!r} uses the weights of one Gramian again, and {type(self).__name__} has {what}; "
                "leave every out"
            )
        return Reuse(every) if every > 1 else None

    def __init_subclass__(cls, **options: Any) -> None:
        """Reads the spelling of 0.1, ``needs_gramian = True`` and ``needs_losses = False``, as ``needs``."""
        super().__init_subclass__(**options)
        if "needs" not in vars(cls):
            if vars(cls).get("needs_gramian") is True:
                cls.needs = "gramian"
            elif vars(cls).get("needs_losses") is False:
                cls.needs = "nothing"

    @property
    def needs_gramian(self) -> bool:
        """Whether ``needs`` is ``"gramian"``."""
        return self.needs == "gramian"

    @property
    def level(self) -> str:
        """Where per-loss gradients are taken: ``"parameters"``, ``"features"`` or ``"tokens"``."""
        return self._source.level

    @level.setter
    def level(self, level: str) -> None:
        self._source.level = level

    @property
    def process_group(self) -> ProcessGroup:
        """The processes that train one model: ``"default"``, a process group, or None for this process alone."""
        return self.processes.group

    @process_group.setter
    def process_group(self, group: ProcessGroup) -> None:
        self._source.processes = Processes(group)

    @property
    def processes(self) -> Processes:
        """The processes of ``process_group``, and what they exchange."""
        return self._source.processes

    @property
    def factors(self) -> Mapping[str, Tensor]:
        """Loss name -> factor ``()`` on the weight that the method chooses; 1 for a loss that is not named."""
        return self._factors

    @factors.setter
    def factors(self, factors: Mapping[str, Tensor]) -> None:
        for name, factor in factors.items():
            if not isinstance(factor, Tensor) or factor.dim():
                what = f"of shape {tuple(factor.shape)}" if isinstance(factor, Tensor) else f"a {type(factor).__name__}"
                raise TypeError(f"factors[{name!r}] is {what}; give a 0-dimensional tensor on the losses' device")
        self._factors = dict(factors)

    @abstractmethod
    def weigh(self, problem: Problem) -> Weighting:
        """Choose the weights of this step's losses."""

    def choose(self, problem: Problem) -> Weighting:
        """What ``weigh`` decides, checked and without a graph, with the weight of each loss times its factor.

        Raises:
            TypeError, ValueError: for what is no ``Weighting``, weights of another number, shape or device, a value
                that is not 0-dimensional, or a look at ``problem.gramian`` without ``needs = "gramian"``.
        """
        who = f"{type(self).__name__}.weigh()"
        training = problem.gramian is not None and not torch.is_grad_enabled()  # called by backward(), in a step
        try:
            with torch.enable_grad() if training else nullcontext():
                chosen = self.weigh(problem)
        except (AttributeError, TypeError, ValueError, AssertionError) as error:
            if problem.gramian is None and self.needs != "gramian" and reads_gramian(error.__traceback__):
                raise TypeError(
                    f"{who} failed and looks at problem.gramian, which is None: a method that needs it says "
                    "needs = 'gramian' in its class (in 0.1: needs_gramian = True)"
                ) from error
            raise
        chosen = weighting(chosen, problem, who, self.notices)
        if training and self._reuse is not None and self.training:
            self._reuse.keep(problem.names, chosen.weights)
        return self._damped(chosen, problem)

    def _reused(self, problem: Problem) -> Weighting:
        """The weights of the last solve, in a step between two."""
        assert self._reuse is not None
        return self._damped(Weighting(self._reuse.use(problem.names, problem.losses)), problem)

    def _damped(self, chosen: Weighting, problem: Problem) -> Weighting:
        """With the weight of each loss times its factor."""
        factors = self._factors_of(problem)
        return chosen if factors is None else Weighting(chosen.weights * factors.to(chosen.weights.dtype))

    def update_scales(self) -> Mapping[str, Tensor]:
        """Per modality, the factor on its encoder's update that a ``BalancedOptimizer`` applies; empty: none."""
        return {}

    def resolve_target(self, scale_invariant: bool) -> None:
        """Called by a ``BalancedOptimizer``: does its base optimizer cancel a factor on the gradient? Ignored here."""

    def accumulate_rows(self, on: bool) -> None:
        """Called by a ``BalancedOptimizer``: balance the gradients of a whole optimizer step together, or not."""
        if on and self._reuse is not None:
            raise ValueError(f"accumulate='rows' solves once per window, and {self!r} in one call of several; take one")
        if on and (self.needs not in _CAPTURED or self.level == "features" or self._source.params.sharded):
            raise ValueError(
                f"accumulate='rows' keeps the per-loss gradients of whole parameters, and {self!r} takes none; leave "
                "accumulate out"
            )
        self._source.memory.window = Window() if on else None

    def end_step(self) -> None:
        """Called by a ``BalancedOptimizer`` when it has stepped, or dropped the gradients."""
        if self._source.memory.window is not None:
            self._source.memory.window.close()

    @eager
    def forward(
        self,
        losses: Mapping[str, Tensor | None],
        features: Mapping[str, Tensor] | None = None,
        *,
        tokens: Masks | None = None,
        present: Present | None = None,
    ) -> Tensor:
        """The scalar to call ``backward()`` on.

        Args:
            losses: name -> scalar with a graph, or one number per item ``(B,)``, or None for a modality missing in this
                batch (or leave its key out). ``"joint"`` is the fused prediction's loss, every other name a modality.
            features: with ``level="features"``, name -> encoder output that the losses were computed from.
            tokens: with ``level=bg.Tokens(model)``, modality -> boolean mask of its positions.
            present: name -> ``(B,)`` boolean, which items count in a loss per item; what stands in the slots of the
                others has no influence. A loss that no item has is missing where the mask is on the CPU; elsewhere,
                where looking would wait for the device, it is 0 with zero gradient.
        """
        learning = torch.is_grad_enabled()
        reused = learning and self.training and self._reuse is not None and self._reuse.serves
        later = self.needs in _CAPTURED and not reused  # no weights before backward(): until then, the plain sum
        captures = later or self.record_gramian
        exchanges = learning and self.processes.size > 1 and (captures or self.needs != "nothing")
        with self.processes.together() if exchanges else nullcontext():
            self._source.note(type(self).__name__, tokens)
            given = self._admit(losses, features, present)
            # These refuse, so before any state moves.
            balancing = self._balancing(given, features) if learning and not reused else None
            restricted = self._source.delivery(given) if learning and balancing is None else None
            self._mention_left_out(balancing.route if balancing else restricted)
        problem = Problem(given.names, given.values())
        if later:
            chosen, value = None, problem.losses.sum()
        else:
            problem = Problem(*self.processes.of_all(problem.names, problem.losses)) if exchanges else problem
            chosen = self._reused(problem) if reused else self.choose(problem)
            value = problem.losses.sum() if reused else chosen.objective(problem)
        if not learning:
            return value
        weights = None if chosen is None else chosen.weights
        self.last = Step(problem.names, problem.losses, weights, factors=self.factors)
        if balancing is not None:
            return on_backward(value, partial(balancing.backward, problem, weights), balancing.route.through)
        assert weights is not None
        weights = select(weights, tuple(map(problem.names.index, given.names)))
        if restricted is not None:
            return on_backward(value, partial(restricted, weights), restricted.through)
        return weighted(value, weights, given.tensors)

    def _admit(
        self,
        losses: Mapping[str, Tensor | None],
        features: Mapping[str, Tensor] | None,
        present: Present | None = None,
    ) -> Losses:
        """The losses of this batch, checked; what is legal there and yet looks like a mistake is said once."""
        given = Losses.check(losses, present, self.item_weights if torch.is_grad_enabled() else None)
        self._source.params.refresh()
        if self.level != "features":
            captures = self.needs == "gramian" or self.record_gramian
            cure = f"write {type(self).__name__}(level='features'), or leave them out" if captures else self._call
            where = "level='parameters'" if captures else "it"
            refuse(type(self).__name__, f"{where} uses no features; {cure}", features=features)
        self._check_names(given.names)
        mention_suspicious(losses, self.notices)
        return given

    def _check_names(self, names: tuple[str, ...]) -> None:
        """Refuse losses that a method could not place: none, where the graph tells what belongs to what."""

    def _balancing(self, losses: Losses, features: Mapping[str, Tensor] | None) -> Balancing | None:
        """How this batch's gradients are taken and balanced; None: one backward of the weighted losses."""
        losses.require_graph()
        if self.needs == "rows":
            raise TypeError(f"{type(self).__name__} needs rows: derive it from bg.RowFusion, and write fuse()")
        if not (self.needs == "gramian" or self.record_gramian):
            return None
        capture = self._source.capture(losses, features)
        return Balancing(capture, partial(self._balance, capture))

    def _mention_left_out(self, route: Route | None) -> None:
        if route is not None and route.left_out is not None:
            self.notices.say("left out", route.left_out)

    def _balance(
        self,
        capture: Capture,
        problem: Problem,
        weights: Tensor | None,
        scale: Tensor,
    ) -> Sequence[Tensor] | None:
        """What ``backward()`` does: per-loss gradients, Gramian, weights, ``.grad``; or what it goes on with."""
        with torch.autocast(scale.device.type, enabled=False):  # on the CPU, backward runs in the caller's thread
            capture.run(scale)
            if weights is None:
                problem = Problem(*capture.losses())
            # The incoming gradient is loss scale over accumulation divisor: no statistic may depend on it.
            unit = unit_of(scale).double() * capture.batches
            gramian = capture.gramian(exclusive=self.include_exclusive) / unit.square()
            reach = capture.reach()
            if weights is None:
                problem = replace(problem, gramian=gramian, reach=reach)
                weights = self.choose(problem).weights
            passed = capture.write(weights)
        labels = () if self._source.partition.single else capture.problems
        self.last = Step(problem.names, problem.losses, weights, gramian, labels, reach, factors=self.factors)
        return passed

    def _factors_of(self, problem: Problem) -> Tensor | None:
        """``(K,)`` factors of these losses; None where there are none."""
        if not self._factors:
            return None
        one = problem.losses.new_ones(())
        return torch.stack([self._factors.get(name, one).to(one) for name in problem.names])

    def _replicate_for_data_parallel(self) -> "Balancer":
        raise RuntimeError(
            f"{type(self).__name__} is inside a model under nn.DataParallel, whose replicas are thrown away with the "
            "state that a balancer keeps in them; use DistributedDataParallel, or return the losses from the model and "
            "call the balancer outside of it"
        )

    def settings(self) -> dict[str, object]:
        """What ``repr`` shows, name -> value: here the common settings that differ from their defaults.

        A method adds its own: ``return {"temperature": self.temperature} | super().settings()``.
        """
        out: dict[str, object] = {} if self._source.described is None else {"level": self._source.described}
        out |= {} if self._source.partition.single else {"groups": self._source.partition}
        out |= {name: True for name in ("include_exclusive", "record_gramian") if getattr(self, name)}
        out |= {} if self._reuse is None else {"every": self._reuse.every}
        return out if self._source.params.given is None else out | {"params": self._source.params}

    def extra_repr(self) -> str:
        """``settings``, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
