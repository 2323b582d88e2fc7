"""Is an encoder left behind? A linear probe of its features against a reference, on the same items."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from torch import nn

from balanced_grad.choices import check_choice
from balanced_grad.diagnosis._estimates import Estimate, Intervals, plain
from balanced_grad.diagnosis._features import Reference, features, reference_features
from balanced_grad.diagnosis._folds import out_of_fold, splits_of, targets_of
from balanced_grad.diagnosis._items import Items, Modalities, Unpack, gather
from balanced_grad.diagnosis._network import Network, Predict, network
from balanced_grad.diagnosis._progress import Progress
from balanced_grad.diagnosis._scores import Array
from balanced_grad.heads import HeadClass
from balanced_grad.intervals import check_interval
from balanced_grad.labels import Task

ProbeVerdict = Literal["left behind", "ahead", "inconclusive"]
"""What the interval of a probe's gap says: see `balanced_grad.diagnosis.EncoderProbe.verdict`."""


@dataclass(frozen=True)
class EncoderProbe:
    """A probe of one encoder beside one of its reference, both on items that they were not fitted to.

    Attributes:
        verdict: ``"left behind"`` if ``gap`` is certainly below zero, ``"ahead"`` if above, else ``"inconclusive"``.
        gap: risk of the reference less that of the encoder, nats or squared error: what the encoder has more.
        points: accuracy of the encoder less that of the reference, percentage points; None for a regression.
        accuracy, reference_accuracy: of both, percent; None for a regression.
    """

    verdict: ProbeVerdict
    gap: Estimate
    points: Estimate | None
    accuracy: float | None
    reference_accuracy: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return plain(self.__dict__)  # type: ignore[no-any-return]


def probe_encoders(
    model: nn.Module,
    loader: Iterable[Any],
    encoders: Mapping[str, nn.Module],
    reference: Reference = "raw",
    *,
    task: Task = "classification",
    modalities: Modalities | None = None,
    head: HeadClass = "linear",
    folds: int = 3,
    pool: Any = None,
    mask: Any = None,
    predict: Predict | None = None,
    labels: str = "labels",
    unpack: Unpack | None = None,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
    device: Any = None,
) -> dict[str, EncoderProbe]:
    """Ask of each encoder whether a probe of its features predicts as well as one of a reference.

    Both probes are fitted on the same folds of held-out items and judged on the fold left out; the interval is a paired
    bootstrap over the items. It is about this model, not about another training of it.

    Source: the probe that studies of modality imbalance use, for instance Wang et al., "What Makes Training Multi-Modal
    Classification Networks Hard?" (CVPR 2020); the paired interval is ours.

    Args:
        model: the trained model.
        loader: held-out batches, as for ``bg.diagnose``.
        encoders: modality -> module of the model, as for ``bg.attach``.
        reference: ``"raw"`` (default): the modality's inputs themselves, one row of numbers per item; or modality ->
            module or function from the modality's input (or inputs) to features ``(B, ...)``, such as an encoder
            that was trained alone.
        task: as for ``bg.diagnose``, default ``"classification"``.
        modalities: as for ``bg.diagnose``.
        head: ``"linear"`` (default) or ``"mlp"``, as for ``latent_quality``.
        folds: of the items; default 3 (ours).
        pool: as for ``bg.attach``.
        mask: as for ``bg.attach``.
        predict: as for ``bg.diagnose``.
        labels: as for ``bg.diagnose``.
        unpack: as for ``bg.diagnose``.
        confidence: of the intervals, in (0, 1); default 0.95.
        resamples: of the bootstrap; default 4000 (ours).
        seed: of the folds.
        device: default: that of the model.

    Returns:
        Modality -> ``EncoderProbe``.

    Raises:
        ImportError: without scikit-learn, which ``pip install 'balanced-grad[demo]'`` has.
        TypeError, ValueError: for names that do not fit, features that are not finite, too few items of a class, labels
            of several entries per item unless ``task="multilabel"``, and what ``bg.diagnose`` refuses.

    Examples:
        >>> import torch
        >>> from balanced_grad.diagnosis import probe_encoders
        >>> _ = torch.manual_seed(0)
        >>> x = {"audio": torch.randn(300, 4), "video": torch.randn(300, 4)}
        >>> y = (x["audio"][:, 0] + x["video"][:, 0] > 0).long()
        >>> class Late(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.ears, self.eyes = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
        ...         torch.nn.init.zeros_(self.eyes.weight)  # starved
        ...     def forward(self, audio, video):
        ...         return (self.ears(audio) + self.eyes(video))[:, :2]
        >>> model = Late()
        >>> probes = probe_encoders(model, [(x, y)], {"audio": model.ears, "video": model.eyes})
        >>> probes["audio"].verdict, probes["video"].verdict
        ('inconclusive', 'left behind')
    """
    require_sklearn()
    check_choice("task", task, Task)
    check_choice("head", head, HeadClass)
    check_interval(confidence, 0.0, resamples)
    if not hasattr(folds, "__index__") or folds < 2:
        raise ValueError(f"folds={folds!r}: give a whole number of parts, at least 2")
    items = gather(loader, modalities, labels, unpack, task)
    net = network(model, predict, items, device, Progress(False))
    plan = Probing(encoders, reference, head, folds, pool, mask)
    return probed(net, items, model, task, plan, Intervals(len(items), resamples, confidence), seed)


