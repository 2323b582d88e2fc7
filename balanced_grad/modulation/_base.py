from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer
from balanced_grad.capture import Delivery, Walk, eager, on_backward
from balanced_grad.checks import described, vector
from balanced_grad.choices import check_choice
from balanced_grad.modulation._comparison import (
    Kind,
    Scores,
    ScoreWindow,
    across_ranks,
    aligned,
    comparable,
    converted,
    report_nan,
)
from balanced_grad.modulation._modalities import Modalities, grouped, trainable
from balanced_grad.names import refuse_unknown
from balanced_grad.presence import Present
from balanced_grad.records import Problem, Step, Weighting
from balanced_grad.state import Stateful

Target = Literal["gradient", "update"]
Hook = Callable[[Tensor], Tensor]


class Modulation(Stateful, Balancer):
    """Base of the methods that multiply each encoder's gradient, or its update, by one coefficient.

    ``balancer(losses, scores=...)`` has the value of the plain sum of the losses. Its ``backward()`` is one
    ordinary backward, in which the gradient that arrives at each parameter of encoder ``m`` is multiplied by
    ``k_m`` before it is accumulated. A subclass implements ``modulate``, from scores to coefficients.

    Args:
        modalities: ``ModalityGroups``, or a mapping of name -> encoder (modules or parameters).
        target: what is multiplied: the ``"gradient"``, or the ``"update"`` that a ``BalancedOptimizer`` makes of
            it, because optimizers of the Adam type cancel a factor on the gradient. None (default): the update
            where a ``BalancedOptimizer`` says that its base optimizer would cancel it, else the gradient.
        stop_after: modulate in the first so many training steps only; None (default): in all.

    Raises:
        ValueError: for an unknown target, a negative ``stop_after``, losses or scores of modalities not named,
            coefficients of another number.
        RuntimeError: for ``target="update"`` without a ``BalancedOptimizer``.
    """

    needs = "scores"

    _call = "write balancer(losses, scores={...})"
    _scores_as: Kind = "score"  # how scores that are given are averaged
    _losses_as: Kind = "loss"  # what the uni-modal losses are, of which scores are made

    def __init__(self, modalities: Modalities, *, target: Target | None = None, stop_after: int | None = None) -> None:
        super().__init__()
        if target is not None:
            check_choice("target", target, Target, ", or None")
        if stop_after is not None and not (hasattr(stop_after, "__index__") and stop_after >= 0):
            raise ValueError(f"stop_after={stop_after!r}: give a whole number of training steps >= 0, or None")
        self.modalities = grouped(modalities)
        self.target = target
        self.stop_after = stop_after
        self._resolved: Target | None = None  # by a BalancedOptimizer
        self._steps = 0
        self._window = ScoreWindow()

    @abstractmethod
    def modulate(self, scores: Tensor) -> Tensor:
        """Scores ``(M,)`` up to a common factor, NaN for a missing one -> coefficients ``(M,)``; not finite means 1."""

    def hook(self, coefficient: Tensor | None) -> Hook | None:
        """What becomes of a gradient on its way to a parameter of an encoder; no coefficient: it is not scaled."""
        if coefficient is None:
            return None
        return lambda gradient: gradient * coefficient.to(gradient.device, gradient.dtype)

    def weigh(self, problem: Problem) -> Weighting:
        """1 for every loss: what is balanced are the encoders."""
        return Weighting(torch.ones_like(problem.losses))

    @eager
    def forward(
        self,
        losses: Mapping[str, Tensor | None],
        features: Mapping[str, Tensor] | None = None,
        *,
        scores: Scores | None = None,
        tokens: Mapping[str, Tensor] | None = None,
        present: Present | None = None,
    ) -> Tensor:
        """The scalar to call ``backward()`` on.

        Args:
            losses: see ``Balancer.forward``. Their plain sum is what is trained.
            features: not used by methods of this kind.
            tokens: not used either.
            scores: modality -> how well it alone predicts this batch, positive, larger is better, infinite for a
                perfect one (see ``bg.scores``); None or left out where it is missing. NaN counts as missing, with a
                warning on the CPU. Default: ``exp(-L_m)`` of the uni-modal
                losses, for a cross-entropy the geometric mean of the right class's probability. Over processes and
                micro-batches, ``L_m`` is the mean, so that the score is that of the whole batch.
            present: see ``Balancer.forward``.
        """
        learning = torch.is_grad_enabled()
        with self.processes.together() if learning else nullcontext():
            self._source.note(type(self).__name__, tokens)
            given = self._admit(losses, features, present)
            problem = Problem(given.names, given.values())
            if not learning:
                return problem.losses.sum()
            given.require_graph()
            names = self.modalities.names
            self._learn_task(getattr(scores, "task", None))
            kind: Kind = self._losses_as if scores is None else "score"
            values = self._default(problem) if scores is None else scores
            row = aligned(names, values, problem.losses, kind)
            report_nan(row, names, values, type(self).__name__, self.notices)
            if scores is not None:
                kind, row = self._scores_as, converted(row, "score", self._scores_as)
            delivery = Delivery(Walk.of(given, once=True), None)
        weights = self.choose(problem).weights
        row = across_ranks(row, self.processes)
        seen = converted(row, kind, "score")
        active = self.stop_after is None or self._steps < self.stop_after
        coefficients = self._coefficients(comparable(row, kind)) if active else torch.ones_like(seen)
        hooks = self._hooks(coefficients) if active else []
        # Nothing can fail from here on: a refused step leaves the state as it was.
        self._window.observe(row if active else None, kind)
        self._steps += self.training
        self.last = Step(
            problem.names,
            problem.losses,
            weights,
            scores={name: score for name, score in zip(names, seen, strict=True) if values.get(name) is not None},
            coefficients=dict(zip(names, coefficients.unbind(), strict=True)),
            factors=self.factors,
        )
        return on_backward(problem.losses.sum(), partial(_run, delivery, weights, hooks), delivery.through)

    def update_scales(self) -> Mapping[str, Tensor]:
        """``k_m`` per modality where updates are the target, from the mean scores of the batches since the last step.

        Asked again before the next batch, the answer is the same.
        """
        mean = self._window.close()
        if self._resolved != "update" or mean is None:
            return {}
        return dict(zip(self.modalities.names, self._coefficients(mean).unbind(), strict=True))

    def resolve_target(self, scale_invariant: bool) -> None:
        """Called by a ``BalancedOptimizer``: without a target of its own, the method acts where it has an effect."""
        self._resolved = self.target or ("update" if scale_invariant else "gradient")

    def _learn_task(self, task: str | None) -> None:
        """The task that scores were made for, where they say so: for a method that compares errors otherwise."""

    def _check_names(self, names: tuple[str, ...]) -> None:
        refuse_unknown(names, self.modalities.names, "encoder", "modalities")

    def _default(self, problem: Problem) -> Scores:
        """The uni-modal losses, of which the scores are made when they have been averaged."""
        losses = dict(zip(problem.names, problem.losses.unbind(), strict=True))
        losses = {name: losses[name] for name in self.modalities.names if name in losses}
        if not losses:
            raise ValueError(
                f"{type(self).__name__} needs a score per modality: write balancer(losses, scores=bg.scores("
                f"{{'audio': audio_logits, ...}}, labels)), or give the losses of {list(self.modalities.names)}"
            )
        return losses

    def _coefficients(self, scores: Tensor) -> Tensor:
        who = f"{type(self).__name__}.modulate()"
        coefficients = vector(self.modulate(scores), scores.shape, scores, who, self.notices)
        return torch.where(coefficients.isfinite(), coefficients, 1)

    def _hooks(self, coefficients: Tensor) -> list[tuple[Tensor, Hook]]:
        """What to do with the gradient of which parameter."""
        if self.target == "update" and self._resolved is None:
            raise RuntimeError(
                "target='update' multiplies what the optimizer does, so the optimizer must be wrapped: write "
                "bg.BalancedOptimizer(optimizer, balancer), or use target='gradient'"
            )
        hooks: list[tuple[Tensor, Hook]] = []
        for name, coefficient in zip(self.modalities.names, coefficients.unbind(), strict=True):
            hook = self.hook(None if self._resolved == "update" else coefficient)
            if hook is not None and not callable(hook):
                raise TypeError(
                    f"{type(self).__name__}.hook() returned {described(hook)}; return a function from a gradient to a "
                    "gradient, or None to leave it as it is"
                )
            if hook is not None:
                hooks += [(parameter, hook) for parameter in trainable(self.modalities, name, type(self).__name__)]
        return hooks

    def state(self) -> dict[str, Any]:
        """Number of training steps, for ``state_dict``."""
        return {"steps": self._steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` gave."""
        self._steps = state["steps"]

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        mine = {"modalities": self.modalities, "target": self.target, "stop_after": self.stop_after}
        return mine | super().settings()


def _run(delivery: Delivery, weights: Tensor, hooks: list[tuple[Tensor, Hook]], scale: Tensor) -> None:
    """One ordinary backward with hooks on the encoders' parameters, which go whatever happens."""
    handles = [parameter.register_hook(hook) for parameter, hook in hooks]  # type: ignore[no-untyped-call]
    try:
        delivery(weights, scale)
    finally:
        for handle in handles:
            handle.remove()
