import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from balanced_grad.choices import check_choice

GaussianVariance = Literal["learnt", "predicted", "unit"]
LOG_VARIANCE_FLOOR = -6.0  # a deviation of 0.05: below it a dimension of standardised data is a constant


class Likelihood(nn.Module, ABC):
    """Base of ``p(x | h)`` of one modality: independent entries whose parameters a decoder gives.

    Args:
        shape: of one item as encoder and decoder see it, or its length.

    Attributes:
        shape: of one item as encoder and decoder see it.
        entries: the shape of the things that are predicted one by one, at the front of ``shape``.
        width: how many numbers per item the decoder gives.
    """

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        if not self.shape or not all(isinstance(n, int) and n > 0 for n in self.shape):
            raise ValueError(
                f"{type(self).__name__}({shape!r}): give the length of one item, or its shape, as positive integers"
            )
        self.entries = self.shape
        self.width = math.prod(self.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Data as the user has it to ``(B, *shape)``."""
        return x

    def check(self, name: str, x: Tensor) -> None:
        """Refuse encoded items outside the support, here what is not finite; called where looking waits for nothing."""
        if not bool(x.isfinite().all()):
            raise ValueError(
                f"modality {name!r} is {type(self).__name__} but has present values that are NaN or infinite; say in "
                f"present={{{name!r}: ...}} which items lack it"
            )

    def spread(self, mask: Tensor) -> Tensor:
        """A mask over ``(B, *entries)`` that broadcasts over ``(B, *shape)``."""
        return mask

    def shaped(self, parameters: Tensor) -> Tensor:
        """One parameter per number of an item, ``(B, prod(shape))`` -> ``(B, *shape)``."""
        return parameters.reshape(len(parameters), *self.shape)

    @abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """``E[x]``, ``(B, width)`` -> ``(B, *shape)``."""

    @abstractmethod
    def nll(self, parameters: Tensor, x: Tensor) -> Tensor:
        """``-log p(x)`` in nats of each entry, ``(B, *entries)``, in at least float32."""

    @abstractmethod
    def fit(self, x: Tensor) -> Tensor:
        """Fit the best constant prediction of ``(B, *shape)``: the decoder's part ``(width,)`` is returned."""

    def extra_repr(self) -> str:
        """Shape."""
        return ", ".join(map(str, self.shape))


class Bernoulli(Likelihood):
    """Entries in [0, 1], each a Bernoulli variable or its probability; the decoder gives logits ``s``.

        -log p(x) = softplus(s) - x s

    Args:
        shape: of one item, or its length.

    Raises:
        ValueError: on the CPU, for present values outside [0, 1], NaN included.

    Examples:
        >>> import torch
        >>> from balanced_grad.models import Bernoulli
        >>> Bernoulli(2).nll(torch.zeros(1, 2), torch.tensor([[0.0, 0.5]]))
        tensor([[0.6931, 0.6931]])
    """

    def check(self, name: str, x: Tensor) -> None:
        """Refuse values outside [0, 1]."""
        if not bool(((x >= 0) & (x <= 1)).all()):
            raise ValueError(
                f"modality {name!r} is Bernoulli but has present values outside [0, 1] (or NaN); "
                "rescale it, or declare it as Gaussian"
            )

    def mean(self, parameters: Tensor) -> Tensor:
        """Probabilities."""
        return self.shaped(parameters).sigmoid()

    def nll(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Binary cross-entropy."""
        logits = _wide(self.shaped(parameters))
        return functional.binary_cross_entropy_with_logits(logits, x.to(logits), reduction="none")

    def fit(self, x: Tensor) -> Tensor:
        """Logits of the mean."""
        return x.mean(0).flatten().logit(eps=1e-3)


class Gaussian(Likelihood):
    """Real entries with mean ``μ`` from the decoder and variance ``v``.

        -log p(x) = ((x - μ)² / v + log v + log 2π) / 2

    Args:
        shape: of one item, or its length.
        variance: ``"learnt"`` (default), one free parameter per entry; ``"predicted"``, by the decoder, which then
            gives twice as many numbers, the means first; ``"unit"``, as in a Gaussian RBM. Standardise the data:
            a learnt or predicted ``log v`` stays above -6 (ours), so that an entry that does not vary cannot drive
            the loss to minus infinity.

    Raises:
        ValueError: on the CPU, for present values that are not finite, or so large that their squares are not.

    Examples:
        >>> import torch
        >>> from balanced_grad.models import Gaussian
        >>> Gaussian(1, variance="unit").nll(torch.zeros(1, 1), torch.tensor([[2.0]]))
        tensor([[2.9189]])
    """

    def __init__(self, shape: int | Sequence[int], variance: GaussianVariance = "learnt") -> None:
        super().__init__(shape)
        check_choice("variance", variance, GaussianVariance)
        self.variance = variance
        self.raw_log_variance = nn.Parameter(torch.zeros(self.width)) if variance == "learnt" else None
        self.width *= 2 if variance == "predicted" else 1

    def check(self, name: str, x: Tensor) -> None:
        """Refuse what is not finite, and values whose squares, summed, may not be."""
        super().check(name, x)
        largest = torch.finfo(torch.promote_types(x.dtype, torch.float32)).max ** 0.5 * 1e-3
        if not bool((x.abs() <= largest).all()):
            raise ValueError(
                f"modality {name!r} is Gaussian but has present values beyond {largest:.0e}, whose squares overflow; "
                "standardise the data"
            )

    def mean(self, parameters: Tensor) -> Tensor:
        """``μ``."""
        return self.shaped(parameters[:, : math.prod(self.shape)])

    def log_variance(self, parameters: Tensor) -> Tensor:
        """``log v``, broadcasting over ``(B, *shape)``."""
        if self.variance == "unit":
            return torch.zeros((), dtype=torch.float32, device=parameters.device)
        if self.raw_log_variance is None:
            raw = _wide(self.shaped(parameters[:, math.prod(self.shape) :]))
        else:
            raw = _wide(self.raw_log_variance.reshape(self.shape))
        return _floored(raw)

    def nll(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Half the squared standardised error, and the normaliser."""
        mean, log_variance = _wide(self.mean(parameters)), self.log_variance(parameters)
        return ((x.to(mean) - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)) / 2

    def fit(self, x: Tensor) -> Tensor:
        """Mean, and log-variance where the decoder gives it; a learnt one is set here."""
        mean, log_variance = x.mean(0).flatten(), x.flatten(1).var(0, correction=0).clamp_min(1e-12).log()
        if self.raw_log_variance is not None:
            self.raw_log_variance.data.copy_(_unfloored(log_variance))
        return torch.cat([mean, _unfloored(log_variance)]) if self.variance == "predicted" else mean

    def extra_repr(self) -> str:
        """Shape and variance."""
        return f"{super().extra_repr()}, variance={self.variance!r}"


class Categorical(Likelihood):
    """``variables`` codes per item, each one of ``classes``; the decoder gives logits, ``classes`` per variable.

        -log p(x = c) = logsumexp(s) - s_c

    Data are integer codes ``(B, variables)`` (``(B,)`` for one variable), or probabilities ``(B, variables,
    classes)``. Encoders see probabilities, which for codes are one-hot, and so does who reads what was filled in.

    Args:
        classes: number of classes.
        variables: number of codes per item.

    Raises:
        ValueError: on the CPU, for present codes outside ``0 .. classes - 1``.

    Examples:
        >>> import torch
        >>> from balanced_grad.models import Categorical
        >>> x = Categorical(3)
        >>> x.nll(torch.zeros(1, 3), x.encode(torch.tensor([2])))
        tensor([[1.0986]])
    """

    def __init__(self, classes: int, variables: int = 1) -> None:
        super().__init__((variables, classes))
        self.entries = (variables,)

    def encode(self, x: Tensor) -> Tensor:
        """Codes to one-hot."""
        if x.is_floating_point():
            return x
        codes = x.unsqueeze(-1) if x.ndim == 1 else x
        # Not functional.one_hot, which looks at the codes: on a device that waits.
        return codes.unsqueeze(-1) == torch.arange(self.shape[1], device=x.device)

    def check(self, name: str, x: Tensor) -> None:
        """Refuse what is no distribution: a code out of range has no class."""
        if not bool((x >= 0).all() & ((x.sum(-1) - 1).abs() < 1e-3).all()):
            raise ValueError(
                f"modality {name!r} is Categorical but has present entries that are no code in "
                f"0 .. {self.shape[1] - 1} (and no probabilities that sum to one)"
            )

    def spread(self, mask: Tensor) -> Tensor:
        """All classes of a variable are known or not together."""
        return mask.unsqueeze(-1)

    def mean(self, parameters: Tensor) -> Tensor:
        """Probabilities."""
        return self.shaped(parameters).softmax(-1)

    def nll(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy of each variable."""
        scores = _wide(self.shaped(parameters)).log_softmax(-1)
        return -(x.to(scores) * scores).sum(-1)

    def fit(self, x: Tensor) -> Tensor:
        """Logarithms of the frequencies."""
        return x.mean(0).clamp_min(1e-3).log().flatten()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _floored(raw: Tensor) -> Tensor:
    """Log-variance above its floor, smoothly: a clamp would have no gradient to come back by."""
    return LOG_VARIANCE_FLOOR + functional.softplus(raw - LOG_VARIANCE_FLOOR)


def _unfloored(log_variance: Tensor) -> Tensor:
    excess = (log_variance - LOG_VARIANCE_FLOOR).clamp_min(1e-2)
    return LOG_VARIANCE_FLOOR + excess + (-torch.expm1(-excess)).log()