@dataclass(frozen=True)
class Probing:
    """What is probed, and how: arguments of ``probe_encoders``."""

    encoders: Mapping[str, nn.Module]
    reference: Reference
    head: HeadClass = "linear"
    folds: int = 3
    pool: Any = None
    mask: Any = None

    def check(self, items: Items) -> None:
        """Refuse names that do not fit, and options out of range."""
        require_sklearn()
        if isinstance(self.reference, str) and self.reference != "raw":
            raise ValueError(f"reference={self.reference!r}: write 'raw', or give a module or function per modality")
        for name in self.encoders:
            if name not in items.keys:
                raise ValueError(f"encoders has {name!r}, but the modalities are {list(items.modalities)}")
            if not isinstance(self.reference, str) and name not in self.reference:
                raise ValueError(f"reference= has nothing for {name!r}; give one for each of {list(self.encoders)}")


def probed(
    net: Network, items: Items, model: nn.Module, task: Task, plan: Probing, intervals: Intervals, seed: int
) -> dict[str, EncoderProbe]:
    """Every encoder beside its reference, in one pass over the items."""
    plan.check(items)
    targets = targets_of(items.labels, task)
    splits = splits_of(targets, task, plan.folds, seed)
    with net.ready():
        mine = features(net, items, model, plan.encoders, plan.pool, plan.mask)
        others = {name: reference_features(net, items, name, plan.reference) for name in plan.encoders}

    def probe(x: Array) -> tuple[Array, Array | None]:
        return out_of_fold(x, targets, task, plan.head, splits, seed)

    return {name: _compared(*probe(mine[name]), *probe(others[name]), intervals) for name in plan.encoders}


def require_sklearn() -> None:
    """Say how to get what fits the probes."""
    if find_spec("sklearn") is None:
        raise ImportError("probes need sklearn: pip install 'balanced-grad[demo]'")


def _compared(
    losses: Array, hits: Array | None, before: Array, right: Array | None, intervals: Intervals
) -> EncoderProbe:
    gap = intervals.of(before - losses)
    verdict: ProbeVerdict = "left behind" if gap.high < 0 else "ahead" if gap.low > 0 else "inconclusive"
    if hits is None or right is None:
        return EncoderProbe(verdict, gap, None, None, None)
    points = intervals.of(100 * (hits - right))
    return EncoderProbe(verdict, gap, points, 100 * float(hits.mean()), 100 * float(right.mean()))
