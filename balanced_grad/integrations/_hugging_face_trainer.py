import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from balanced_grad.balancer import Balancer
from balanced_grad.integrations._hugging_face_logger import BalanceLogger
from balanced_grad.integrations._hugging_face_refusals import Accumulate, refuse_settings
from balanced_grad.integrations._in_forward import NAME, BalancedForward, LossFunction
from balanced_grad.optim import BalancedOptimizer

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object
_FILE = f"{NAME}.pt"


class BalancedTrainerMixin(_Base):
    """The Hugging Face ``Trainer`` with a balancer: ``class BalancedTrainer(BalancedTrainerMixin, Trainer): pass``.

    The model stays as it is. In the trainer's forward of it, hooks compute the losses, put ``balancer(losses)`` in
    the place of the loss, and hand everything else on, so that ``compute_metrics`` sees the model's logits. Then:

    * Accumulation: each micro-batch counts by its share of the labels where the trainer counts labels, and else like
      every other; either way all losses are means over the micro-batch when they are compared.
    * ``label_smoothing_factor`` smooths the joint loss, and the labels of an ``Attachment``.
    * Checkpoints hold the balancer's and the heads' state in ``balanced_grad.pt``, beside model or adapters, whose own
      files are as ever; resume and ``load_best_model_at_end`` read it.
    * Activation checkpointing is not reentrant, unless its keywords say otherwise.
    * The optimizer that the trainer makes is a ``bg.BalancedOptimizer``: modulation of updates and rows work.
    * ``BalanceLogger`` is there. ``eval_loss`` is the joint loss, or the sum of the losses without one.

    Heads that wait for their first batch get one before training begins, in eval mode, with the random state restored.
    It works under ``DistributedDataParallel``, under FSDP2 with ``params=model`` in the balancer, and with any subclass
    of ``Trainer`` that trains on the loss that its model returns; one that does not is told of by a
    ``bg.InactiveBalancerWarning``. For TRL and DeepSpeed see the page "Hugging Face and PEFT".

    Args:
        *args: of the trainer.
        balancer: the method.
        heads: an ``Attachment`` of ``bg.attach(model, ...)``, or any module that ``losses`` needs beside the model. It
            is trained, saved and wrapped with the model.
        losses: function ``(model, inputs, outputs) -> {"joint": ..., name: ...}`` of the model, its keyword inputs and
            what it returned, or of a pair of that and keywords for the balancer's call. ``outputs.loss`` is smoothed.
            Default: ``heads.losses(outputs.loss, labels)``.
        targets: names of inputs that losses are computed from. The model gets those only that its forward names, and
            none is dropped as an unused column. The first one holds the labels for an ``Attachment``. Default:
            ``"labels"``.
        accumulate: of the ``BalancedOptimizer``: ``"gradients"`` (default) or ``"rows"``.
        **kwargs: of the trainer.

    Raises:
        TypeError: if ``balancer`` is no balancer, or neither ``heads`` nor ``losses`` says what the losses are.
        ValueError: for ``compute_loss_func`` or ``model_init``, for ``heads`` that hold the model, for a model that
            is balanced by another trainer; by ``train()`` for a method that takes several backwards, or an optimizer of
            ours, where DeepSpeed or ``activation_offloading`` has only one; and at the first batch for a model that
            returns no loss or lacks a target.

    Examples:
        >>> import tempfile, torch
        >>> import balanced_grad as bg
        >>> from torch import nn
        >>> from transformers import Trainer, TrainingArguments
        >>> from balanced_grad.integrations.transformers import BalancedTrainerMixin
        >>> class Late(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.ears, self.eyes, self.head = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(8, 2)
        ...     def forward(self, audio, video, labels=None):
        ...         logits = self.head(torch.cat([self.ears(audio), self.eyes(video)], 1))
        ...         return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
        >>> class BalancedTrainer(BalancedTrainerMixin, Trainer):
        ...     pass
        >>> model = Late()
        >>> trainer = BalancedTrainer(
        ...     model,
        ...     TrainingArguments(tempfile.mkdtemp(), num_train_epochs=1, disable_tqdm=True, use_cpu=True),
        ...     train_dataset=[{"audio": torch.randn(3), "video": torch.randn(5), "labels": i % 2} for i in range(16)],
        ...     balancer=bg.MinNorm(),
        ...     heads=bg.attach(model, {"audio": model.ears, "video": model.eyes}, num_outputs=2),
        ... )
        >>> _ = trainer.train()
        {'train_runtime': ...}
        >>> trainer.balancer.last.names
        ('joint', 'audio', 'video')
    """

    def __init__(
        self,
        *args: Any,
        balancer: Balancer,
        heads: nn.Module | None = None,
        losses: LossFunction | None = None,
        targets: str | Sequence[str] = "labels",
        accumulate: Accumulate = "gradients",
        **kwargs: Any,
    ) -> None:
        if not isinstance(balancer, Balancer):
            raise TypeError(f"balancer is a {type(balancer).__name__}; give a method such as bg.MIMO()")
        if losses is None and not callable(getattr(heads, "losses", None)):
            raise TypeError(
                "nothing says what the losses are: give heads=bg.attach(model, ...), or losses=, a function "
                "(model, inputs, outputs) -> losses by name"
            )
        if kwargs.get("model_init") is not None:
            raise ValueError("model_init= takes the place of the model that is balanced; give the model itself")
        super().__init__(*args, **kwargs)
        if self.compute_loss_func is not None:
            raise ValueError(
                "compute_loss_func= takes the place of what is balanced; return losses by name: losses= (TRL's "
                "loss_type='dft' sets it: take 'nll' or 'chunked_nll')"
            )
        self._find_labels(targets)
        self.balancer = balancer
        self.accumulate = accumulate
        self._checkpoint_without_reentering()
        self._in_forward = self._hooked(heads, losses)
        BalanceLogger(balancer).add_to(self)

    def _find_labels(self, targets: str | Sequence[str]) -> None:
        """The targets are what ``compute_metrics`` compares with, where the model itself has no labels."""
        self._targets = (targets,) if isinstance(targets, str) else tuple(targets)
        if self.args.label_names is None and not self.label_names:
            self.label_names = list(self._targets)

    def _checkpoint_without_reentering(self) -> None:
        for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):  # the latter until 5.22
            if hasattr(self.args, name):
                setattr(self.args, name, {"use_reentrant": False} | dict(getattr(self.args, name) or {}))

    def _hooked(self, heads: nn.Module | None, losses: LossFunction | None) -> BalancedForward:
        model: Any = self.model
        if hasattr(model, NAME):
            raise ValueError("the model is balanced by another trainer already; build it anew, or go on with that one")
        if heads is not None and model in set(heads.modules()):
            raise ValueError("heads= holds the model itself; give what is trained beside it")
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        taken = inspect.signature(inner.forward).parameters
        smoother: Any = self.label_smoother
        self.label_smoother = None  # it would call the model without labels
        shifted = getattr(
            self, "_loss_shifts_labels", type(inner).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        )
        hooked = BalancedForward(
            model,
            self.balancer,
            heads,
            losses,
            targets=self._targets,
            hidden=tuple(name for name in self._targets if name not in taken),
            smoother=smoother,
            shifted=shifted,
        )
        if self.place_model_on_device:
            hooked.to(self.args.device)
        return hooked

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's; heads whose width is not known yet see a batch before."""
        refuse_settings(self, self.balancer, self._in_forward.heads, self.accumulate)
        if self._in_forward.lazy:
            self._build()
        return super().train(*args, **kwargs)

    def _build(self) -> None:
        model: Any = self.model
        training = model.training
        with torch.random.fork_rng(), torch.no_grad():
            model.eval()
            inputs = self._prepare_inputs(next(iter(self.get_train_dataloader())))
            with self._in_forward.active(building=True), self.compute_loss_context_manager():
                super().compute_loss(model, inputs)
            model.train(training)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's, of a model whose loss is the balancer's scalar."""
        with self._in_forward.active(self.accelerator.autocast):
            return super().compute_loss(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's."""
        loss = super().training_step(*args, **kwargs)
        if not self._in_forward.reached:
            self.balancer.notices.say(
                "passed by",
                f"{type(self).__name__} trains on a loss of its own, not on the one that its model returns, so nothing "
                "is balanced: override its compute_loss, or use Trainer itself with losses=",
            )
        return loss

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """The trainer's, in a ``BalancedOptimizer``; one that was given, or DeepSpeed's, stays as it is."""
        given: Any = self.optimizer
        optimizer: Optimizer = super().create_optimizer(*args, **kwargs)
        if given is not None or self.is_deepspeed_enabled or not isinstance(optimizer, Optimizer):
            return optimizer
        self.optimizer = BalancedOptimizer(optimizer, self.balancer, accumulate=self.accumulate)
        return self.optimizer

    def save_model(self, output_dir: str | None = None, *args: Any, **kwargs: Any) -> None:
        """The trainer's, and ``balanced_grad.pt`` beside it."""
        super().save_model(output_dir, *args, **kwargs)
        state = self._in_forward.whole_state()
        if self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, folder / _FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)
        self._load_ours(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.is_deepspeed_enabled:  # which has read the model by itself
            self._load_ours(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_ours(str(self.state.best_model_checkpoint))

    def _load_ours(self, folder: str) -> None:
        state = torch.load(Path(folder) / _FILE, map_location="cpu", weights_only=True)
        self._in_forward.load_whole_state(state)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: Any = self._signature_columns
        columns += [name for name in self._targets if name not in columns]
