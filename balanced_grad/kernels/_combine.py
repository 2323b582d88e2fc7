import torch
from torch import Tensor

_CHUNK = 1 << 18  # columns widened at a time for half-precision rows


def combine(rows: Tensor, weights: Tensor, out: Tensor | None = None) -> Tensor:
    """Weighted sum of the rows: one read of them, one write.

        d = Σ_i w_i r_i

    Args:
        rows: ``(M, D)``, real floating point; half-precision rows are summed in float32 and rounded once.
        weights: ``(M,)``, any floating dtype, on the device of ``rows``.
        out: ``(D,)`` of the dtype of ``rows`` to write to; default: a new tensor.

    Returns:
        ``out``.

    Examples:
        >>> import torch
        >>> from balanced_grad.kernels import combine
        >>> combine(torch.tensor([[1.0, 2.0], [10.0, 20.0]]), torch.tensor([1.0, 0.1]))
        tensor([2., 4.])
    """
    if out is None:
        out = rows.new_empty(rows.shape[1])
    with torch.autocast(rows.device.type, enabled=False):
        if rows.itemsize >= 4:
            return torch.mv(rows.T, weights.to(rows.dtype), out=out)
        wide = weights.float()
        for start in range(0, len(out), _CHUNK):
            part = slice(start, start + _CHUNK)
            out[part] = torch.mv(rows[:, part].float().T, wide)
    return out
