from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from balanced_grad.attachment._attach import by_name, encoders_of
from balanced_grad.attachment._masks import Masks
from balanced_grad.attachment._outputs import EncoderOutputs
from balanced_grad.attachment._pooling import Pool, Pooling
from balanced_grad.members import Named
from balanced_grad.notices import Notices


class _NoHeads:
    """For those who want the features themselves."""

    def logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """None."""
        return {}


@contextmanager
def encoder_features(
    model: nn.Module,
    modalities: Named,
    *,
    pool: Pool | Mapping[str, Pool] | None = None,
    mask: str | Mapping[str, str | None] | None = None,
) -> Iterator[EncoderOutputs]:
    """What each encoder of a model returned in the last forward, caught by hooks that are gone afterwards.

    Args:
        model: whose forward is called inside of ``with``.
        modalities: name -> encoder, a module inside ``model``, as for ``bg.attach``.
        pool: as for ``bg.attach``.
        mask: as for ``bg.attach``.

    Returns:
        A context whose value has ``features``: modality -> ``(B, D)``, without a graph.

    Raises:
        TypeError, ValueError: as ``bg.attach`` does.

    Examples:
        >>> import torch
        >>> from balanced_grad.attachment import encoder_features
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        >>> with encoder_features(model, {"audio": model[0]}) as caught:
        ...     _ = model(torch.ones(5, 3))
        ...     caught.features["audio"].shape
        torch.Size([5, 4])
    """
    encoders = encoders_of(model, modalities)
    names = tuple(encoders)
    pooling = Pooling(by_name("pool", pool, names), Masks(model, by_name("mask", mask, names), Notices()))
    outputs = EncoderOutputs(model, encoders, _NoHeads(), pooling=pooling, stop_gradient=True)
    try:
        yield outputs
    finally:
        outputs.remove()
