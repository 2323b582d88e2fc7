import torch
from torch import Tensor

from balanced_grad.kernels._sharded import is_sharded, sum_over_shards

_CHUNK = 1024  # columns per fp32 partial product: small enough to stay exact, large enough for one batched call
_WIDENED = 256  # chunks of half-precision rows that are widened at a time


def gramian(rows: Tensor) -> Tensor:
    """Gramian of the rows, in one read and with partial sums in float64.

        G_ij = Σ_d r_id r_jd

    Products over chunks of 1024 columns are formed in float32 (float64 rows: in float64) by one batched
    matrix product and added up in float64. At cosine 0.999999 and D = 1e7 this keeps two digits of
    ``|g_1 - g_2|²``, of which a float32 ``rows @ rows.T`` keeps none.

    Args:
        rows: ``(M, D)``, real floating point; half precision is widened chunk by chunk. A DTensor whose columns
            are sharded is multiplied shard by shard, and only the ``(M, M)`` results travel.

    Returns:
        ``(M, M)`` float64 on the device of ``rows``, the same on every process. Non-finite rows give non-finite
        entries.

    Raises:
        ValueError: for a DTensor that is neither sharded along its columns nor replicated.

    Examples:
        >>> import torch
        >>> from balanced_grad.kernels import gramian
        >>> gramian(torch.tensor([[1.0, 2.0, 2.0], [0.0, 1.0, 0.0]]))
        tensor([[9., 2.],
                [2., 1.]], dtype=torch.float64)
    """
    return sum_over_shards(_local, rows) if is_sharded(rows) else _local(rows)


def _local(rows: Tensor) -> Tensor:
    count, size = rows.shape
    whole = size - size % _CHUNK
    total = torch.zeros(count, count, dtype=torch.float64, device=rows.device)
    with torch.autocast(rows.device.type, enabled=False):
        if whole:
            chunks = rows[:, :whole].view(count, -1, _CHUNK).transpose(0, 1)
            step = _WIDENED if rows.itemsize < 4 else len(chunks)
            for start in range(0, len(chunks), step):
                wide = _wide(chunks[start : start + step])
                total += torch.bmm(wide, wide.transpose(1, 2)).sum(0, dtype=torch.float64)
        if whole < size:
            rest = _wide(rows[:, whole:])
            total += rest @ rest.T
    return total


def _wide(part: Tensor) -> Tensor:
    return part.float() if part.itemsize < 4 else part
