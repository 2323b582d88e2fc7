"""What is each modality worth to my model? The measurement."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from balanced_grad.choices import check_choice
from balanced_grad.diagnosis._absence import Absent, Own, absence
from balanced_grad.diagnosis._additive import additive_rows, grid_size, projected
from balanced_grad.diagnosis._contribution import Worth, contribution
from balanced_grad.diagnosis._estimates import Intervals
from balanced_grad.diagnosis._features import Reference
from balanced_grad.diagnosis._items import Items, Modalities, Unpack, gather
from balanced_grad.diagnosis._network import Network, Predict, network
from balanced_grad.diagnosis._orders import sampled_orders, to_measure
from balanced_grad.diagnosis._probes import Probing, probed
from balanced_grad.diagnosis._progress import Progress
from balanced_grad.diagnosis._report import AdditiveGap, Diagnosis, SubsetRisk
from balanced_grad.diagnosis._robustness import have_heads, hits_of_heads, robustness
from balanced_grad.diagnosis._scores import Array
from balanced_grad.diagnosis._signals import TrainingSignals
from balanced_grad.diagnosis._subsets import Game
from balanced_grad.intervals import check_interval
from balanced_grad.labels import Task
from balanced_grad.subsets import Subset


def diagnose(
    model: Any,
    loader: Iterable[Any],
    modalities: Modalities | None = None,
    *,
    task: Task = "classification",
    absent: Absent | Mapping[str, Own] = "permute",
    draws: int = 8,
    additive_items: int = 251,
    encoders: Mapping[str, nn.Module] | None = None,
    reference: Reference = "raw",
    signals: TrainingSignals | None = None,
    predict: Predict | None = None,
    labels: str = "labels",
    unpack: Unpack | None = None,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
    device: Any = None,
    progress: bool = True,
) -> Diagnosis:
    """Ask a trained model on held-out items what each modality is worth to it; nothing is trained.

        v(S) = E L(f(x^S, x'), y),   x' the absent modalities, each of another item
        φ_m = Σ_S |S|! (M - |S| - 1)! / M! [v(S) - v(S ∪ m)],   Σ_m φ_m = v(∅) - v(all)

    The verdict on a modality is about its share of ``v(∅) - v(all)``: see ``Contribution``. Intervals are a paired
    bootstrap over the items, in their part as givers of modalities to others, too. Beyond 6 modalities Shapley
    values are means over 16 sampled orders, whose spread is in their intervals. The model is in eval mode for as long
    as it is asked, without gradients; its modes, batch statistics and all random generators are left as they were.

    Sources: permutation for reading a trained model, Gat et al., "Perceptual Score" (NeurIPS 2021); Shapley values
    of modalities, Hu et al., "SHAPE" (2022); the additive projection, Hessel and Lee, "Does my multimodal
    model learn cross-modal interactions?" (EMNLP 2020). The intervals, the projection beyond two modalities and the
    thresholds of the verdicts are ours.

    Args:
        model: a module, or a function from inputs to logits. It is called with a batch's inputs by name where its
            ``forward`` has arguments of these names, else with the mapping, or in order for batches that are tuples.
        loader: held-out batches, read once: ``({name: x}, labels)``, ``{name: x, ..., "labels": y}``, or
            ``(x, ..., y)`` with ``modalities=[...]``. All items are kept in memory; inputs are tensors ``(B, ...)`` or
            lists.
        modalities: names of inputs, or modality -> name or names of its inputs; others, a mask for instance, stay as
            they are. Default: every input is a modality.
        task: ``"classification"`` (default), ``"multilabel"`` or ``"regression"``, with labels as everywhere.
        absent: ``"permute"`` (default), ``"zero"``, ``"mean"`` over the items, ``"none"`` for a model that takes
            None, or modality -> value, tensor, None or function of its inputs.
        draws: permutations; default 8 (ours). No more than other items.
        additive_items: for the additive gap, which takes as many passes over them; default 251 (ours), 0: leave out.
        encoders: modality -> module of the model, to be probed too, against a reference: see ``probe_encoders``, which
            has more options. Needs scikit-learn. Default: no probes.
        reference: of the probes: ``"raw"`` inputs (default), or modality -> an encoder that was trained alone.
        signals: what ``training_signals`` found, to stand in the report. Default: none.
        predict: function from inputs by name to logits, for a model that is called otherwise.
        labels: key of the labels in batches that are one mapping.
        unpack: function from a batch to ``({name: x}, labels)``, for batches of another form.
        confidence: of the intervals, in (0, 1); default 0.95.
        resamples: of the bootstrap; default 4000 (ours).
        seed: of the permutations and orders.
        device: default: that of the model.
        progress: state the cost before it starts, on standard error, and show a bar on a terminal (with tqdm).

    Raises:
        TypeError, ValueError: for a loader that gives nothing, fewer than two labelled items, one class, modalities
            or inputs that the model does not take, outputs that are not finite (which items, which modality
            absent), options out of range.

    Examples:
        >>> import torch
        >>> import balanced_grad as bg
        >>> _ = torch.manual_seed(0)
        >>> audio, video, clock = torch.randn(3, 400, 1)
        >>> y = (2 * audio + video > 0).long()[:, 0]
        >>> def model(audio, video, clock):  # looks at the sound and the picture
        ...     score = 4 * audio + 2 * video
        ...     return torch.cat([-score, score], 1)
        >>> batches = [({"audio": audio, "video": video, "clock": clock}, y)]
        >>> report = bg.diagnose(model, batches, progress=False)
        >>> report.verdict
        {'audio': 'used', 'video': 'used', 'clock': 'ignored'}
        >>> report["clock"].shapley.high, report.additive.points.value
        (0.0, 0.0)
    """
    check_choice("task", task, Task)
    if not isinstance(signals, TrainingSignals | None):
        raise TypeError(f"signals={signals!r}: give what balanced_grad.diagnosis.training_signals returns")
    check_interval(confidence, 0.0, resamples)
    _check_counts(draws, additive_items)
    items = gather(loader, modalities, labels, unpack, task)
    plan = None if encoders is None else Probing(encoders, reference)
    if plan is not None:
        plan.check(items)
    rng = np.random.default_rng(seed)
    rule = absence(items, absent, draws, rng)
    orders = sampled_orders(items.modalities, rng)
    wanted = to_measure(items.modalities, orders)
    shown = Progress(progress)
    net = network(model, predict, items, device, shown)
    grid = grid_size(len(items.modalities), len(items), additive_items)
    with net.ready():
        voting = orders is None and have_heads(net, items, task)
    passes = 1 + rule.draws * (len(wanted) - 1) + voting + (plan is not None)
    shown.start(passes + grid, len(items), passes * len(items) + grid * grid)
    try:
        with net.ready():
            game = Game(net, items, task, rule)
            for subset in wanted:
                game.measure(subset)
            gap = _additive(net, items.first(grid, rng.permutation(len(items))), task) if grid else None
            heads = hits_of_heads(net, items) if voting else None
            chances = Intervals(len(items), resamples, confidence, 1 if orders is None else len(orders) // 2)
            probes = None if plan is None else probed(net, items, model, task, plan, chances, seed)
    finally:
        shown.stop()
    settings = {
        "task": task,
        "items": len(items),
        "passes": shown.passes,
        "absent": absent if isinstance(absent, str) else "own",
        "draws": rule.draws,
        "orders": 0 if orders is None else len(orders),
        "confidence": confidence,
        "resamples": resamples,
        "seed": seed,
    }
    return replace(_report(game, wanted, orders, gap, heads, chances, settings), probes=probes, signals=signals)


def _report(
    game: Game,
    wanted: Sequence[Subset],
    orders: Sequence[Sequence[str]] | None,
    gap: tuple[Array, Array | None] | None,
    heads: Mapping[Subset, Array] | None,
    intervals: Intervals,
    settings: Mapping[str, Any],
) -> Diagnosis:
    names = game.everything
    options = settings["resamples"], settings["confidence"]
    worth = Worth(game.outcomes, names, orders)
    contributions = {}
    for name in names:
        moved = game.outcomes[tuple(other for other in names if other != name)].moved
        contributions[name] = contribution(worth, names, name, moved, intervals)
    rows = [worth.subset(subset) for subset in wanted]
    risks = intervals.many(np.stack([losses for losses, _ in rows]), 0.0)
    hits = [row for _, row in rows if row is not None]
    accuracies = intervals.many(np.stack(hits), 0.0, 100.0) if hits else [None] * len(rows)
    subsets = {
        subset: SubsetRisk(risk, accuracy) for subset, risk, accuracy in zip(wanted, risks, accuracies, strict=True)
    }
    curves = robustness(worth, names, orders, heads, intervals)
    return Diagnosis(names, contributions, subsets, gap and _gap(*gap, *options), curves, settings)


def _additive(net: Network, items: Items, task: Task) -> tuple[Array, Array | None]:
    return additive_rows(task, *projected(net, items), items.labels)


def _gap(losses: Array, hits: Array | None, resamples: int, confidence: float) -> AdditiveGap:
    intervals = Intervals(losses.shape[1], resamples, confidence)
    points = None if hits is None else intervals.of(100 * (hits[0] - hits[1]))
    accuracy = [None, None] if hits is None else [100 * float(row.mean()) for row in hits]
    return AdditiveGap(losses.shape[1], intervals.of(losses[1] - losses[0]), points, accuracy[0], accuracy[1])


def _check_counts(draws: int, additive_items: int) -> None:
    if not hasattr(draws, "__index__") or draws < 2:
        raise ValueError(f"draws={draws!r}: give a whole number, at least 2, or nothing is known of their spread")
    if not hasattr(additive_items, "__index__") or additive_items < 0:
        raise ValueError(f"additive_items={additive_items!r}: give a whole number of items, or 0 to leave the gap out")
