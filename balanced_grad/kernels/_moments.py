import torch
from torch import Tensor

from balanced_grad.kernels._dispatch import Implementation, choose, plain
from balanced_grad.kernels._layout import check_rows
from balanced_grad.kernels._pass import Rows, by_columns, finite


def moments_update(
    rows: Tensor,
    mean: Tensor | None,
    variance: Tensor,
    weight: Tensor,
    beta: float,
    *,
    new_variance: Tensor | None = None,
    scale: Tensor | None = None,
    ok: Tensor | None = None,
    implementation: Implementation = "auto",
) -> None:
    """Exponential moving mean and variance per row and dimension, in place and in one pass.

        w ← β w + (1 - β),   ρ = (1 - β) / w,   δ = r / scale - m
        m ← m + ρ δ,   v ← (1 - ρ) (v + ρ δ²)

    ``m`` and ``v`` are the bias-corrected averages themselves: what an average that starts at 0 would be after
    division by its weight ``w``. The second line is West's recurrence for weighted moments; after the first step
    ``v`` is 0: nothing is known yet. Without a mean, ``v ← (1 - ρ) v + ρ (r / scale)²``, the second moment. With
    ``new_variance``, ``v ← (1 - ρ) v + ρ v_new``, skipping entries that are not finite.

    Least traffic, in streams of D numbers: 5M with a mean, 3M without or with ``new_variance`` (the rows are not read).

    Args:
        rows: ``(M, D)``, real floating point.
        mean: ``(M, D)``, float32 or float64, or None.
        variance: ``(M, D)``, as ``mean``.
        weight: ``(M,)``, floating point; all three start at 0 and are updated in place.
        beta: decay in [0, 1).
        new_variance: ``(M, D)`` variances known from elsewhere, of unscaled gradients; then ``mean`` is None.
        scale: 0-dimensional, the factor that the rows carry (the loss scale of mixed precision). Default: 1.
        ok: 0-dimensional or ``(M,)`` bool; a row with False keeps its state to the last bit. Give what is known
            already, ``gramian(rows).diagonal().isfinite()`` for instance. Default: rows without a non-finite entry,
            which costs one more read. It is never looked at on the host.
        implementation: ``"auto"`` (default) is Triton on CUDA and the reference elsewhere; see the page on kernels.

    Raises:
        TypeError, ValueError: for shapes, dtypes or a decay that do not fit, or both ``mean`` and ``new_variance``.
        RuntimeError: for ``implementation="triton"`` where Triton cannot run.

    Source: West, "Updating mean and variance estimates" (1979); the weights are those of Kingma & Ba, "Adam" (2015).

    Examples:
        >>> import torch
        >>> from balanced_grad.kernels import moments_update
        >>> mean, variance, weight = torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1)
        >>> for row in ([1.0, 4.0], [3.0, 4.0]):
        ...     moments_update(torch.tensor([row]), mean, variance, weight, beta=0.5)
        >>> mean, variance, weight  # weights 1/3 and 2/3 after two steps
        (tensor([[2.3333, 4.0000]]), tensor([[0.8889, 0.0000]]), tensor([0.7500]))
    """
    check_rows(rows)
    rate, after = _rates(rows, mean, variance, weight, beta, new_variance, ok)
    chosen = choose(implementation, rows)
    with plain(rows):
        if chosen == "triton":
            from balanced_grad.kernels import _triton

            _triton.moments(_triton.Streams(rows, mean, variance, new_variance, rate, scale))
        else:
            unscale = None if scale is None else scale.to(variance.dtype).reciprocal()
            rates = list(rate.to(variance.dtype).unbind(0))
            by_columns(_update, chosen, (rows, mean, variance, new_variance), rates, unscale)
    weight.detach().copy_(after)


def _update(
    rows: Rows, means: Rows | None, variances: Rows, given: Rows | None, rates: Rows, unscale: Tensor | None
) -> None:
    for i, (row, variance, rate) in enumerate(zip(rows, variances, rates, strict=True)):
        if given is None:
            _deviate(row, None if means is None else means[i], variance, rate, unscale)
        else:  # what is not finite leaves the old value: a change of 0
            variance.addcmul_(finite(given[i].to(variance.dtype) - variance), rate)


def _deviate(row: Tensor, mean: Tensor | None, variance: Tensor, rate: Tensor, unscale: Tensor | None) -> None:
    deviation = row.to(variance.dtype)  # first: a 0-dimensional factor would not widen it
    deviation = deviation if unscale is None else deviation * unscale
    own = mean is not None or deviation is not row
    deviation = finite(deviation if mean is None else deviation - mean, own=own)
    most = torch.finfo(variance.dtype).max ** 0.5 / 2  # a square beyond would stay for ever
    deviation = deviation.clamp_(-most, most) if own else deviation.clamp(-most, most)
    if mean is not None:
        mean.addcmul_(deviation, rate)
    deviation.mul_((rate if mean is None else rate * (1 - rate)).sqrt())
    variance.mul_(1 - rate).addcmul_(deviation, deviation)


def _rates(
    rows: Tensor,
    mean: Tensor | None,
    variance: Tensor,
    weight: Tensor,
    beta: float,
    new_variance: Tensor | None,
    ok: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Check the state. Returns each row's rate ``ρ``, 0 where it is not ok, and the weights after this step: ``(M,)``.

    The weights are for the caller to write after the pass, so that a pass that fails leaves all state as it was.
    """
    _check(rows, mean, variance, weight, beta, new_variance)
    if ok is None:
        finest = torch.promote_types(rows.dtype, torch.float32)
        ok = torch.linalg.vector_norm(rows.detach(), torch.inf, dim=1, dtype=finest).isfinite()
    counts = ok.to(weight.dtype)
    with torch.no_grad():
        after = torch.addcmul(weight, counts, 1 - weight, value=1 - beta)
        return counts * (1 - beta) / after.clamp_min(torch.finfo(weight.dtype).tiny), after


def _check(
    rows: Tensor, mean: Tensor | None, variance: Tensor, weight: Tensor, beta: float, new_variance: Tensor | None
) -> None:
    if not 0 <= beta < 1:
        raise ValueError(f"beta={beta!r}: give a decay in [0, 1)")
    if mean is not None and new_variance is not None:
        raise ValueError("mean and new_variance were both given; a variance from elsewhere needs no mean: give None")
    for name, state in (("mean", mean), ("variance", variance)):
        if state is None:
            continue
        if state.shape != rows.shape:
            raise ValueError(f"{name} has shape {tuple(state.shape)}; give that of the rows, {tuple(rows.shape)}")
        if not state.is_floating_point() or state.itemsize < 4:
            raise TypeError(f"{name} is {state.dtype}; keep it in float32: half precision rounds small changes away")
    if new_variance is not None and new_variance.shape != rows.shape:
        raise ValueError(
            f"new_variance has shape {tuple(new_variance.shape)}; give that of the rows, {tuple(rows.shape)}"
        )
    if weight.shape != rows.shape[:1] or not weight.is_floating_point():
        raise ValueError(
            f"weight is {tuple(weight.shape)} {weight.dtype}; give one floating number per row, {(len(rows),)}"
        )
