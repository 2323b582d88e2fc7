import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer
from balanced_grad.capture import JOINT, Delivery, Walk, eager, on_backward
from balanced_grad.modulation._modalities import Modalities, grouped, trainable
from balanced_grad.names import refuse_unknown
from balanced_grad.presence import Present
from balanced_grad.records import Problem, Step, Weighting


class DGL(Balancer):
    """Disentangled gradient learning: encoders learn from their uni-modal loss only, all else from the joint one.

        encoder m:                              α ∂L_m
        what the joint loss reaches otherwise:  ∂L_joint
        what no joint loss reaches (a head of its own):  α ∂L_m

    So the joint loss does not hold an encoder back, and a uni-modal loss does not disturb the fusion. One
    backward per loss, each through its own parameters only, together about two.

    An encoder without a uni-modal loss in a batch learns nothing from it.

    Args:
        modalities: ``ModalityGroups``, or a mapping of name -> encoder (modules or parameters); the names are
            those of the uni-modal losses.
        alpha: ``α > 0``. Default 4; released settings are 4 and 5 (CREMA-D), 2 to 3 (Kinetics-Sounds) and 2 (VGGSound),
            with gradients clipped to norm 40.

    Raises:
        ValueError: for an ``alpha`` that is not positive, a loss of a modality that is not named, a uni-modal loss
            that reaches no parameter of its encoder.
        RuntimeError: for ``create_graph=True``, a second ``backward()``, or a ``DistributedDataParallel`` with
            ``static_graph``.

    Source: disentangled gradient learning (arXiv 2507.10213, 2025) and its released code, shicaiwei123/ICCV2025-GDL:
    one shared head with the other half of the features zeroed for a uni-modal loss, whose gradient there is dropped
    before the fused backward. Heads of their own, which get ``α ∂L_m``, are our reading.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> encoder, head = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
        >>> balancer = bg.DGL({"audio": encoder}, alpha=4.0)
        >>> balancer({"joint": (2 * encoder * head).sum(), "audio": (encoder * head).sum()}).backward()
        >>> encoder.grad, head.grad  # 4 of its own loss; 2 of the joint loss
        (tensor([4.]), tensor([2.]))
    """

    def __init__(self, modalities: Modalities, alpha: float = 4.0) -> None:
        super().__init__()
        if not (math.isfinite(alpha) and alpha > 0):
            raise ValueError(f"alpha={alpha!r}: give a positive number")
        self.modalities = grouped(modalities)
        self.alpha = alpha

    def weigh(self, problem: Problem) -> Weighting:
        """1 for the joint loss, ``α`` for the uni-modal ones, each where it acts."""
        # Fills rather than torch.tensor(weights): a copy from the host would make a GPU wait.
        weights = [problem.losses.new_full((), 1.0 if name == JOINT else self.alpha) for name in problem.names]
        return Weighting(torch.stack(weights))

    @eager
    def forward(
        self,
        losses: Mapping[str, Tensor | None],
        features: Mapping[str, Tensor] | None = None,
        *,
        tokens: Mapping[str, Tensor] | None = None,
        present: Present | None = None,
    ) -> Tensor:
        """The scalar to call ``backward()`` on, ``L_joint + α Σ_m L_m``; see ``Balancer.forward``."""
        self._source.note(type(self).__name__, tokens)
        given = self._admit(losses, features, present)
        problem = Problem(given.names, given.values())
        weighting = self.choose(problem)
        value = weighting.objective(problem)
        if not torch.is_grad_enabled():
            return value
        given.require_graph()
        walk = Walk.of(given)
        walk.refuse_hidden()
        inputs = self._inputs(walk)
        delivery = Delivery(walk, dict.fromkeys(leaf for leaves in inputs for leaf in leaves))
        self.last = Step(problem.names, problem.losses, weighting.weights, factors=self.factors)
        run = partial(_run, walk, delivery, inputs, weighting.weights)
        return on_backward(value, run, delivery.through)

    def _check_names(self, names: tuple[str, ...]) -> None:
        refuse_unknown(names, self.modalities.names, "encoder", "modalities")

    def _inputs(self, walk: Walk) -> list[list[Tensor]]:
        """Per loss, the parameters it trains; no parameter is trained by the joint and another loss."""
        owner: dict[Tensor, str] = {}
        for name in self.modalities.names:
            owner |= dict.fromkeys(trainable(self.modalities, name, "DGL"), name)
        leaves = {name: list(met.leaves) for name, met in zip(walk.names, walk.each, strict=True)}
        joint = {leaf for leaf in leaves.get(JOINT, []) if leaf not in owner}
        inputs: list[list[Tensor]] = []
        for name in walk.names:
            if name == JOINT:
                inputs.append([leaf for leaf in leaves[name] if leaf in joint])
                continue
            inputs.append([leaf for leaf in leaves[name] if owner.get(leaf, name) == name and leaf not in joint])
            if not any(leaf in owner for leaf in inputs[-1]):
                raise ValueError(
                    f"loss {name!r} reaches no parameter of modalities[{name!r}], so its encoder would learn "
                    "nothing; name the encoder that this loss is computed from, without detach()"
                )
        return inputs

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        return {"modalities": self.modalities, "alpha": self.alpha} | super().settings()


def _run(walk: Walk, delivery: Delivery, inputs: list[list[Tensor]], weights: Tensor, scale: Tensor) -> None:
    """One backward per loss, each into its own parameters."""
    order, keep = walk.order, walk.needed_later()
    for index in order:
        if inputs[index]:
            weight, loss = weights[index : index + 1], walk.tensors[index]
            retain = keep or index != order[-1]
            delivery(weight, scale, losses=[loss], leaves=inputs[index], retain=retain)
