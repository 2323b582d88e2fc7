"""The balancer in the forward of a model that is not edited: hooks put its scalar where a trainer reads the loss."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.parameter import is_lazy

from balanced_grad.balancer import Balancer
from balanced_grad.capture import JOINT, eager
from balanced_grad.integrations._outputs import by_name, gathered, like, sharded_as, with_loss
from balanced_grad.labels import IGNORED

Inputs = dict[str, Any]
Losses = Mapping[str, Tensor | None]
LossFunction = Callable[[nn.Module, Inputs, Any], Losses | tuple[Losses, Mapping[str, Any]]]
"""``losses(model, inputs, outputs)``: name -> loss, or that and what else the balancer's call takes, as keywords."""

Autocast = Callable[[], AbstractContextManager[Any]]

NAME = "balanced_grad"  # of the submodule
_ITEMS = "num_items_in_batch"


class Built(Exception):  # noqa: N818, it is no fault
    """Ends a step that was begun for its forward alone."""


class Smoother(Protocol):
    """The trainer's label smoothing."""

    epsilon: float

    def __call__(self, model_output: Any, labels: Tensor, shift_labels: bool = False) -> Tensor:
        """The smoothed loss of the model's logits."""


class Attached(Protocol):
    """What ``bg.attach`` returns, as far as it is needed here."""

    task: str

    def logits(self) -> dict[str, Tensor]:
        """Modality -> logits."""

    def losses(self, joint: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        """The losses by name."""

    def scores(self, labels: Tensor) -> Mapping[str, Tensor]:
        """The scores by modality."""


class BalancedForward(nn.Module):
    """Submodule of the model that it balances: holds the balancer and the heads, and hooks the model's forward.

    As a submodule, the heads are in the optimizer, on the model's device and in a wrapper around the model. The
    model's own ``state_dict`` stays as it was: this module's is asked of it alone.

    Args:
        model: the model whose forward the trainer calls, or which its wrapper calls.
        balancer: the balancer.
        heads: modules that the losses need beside the model; without ``losses`` an ``Attachment``.
        losses: the losses of a batch; None: ``heads.losses(outputs.loss, labels)``.
        targets: inputs of which losses are computed; the first one holds the labels of an ``Attachment``.
        hidden: inputs that the model's forward does not take.
        smoother: takes the place of the model's own loss.
        shifted: whether the model's loss pairs position ``t`` with the label at ``t + 1``.
    """

    def __init__(
        self,
        model: nn.Module,
        balancer: Balancer,
        heads: nn.Module | None,
        losses: LossFunction | None,
        *,
        targets: tuple[str, ...],
        hidden: tuple[str, ...],
        smoother: Smoother | None,
        shifted: bool,
    ) -> None:
        super().__init__()
        self.balancer = balancer
        self.heads = heads
        self.losses = losses
        self.targets = targets
        self.hidden = hidden
        self.smoother = smoother
        self.shifted = shifted
        self.reached = True  # whether backward() has reached the last scalar
        self._active = False
        self._building = False
        self._gathering = False
        self._autocast: Autocast = nullcontext
        self._inputs: Inputs = {}
        self._counts: tuple[Tensor, Any] | None = None  # the items of this batch, and of the whole step
        self._pending: tuple[Any, Mapping[str, Any]] | None = None  # what the model returned, the balancer's keywords
        self.register_load_state_dict_post_hook(_without_ours)  # type: ignore[no-untyped-call]
        model.add_module(NAME, self)
        model.register_forward_pre_hook(self._before, with_kwargs=True)
        model.register_forward_hook(self._after)
        self._last = model.register_forward_hook(self._finish)

    @property
    def lazy(self) -> bool:
        """Whether a head waits for its first batch to know its width."""
        return any(is_lazy(parameter) for parameter in self.parameters())

    @contextmanager
    def active(self, autocast: Autocast = nullcontext, *, building: bool = False) -> Iterator[None]:
        """Forwards that begin in here return the balancer's scalar as their loss.

        Args:
            autocast: the context in which losses are computed: that of the trainer ends with the model's own forward.
            building: the first forward makes the heads, and ends all that was to follow by ``Built``.
        """
        self._active, self._building, self._autocast = True, building, autocast
        try:
            yield
        except Built:
            pass
        finally:
            self._active, self._building, self._autocast = False, False, nullcontext
            self._inputs, self._counts, self._pending = {}, None, None

    @eager
    def _before(self, model: nn.Module, args: tuple[Any, ...], kwargs: Inputs) -> tuple[tuple[Any, ...], Inputs]:
        inputs = {name: value for name, value in kwargs.items() if name != _ITEMS}
        passed = {name: value for name, value in kwargs.items() if name not in self.hidden}
        if self._active:
            self._meet_shards(model)
            self._inputs = inputs
            if kwargs.get(_ITEMS) is not None:
                items = self._items(inputs)
                self._counts = items, kwargs[_ITEMS]
                passed[_ITEMS] = items.clamp_min(1)  # so that the model's own loss is a mean, as others are
        return args, passed

    @eager
    def _after(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not self._active:
            return None
        self._active = False  # the losses may call the model again
        with self._autocast():
            losses, options = self._losses_of(model, self._smoothed(output))
        if self._building:
            raise Built
        if not torch.is_grad_enabled():
            joint = losses.get(JOINT)
            loss = torch.stack([loss for loss in losses.values() if loss is not None]).sum() if joint is None else joint
            return with_loss(output, loss if self._counts is None else loss * self._counts[0] / self._counts[1])
        self._pending = output, options
        return {**by_name(output), NAME: dict(losses)}

    @eager
    def _finish(self, model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """A hook of its own, so that ``fully_shard`` has seen the losses and not the scalar.

        It prepares the model for the backward of what it sees, which has to happen for every loss.
        """
        if self._pending is None:
            return None
        (returned, options), self._pending = self._pending, None
        losses = output.pop(NAME)
        scalar = self._scaled(losses, options)
        self.reached = False
        scalar.register_hook(self._mark)  # type: ignore[no-untyped-call]
        return like(returned, output | {"loss": scalar})

    def _meet_shards(self, model: nn.Module) -> None:
        """Behind the hook of ``fully_shard``, if the model was given to that after this was made, and heads gathered.

        They are sharded with the model, and a second forward of it, for a loss of one modality, leaves them so.
        """
        if not any(base.__name__ == "FSDPModule" for base in type(model).__mro__):
            return
        cast(Any, model)._forward_hooks.move_to_end(self._last.id)
        if not self._gathering and self.heads is not None:
            for module in self.heads.modules():
                module.register_forward_pre_hook(lambda *_: cast(Any, model).unshard())
        self._gathering = True

    def _losses_of(self, model: nn.Module, output: Any) -> tuple[Losses, Mapping[str, Any]]:
        if self.losses is not None:
            returned = self.losses(model, self._inputs, output)
            return returned if isinstance(returned, tuple) else (returned, {})
        joint = output.get("loss") if isinstance(output, Mapping) else None
        if joint is None:
            raise ValueError(
                "the model returned no loss, which is the joint one: give it its labels, or write losses=, a function "
                "(model, inputs, outputs) -> losses by name"
            )
        name, heads = self.targets[0], cast(Attached, self.heads)
        if name not in self._inputs:
            raise ValueError(
                f"the batch has no {name!r} for the heads, but {sorted(self._inputs)}; name what holds their labels, "
                "targets='...', and let the data collator keep it"
            )
        labels = self._inputs[name]
        scored = self.balancer.needs == "scores" and torch.is_grad_enabled()
        options = {"scores": heads.scores(labels)} if scored else {}
        return heads.losses(joint, self._soft(heads, labels)), options

    def _smoothed(self, output: Any) -> Any:
        if self.smoother is None or "labels" not in self._inputs:
            return output
        if isinstance(output, Mapping) and output.get("logits") is None:
            raise ValueError(
                "label_smoothing_factor= smooths the model's logits, and it returned none: let it return them (in TRL "
                "loss_type='nll'), or leave label_smoothing_factor out"
            )
        return with_loss(output, self.smoother(output, self._inputs["labels"], shift_labels=self.shifted))

    def _soft(self, heads: Attached, labels: Tensor) -> Tensor:
        """Class indices as the shares that the trainer's smoothing makes of them."""
        if self.smoother is None or heads.task != "classification" or labels.is_floating_point():
            return labels
        classes = next(iter(heads.logits().values())).shape[-1]
        unknown = (labels == IGNORED).unsqueeze(-1)
        hard = one_hot(labels.long().clamp_min(0), classes).float()
        epsilon = self.smoother.epsilon
        return (hard * (1 - epsilon) + epsilon / classes).masked_fill(unknown, torch.nan)

    def _scaled(self, losses: Losses, options: Mapping[str, Any]) -> Tensor:
        """The scalar, times this batch's share of the step.

        The share of all processes on average is multiplied behind the balancer, so that it compares means, and this
        process's part of that in front of it, so that all processes multiply its scalar by the same number.
        """
        if self._counts is None:
            return cast(Tensor, self.balancer(losses, **options))
        here, whole = self._counts
        processes = self.balancer.processes
        if processes.size > 1:
            total = here.clone().reshape(1)
            processes.sum(total)
            part = here * processes.size / total.squeeze(0).clamp_min(1)
            losses = {name: None if loss is None else loss * part for name, loss in losses.items()}
            here = total.squeeze(0) / processes.size
        return cast(Tensor, self.balancer(losses, **options) * here / whole)

    def _items(self, inputs: Inputs) -> Tensor:
        """How many labels count, as the trainer counts those of a whole step."""
        labels = inputs.get("shift_labels")
        if labels is None:
            labels = inputs["labels"][..., 1:] if self.shifted else inputs["labels"]
        return cast(Tensor, labels.ne(IGNORED).sum())

    def _mark(self, gradient: Tensor) -> None:
        self.reached = True

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Balancer and heads; nothing where the model's own state is asked for."""
        destination = args[0] if args else kwargs.get("destination")
        return super().state_dict(*args, **kwargs) if destination is None else destination

    def whole_state(self) -> dict[str, Any]:
        """``state_dict()`` of a model that may be sharded: parameters are gathered, which all processes call for."""
        return {name: gathered(value) for name, value in self.state_dict().items()}

    def load_whole_state(self, state: Mapping[str, Any]) -> None:
        """Into the shards of this process, where there are some."""
        mine = self.state_dict()
        self.load_state_dict({name: sharded_as(value, mine.get(name)) for name, value in state.items()})


def _without_ours(module: nn.Module, result: Any) -> None:
    """Nothing of ours is missing from the model's own checkpoint."""
    result.missing_keys[:] = [name for name in result.missing_keys if f"{NAME}." not in name]
