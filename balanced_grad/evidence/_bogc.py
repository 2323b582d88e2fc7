from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from balanced_grad.balancer import Balancer
from balanced_grad.capture import Balancing, Losses, Params, unit_of
from balanced_grad.evidence._block import Block, Layers, Modules
from balanced_grad.evidence._block_capture import BlockCapture
from balanced_grad.evidence._estimators import SampleVariance, Variance
from balanced_grad.evidence._history import History
from balanced_grad.evidence._laplace import Laplace
from balanced_grad.evidence._site_fusion import FusedSite, Joint, Precision, SiteFusion, Unit
from balanced_grad.names import refuse_unknown
from balanced_grad.records import Problem, Step, Trust, Weighting
from balanced_grad.state import Stateful


class BOGC(Stateful, Balancer):
    """Per dimension, trust the losses whose gradient is certain there, by Dempster-Shafer evidence.

    In the parameters of a block, for the sources ``i`` that meet there (see ``joint``) and every dimension ``d``:

        v_id = variance of g_id                     by ``variance``, averaged over steps
        e_id = min(κ · median(v_i) / v_id, cap)     evidence
        w_id = (e_id + 1) / (Σ_j e_jd + M)          opinions fused on the frame of the M sources
        ĝ_d  = M Σ_i w_id g_id

    With equal evidence, and for ``κ → 0``, that is the plain sum. All other parameters get their ordinary gradient
    from one backward; a loss alone in a layer is passed through. The scalar has the value of the plain sum of
    the losses.

    Args:
        block: the modules to balance: a head that several modalities share; or the encoders, in each of which the
            modality's own loss and the joint one meet (that these are the sources there is our reading). A module,
            or a mapping, list, ``ModuleDict``, ``ModuleList`` of them.
        variance: where the variance comes from. ``evidence.SampleVariance()`` (default), over the items of the batch;
            ``evidence.Laplace(...)``, the posterior of the source; for layers that are not linear, or a whole model,
            ``evidence.StepVariance()`` or ``evidence.MicroBatchVariance(count)``.
        layers: of each module the ``"last"`` layer that holds parameters (default), or ``"all"``.
        kappa: evidence of a typical precision, beside the one pseudo-count of the prior. Default 1 (ours).
        cap: largest evidence. Default 1e4 (ours).
        precision: ``"absolute"`` (default), ``1 / v``; or ``"relative"``, ``m² / v`` with the running mean ``m`` of the
            gradient: a signal-to-noise ratio, in which a loss that is already fitted does not look certain.
        unit: what the median is taken over: the dimensions of each ``"source"`` (default, ours), so that where a source
            is certain counts, not how certain it is overall; or the whole ``"site"``, all its sources too, under
            which a loss that is already fitted silences the others (measured, see the page on evidence). That, with
            equal heads by index, is the nearest reading of the source: ``BOGC.published``.
        joint: the fusion loss's gradient in the block: ``"source"``, like any other; ``"add"``, unweighted, beside the
            fused ones. ``"auto"`` (default): added where two or more modalities meet, a source elsewhere.
        by_index: ``block`` maps losses to heads of equal shape; entry by entry, their gradients are fused as if they
            were one shared head, and every head receives the result.
        decay: of the average of the variances over steps, bias corrected; ``StepVariance`` has its own. Default 0.9
            (ours).
        seed: of the generator for Monte-Carlo draws, which is the balancer's own.
        params: see ``Balancer``.

    A non-finite gradient stays in ``.grad``, so that a loss scaler skips the step, and never enters the statistics.
    A missing modality is left out and its statistics rest.

    Raises:
        TypeError, ValueError: for a block without trainable parameters, layers that ``variance`` cannot read, a layer
            named twice, an option out of range.
        RuntimeError: in ``backward()``, for a layer whose calls cannot be seen (compiled, or bypassed).

    Source: Guo et al., "Rethinking Multi-Modal Learning from Gradient Uncertainty" (2025). Only its abstract, its
    opening and digests could be read: last layers, Laplace posterior, precision as evidence per dimension, subjective
    logic, reduced Dempster rule and uncertainty-weighted aggregation are stated there; every formula, constant and
    default is our reading.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> head = torch.nn.Linear(1, 1, bias=False)
        >>> balancer = bg.BOGC(head, unit="site")
        >>> x = torch.tensor([[1.0], [1.0]])
        >>> audio, video = head(x), head(x)
        >>> losses = {"audio": (audio * torch.tensor([[1.0], [3.0]])).mean(),   # gradients 1 and 3: mean 2, variance 1
        ...           "video": (video * torch.tensor([[4.0], [0.0]])).mean()}   # gradients 4 and 0: mean 2, variance 4
        >>> balancer(losses).backward()
        >>> balancer.last.trust.belief
        tensor([0.3077, 0.0769])
    """

    needs = "rows"

    def __init__(
        self,
        block: Modules,
        variance: Variance | None = None,
        *,
        layers: Layers = "last",
        kappa: float = 1.0,
        cap: float = 1e4,
        precision: Precision = "absolute",
        unit: Unit = "source",
        joint: Joint = "auto",
        by_index: bool = False,
        decay: float = 0.9,
        seed: int = 0,
        params: Params | None = None,
    ) -> None:
        super().__init__(params=params)
        variance = SampleVariance() if variance is None else variance
        if not isinstance(variance, Variance):
            raise TypeError(
                f"variance={variance!r}: give one of balanced_grad.evidence, such as Laplace(num_data=1000)"
            )
        self.fusion = SiteFusion(variance, kappa, cap, precision, unit, joint, decay)
        self.block = Block(block, layers, linear=variance.linear, by_index=by_index)
        self.seed = seed
        self._histories = [History() for _ in self.block.sites]
        self._generator: torch.Generator | None = None
        self._saved: tuple[str, Tensor] | None = None  # state of a generator that is not made yet

    @classmethod
    def published(
        cls, heads: Modules, variance: Variance | None = None, *, num_data: float | None = None, **options: Any
    ) -> "BOGC":
        """The nearest reading of the source: heads of equal shape as one, by index, in one unit for the whole site.

        ``BOGC(heads, Laplace(num_data=num_data), by_index=True, unit="site", **options)``. A co-author's public code
        for another paper has a linear classifier per modality, all of equal shape, and averages their logits: "the
        parameters of the last layer before the output, per modality" then are these heads. Measured on real data it
        does no better than the plain sum, and a loss that is fitted first silences the others: the default of ``BOGC``
        does not do that, and stays.

        Args:
            heads: a mapping from modalities to their linear heads, of equal shape.
            variance: default ``evidence.Laplace(num_data=num_data)``.
            num_data: of the training set, see ``evidence.Laplace``; not beside ``variance``.
            options: see ``BOGC``.

        Raises:
            TypeError, ValueError: as ``BOGC``; for both ``variance`` and ``num_data``.

        Examples:
            >>> import torch
            >>> import balanced_grad as bg
            >>> heads = torch.nn.ModuleDict({"audio": torch.nn.Linear(4, 3), "video": torch.nn.Linear(4, 3)})
            >>> balancer = bg.BOGC.published(heads, num_data=1000)
            >>> balancer.fusion.unit, balancer.fusion.variance.num_data
            ('site', 1000)
        """
        if variance is None:
            variance = Laplace(num_data=num_data)
        elif num_data is not None:
            raise ValueError(f"num_data={num_data!r} beside variance={variance!r}: write it there, or leave one out")
        return cls(heads, variance, **{"by_index": True, "unit": "site", **options})

    def weigh(self, problem: Problem) -> Weighting:
        """Ones: the value of the scalar is the plain sum."""
        return Weighting(torch.ones_like(problem.losses))

    def _check_names(self, names: tuple[str, ...]) -> None:
        if self.block.by_index:
            refuse_unknown(names, self.block.sites[0].heads, "head", "heads")

    def accumulate_rows(self, on: bool) -> None:
        """Called by a ``BalancedOptimizer``: evidence is that of one batch."""
        if on:
            raise ValueError(
                f"accumulate='rows' keeps the per-loss gradients of whole parameters, and {self!r} takes them at its "
                "block, with the variances of one batch; leave accumulate out"
            )

    def _balancing(self, losses: Losses, features: Mapping[str, Tensor] | None) -> Balancing:
        losses.require_graph()
        capture = BlockCapture(losses, self.block, self._source.params, self.processes)
        return Balancing(capture, partial(self._fuse, capture))

    def _fuse(self, capture: BlockCapture, problem: Problem, weights: Tensor | None, scale: Tensor) -> None:
        """What ``backward()`` does: gradients and variances at the block, evidence, ``.grad``."""
        with torch.autocast(scale.device.type, enabled=False):
            unscale = unit_of(scale).float()
            generator = self._own_generator(scale.device)
            histories = dict(zip(self.block.sites, self._histories, strict=True))
            found = capture.run(scale)
            problem = Problem(*capture.losses())
            scales = [unscale.to(rows.rows.device) for rows in found]
            seen = [  # which may refuse, so before anything is changed
                self.fusion.observe(rows, problem.names, own, histories[rows.site], generator)
                for rows, own in zip(found, scales, strict=True)
            ]
            factors = self._factors_of(problem)
            fused = [
                self.fusion.fuse(known, own, histories[rows.site], factors, learning=self.training)
                for rows, known, own in zip(found, seen, scales, strict=True)
            ]
            trust = _trust(fused, problem)
            outside = torch.ones_like(trust.weights)
            if factors is not None:
                outside = outside * factors
                trust = trust._replace(weights=trust.weights * factors)
            capture.write(zip(found, (site.row for site in fused), strict=True), outside)
        self.last = Step(problem.names, problem.losses, trust.weights, trust=trust, factors=self.factors)

    def _own_generator(self, device: torch.device) -> torch.Generator | None:
        if not self.fusion.variance.random:
            return None
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed)
            if self._saved is not None and self._saved[0] == device.type:  # another kind draws other numbers anyhow
                self._generator.set_state(self._saved[1].cpu())
            self._saved = None
        return self._generator

    def state(self) -> dict[str, Any]:
        """Statistics of every site and the state of the generator, for ``state_dict``."""
        sites = {site.name: kept.state() for site, kept in zip(self.block.sites, self._histories, strict=True)}
        drawn = self._generator
        generator = self._saved if drawn is None else (drawn.device.type, drawn.get_state())
        return {"statistics": self.fusion.statistics, "sites": sites, "generator": generator}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state`` gave, for a block of the same names, shapes and statistics."""
        names, mine = [site.name for site in self.block.sites], self.fusion.statistics
        if sorted(state["sites"]) != sorted(names):
            raise ValueError(f"the state is of a block {sorted(state['sites'])}, this one is {sorted(names)}")
        if state.get("statistics", mine) != mine:
            raise ValueError(f"the state is of a BOGC with {state['statistics']}, this one has {mine}; build it alike")
        for site in self.block.sites:
            History.check(state["sites"][site.name], site.size, f"block, layer {site.name!r}")
        for name, kept in zip(names, self._histories, strict=True):
            kept.load(state["sites"][name])
        self._generator, self._saved = None, state["generator"]

    def settings(self) -> dict[str, object]:
        """Its own, and the common ones."""
        return {"block": self.block, "fusion": self.fusion} | super().settings()


def _trust(sites: list[FusedSite], problem: Problem) -> Trust:
    """What is reported: means over the dimensions of all sites in which a loss is a source among others."""
    sums = torch.zeros(4, len(problem.names), device=problem.losses.device)  # belief, leading, weights, dimensions
    uncertainty, total = sums[0, 0], 0
    for site in sites:
        if site.report is not None and site.uncertainty is not None:
            size = site.row.numel()
            report = torch.cat([site.report, torch.ones_like(site.report[:1])]).to(sums)
            sums[:, site.losses] += size * report
            uncertainty, total = uncertainty + size * site.uncertainty.to(sums), total + size
    belief, leading, weights = sums[:3] / sums[3].clamp_min(1)
    weights = torch.where(sums[3] > 0, weights, torch.ones_like(weights))
    return Trust(belief, uncertainty / total if total else torch.ones_like(uncertainty), leading, weights)
