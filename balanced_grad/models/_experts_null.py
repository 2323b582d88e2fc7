from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NullTokenExpert(nn.Module):
    """One joint expert for every subset of its modalities: a learnt null token stands for what is absent.

    With many modalities there are too many subsets for a network each. Here one network sees them all: in training,
    each item keeps all of its modalities with probability ``whole``, else a random non-empty subset of them, and null
    tokens replace the rest: each is drawn with probability 1/2, and one in any case, so that of ``n`` modalities
    each is kept with probability ``1/2 + 1/(n 2^n)``. In evaluation only what is really absent is replaced. An item
    that lacks a modality therefore keeps this expert, as long as it has any modality.

    Source: the null tokens and the random subsets are suggested by Madaan et al. (NeurIPS 2024) for more than a few
    modalities; one subset per item and step, and the probabilities, are our reading.

    Args:
        network: called with all modalities, in order, as ``(B, *shape)`` tensors.
        shapes: shape of one item of each modality; its token has it too, and starts at zero.
        whole: probability that an item is left as it is in training. Default 0.5.

    The subsets come from torch's global generator, as those of dropout do.

    Raises:
        ValueError: for a probability outside [0, 1], a number of inputs that does not fit, or no input at all.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from balanced_grad.models import NullTokenExpert, ProductOfExperts
        >>> class Fused(nn.Linear):
        ...     def forward(self, *inputs):
        ...         return super().forward(torch.cat(inputs, 1))
        >>> fused = NullTokenExpert(Fused(5, 3), shapes=[(2,), (3,)])
        >>> product = ProductOfExperts({"audio": nn.Linear(2, 3), "video": nn.Linear(3, 3), ("audio", "video"): fused})
        >>> sorted(product.outputs({"video": torch.ones(4, 3)}))  # it answers without audio
        ['audio+video', 'video']
    """

    def __init__(self, network: nn.Module, shapes: Sequence[tuple[int, ...]], *, whole: float = 0.5) -> None:
        super().__init__()
        if not 0 <= whole <= 1:
            raise ValueError(f"whole={whole!r}: give a probability between 0 and 1")
        self.network = network
        self.tokens = nn.ParameterList(torch.zeros(shape) for shape in shapes)
        self.whole = whole

    def forward(self, *inputs: Tensor | None, present: Sequence[Tensor | None] | None = None) -> Tensor:
        """The network's output.

        Args:
            inputs: one ``(B, *shape)`` per modality, or None for one missing in this batch.
            present: per modality a ``(B,)`` boolean, or None for all that are given.
        """
        if len(inputs) != len(self.tokens):
            raise ValueError(f"{len(inputs)} inputs were given for {len(self.tokens)} modalities; None stands for one")
        given = [x for x in inputs if x is not None]
        if not given:
            raise ValueError("every modality is None; leave this expert out of such a batch")
        kept = self._kept(inputs, present, len(given[0]), given[0].device)
        filled = []
        for x, token, keep in zip(inputs, self.tokens, kept, strict=True):
            shape = (len(keep), *token.shape)
            x = token.expand(shape) if x is None else x
            filled.append(torch.where(keep.reshape(-1, *[1] * token.dim()), x, token))
        out: Tensor = self.network(*filled)
        return out

    def _kept(
        self, inputs: Sequence[Tensor | None], present: Sequence[Tensor | None] | None, items: int, device: torch.device
    ) -> Tensor:
        """``(M, B)``: what is really there and, in training, drawn."""
        kept = torch.zeros(len(inputs), items, dtype=torch.bool, device=device)
        for row, x, mask in zip(kept, inputs, present or [None] * len(inputs), strict=True):
            if x is not None:
                row.fill_(True) if mask is None else row.copy_(mask)
        if not self.training:
            return kept
        draw = torch.rand(kept.shape, device=device)
        surest = draw.masked_fill(~kept, -1.0).argmax(0)  # of the modalities present, one is always drawn
        at_least_one = torch.zeros_like(kept).scatter_(0, surest[None], True)
        drawn = (draw > 0.5) | at_least_one | (torch.rand(items, device=device) < self.whole)
        return kept & drawn

    def extra_repr(self) -> str:
        """Settings."""
        return f"shapes={[tuple(token.shape) for token in self.tokens]}, whole={self.whole}"
