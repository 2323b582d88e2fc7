import io
from typing import Any

import torch

from balanced_grad.balancer import Balancer

StateDict = dict[str, Any]

# An entry of the first parameter group is what survives every road a checkpoint may take: a key beside "state" and
# "param_groups" is dropped by torch.distributed.checkpoint, a string in "state" is an error there, and tensors in
# "state" are cast to the dtype of their parameter. One value of bytes, because a checkpoint is read into a template
# from a fresh optimizer, which has no place yet for entries that appear only after the first step.
KEY = "balancer_state"


def with_state_of(balancer: Balancer, steps: int, state_dict: StateDict) -> StateDict:
    """The base optimizer's checkpoint with the balancer's state, and the steps made, in its first parameter group."""
    buffer = io.BytesIO()
    torch.save({"balancer": type(balancer).__name__, "state": balancer.state_dict(), "steps": steps}, buffer)
    first, *others = state_dict["param_groups"]
    return {**state_dict, "param_groups": [{**first, KEY: buffer.getvalue()}, *others]}


def split(state_dict: StateDict) -> tuple[StateDict, bytes | None]:
    """The base optimizer's part, and the balancer's if there is one; what was given stays as it is."""
    groups = state_dict.get("param_groups")
    if not groups or KEY not in groups[0]:
        return state_dict, None
    first = {key: value for key, value in groups[0].items() if key != KEY}
    return {**state_dict, "param_groups": [first, *groups[1:]]}, groups[0][KEY]


def balancer_state(packed: bytes, balancer: Balancer, steps: int) -> tuple[StateDict, int]:
    """What ``balancer.load_state_dict`` takes, and the steps made; a ``ValueError`` if another method wrote it.

    ``steps`` is the answer where they were not saved, in checkpoints of 0.1.
    """
    loaded = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
    mine, saved = type(balancer).__name__, loaded["balancer"]
    if saved != mine:
        raise ValueError(
            f"the checkpoint holds the state of a {saved} balancer, this optimizer's is a {mine}; "
            f"build it with {saved}, or load the optimizer alone: optimizer.base.load_state_dict(...)"
        )
    state: StateDict = loaded["state"]
    return state, loaded.get("steps", steps)
