from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from balanced_grad.attachment._heads import Heads
from balanced_grad.attachment._watch import HeadsWatch
from balanced_grad.capture import JOINT
from balanced_grad.labels import Labels, Task, entry_losses, fitted
from balanced_grad.modulation import Muted, TaskScores, score
from balanced_grad.presence import Present, checked_mask, nobody


class Source(Protocol):
    """Where uni-modal logits of the last batch come from.

    ``cut`` names the trainable encoders whose output came without a graph.
    """

    cut: set[str]

    def logits(self) -> dict[str, Tensor]:
        """Modality -> ``(..., outputs)``, for the modalities the batch has."""

    def release(self) -> None:
        """Forget the last batch."""

    def remove(self) -> None:
        """Take all hooks off."""


class Attachment(nn.Module):
    """Uni-modal logits, losses and scores of a model's last batch, made by ``bg.attach``.

    A module whose parameters and checkpoint are the heads alone. It holds what it needs of the last batch until
    ``losses`` has been called or the next forward begins.
    """

    def __init__(
        self, source: Source, task: Task, heads: Heads | None, muted: Muted | None, watch: HeadsWatch | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.task = task
        self.muted = muted
        self._source = source
        self._watch = watch
        self._detached: dict[str, Tensor] = {}
        self._optimizers: list[ref[Optimizer]] = []

    def logits(self) -> dict[str, Tensor]:
        """Modality -> ``(..., outputs)`` logits from it alone, with a graph, for the modalities of the last batch."""
        logits = self._source.logits()
        if not logits:
            raise RuntimeError(
                "there is no batch since the last losses(): call the model, then losses(), once per batch, and name "
                "encoders that the model's forward calls"
            )
        return logits

    def losses(self, joint: Tensor | None, labels: Tensor, present: Present | None = None) -> dict[str, Tensor]:
        """``{"joint": joint, modality: loss, ...}`` for a balancer, and the last batch released.

        Args:
            joint: the model's own loss; None where the batch has none.
            labels: ``(B,)`` class indices, of which -100 are left out, or shares of classes ``(B, outputs)``; labels
                ``(B, outputs)`` in [0, 1], of which NaN and -100 are left out; or targets ``(B,)`` or
                ``(B, outputs)``, of which NaN are left out.
            present: modality -> ``(B,)`` boolean, for modalities that some items lack: the others are left out of the
                loss of that modality.

        Where nothing is labelled the modalities are left out; where only a look at a device could tell, their losses
        are 0 with zero gradient.

        Raises:
            RuntimeError: without a batch, or for encoders whose outputs came without a graph.
            TypeError, ValueError: for labels that do not fit the task or the logits, and on the CPU, where looking is
                free, for values that the task does not have.
        """
        pairs = self._fitted(self.logits(), labels, present)
        if self._watch is not None and torch.is_grad_enabled():
            self._watch.look(name for name in pairs if not self._stepped(name))
        cut = sorted(self._source.cut)
        self._source.release()
        if cut and joint is not None and joint.requires_grad:
            raise RuntimeError(
                f"the encoders {cut} returned outputs without a graph, so their uni-modal losses would train the heads "
                "only: use checkpoint(..., use_reentrant=False) around them, in Hugging Face's models "
                "gradient_checkpointing_kwargs={'use_reentrant': False}, or stop_gradient=True if that is meant"
            )
        self._detached = {name: logits.detach() for name, (logits, _) in pairs.items()}
        out = {} if joint is None else {JOINT: joint}
        return out | {
            name: pair[1].mean(entry_losses(self.task, *pair)) for name, pair in pairs.items() if not pair[1].nothing
        }

    def scores(self, labels: Tensor, present: Present | None = None) -> TaskScores:
        """How well each modality alone predicts the last batch: ``bg.scores``, before or after ``losses``."""
        with torch.no_grad():
            fresh = self._source.logits()
        if not (fresh or self._detached):
            self.logits()  # says what is missing
        logits = fresh or self._detached
        pairs = self._fitted(logits, labels, present)
        return TaskScores({name: score(self.task, *pair) for name, pair in pairs.items()}, self.task)

    def _fitted(
        self, logits: dict[str, Tensor], labels: Tensor, present: Present | None
    ) -> dict[str, tuple[Tensor, Labels]]:
        if self.muted is None:
            cure = "if the encoder's output was read wrongly, give pool=, a function from it to features (B, D)"
        else:
            cure = "if the model's output was read wrongly, give logits=, a function from it to logits"
        pairs = {name: fitted(self.task, name, each, labels, cure) for name, each in logits.items()}
        for name, mask in ({} if present is None else present).items():
            if name in pairs:
                each, read = pairs.pop(name)
                here = checked_mask(name, mask, len(each), each.device)
                pairs |= {} if nobody(here) else {name: (each, read.among(here))}
        return pairs

    def _stepped(self, name: str) -> bool:
        """Whether an optimizer has a state for the head: it has moved, even if past the version of its parameters."""
        assert self.heads is not None
        optimizers = [
            optimizer for optimizer in (reference() for reference in self._optimizers) if optimizer is not None
        ]
        return any(p in optimizer.state for p in self.heads[name].parameters() for optimizer in optimizers)

    def add_to(self, optimizer: Optimizer, **options: Any) -> None:
        """Give the heads to the optimizer as a parameter group of their own, with its defaults or these ``options``.

        Before the first batch or later, but before a scheduler is made. ``detach`` takes the group out again.
        """
        if self.heads is None:
            raise ValueError("there are no heads to train: split= and mute= take uni-modal logits from the model")
        named = any("param_names" in group for group in optimizer.param_groups)
        optimizer.add_param_group({"params": list(self.named_parameters() if named else self.parameters()), **options})
        self._optimizers.append(ref(optimizer))

    def detach(self) -> None:
        """Leave no trace in the model and the optimizers: no hook, no parameter group, no optimizer state."""
        self._source.remove()
        self._detached = {}
        ours = {id(parameter) for parameter in self.parameters()}
        for optimizer in filter(None, (reference() for reference in self._optimizers)):
            groups = optimizer.param_groups
            groups[:] = [group for group in groups if not ours.issuperset(map(id, group["params"]))]
            for parameter in self.parameters():
                optimizer.state.pop(parameter, None)
        self._optimizers = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_optimizers": []}  # a copy's heads are in no optimizer

    def extra_repr(self) -> str:
        """Settings."""
        return f"task={self.task!r}"
