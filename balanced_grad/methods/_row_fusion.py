from abc import abstractmethod
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer
from balanced_grad.capture import Balancing, Groups, Losses, ParameterCapture, Params, select, unit_of
from balanced_grad.checks import vector
from balanced_grad.records import Problem, Step, Weighting
from balanced_grad.source import Level
from balanced_grad.tokens import Tokens


class RowFusion(Balancer):
    """Base of the methods that make one gradient of the per-loss gradients themselves, not of weights for them.

    Where losses meet, ``backward()`` takes the gradient of each, a row of ``(M, D)``, and puts what ``fuse`` makes of
    the rows into ``.grad``. A parameter that one loss alone reaches keeps its plain gradient. The scalar has the value
    of the plain sum of the losses. A subclass implements ``fuse``.

    Rows are whole: means over processes under data parallelism, sums over micro-batches with ``accumulate="rows"``.
    ``balancer.factors`` multiply the rows. ``balancer.last.weights`` is None: there are none.

    Args:
        params: see ``Balancer``.
        groups: which parameters share a call of ``fuse``, see ``Balancer``. Whatever it is, parameters that different
            losses reach, or of another dtype or device, come in different calls.
        level: ``bg.Tokens(model)`` for rows of one loss by groups of tokens; see ``Balancer``.

    Raises:
        TypeError, ValueError: for what ``fuse`` may not return.
        RuntimeError: for a model sharded by ``fully_shard``, where no process has whole rows.

    Examples:
        Keep an entry where all losses agree on its sign, and drop it where they do not.

        >>> import torch
        >>> import balanced_grad as bg
        >>> class Agreement(bg.RowFusion):
        ...     def fuse(self, rows, problem):
        ...         total = rows.sum(0)
        ...         return torch.where(total.abs() == rows.abs().sum(0), total, 0)
        >>> w = torch.zeros(2, requires_grad=True)
        >>> Agreement()({"joint": 2 * w[0] + w[1], "audio": -w[0] + w[1]}).backward()
        >>> w.grad
        tensor([0., 2.])
    """

    needs = "rows"

    def __init__(
        self,
        *,
        params: Params | None = None,
        groups: Groups = "all",
        level: Level | Tokens = "parameters",
    ) -> None:
        if level == "features":
            raise ValueError("level='features' gives no rows of parameters; leave it out, or give bg.Tokens(model)")
        super().__init__(params=params, groups=groups, level=level)

    @abstractmethod
    def fuse(self, rows: Tensor, problem: Problem) -> Tensor:
        """One gradient ``(D,)`` of the rows ``(M, D)`` of the losses ``problem.names``.

        Rows are at least float32, without a graph, loss scale divided out, a copy to be changed at will; complex
        entries come as pairs. Any real dtype may be returned.
        """

    def weigh(self, problem: Problem) -> Weighting:
        """1: what one loss alone reaches keeps its gradient."""
        return Weighting(torch.ones_like(problem.losses))

    def _balancing(self, losses: Losses, features: Mapping[str, Tensor] | None) -> Balancing:
        losses.require_graph()
        if self._source.params.sharded:
            raise RuntimeError(
                f"{type(self).__name__} takes whole rows of gradients, and the model is sharded by fully_shard: each "
                "process has a part of them; use a Gramian method such as MinNorm, or a losses-only one"
            )
        capture = self._source.capture(losses, features)
        assert isinstance(capture, ParameterCapture)
        return Balancing(capture, partial(self._fuse_all, capture))

    def _fuse_all(self, capture: ParameterCapture, problem: Problem, _: Tensor | None, scale: Tensor) -> None:
        """What ``backward()`` does."""
        with torch.autocast(scale.device.type, enabled=False):
            capture.run(scale)
            problem = Problem(*capture.losses())
            unit = unit_of(scale) * capture.batches
            factors = self._factors_of(problem)
            plain = torch.ones_like(problem.losses) if factors is None else factors

            def rule(rows: Tensor, losses: tuple[int, ...]) -> Tensor:
                factor = (select(plain, losses) / unit.to(plain)).to(rows.device)
                wide = rows.to(torch.promote_types(rows.dtype, torch.float32)) * factor.unsqueeze(1)
                part = Problem(tuple(problem.names[loss] for loss in losses), select(problem.losses, losses))
                with torch.enable_grad():  # as in a training step, so that a method may tell it from evaluation
                    fused = self.fuse(wide, part)
                fused = vector(fused, (rows.shape[1],), wide, f"{type(self).__name__}.fuse()", self.notices)
                return (fused * unit.to(fused)).to(rows.dtype)

            capture.write_by(rule, plain)
        self.last = Step(problem.names, problem.losses, problems=capture.problems, factors=self.factors)
