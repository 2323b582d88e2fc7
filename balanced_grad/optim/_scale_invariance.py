import re

from torch.optim import Optimizer

# By name, so that optimizers of other libraries and of newer releases of torch are known without importing them;
# parts of names, because those libraries prefix and suffix them: FusedAdam, PagedLion8bit, DistributedShampoo.
_NORMALISING = (
    *("adam", "adagrad", "adadelta", "adafactor", "adabelief", "adan", "rmsprop", "rprop", "yogi", "prodigy"),
    *("lamb", "novograd", "lion", "signsgd", "signum", "muon", "shampoo", "soap", "sophia"),
)
# Whole words only: AdEMAMix averages gradients, and SWATS is no average at all.
_AVERAGING = re.compile(r"(?i:schedule_?free|lookahead|averag|polyak)|^(EMA|SWA)($|_|[A-Z][a-z])|(EMA|SWA)$")
_INNER = ("base", "optimizer", "base_optimizer", "_base_optimizer", "_optimizer", "optim")


def is_scale_invariant(optimizer: Optimizer) -> bool:
    """Whether a constant factor on the gradient leaves the optimizer's steps as they are, up to its ``eps``.

    True for the optimizers that divide by the gradient's own size or take its sign (Adam and its kin, RMSprop,
    Adagrad, Adadelta, Rprop, Adafactor, Muon, Lion, ...), false for SGD, ASGD, LBFGS and what is not known by name.
    A subclass counts as what it derives from, a wrapper as what it wraps; momentum and a decoupled weight decay
    do not matter.

    Examples:
        >>> import torch
        >>> p = torch.nn.Parameter(torch.zeros(1))
        >>> is_scale_invariant(torch.optim.AdamW([p])), is_scale_invariant(torch.optim.SGD([p], momentum=0.9))
        (True, False)
    """
    return any(_normalises(kind.__name__.lower()) for layer in layers(optimizer) for kind in type(layer).__mro__)


def averaging(optimizer: Optimizer) -> str | None:
    """The class that keeps an average of the weights, or another sequence of them, beside the weights it trains.

    By name, as above: schedule-free optimizers, Lookahead, stochastic weight averaging and the like. Such a sequence
    is made inside the step, so it would not know of a factor that is put on the step afterwards. Not ASGD, whose
    average is a by-product.
    """
    kinds = [kind.__name__ for layer in layers(optimizer) for kind in type(layer).__mro__]
    return next((name for name in kinds if _AVERAGING.search(name)), None)


def layers(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer, what it wraps, what that wraps, and so on."""
    outermost_first = [optimizer]
    while True:
        candidates = (getattr(outermost_first[-1], name, None) for name in _INNER)
        inner = next((layer for layer in candidates if isinstance(layer, Optimizer)), None)
        if inner is None or any(inner is layer for layer in outermost_first):
            return outermost_first
        outermost_first.append(inner)


def _normalises(name: str) -> bool:
    return any(part in name for part in _NORMALISING)
