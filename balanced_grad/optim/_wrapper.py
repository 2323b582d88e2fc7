from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch.optim import Optimizer

from balanced_grad.balancer import Balancer
from balanced_grad.choices import check_choice
from balanced_grad.modulation import Modalities, ModalityGroups, grouped
from balanced_grad.optim import _checkpoint
from balanced_grad.optim._activity import ActivityWatch
from balanced_grad.optim._rates import Rate, Rates
from balanced_grad.optim._scale_invariance import is_scale_invariant, layers
from balanced_grad.optim._scaled_update import ScaledUpdate
from balanced_grad.optim._silence import SilenceWatch

_CALL_IT = "call backward() on balancer(losses), and give the optimizer the very balancer that is called"
Accumulate = Literal["gradients", "rows"]


def _of_base(name: str) -> Any:
    """The base optimizer's attribute itself: a copy would go stale when that one loads a checkpoint."""
    return property(lambda self: getattr(self.base, name), lambda self, value: setattr(self.base, name, value))


class BalancedOptimizer(Optimizer):
    """Any optimizer with a balancer beside it: its state in the optimizer's checkpoint, its factors on the update.

    The base optimizer does everything it did before; parameter groups, state, defaults and hooks are its own, so
    schedulers, ``GradScaler``, trainers and checkpoints see one optimizer; what else it can do, ``train()`` and
    ``eval()`` of schedule-free ones for instance, is handed on. Two things are added.

    A factor ``f`` that a balancer gives a modality (``balancer.update_scales()``) acts on the step, not on the
    gradient, since optimizers such as Adam cancel a factor on the gradient:

        p ← p_before + f (p_after - p_before)   for the parameters p of that modality

    after the base optimizer's step, weight decay and momentum included, before step post-hooks, and without
    waiting for the device. Nothing is copied while the balancer has no factors, as most have none. ``rates`` are more
    factors of this kind, your own: learning rates of modalities, relative to the optimizer's.

    ``state_dict()`` is the base optimizer's with the balancer's state in the first parameter group, exact in its
    own dtypes. Either optimizer loads the other's: a checkpoint without the balancer's state leaves the balancer as
    it is, and the base optimizer ignores the entry.

    Args:
        base: the optimizer, an instance. A ``BalancedOptimizer`` is unwrapped first.
        balancer: the balancer whose scalar is trained on. It learns from here whether ``base`` cancels a factor on
            the gradient (``resolve_target``).
        modalities: ``ModalityGroups``, or its mapping of name -> module or parameters. Needed by methods that scale
            updates; default: the balancer's own ``modalities`` if it has them. A modality that has received no
            gradient in 100 steps in a row is reported once, by a warning.
        accumulate: what is added up where several backwards go into one step: the balanced ``"gradients"`` of
            each micro-batch (default, as without this class), or the per-loss gradients, the ``"rows"``: then
            the weights are those of one large batch. After each backward ``.grad`` holds the fusion of all rows
            since the last step, so loss scaling and clipping need nothing special. A step ends with ``step()`` or
            ``zero_grad()`` of this optimizer. Costs two more copies of the gradients of all losses.
        rates: modality -> learning rate relative to the optimizer's: a number, 0 to freeze it, or a function of the
            optimizer steps made so far, such as ``bg.warm_up(steps)`` and ``bg.freeze(until=steps)``. For optimizers
            whose step is ``lr`` times something, SGD and AdamW for instance, the same as parameter groups with ``lr``
            times the rate: a decoupled weight decay is scaled with the step. Number of steps in the checkpoint, values
            in ``balancer.last.rates``. Default: 1 for all. A rate of 1 costs nothing, another one a copy.

    Raises:
        TypeError: if ``base`` is no optimizer instance or ``balancer`` no balancer.
        ValueError: for ``accumulate="rows"`` with a balancer that takes no per-loss gradients at the parameters, or
            where they are sharded; if ``base`` hides another ``BalancedOptimizer``, or holds no parameter of any
            modality; in ``step``, before anything has moved, if the balancer scales a modality that is not named (a
            ``RuntimeError`` if ``base`` averages weights: the average would not know of the factor); for a rate of an
            unknown modality, one that is negative or not finite, a parameter in two modalities; in
            ``load_state_dict``, with everything as before, if another method wrote the balancer's state.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = bg.BalancedOptimizer(torch.optim.AdamW([w], lr=0.1), bg.MIMO(ramp_steps=10))
        >>> optimizer.balancer({"joint": w.sum(), "audio": w[0]}).backward()
        >>> optimizer.step()
        >>> optimizer.param_groups is optimizer.base.param_groups
        True
        >>> resumed = bg.BalancedOptimizer(torch.optim.AdamW([w], lr=0.1), bg.MIMO(ramp_steps=10))
        >>> resumed.load_state_dict(optimizer.state_dict())
        >>> resumed.balancer.state()["steps"]
        1
    """

    param_groups = _of_base("param_groups")
    state = _of_base("state")
    defaults = _of_base("defaults")
    _optimizer_step_pre_hooks = _of_base("_optimizer_step_pre_hooks")
    _optimizer_step_post_hooks = _of_base("_optimizer_step_post_hooks")
    _optimizer_state_dict_pre_hooks = _of_base("_optimizer_state_dict_pre_hooks")
    _optimizer_state_dict_post_hooks = _of_base("_optimizer_state_dict_post_hooks")
    _optimizer_load_state_dict_pre_hooks = _of_base("_optimizer_load_state_dict_pre_hooks")
    _optimizer_load_state_dict_post_hooks = _of_base("_optimizer_load_state_dict_post_hooks")

    def __init__(
        self,
        base: Optimizer,
        balancer: Balancer,
        *,
        modalities: Modalities | None = None,
        accumulate: Accumulate = "gradients",
        rates: Mapping[str, Rate] | None = None,
    ) -> None:
        # No super().__init__(): it would give this object groups, state and hooks of its own.
        self.base = _checked(base)
        if not isinstance(balancer, Balancer):
            raise TypeError(f"balancer is {_what(balancer)}; give a balancer such as bg.MIMO()")
        self.balancer = balancer
        self.modalities = _groups(modalities, balancer)
        self._watch = SilenceWatch(self.modalities, balancer.notices)
        self._activity = ActivityWatch(balancer, _CALL_IT)
        self._check_modalities()
        self._rates = Rates(rates, self.modalities)
        check_choice("accumulate", accumulate, Accumulate)
        balancer.accumulate_rows(accumulate == "rows")
        balancer.resolve_target(is_scale_invariant(self.base))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The base optimizer's step, then the balancer's factors on it; returns the closure's loss, if there is one.

        With a closure, the factors are those after its first evaluation.
        """
        rates = self._rates.now()
        update = ScaledUpdate(self.base, self.balancer, self.modalities, rates)

        def begin() -> None:
            update.begin()
            self._watch.look()
            self._note(rates)

        with self._ahead_of_hooks(update.finish):
            if closure is None:
                begin()
                result = self.base.step()
            else:
                result = self.base.step(_then_once(closure, begin))
        self._rates.steps += 1
        self.balancer.end_step()
        # Factors alone are an effect too, a plain sum is none to miss, and a closure may do what it likes.
        if closure is None and not update.scales and not self._only_reports():
            self._activity.look()
        return result

    # torch wraps step() of each optimizer class to run the hooks; the base optimizer's step() runs them already.
    step.hooked = True  # type: ignore[attr-defined]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The base optimizer's; rows that were accumulated are dropped with the gradients."""
        self.base.zero_grad(set_to_none=set_to_none)
        self.balancer.end_step()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The base optimizer's."""
        self.base.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's, with the balancer's state in the first parameter group."""
        return _checkpoint.with_state_of(self.balancer, self._rates.steps, self.base.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the base optimizer's part and, if there is one, the balancer's; on an error both stay as they were."""
        inner, packed = _checkpoint.split(state_dict)
        before, steps = deepcopy(self.balancer.state_dict()), self._rates.steps
        try:
            if packed is not None:
                with torch.inference_mode(False):  # what is loaded stays
                    state, steps = _checkpoint.balancer_state(packed, self.balancer, steps)
                    self.balancer.load_state_dict(state)
            self.base.load_state_dict(inner)
        except Exception:
            self.balancer.load_state_dict(before)
            raise
        self._rates.steps = steps

    @contextmanager
    def _ahead_of_hooks(self, finish: Callable[..., None]) -> Iterator[None]:
        """Call ``finish`` when the base optimizer has stepped, before the post-hooks, which must see the result."""
        hooks = getattr(self.base, "_optimizer_step_post_hooks", None)
        if hooks is None:  # a base that never called Optimizer.__init__ runs no hooks
            yield
        else:
            handle = self.base.register_step_post_hook(finish)
            hooks.move_to_end(handle.id, last=False)
            try:
                yield
            finally:
                handle.remove()
        finish()

    def __getattr__(self, name: str) -> Any:
        """What only the base optimizer has, such as ``train()`` and ``eval()`` of schedule-free ones.

        Not its private names: by them, ``GradScaler`` and trainers ask what the object before them does itself.
        """
        base = self.__dict__.get("base")  # not there yet in a copy that is being made
        if base is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        return getattr(base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        base = self.__dict__.get("base")
        mine = name.startswith("_") or name in self.__dict__ or hasattr(type(self), name)
        if base is not None and not mine and hasattr(base, name):
            setattr(base, name, value)
        else:
            super().__setattr__(name, value)

    def _note(self, rates: Mapping[str, float]) -> None:
        """The rates in the record of this step; once, because who watches a balancer looks for new records."""
        last = self.balancer.last
        if last is not None and not rates.keys() <= last.rates.keys():
            self.balancer.last = replace(last, rates={**last.rates, **rates})

    def _only_reports(self) -> bool:
        """Whether nothing but the report of silent modalities is expected: the balancer's weights are fixed."""
        return self.modalities is not None and self.balancer.needs == "nothing"

    def _check_modalities(self) -> None:
        if self.modalities is None:
            return
        held = {id(p) for group in self.param_groups for p in group["params"]}
        if not any(id(p) in held for name in self.modalities.names for p in self.modalities.parameters(name)):
            raise ValueError(
                f"the optimizer holds no parameter of the modalities {list(self.modalities.names)}; "
                "take both from the very model that is trained, not from a copy"
            )

    def __getstate__(self) -> dict[str, Any]:
        # Not the whole __dict__: schedulers and trainers put their own step() on the instance.
        mine = ("base", "balancer", "modalities", "_watch", "_activity", "_rates")
        return {name: self.__dict__[name] for name in mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        inner = f"{self.base!r},\n{self.balancer!r}".replace("\n", "\n  ")
        return f"BalancedOptimizer(\n  {inner}\n)"


def _then_once(closure: Callable[[], Any], begin: Callable[[], None]) -> Callable[[], Any]:
    """The closure, with ``begin`` after its first evaluation: the point where the step starts from."""
    started = False

    def evaluate() -> Any:
        nonlocal started
        loss = closure()
        if not started:
            started = True
            begin()
        return loss

    return evaluate


def _checked(base: object) -> Optimizer:
    if isinstance(base, BalancedOptimizer):
        base = base.base
    if not isinstance(base, Optimizer):
        hint = " instance, not the class" if isinstance(base, type) else ", e.g. torch.optim.AdamW(model.parameters())"
        raise TypeError(f"base is {_what(base)}; give an optimizer{hint}")
    hiding = [type(layer).__name__ for layer in layers(base)]
    if any(isinstance(layer, BalancedOptimizer) for layer in layers(base)):
        raise ValueError(
            f"base is a {' around a '.join(hiding)}: its updates are scaled already. "
            "Give the innermost optimizer, and prepare the BalancedOptimizer last"
        )
    return base


def _groups(modalities: Modalities | None, balancer: Balancer) -> ModalityGroups | None:
    if modalities is None:
        of_balancer = getattr(balancer, "modalities", None)
        return of_balancer if isinstance(of_balancer, ModalityGroups) else None
    return grouped(modalities)


def _what(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
