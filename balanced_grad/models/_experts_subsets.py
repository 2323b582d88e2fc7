from collections.abc import Iterable, Mapping
from itertools import combinations

from torch import nn

from balanced_grad.capture import JOINT

Subset = str | tuple[str, ...]  # a modality, or those of a joint expert
_MOST = 4


def expert_subsets(modalities: Iterable[str], *, every: bool = False) -> list[Subset]:
    """Keys for the experts of ``ProductOfExperts``: each modality, and all of them jointly.

    Args:
        modalities: names.
        every: a joint expert for every set of two or more, ``2^M - 1`` experts in all, for up to four modalities.
            With more, let a ``NullTokenExpert`` stand for all of them.

    Raises:
        ValueError: for a name that occurs twice, or ``every`` with more than four modalities.

    Source: Madaan et al. (NeurIPS 2024), who take each modality and the full set for two modalities, and
    suggest all combinations for three or four.

    Examples:
        >>> from balanced_grad.models import expert_subsets
        >>> expert_subsets(["audio", "video", "text"])
        ['audio', 'video', 'text', ('audio', 'video', 'text')]
        >>> expert_subsets(["audio", "video", "text"], every=True)[3:]
        [('audio', 'video'), ('audio', 'text'), ('video', 'text'), ('audio', 'video', 'text')]
    """
    names = tuple(modalities)
    if len(set(names)) < len(names):
        raise ValueError(f"a modality occurs twice in {names}")
    if every and len(names) > _MOST:
        raise ValueError(
            f"{len(names)} modalities have {2 ** len(names) - 1} subsets; leave out every=True and make the joint "
            "expert a NullTokenExpert, which is one network for all of them"
        )
    sizes = range(2, len(names) + 1) if every else range(max(2, len(names)), len(names) + 1)
    return [*names, *(subset for size in sizes for subset in combinations(names, size))]


def named_subsets(experts: Mapping[Subset, nn.Module]) -> dict[str, tuple[str, ...]]:
    """Expert name -> its modalities."""
    if not isinstance(experts, Mapping) or not experts:
        raise TypeError("experts must be a non-empty mapping; write {'audio': net, ('audio', 'video'): fused_net}")
    out: dict[str, tuple[str, ...]] = {}
    for key, expert in experts.items():
        subset = (key,) if isinstance(key, str) else key
        if not (isinstance(subset, tuple) and subset and all(isinstance(m, str) for m in subset)):
            raise TypeError(f"{key!r} is no modality; write a name, or a tuple of names for a joint expert")
        if not isinstance(expert, nn.Module):
            raise TypeError(f"the expert of {key!r} is a {type(expert).__name__}, not an nn.Module")
        name = "+".join(subset)
        if name == JOINT:
            raise ValueError(f"{JOINT!r} is the name of the product's loss; call the modality something else")
        if name in out or len(set(subset)) < len(subset):
            raise ValueError(f"{key!r} names an expert or a modality twice: every expert has modalities of its own")
        out[name] = subset
    return out
