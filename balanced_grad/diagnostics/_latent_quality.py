"""Does adding a modality help? The measurement."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec

from torch import Tensor

from balanced_grad.choices import check_choice
from balanced_grad.diagnostics._experiment import Division, Experiment, Outcome
from balanced_grad.diagnostics._items import Items, class_labels
from balanced_grad.diagnostics._latent import Latent
from balanced_grad.diagnostics._model import Train
from balanced_grad.diagnostics._report import LatentQuality
from balanced_grad.heads import HeadClass
from balanced_grad.intervals import check_interval
from balanced_grad.subsets import Subset, all_subsets, in_order

MANY = 6  # 63 subsets; each further modality doubles them

Data = tuple[Mapping[str, Tensor], Tensor]
Training = tuple[Subset, int]


def latent_quality(
    train: Train,
    items: Data,
    test: Data,
    *,
    subsets: Iterable[Iterable[str]] | None = None,
    seeds: int | Sequence[int] = 3,
    head: HeadClass = "linear",
    held_out: float = 1 / 3,
    fraction: float = 1.0,
    reference: float | None = None,
    confidence: float = 0.95,
    tolerance: float = 0.0,
    resamples: int = 4000,
    force: bool = False,
    jobs: int = 1,
    progress: bool = True,
) -> LatentQuality:
    """Measure the latent quality of every subset of the modalities, to see whether adding one helps.

        η(𝓜) = inf_h R(h ∘ ĝ_𝓜) - R*,    γ(𝓜, 𝓝) = η(𝓜) - η(𝓝) = inf_h R(h ∘ ĝ_𝓜) - inf_h R(h ∘ ĝ_𝓝)

    ``ĝ_𝓜`` is the encoder that your ``train`` learns from the modalities in 𝓜. It is frozen, the best head on it is
    refitted from scratch on items that no encoder has seen, and ``R`` is that head's mean loss on the test:
    cross-entropy in nats for integer targets, squared error (mean over outputs) for floating ones. The unknown
    ``R*`` of the ideal model cancels in ``γ``. Its interval is a bootstrap over the test items, paired because all
    subsets meet the same ones, plus the spread over the seeds.

    Source: Huang et al., "What Makes Multi-modal Learning Better than Single (Provably)" (NeurIPS 2021), for ``η``
    and ``γ``. How to estimate them is our reading: freeze, refit on held-out items, compare.

    Args:
        train: ``train(inputs, targets, seed) -> model``: your recipe on the modalities in ``inputs``; absent ones are
            left out. The model has ``encode(inputs)``, giving ``(B, d)`` or ``{modality: (B, d_k)}``, and may have
            ``head(latent)``. See ``Model``.
        items: ``({modality: (N, ...)}, targets)`` to learn from; a part is held out for the heads. Items whose class is
            -100, or whose value is NaN, are left out.
        test: the same, for the risks.
        subsets: those to measure, such as ``[["audio", "video"], ["audio"]]``; default: all. The empty one, the
            best constant, costs nothing and is always measured.
        seeds: how many runs per subset, or their seeds: initial weights and the items held out. With one, the
            interval is about this one training run.
        head: ``"linear"`` (default; logistic or ridge regression), or ``"mlp"`` (64 hidden units, best of 3 restarts).
            Features are standardised and the L2 penalty is chosen by 3-fold cross-validation.
        held_out: share of ``items`` for the heads, in (0, 1), the same for every subset; default one third.
        fraction: share of the rest that trains the encoders, in (0, 1]; see ``sample_size_curve``.
        reference: ``R*``, if you know the Bayes risk; default: the best risk over all subsets.
        confidence: of the intervals, in (0, 1); default 0.95.
        tolerance: a gap below this, in units of the loss, counts as none; default 0.
        resamples: of the bootstrap; default 4000 (ours).
        force: allow more than 6 modalities without ``subsets=``: ``2^M - 1`` trainings per seed.
        jobs: processes to train in (joblib; -1: one per core). It pays where all trainings take longer than the few
            seconds that a process needs to start. Results are the same.
        progress: show a bar on a terminal.

    Raises:
        ImportError: without scikit-learn, or tqdm with ``progress``; ``pip install 'balanced-grad[demo]'`` has both.
        TypeError, ValueError: for items that are not aligned or not finite, classes with too few items, options out
            of range, more than 6 modalities without ``force``, a model without ``encode`` or with a latent
            that is not finite.

    Examples:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from balanced_grad.diagnostics import latent_quality
        >>> def draw(n):
        ...     signal, noise = torch.randn(n, 2, dtype=torch.double), torch.randn(n, 2, dtype=torch.double)
        ...     return {"signal": signal, "noise": noise}, signal.sum(1) + 0.1 * torch.randn(n)
        >>> def train(inputs, targets, seed):  # least squares
        ...     x = torch.cat(list(inputs.values()), 1)
        ...     weight = torch.linalg.lstsq(x, targets.double()[:, None]).solution
        ...     return SimpleNamespace(encode=lambda inputs: torch.cat(list(inputs.values()), 1) @ weight)
        >>> _ = torch.manual_seed(0)
        >>> report = latent_quality(train, draw(300), draw(1000))
        >>> report.added_last("signal").verdict, report.added_last("noise").verdict
        ('helps', 'inconclusive')
        >>> round(report["signal"].risk, 2)  # of 0.01 possible
        0.01
    """
    _require("sklearn", "latent_quality")
    check_interval(confidence, tolerance, resamples)
    learn, unseen = Items.check("items", items), Items.check("test", test)
    labels = class_labels(learn, unseen)
    modalities = tuple(learn.inputs)
    chosen = _chosen(modalities, subsets, force)
    runs = _seeds(seeds)
    _check_options(head, held_out, fraction, jobs, len(unseen))
    splits = {seed: Division.draw(learn, labels, held_out, fraction, seed) for seed in runs}
    experiment = Experiment(train, learn, unseen, labels, head, splits)
    tasks = [(subset, seed) for subset in chosen for seed in runs]
    outcomes = dict(zip(tasks, _bar(_outcomes(experiment, tasks, jobs), len(tasks), progress), strict=True))
    latents = {subset: Latent.of(subset, [outcomes[subset, seed] for seed in runs]) for subset in chosen}
    if reference is None:
        reference = min(latent.risk for latent in latents.values())
    latents = {subset: replace(latent, quality=latent.risk - reference) for subset, latent in latents.items()}
    split = splits[runs[0]]
    settings = {
        "task": "regression" if labels is None else "classification",
        "seeds": list(runs),
        "train_items": len(split.train),
        "probe_items": len(split.probe),
        "test_items": len(unseen),
        "head": head,
        "fraction": fraction,
        "confidence": confidence,
        "tolerance": tolerance,
        "resamples": resamples,
    }
    return LatentQuality(modalities, latents, reference, settings)


def _chosen(modalities: Subset, subsets: Iterable[Iterable[str]] | None, force: bool) -> list[Subset]:
    if subsets is None and len(modalities) > MANY and not force:
        raise ValueError(
            f"{len(modalities)} modalities have {2 ** len(modalities) - 1} subsets, each to be trained: name the ones "
            "you want in subsets=, or write force=True"
        )
    if subsets is None:
        return all_subsets(modalities)
    wanted = {in_order(modalities, subset) for subset in subsets} | {()}
    return sorted(wanted, key=lambda subset: (len(subset), [modalities.index(name) for name in subset]))


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    several = list(seeds) if isinstance(seeds, Iterable) else range(seeds) if hasattr(seeds, "__index__") else []
    whole = all(hasattr(seed, "__index__") for seed in several)
    if not several or not whole or len(set(several)) < len(several):
        raise ValueError(f"seeds={seeds!r}: give a whole number >= 1, or distinct seeds")
    return tuple(int(seed) for seed in several)


def _check_options(head: str, held_out: float, fraction: float, jobs: int, test_items: int) -> None:
    check_choice("head", head, HeadClass)
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out!r}: give a share between 0 and 1, such as 1/3")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction!r}: give a share in (0, 1]")
    if not hasattr(jobs, "__index__") or jobs == 0:
        raise ValueError(f"jobs={jobs!r}: give a whole number of processes, or -1 for one per core")
    if test_items < 2:
        raise ValueError("one test item has no spread: give at least two")


def _outcomes(experiment: Experiment, tasks: Sequence[Training], jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from (experiment.run(*task) for task in tasks)
        return
    from joblib import Parallel, delayed  # type: ignore[import-untyped]  # of scikit-learn

    yield from Parallel(n_jobs=jobs, return_as="generator")(delayed(experiment.run)(*task) for task in tasks)


def _bar(outcomes: Iterator[Outcome], total: int, progress: bool) -> Iterator[Outcome]:
    if not progress:
        return outcomes
    _require("tqdm", "progress=True")
    from tqdm import tqdm

    shown: Iterator[Outcome] = iter(tqdm(outcomes, total=total, disable=None, unit="run"))
    return shown


def _require(package: str, who: str) -> None:
    if find_spec(package) is None:
        raise ImportError(f"{who} needs {package}: pip install 'balanced-grad[demo]'")
