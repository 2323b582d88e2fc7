"""Modalities dropped at random in training, so that a model learns to do without them."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from balanced_grad.checks import described
from balanced_grad.choices import check_choice
from balanced_grad.draws import Draws
from balanced_grad.presence import Present, checked_mask
from balanced_grad.state import Stateful

Inputs = Mapping[str, Tensor | None]
Per = Literal["item", "batch"]
Dropped = tuple[dict[str, Tensor | None], dict[str, Tensor]]


def drop_modalities(
    inputs: Inputs,
    rate: float | Mapping[str, float],
    *,
    keep_at_least: int = 1,
    per: Per = "item",
    present: Present | None = None,
    fill: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Dropped:
    """Drop modalities at random, never all of an item's, and say which items have which.

        u_m ~ U(0, 1);   m stays if u_m ≥ rate_m, or if u_m / rate_m is among the ``keep_at_least`` largest

    of those that the item has. The last to stay is drawn evenly from those with one rate; with ``M`` modalities of
    one rate ``r`` and ``keep_at_least=1``, a modality is dropped with probability ``r - r^M / M``. Unlike dropout
    inside a network, what stays is not scaled. Nothing is read on the host.

    Args:
        inputs: modality -> ``(B, ...)``, or None where the whole batch lacks it.
        rate: in [0, 1], for all modalities or by name; one that is not named is never dropped.
        keep_at_least: modalities that every item keeps, if it has so many. Default 1.
        per: ``"item"`` (default), or ``"batch"``: the same draw for all items.
        present: modality -> ``(B,)`` boolean, for modalities that some items lack anyway.
        fill: modality -> what stands where it is dropped or absent, in a shape that broadcasts to its items, such as
            the mean of the training items. Default: zeros.
        generator: source of the numbers; its device decides where they are drawn. Default: torch's own.

    Returns:
        ``(inputs, present)``: the inputs, filled where a modality is dropped or absent, and for every modality a mask
        ``(B,)``: what ``balancer(losses, present=...)``, ``aux.losses(..., present=...)``, ``ProductOfHeads``,
        ``HeldOut`` and ``CrossModalVI`` take.

    Raises:
        TypeError, ValueError: for fewer than two modalities, inputs that are no tensors of one number of items, a
            rate outside [0, 1], names that are no modality, a ``keep_at_least`` below 1 or above their number.

    Source: ModDrop (Neverova et al., 2016), there independent of each other, so that an item may lose all.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> inputs = {"audio": torch.ones(6, 2), "video": torch.ones(6, 3)}
        >>> dropped, present = bg.drop_modalities(inputs, 0.5, generator=torch.Generator().manual_seed(1))
        >>> present["audio"]
        tensor([ True, False, False, False,  True,  True])
        >>> dropped["audio"][:, 0]
        tensor([1., 0., 0., 0., 1., 1.])
        >>> bool((present["audio"] | present["video"]).all())
        True
    """
    rates = _checked(inputs, rate, keep_at_least, per)
    given = {name: x for name, x in inputs.items() if x is not None}
    here = _here(inputs, given, present)
    if any(rates.values()):
        rows = len(here) if per == "item" else 1
        device = here.device if generator is None else generator.device
        draws = torch.rand(rows, len(rates), generator=generator, device=device).to(here.device, non_blocking=True)
        # Fills and Python numbers rather than a tensor of rates: a copy from the host would make a GPU wait.
        pairs = zip(draws.unbind(1), rates.values(), strict=True)
        ratios = [u / r if r else torch.full_like(u, torch.inf) for u, r in pairs]
        order = torch.where(here, torch.stack(ratios, 1), -torch.inf)
        last = order.topk(keep_at_least, 1).values[:, -1:]
        here = here & ((order >= 1) | (order >= last))
    masks = dict(zip(inputs, here.unbind(1), strict=True))
    out = dict(inputs) | {name: _filled(name, x, masks[name], (fill or {}).get(name)) for name, x in given.items()}
    return out, masks


class ModalityDropout(Stateful, nn.Module):
    """``drop_modalities`` as a module: drops in training, never in evaluation, and saves where its numbers are.

    ``dropout(inputs, present)`` returns what ``drop_modalities`` does; in evaluation mode nothing is dropped, and the
    masks say what the items have. Put it into the model: the state of its generator is in the ``state_dict``, and a
    run that goes on draws what it would have drawn. All processes draw alike.

    Args:
        rate, keep_at_least, per: see ``drop_modalities``.
        seed: of the numbers, which leaves the global generator alone.

    Raises:
        ValueError: in a call, as ``drop_modalities``.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> dropout = bg.ModalityDropout(0.5, seed=1)
        >>> inputs = {"audio": torch.ones(4, 2), "video": torch.ones(4, 3)}
        >>> _, present = dropout(inputs)
        >>> present["audio"]
        tensor([ True, False, False, False])
        >>> bool(dropout.eval()(inputs)[1]["audio"].all())
        True
    """

    def __init__(
        self, rate: float | Mapping[str, float], *, keep_at_least: int = 1, per: Per = "item", seed: int = 0
    ) -> None:
        super().__init__()
        for value in rate.values() if isinstance(rate, Mapping) else (rate,):
            _check_rate(value)
        check_choice("per", per, Per)
        self.rate = rate
        self.keep_at_least = keep_at_least
        self.per: Per = per
        self._draws = Draws(seed)

    def forward(
        self, inputs: Inputs, present: Present | None = None, *, fill: Mapping[str, Tensor] | None = None
    ) -> Dropped:
        """The inputs with modalities dropped, and masks; arguments as of ``drop_modalities``."""
        device = next((x.device for x in inputs.values() if isinstance(x, Tensor)), torch.device("cpu"))
        return drop_modalities(
            inputs,
            self.rate if self.training else 0.0,
            keep_at_least=self.keep_at_least,
            per=self.per,
            present=present,
            fill=fill,
            generator=self._draws.on(device) if self.training else None,
        )

    def state(self) -> dict[str, Any]:
        """State of the generators, for ``state_dict``."""
        return {"draws": self._draws.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` gave."""
        self._draws.load(state["draws"])

    def extra_repr(self) -> str:
        """Settings."""
        return f"{self.rate}, keep_at_least={self.keep_at_least}, per={self.per!r}"


