"""Does a modality help yet? The same measurement at several sizes of the training set."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from balanced_grad.diagnostics._gap import Gap
from balanced_grad.diagnostics._latent_quality import Data, latent_quality
from balanced_grad.diagnostics._model import Train
from balanced_grad.diagnostics._report import LatentQuality
from balanced_grad.subsets import label
from balanced_grad.tables import side_by_side

FRACTIONS = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class SampleSizeCurve:
    """Latent quality against the number of items that train the encoders.

    Attributes:
        reports: items -> the ``LatentQuality`` of encoders trained on so many, from few to many.
    """

    reports: Mapping[int, LatentQuality]

    def gaps(self, first: Iterable[str], second: Iterable[str]) -> dict[int, Gap]:
        """Items -> ``γ(first, second)``."""
        first, second = list(_names(first)), list(_names(second))
        return {items: report.gap(first, second) for items, report in self.reports.items()}

    def crossing(self, first: Iterable[str], second: Iterable[str]) -> float:
        """Items from which the first set wins for good: where the gap last falls below zero.

        Linear between the sizes measured, in the logarithm of the items. The smallest size if it wins
        throughout, infinity if it does not win at the largest. Noise moves it: look at the intervals of ``gaps``.
        """
        return crossing([(items, gap.value) for items, gap in self.gaps(first, second).items()])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers, ready for JSON, by the number of items."""
        return {str(items): report.to_dict() for items, report in self.reports.items()}

    def plot(self, path: str | Path) -> None:
        """Write a picture: risk of every subset against the items; needs matplotlib."""
        from balanced_grad.diagnostics._plot import plot_curve

        plot_curve(self, Path(path))

    def __str__(self) -> str:
        sizes = list(self.reports)
        subsets = list(self.reports[sizes[-1]].latents)
        rows = [["", *map(str, sizes)]]
        for subset in subsets:
            rows.append([label(subset), *(f"{report[subset].risk:.4g}" for report in self.reports.values())])
        return "\n".join(["risk by number of items for the encoders", *side_by_side(rows, least=(0, 8))])


def sample_size_curve(
    train: Train, items: Data, test: Data, *, fractions: Sequence[float] = FRACTIONS, **options: Any
) -> SampleSizeCurve:
    """Measure latent quality with ever more training items, to see from where on adding a modality helps.

    A larger set of modalities never has the larger best training loss, but it is the more complex model, so few
    items can favour fewer modalities. Only the encoders get fewer items; the heads and the test keep theirs, so
    that what changes is the latent. Smaller training sets are parts of larger ones.

    Source: the sample-ratio experiment of Huang et al. (NeurIPS 2021), whose ratios are the default. That the heads
    keep all their items is our reading.

    Args:
        train: as in ``latent_quality``.
        items: as in ``latent_quality``.
        test: as in ``latent_quality``.
        fractions: shares of the items left after holding out, in (0, 1].
        options: any other of ``latent_quality``.

    Raises:
        ValueError: for no fractions, or two that give the same number of items; and what ``latent_quality`` raises.

    Examples:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from balanced_grad.diagnostics import sample_size_curve
        >>> def draw(n):
        ...     x = {name: torch.randn(n, 40, dtype=torch.double) for name in ("audio", "video")}
        ...     return x, 2 * x["audio"].sum(1) + 0.5 * x["video"].sum(1)
        >>> def train(inputs, targets, seed):  # least squares
        ...     x = torch.cat(list(inputs.values()), 1)
        ...     weight = torch.linalg.pinv(x) @ targets[:, None]
        ...     return SimpleNamespace(encode=lambda inputs: torch.cat(list(inputs.values()), 1) @ weight)
        >>> _ = torch.manual_seed(0)
        >>> curve = sample_size_curve(train, draw(900), draw(500), fractions=[0.05, 0.1, 0.5, 1.0])
        >>> [(items, gap.verdict) for items, gap in curve.gaps(["audio", "video"], "audio").items()]
        [(30, 'hurts'), (60, 'inconclusive'), (300, 'helps'), (600, 'helps')]
    """
    shares = sorted(fractions)
    if not shares:
        raise ValueError("fractions is empty: give at least one share in (0, 1]")
    reports = [latent_quality(train, items, test, fraction=share, **options) for share in shares]
    by_size = {int(report.settings["train_items"]): report for report in reports}
    if len(by_size) < len(reports):
        raise ValueError(f"two of the fractions {shares} give the same number of items: {sorted(by_size)}")
    return SampleSizeCurve(by_size)


def crossing(points: Sequence[tuple[int, float]]) -> float:
    """Items from which a gap stays below zero, of ``(items, gap)`` from few to many."""
    if points[-1][1] >= 0:
        return math.inf
    behind = [i for i, (_, value) in enumerate(points) if value >= 0]
    if not behind:
        return float(points[0][0])
    (few, before), (many, after) = points[behind[-1]], points[behind[-1] + 1]
    share = before / (before - after)
    return math.exp((1 - share) * math.log(few) + share * math.log(many))


def _names(subset: Iterable[str]) -> Iterable[str]:
    return [subset] if isinstance(subset, str) else subset
