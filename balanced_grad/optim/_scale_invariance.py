from torch.optim import Optimizer

# By name, so that optimizers of other libraries and of newer releases of torch are known without importing them;
# parts of names, because those libraries prefix and suffix them: FusedAdam, PagedLion8bit, DistributedShampoo.
_NORMALISING = (
    *("adam", "adagrad", "adadelta", "adafactor", "adabelief", "adan", "rmsprop", "rprop", "yogi", "prodigy"),
    *("lamb", "novograd", "lion", "signsgd", "signum", "muon", "shampoo", "soap", "sophia"),
)
_INNER = ("base", "optimizer", "base_optimizer")


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


def layers(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizer, what it wraps, what that wraps, and so on."""
    found = [optimizer]
    while True:
        inner = next((getattr(found[-1], name, None) for name in _INNER if hasattr(found[-1], name)), None)
        if not isinstance(inner, Optimizer) or any(inner is layer for layer in found):
            return found
        found.append(inner)


def _normalises(name: str) -> bool:
    return any(part in name for part in _NORMALISING)
