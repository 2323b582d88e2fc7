"""Is an encoder left behind? A linear probe of its features against a reference, on the same items."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from torch import nn

from balanced_grad.choices import check_choice
from balanced_grad.diagnosis._estimates import Estimate, Intervals, plain
from balanced_grad.diagnosis._features import Reference, features, reference_features
from balanced_grad.diagnosis._folds import Splits, out_of_fold, splits_of, targets_of
from balanced_grad.diagnosis._items import Items, Modalities, Unpack, gather
from balanced_grad.diagnosis._network import Predict, network
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
    if find_spec("sklearn") is None:
        raise ImportError("probe_encoders needs sklearn: pip install 'balanced-grad[demo]'")
    check_choice("task", task, Task)
    check_choice("head", head, HeadClass)
    check_interval(confidence, 0.0, resamples)
    if not hasattr(folds, "__index__") or folds < 2:
        raise ValueError(f"folds={folds!r}: give a whole number of parts, at least 2")
    items = gather(loader, modalities, labels, unpack, task)
    _check_names(items, encoders, reference)
    targets = targets_of(items.labels, task)
    net = network(model, predict, items, device, Progress(False))
    with net.ready():
        mine = features(net, items, model, encoders, pool, mask)
        others = {name: reference_features(net, items, name, reference) for name in encoders}
    splits = splits_of(targets, task, folds, seed)
    intervals = Intervals(len(items), resamples, confidence)
    return {name: _probe(mine[name], others[name], targets, task, head, splits, seed, intervals) for name in encoders}


def _probe(
    mine: Array,
    other: Array,
    targets: Array,
    task: Task,
    head: HeadClass,
    splits: Splits,
    seed: int,
    intervals: Intervals,
) -> EncoderProbe:
    (losses, hits), (before, right) = (out_of_fold(x, targets, task, head, splits, seed) for x in (mine, other))
    gap = intervals.of(before - losses)
    verdict: ProbeVerdict = "left behind" if gap.high < 0 else "ahead" if gap.low > 0 else "inconclusive"
    if hits is None or right is None:
        return EncoderProbe(verdict, gap, None, None, None)
    points = intervals.of(100 * (hits - right))
    return EncoderProbe(verdict, gap, points, 100 * float(hits.mean()), 100 * float(right.mean()))


def _check_names(items: Items, encoders: Mapping[str, nn.Module], reference: Reference) -> None:
    if isinstance(reference, str) and reference != "raw":
        raise ValueError(f"reference={reference!r}: write 'raw', or give a module or function per modality")
    for name in encoders:
        if name not in items.keys:
            raise ValueError(f"encoders has {name!r}, but the modalities are {list(items.modalities)}")
        if not isinstance(reference, str) and name not in reference:
            raise ValueError(f"reference= has nothing for {name!r}; give one for each of {list(encoders)}")