def _checked(inputs: Inputs, rate: float | Mapping[str, float], keep_at_least: int, per: Per) -> dict[str, float]:
    """The rate of each modality."""
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs are {described(inputs)}; give a mapping of modality -> (B, ...)")
    if len(inputs) < 2:
        raise ValueError(f"inputs has {list(inputs)}: dropping takes two modalities or more, so that one can stay")
    check_choice("per", per, Per)
    if not (hasattr(keep_at_least, "__index__") and 1 <= keep_at_least <= len(inputs)):
        raise ValueError(
            f"keep_at_least={keep_at_least!r}: give a whole number from 1 to {len(inputs)}, that of modalities"
        )
    rates = dict(rate) if isinstance(rate, Mapping) else dict.fromkeys(inputs, rate)
    for name, value in rates.items():
        if name not in inputs:
            raise ValueError(f"rate has {name!r}, which is no modality of the inputs {list(inputs)}")
        _check_rate(value)
    return {name: rates.get(name, 0.0) for name in inputs}


def _check_rate(rate: object) -> None:
    if not isinstance(rate, float | int) or not 0 <= rate <= 1:
        raise ValueError(f"rate={rate!r}: give a probability in [0, 1]")


def _here(inputs: Inputs, given: Mapping[str, Tensor], present: Present | None) -> Tensor:
    """``(B, M)``: which item has which modality."""
    masks = {} if present is None else present
    for name, x in given.items():
        if not isinstance(x, Tensor) or not x.dim():
            raise TypeError(f"the input of {name!r} is {described(x)}; give a tensor (B, ...)")
    for name in masks:
        if name not in inputs:
            raise ValueError(f"present[{name!r}]: there is no such modality; the inputs are {list(inputs)}")
    sizes = {name: len(x) for name, x in given.items()}
    if len(set(sizes.values())) != 1:
        what = f"differ in their number of items: {sizes}" if sizes else f"are None, all of {list(inputs)}"
        raise ValueError(f"the inputs {what}; give the modalities of one batch")
    first = next(iter(given.values()))
    columns = []
    for name in inputs:
        if name in given and name in masks:
            columns.append(checked_mask(name, masks[name], len(first), first.device))
        else:
            columns.append(torch.full((len(first),), name in given, dtype=torch.bool, device=first.device))
    return torch.stack(columns, 1)


def _filled(name: str, x: Tensor, mask: Tensor, fill: Tensor | None) -> Tensor:
    other = x.new_zeros(()) if fill is None else fill.to(x, non_blocking=True)
    try:
        other = other.expand(x.shape[1:])
    except RuntimeError:
        raise ValueError(f"fill[{name!r}] has shape {tuple(other.shape)}, items have {tuple(x.shape[1:])}") from None
    return torch.where(mask.to(x.device).reshape(-1, *[1] * (x.dim() - 1)), x, other)
