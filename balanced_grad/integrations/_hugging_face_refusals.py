"""Settings of a trainer under which a balancer would be passed by, or fail in the middle: refused before training."""

from typing import Any, Literal

from torch import nn

from balanced_grad.balancer import Balancer
from balanced_grad.guard import HeldOut
from balanced_grad.modulation import Modulation

Accumulate = Literal["gradients", "rows"]


def refuse_settings(trainer: Any, balancer: Balancer, heads: nn.Module | None, accumulate: Accumulate) -> None:
    """Refuse what would fail or do nothing in the steps of this trainer.

    Args:
        trainer: a Hugging Face ``Trainer``.
        balancer: the method.
        heads: modules that are trained beside the model.
        accumulate: of the ``BalancedOptimizer`` that the trainer would make.
    """
    if getattr(trainer.args, "activation_offloading", False) and not _one_backward(balancer):
        raise ValueError(
            f"activation_offloading=True fetches each activation once, and {type(balancer).__name__} takes several "
            "backwards: set gradient_checkpointing=True instead, or take a losses-only method such as Uniform or MIMO"
        )
    if trainer.is_deepspeed_enabled:
        _refuse_deepspeed(trainer.accelerator.state.deepspeed_plugin.zero_stage, balancer, heads, accumulate)


def _one_backward(balancer: Balancer) -> bool:
    captures = balancer.needs in ("gramian", "rows") or balancer.record_gramian
    return balancer.level == "tokens" or not captures


def _refuse_deepspeed(stage: int, balancer: Balancer, heads: nn.Module | None, accumulate: Accumulate) -> None:
    name, where = type(balancer).__name__, f"DeepSpeed's ZeRO {stage}" if stage else "DeepSpeed"
    captures = balancer.needs in ("gramian", "rows") or balancer.record_gramian
    if (captures and balancer.level != "features") or accumulate == "rows":
        raise ValueError(
            f"{where} collects each gradient in one backward, and {name} takes one per loss at the parameters: use "
            "DistributedDataParallel or FSDP2, level='features', or a losses-only method such as Uniform or MIMO"
        )
    if stage == 3 and (captures or balancer.needs == "scores"):
        raise ValueError(
            f"{where} gathers parameters around one backward of the model's own, and {name} begins it from inside: "
            "use ZeRO 1 or 2, FSDP2, or a losses-only method such as Uniform or MIMO"
        )
    if stage == 3 and heads is not None and any(True for _ in heads.parameters()):
        raise ValueError(f"{where} leaves no head whole, to make or to save it: use ZeRO 1 or 2, or FSDP2")
    if isinstance(balancer, HeldOut):
        raise ValueError(f"{where} has an optimizer of its own, in which HeldOut cannot check: use DDP or FSDP2")
    if isinstance(balancer, Modulation) and balancer.target != "gradient":
        raise ValueError(
            f"{where} has an optimizer of its own, whose updates {name} cannot multiply: use DDP or FSDP2, or "
            "target='gradient', which optimizers of the Adam type cancel"
        )
