"""The user's model as a function from inputs by name to logits, run in eval mode, batch after batch."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from balanced_grad.capture import JOINT
from balanced_grad.diagnosis._items import Items, Rows, taken
from balanced_grad.diagnosis._progress import Progress
from balanced_grad.running import evaluating, keeping_random_state, logits_of

Predict = Callable[[Mapping[str, Any]], Any]
SHOWN = 5  # items that an error names


@dataclass(frozen=True)
class Network:
    """What is diagnosed.

    Attributes:
        predict: from inputs to what the model returns.
        modules: the model, if it is one.
        device: where the inputs go.
        progress: is told of every pass.
    """

    predict: Predict
    modules: nn.Module
    device: torch.device
    progress: Progress

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Eval mode, no graph, random numbers as they were."""
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.modules))
            stack.enter_context(keeping_random_state(self.device))
            stack.enter_context(torch.no_grad())
            yield

    def logits(self, items: Items, changed: Mapping[str, Any], what: str) -> Iterator[tuple[slice, Tensor]]:
        """``(rows, logits (B, ...))`` of one pass over the items, some of whose inputs are changed."""
        for rows, batch in self._batches(items, changed):
            out = _logits(self.predict(batch))
            self._check(out, items.numbers[rows], what)
            yield slice(rows[0], rows[-1] + 1), out.float() if out.dtype != torch.float64 else out
        self.progress.advance()

    def returns_heads(self, items: Items) -> bool:
        """Whether the first batch gets a prediction for each modality beside the fused one."""
        return heads_of(self.predict(next(self.batches(items))), items.modalities) is not None

    def heads(self, items: Items) -> dict[str, Tensor] | None:
        """``(N, C)`` of the fused head and one for each modality; None where the model does not return them."""
        found = []
        for batch in self.batches(items):
            output = heads_of(self.predict(batch), items.modalities)
            if output is None:
                return None
            found.append(output)
        self.progress.advance()
        return {name: torch.cat([part[name].float().cpu() for part in found]) for name in found[0]}

    def batches(self, items: Items) -> Iterator[dict[str, Any]]:
        """The inputs by name, batch after batch, where the model is."""
        return (batch for _, batch in self._batches(items, {}))

    def _batches(self, items: Items, changed: Mapping[str, Any]) -> Iterator[tuple[Rows, dict[str, Any]]]:
        inputs = items.inputs | dict(changed)
        for start in range(0, len(items), items.batch_size):
            rows = np.arange(start, min(start + items.batch_size, len(items)))
            yield rows, {name: None if x is None else self._placed(taken(x, rows)) for name, x in inputs.items()}

    def _placed(self, x: Any) -> Any:
        return x.to(self.device) if isinstance(x, Tensor) else x

    def _check(self, out: Tensor, rows: Any, what: str) -> None:
        if len(out) != len(rows):
            raise ValueError(
                f"the model returned logits of shape {tuple(out.shape)} for {len(rows)} items; give predict=, a "
                "function from the inputs to logits with a row for each item"
            )
        bad = ~torch.isfinite(out).reshape(len(out), -1).all(1)
        if bad.any():
            which = rows[bad.cpu().numpy()]
            more = f" and {len(which) - SHOWN} more of this batch" if len(which) > SHOWN else ""
            raise ValueError(
                f"the model's output is not finite for items {which[:SHOWN].tolist()}{more} (counted from 0 in the "
                f"loader's order) {what}"
            )


def network(model: Any, predict: Predict | None, items: Items, device: Any, progress: Progress) -> Network:
    """Find out how the model is called and where it lives."""
    modules = model if isinstance(model, nn.Module) else nn.Identity()
    if device is None:
        device = next((x.device for x in [*modules.parameters(), *modules.buffers()]), "cpu")
    return Network(predict or _called(model, items), modules, torch.device(device), progress)


def _called(model: Any, items: Items) -> Predict:
    if not callable(model):
        raise TypeError(f"model is a {type(model).__name__}; give a module, or a function from inputs to logits")
    names = list(items.inputs)
    if items.positional:
        return lambda inputs: model(*(inputs[name] for name in names))
    takes = inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters
    kinds = [takes[name].kind for name in takes]
    by_name = all(name in takes for name in names) or kinds == [inspect.Parameter.VAR_KEYWORD]
    if by_name:
        return lambda inputs: model(**inputs)
    if any(name in takes for name in names) or len([kind for kind in kinds if kind not in _VARIADIC]) != 1:
        unknown = [name for name in names if name not in takes]
        raise ValueError(
            f"the batch has the inputs {names}, but the model takes {list(takes)}: it does not take {unknown}; give "
            "predict=, a function from {name: input} to logits, such as predict=lambda x: model(x['a'], x['v'])"
        )
    return lambda inputs: model(inputs)


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _logits(output: Any) -> Tensor:
    """The fused prediction."""
    joint = output.get(JOINT) if isinstance(output, Mapping) else None
    return joint if isinstance(joint, Tensor) else logits_of(output, "predict=")


def heads_of(output: Any, modalities: Sequence[str]) -> dict[str, Tensor] | None:
    """The fused prediction and one of each modality, where the model returns them as a mapping."""
    names = (JOINT, *modalities)
    if not isinstance(output, Mapping) or len(modalities) < 2:
        return None
    found = {name: output[name] for name in names if isinstance(output.get(name), Tensor) and output[name].dim() == 2}
    return found if len(found) == len(names) else None
