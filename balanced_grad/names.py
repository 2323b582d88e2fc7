"""Names of losses: those that nothing belongs to are refused, those that look like a mistake are mentioned."""

import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from torch import Tensor

from balanced_grad.capture import JOINT
from balanced_grad.notices import Notices

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_ALL = {"mm", "overall", "total", "both", "ensemble"}
_FUSED = ("joint", "fuse", "fusion", "fusing", "multimodal", "combined")


def refuse_unknown(names: Iterable[str], known: Collection[str], what: str, those: str) -> None:
    """Refuse a loss that is neither the joint one nor one of the ``known``: it would silently act on nothing."""
    for name in names:
        if name != JOINT and name not in known:
            raise ValueError(
                f"loss {name!r} has no {what}; the {those} are {list(known)}, and the fused prediction's loss is "
                f"{JOINT!r}. A term of another kind is added to the scalar: balancer(losses) + term"
            )


def mention_suspicious(losses: Mapping[str, Tensor | None], notices: Notices) -> None:
    """Say once what is legal in a mapping of losses and yet is hardly ever meant."""
    names: dict[int, str] = {}
    for name, loss in losses.items():
        first = name if loss is None else names.setdefault(id(loss), name)
        if first != name:
            notices.say(
                ("same loss", first, name),
                f"losses {first!r} and {name!r} are the very same tensor, so its gradient counts twice and there is "
                "nothing to balance between them; give each modality a loss of its own, or leave one out",
            )
    if losses.get(JOINT) is None and JOINT not in losses:
        for name in filter(sounds_fused, losses):
            notices.say(
                ("fused", name),
                f"loss {name!r} sounds like that of the fused prediction but is taken for one more modality; "
                f"name it {JOINT!r}",
            )


@lru_cache(maxsize=1024)
def sounds_fused(name: str) -> bool:
    """Whether a name is what people call the loss of a fused prediction."""
    words = {word.lower() for word in _WORD.findall(name)}
    if words & _ALL or {"multi", "modal"} <= words:
        return True
    return any(word.startswith(_FUSED) or (word.endswith("joint") and word != "disjoint") for word in words)
